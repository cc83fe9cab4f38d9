"""vLLM's HTTP face over the engine runtime: completions, models, health and metrics."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from flyball_sim.engine.metrics import CONTENT_TYPE, EngineMetrics
from flyball_sim.engine.protocol import (
    Answer,
    BadRequestError,
    board_body,
    error_body,
    parse_completion,
    parse_limits,
    require_context,
)
from flyball_sim.engine.requests import EngineRefusalError, EngineRequest, QueueFullError, RequestTiming
from flyball_sim.engine.runtime import EngineRuntime, TokenStream

VLLM_VERSION = "0.33.0"
"""The vLLM whose names this engine speaks."""
MAX_BODY_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The names and context length a server answers for; the first name labels the metrics."""

    names: tuple[str, ...]
    max_model_len: int


@dataclass(frozen=True, slots=True)
class _Ending:
    """How an answer ends: its length, the finish reason, and the most tokens it could have had."""

    output_tokens: int
    reason: str
    max_tokens: int


def _error(message: str, *, kind: str, status: int, param: str | None = None) -> web.Response:
    return web.json_response(error_body(message, kind=kind, status=status, param=param), status=status)


class EngineServer:
    """The handlers of one engine.

    Args:
        runtime: the running engine.
        metrics: its counters.
        served: what clients may ask for.
        natural_length: draws the length, in tokens, of an answer the model ends by itself.
    """

    def __init__(
        self,
        runtime: EngineRuntime,
        metrics: EngineMetrics,
        served: ServedModel,
        natural_length: Callable[[], int],
    ) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._served = served
        self._natural_length = natural_length
        self._created = int(time.time())
        self._draining = False

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._scrape)
        app.router.add_get("/metrics/", self._scrape)
        app.router.add_get("/flyball/board", self._board)
        app.router.add_post("/flyball/limits", self._limits)
        return app

    async def drain(self, grace_seconds: float) -> int:
        """Take no more requests and wait until those here are answered; returns how many were not in time."""
        self._draining = True
        return await self._runtime.drained(grace_seconds)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._draining else 200)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VLLM_VERSION})

    async def _models(self, _: web.Request) -> web.Response:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "vllm",
                "root": self._served.names[0],
                "parent": None,
                "max_model_len": self._served.max_model_len,
            }
            for name in self._served.names
        ]
        return web.json_response({"object": "list", "data": cards})

    async def _scrape(self, _: web.Request) -> web.Response:
        # Always this format: whoever accepts OpenMetrics gets colons all the same, as from vLLM's own route.
        return web.Response(body=self._metrics.render(self._runtime.state()), headers={"Content-Type": CONTENT_TYPE})

    async def _board(self, _: web.Request) -> web.Response:
        return web.json_response(board_body(self._runtime.board()))

    async def _limits(self, http: web.Request) -> web.Response:
        try:
            asked = parse_limits(await http.read(), self._runtime.max_batch_limit)
        except BadRequestError as error:
            return _error(str(error), kind=error.kind, status=error.status, param=error.param)
        self._runtime.set_limits(asked.batch_limit, asked.admit, asked.seconds)
        return web.Response(status=204)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _answer(self, http: web.Request, *, chat: bool) -> web.StreamResponse:
        if self._draining:
            return _error("The engine is shutting down: try another replica", kind="ServiceUnavailable", status=503)
        try:
            asked = parse_completion(await http.read(), chat=chat)
            if asked.model not in self._served.names:
                raise BadRequestError(
                    f"The model `{asked.model}` does not exist: this engine serves {', '.join(self._served.names)}",
                    "model",
                    status=404,
                    kind="NotFoundError",
                )
            max_tokens = require_context(asked, self._served.max_model_len)
            output_tokens = max_tokens
            if not asked.ignore_eos:
                output_tokens = min(max_tokens, max(asked.min_tokens, self._natural_length()))
            request_id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
            request = EngineRequest(request_id, asked.prompt_tokens, output_tokens)
            stream = self._runtime.submit(request, live=asked.stream)
        except BadRequestError as error:
            return _error(str(error), kind=error.kind, status=error.status, param=error.param)
        except EngineRefusalError as error:
            return _error(str(error), kind="BadRequestError", status=400, param="max_tokens")
        except QueueFullError as error:
            return _error(str(error), kind="ServiceUnavailable", status=503)
        answer = Answer(asked, request_id, int(time.time()))
        reason = "length" if output_tokens == max_tokens else "stop"
        respond = self._stream if asked.stream else self._whole
        try:
            return await respond(http, stream, answer, _Ending(output_tokens, reason, max_tokens))
        finally:
            self._runtime.abandon(stream)

    async def _stream(
        self, http: web.Request, stream: TokenStream, answer: Answer, ending: _Ending
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        timing: RequestTiming | None = None
        while timing is None:
            taken = await stream.take()
            timing = taken.finished
            body = answer.token_event * (taken.tokens if timing is None else taken.tokens - 1)
            if timing is not None:
                body += answer.last_events(ending.output_tokens, ending.reason)
            await response.write(body)
            self._runtime.wrote(stream, taken)
        self._runtime.finished(stream, timing, ending.reason, ending.max_tokens)
        await response.write_eof()
        return response

    async def _whole(self, _: web.Request, stream: TokenStream, answer: Answer, ending: _Ending) -> web.StreamResponse:
        timing: RequestTiming | None = None
        while timing is None:
            timing = (taken := await stream.take()).finished
        self._runtime.wrote(stream, taken)
        self._runtime.finished(stream, timing, ending.reason, ending.max_tokens)
        return web.json_response(answer.whole(ending.output_tokens, ending.reason))


@asynccontextmanager
async def listening(server: EngineServer, host: str, port: int) -> AsyncIterator[int]:
    """Serve for the length of the block; gives the port (that the kernel chose, for port 0)."""
    # A client that goes away cancels its handler, which takes the request out of the batch.
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield site.port
    finally:
        await runner.cleanup()
