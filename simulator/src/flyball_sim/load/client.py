"""An open-loop client: each request leaves at its time in the trace, whatever became of those before it.

Latencies are what the client sees, from sending a request to each token's arrival. Nothing is retried: a broken
connection is an error of that request, as it would be for a user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from flyball_sim.load.endpoints import Balancer, EndpointsProvider
from flyball_sim.load.results import LoadResult, RequestResult
from flyball_sim.load.traces import TraceRequest

_EVENT_END = b"\n\n"
_DATA = b"data: "
_ERROR_TEXT_LENGTH = 200


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to replay: balancing, the model's name (None: each endpoint's first), and how long to wait."""

    round_robin: bool = False
    model: str | None = None
    timeout_seconds: float = 120.0
    refresh_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is."""

    total: int
    sent: int
    finished: int
    failed: int
    elapsed_seconds: float


class _AnswerError(Exception):
    """An answer that is not one; the message is the request's `error`."""


class _Replay:
    """One replay under way."""

    def __init__(
        self, session: aiohttp.ClientSession, provider: EndpointsProvider, options: ReplayOptions, total: int
    ) -> None:
        self._session = session
        self._provider = provider
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._balancer = Balancer(round_robin=options.round_robin)
        self._models: dict[str, str] = {}
        self._total = total
        self._sent = 0
        self._finished = 0
        self._failed = 0
        self.endpoint_errors = 0
        self.started = 0.0

    async def refresh(self) -> None:
        """Learn which endpoints are ready; when that fails, those known stay."""
        try:
            endpoints = await self._provider.ready()
        except Exception:  # noqa: BLE001 - a load run outlives any trouble of the API server, and counts it
            self.endpoint_errors += 1
            return
        if self._options.model is None:
            unknown = [endpoint for endpoint in endpoints if endpoint not in self._models]
            await asyncio.gather(*(self._learn_model(endpoint) for endpoint in unknown))
            endpoints = [endpoint for endpoint in endpoints if endpoint in self._models]
        self._balancer.update(endpoints)

    async def keep_fresh(self) -> None:
        """Refresh for as long as the replay lasts."""
        while True:
            await asyncio.sleep(self._options.refresh_seconds)
            await self.refresh()

    async def _learn_model(self, endpoint: str) -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
            async with self._session.get(f"{endpoint}/v1/models", timeout=aiohttp.ClientTimeout(5)) as response:
                self._models[endpoint] = (await response.json())["data"][0]["id"]

    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self._total, self._sent, self._finished, self._failed, self._loop.time() - self.started)

    async def one(self, request: TraceRequest) -> RequestResult:
        """Send one request now and read its answer to the end."""
        sent = self._loop.time()
        late = sent - self.started - request.arrival_seconds
        self._sent += 1
        endpoint = self._balancer.take()
        times: list[float] = []
        usage: dict[str, Any] = {}
        error: str | None = None
        if endpoint is None:
            error = "no ready endpoint"
        else:
            try:
                async with asyncio.timeout(self._options.timeout_seconds):
                    await self._stream(endpoint, request, times, usage)
            except TimeoutError:
                error = f"timeout: no complete answer within {self._options.timeout_seconds} s"
            except _AnswerError as failure:
                error = str(failure)
            except (aiohttp.ClientError, OSError) as failure:
                error = f"connection: {type(failure).__name__}: {failure}"
            finally:
                self._balancer.give_back(endpoint)
        self._finished += 1
        self._failed += error is not None
        tokens = int(usage.get("completion_tokens", len(times)))
        return RequestResult(
            arrival_seconds=request.arrival_seconds,
            late_seconds=late,
            endpoint=endpoint,
            prompt_tokens=request.prompt_tokens,
            asked_tokens=request.output_tokens,
            tokens=tokens,
            ttft_seconds=times[0] - sent if times else None,
            itl_mean_seconds=(times[-1] - times[0]) / (tokens - 1) if tokens > 1 and times else None,
            e2e_seconds=times[-1] - sent if times else None,
            error=error,
        )

    async def _stream(self, endpoint: str, request: TraceRequest, times: list[float], usage: dict[str, Any]) -> None:
        """Note when each event with text arrives, and the usage at the end."""
        model = self._options.model or self._models[endpoint]
        # Token ids give the prompt its exact length; which ids does not matter to a simulated engine.
        body = (
            f'{{"model":{json.dumps(model)},"prompt":[{"1," * (request.prompt_tokens - 1)}1],'
            f'"max_tokens":{request.output_tokens},"min_tokens":{request.output_tokens},"ignore_eos":true,'
            '"stream":true,"stream_options":{"include_usage":true}}'
        )
        headers = {"Content-Type": "application/json"}
        async with self._session.post(f"{endpoint}/v1/completions", data=body.encode(), headers=headers) as response:
            if response.status != 200:
                text = (await response.text())[:_ERROR_TEXT_LENGTH]
                raise _AnswerError(f"HTTP {response.status}: {text}")
            same = b""
            async for event in _events(response):
                if event == same:  # the same bytes again: one more token with the same text
                    times.append(self._loop.time())
                    continue
                if event == b"[DONE]":
                    return
                payload = _json_object(event)
                if payload.get("error"):
                    raise _AnswerError(f"error in the stream: {str(payload['error'])[:_ERROR_TEXT_LENGTH]}")
                usage.update(payload.get("usage") or {})
                if payload.get("choices"):
                    times.append(self._loop.time())
                    same = event
        raise _AnswerError("stream ended early: the answer stopped before [DONE]")


def _json_object(event: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(event)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        raise _AnswerError(f"not an answer: {event[:_ERROR_TEXT_LENGTH]!r}")
    return payload


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of each server-sent event, as it arrives."""
    rest = b""
    async for chunk in response.content.iter_any():
        *events, rest = (rest + chunk).split(_EVENT_END)
        for event in events:
            if event.startswith(_DATA):
                yield event[len(_DATA) :]


async def replay(
    requests: Sequence[TraceRequest],
    provider: EndpointsProvider,
    options: ReplayOptions | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> LoadResult:
    """Send the requests at their times to the endpoints that are ready then, and wait for all answers.

    Args:
        requests: by time of arrival; arrival 0 is when this starts, after the first look at the endpoints.
        provider: asked every `refresh_seconds` which endpoints are ready.
        options: see `ReplayOptions`.
        on_progress: called about four times a second, and at the end.

    Returns:
        One result per request, in their order.
    """
    options = options or ReplayOptions()
    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as helpers:
        run = _Replay(session, provider, options, len(requests))
        await run.refresh()
        refresher = helpers.create_task(run.keep_fresh())
        run.started = loop.time()
        started_unix = time.time()
        reporter = helpers.create_task(_report(run, on_progress)) if on_progress else None
        async with asyncio.TaskGroup() as answers:
            tasks = []
            for request in requests:
                await asyncio.sleep(max(0.0, run.started + request.arrival_seconds - loop.time()))
                tasks.append(answers.create_task(run.one(request)))
        duration = loop.time() - run.started
        refresher.cancel()
        if reporter is not None:
            reporter.cancel()
    if on_progress:
        on_progress(run.progress())
    return LoadResult(tuple(task.result() for task in tasks), started_unix, duration, run.endpoint_errors)


async def _report(run: _Replay, on_progress: Callable[[Progress], None]) -> None:
    while True:
        on_progress(run.progress())
        await asyncio.sleep(0.25)
