"""The client against small servers that answer, stall, break and lie."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from flyball_sim.load.client import Progress, ReplayOptions, replay
from flyball_sim.load.endpoints import FixedEndpoints
from flyball_sim.load.traces import TraceRequest

Answer = Callable[[web.Request, dict, web.StreamResponse], Awaitable[None]]
TOKEN = b'data: {"choices":[{"index":0,"text":" tok"}]}\n\n'


async def honest(_: web.Request, body: dict, response: web.StreamResponse) -> None:
    for _number in range(body["max_tokens"]):
        await response.write(TOKEN)
        await asyncio.sleep(0.005)
    usage = {"choices": [], "usage": {"completion_tokens": body["max_tokens"], "prompt_tokens": len(body["prompt"])}}
    await response.write(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")


class Server:
    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict] = []


@asynccontextmanager
async def server(answer: Answer = honest, status: int = 200) -> AsyncIterator[Server]:
    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        served.bodies.append(body)
        if status != 200:
            return web.json_response({"error": {"message": "too busy"}}, status=status)
        response = web.StreamResponse()
        await response.prepare(request)
        await answer(request, body, response)
        return response

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "its-own"}]})

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served = Server(f"http://127.0.0.1:{site.port}")
    try:
        yield served
    finally:
        await runner.cleanup()


def burst(count: int, gap: float = 0.0, tokens: int = 4) -> list[TraceRequest]:
    return [TraceRequest(number * gap, 30 + number, tokens) for number in range(count)]


async def test_each_request_is_sent_with_its_lengths_and_the_engines_own_model():
    async with server() as engine:
        result = await replay(burst(3), FixedEndpoints([engine.url]))
    assert sorted(len(body["prompt"]) for body in engine.bodies) == [30, 31, 32]
    for body in engine.bodies:
        assert body["model"] == "its-own"
        assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["stream"]) == (4, 4, True, True)
    assert [request.prompt_tokens for request in result.requests] == [30, 31, 32]
    assert all(request.error is None and request.tokens == 4 for request in result.requests)


async def test_latencies_are_those_the_client_sees():
    async with server() as engine:
        result = await replay(burst(1, tokens=20), FixedEndpoints([engine.url]))
    (request,) = result.requests
    assert request.ttft_seconds is not None
    assert request.itl_mean_seconds is not None
    assert request.e2e_seconds == pytest.approx(request.ttft_seconds + 19 * request.itl_mean_seconds)
    assert request.itl_mean_seconds >= 0.004
    assert 0 < request.ttft_seconds < request.e2e_seconds <= result.duration_seconds


async def test_requests_leave_at_their_times_whatever_became_of_those_before():
    async def never(*_: object) -> None:
        await asyncio.sleep(60)

    async with server(never) as engine:
        options = ReplayOptions(timeout_seconds=1.0)
        result = await replay(burst(5, gap=0.1), FixedEndpoints([engine.url]), options)
    assert len(engine.bodies) == 5
    assert 1.4 < result.duration_seconds < 4
    assert all(-0.001 <= request.late_seconds < 0.5 for request in result.requests)
    assert {request.error for request in result.requests} == {"timeout: no complete answer within 1.0 s"}


async def test_usage_counts_tokens_where_an_event_carries_several():
    async def by_two(_: web.Request, body: dict, response: web.StreamResponse) -> None:
        for _number in range(body["max_tokens"] // 2):
            await response.write(TOKEN)
            await asyncio.sleep(0.01)
        await response.write(b'data: {"choices":[],"usage":{"completion_tokens":4}}\n\ndata: [DONE]\n\n')

    async with server(by_two) as engine:
        (request,) = (await replay(burst(1), FixedEndpoints([engine.url]))).requests
    assert request.tokens == 4
    assert request.itl_mean_seconds == pytest.approx((request.e2e_seconds - request.ttft_seconds) / 3)


async def test_events_cut_anywhere_on_the_wire_are_put_together_again():
    async def crumbs(_: web.Request, body: dict, response: web.StreamResponse) -> None:
        text = TOKEN * body["max_tokens"] + b"data: [DONE]\n\n"
        for start in range(0, len(text), 7):
            await response.write(text[start : start + 7])
            await asyncio.sleep(0)

    async with server(crumbs) as engine:
        (request,) = (await replay(burst(1), FixedEndpoints([engine.url]))).requests
    assert (request.error, request.tokens) == (None, 4)


# -- errors ------------------------------------------------------------------------------------------------


async def test_a_refusal_is_an_error_with_its_status_and_is_not_retried():
    async with server(status=503) as engine:
        (request,) = (await replay(burst(1), FixedEndpoints([engine.url]))).requests
    assert request.error is not None
    assert request.error.startswith("HTTP 503: ")
    assert "too busy" in request.error
    assert len(engine.bodies) == 1


async def test_a_broken_connection_is_an_error_that_keeps_what_was_seen():
    async def breaks(request: web.Request, _: dict, response: web.StreamResponse) -> None:
        await response.write(TOKEN)
        assert request.transport is not None
        request.transport.abort()

    async with server(breaks) as engine:
        (request,) = (await replay(burst(1), FixedEndpoints([engine.url]))).requests
    assert request.error is not None
    assert request.error.startswith("connection: ")
    assert len(engine.bodies) == 1


@pytest.mark.parametrize(
    ("written", "error"),
    [
        (TOKEN, "stream ended early"),
        (b'data: {"error":{"message":"engine died"}}\n\n', "error in the stream: {'message': 'engine died'}"),
        (b"data: nonsense\n\n", "not an answer: b'nonsense'"),
        (b"data: [1]\n\n", "not an answer: b'[1]'"),
    ],
)
async def test_a_stream_that_is_no_answer_is_an_error(written, error):
    async def writes(_: web.Request, __: dict, response: web.StreamResponse) -> None:
        await response.write(written)

    async with server(writes) as engine:
        (request,) = (await replay(burst(1), FixedEndpoints([engine.url]))).requests
    assert request.error is not None
    assert request.error.startswith(error)


async def test_a_refused_connection_is_an_error_of_that_request():
    options = ReplayOptions(model="m")
    (request,) = (await replay(burst(1), FixedEndpoints(["http://127.0.0.1:1"]), options)).requests
    assert request.error is not None
    assert request.error.startswith("connection: ClientConnectorError")


async def test_with_no_endpoint_each_request_fails_and_the_run_goes_on():
    result = await replay(burst(3, gap=0.01), FixedEndpoints([]))
    assert {request.error for request in result.requests} == {"no ready endpoint"}
    assert {request.endpoint for request in result.requests} == {None}


# -- endpoints that come and go ----------------------------------------------------------------------------


class Changing:
    """Gives each answer in turn, the last for ever; an exception is raised."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self.answers = list(answers)

    async def ready(self) -> list[str]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_endpoints_that_come_and_go_are_followed_during_the_run():
    async with server() as first, server() as second:
        provider = Changing([first.url], [second.url])
        options = ReplayOptions(refresh_seconds=0.1)
        result = await replay(burst(20, gap=0.05), provider, options)
    used = [request.endpoint for request in result.requests]
    assert used[0] == first.url
    assert used[-1] == second.url
    assert all(request.error is None for request in result.requests)


async def test_an_api_server_that_fails_is_counted_and_the_known_endpoints_stay():
    async with server() as engine:
        provider = Changing([engine.url], OSError("refused"))
        result = await replay(burst(10, gap=0.05), provider, ReplayOptions(refresh_seconds=0.05))
    assert result.endpoint_errors > 0
    assert all(request.error is None for request in result.requests)


async def test_the_load_goes_to_the_endpoint_with_fewer_outstanding():
    async def slow(*_: object) -> None:
        await asyncio.sleep(60)

    async with server() as quick, server(slow) as stuck:
        options = ReplayOptions(timeout_seconds=2)
        result = await replay(burst(12, gap=0.1), FixedEndpoints([stuck.url, quick.url]), options)
    assert sum(request.endpoint == quick.url for request in result.requests) > 8


async def test_progress_ends_with_everything_finished():
    seen: list[Progress] = []
    async with server() as engine:
        await replay(burst(3), FixedEndpoints([engine.url]), on_progress=seen.append)
    assert (seen[-1].total, seen[-1].sent, seen[-1].finished, seen[-1].failed) == (3, 3, 3, 0)
