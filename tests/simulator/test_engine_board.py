"""What an engine says of its scheduler, and the two limits it takes at run time: in virtual time and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_agent.controllers.base import RequestView
from flyball_sim.engine.gpus import FreeRunningGpus
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.metrics import EngineMetrics
from flyball_sim.engine.models import BLOCK_TOKENS, step_model
from flyball_sim.engine.protocol import BadRequestError, parse_limits
from flyball_sim.engine.requests import EngineLimits, EngineRequest
from flyball_sim.engine.runtime import EngineRuntime
from flyball_sim.engine.server import EngineServer, ServedModel, listening
from flyball_sim.gpu.types import GPU_TYPES

MODEL = step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1)


def machine(kv_blocks: int = 10_000, **limits: int) -> Machine:
    bounds = EngineLimits(**{"max_model_len": 131_072, **limits})
    return Machine(replace(MODEL, kv_blocks=kv_blocks), bounds, actuation_delays=False)


def names(engine: Machine, *, running: bool) -> list[str]:
    return [request.request_id for request in engine.board().requests if request.running is running]


# -- the board ---------------------------------------------------------------------------------------------


def test_the_board_of_an_idle_engine_has_its_sizes_and_no_requests():
    board = machine(kv_blocks=77, max_num_seqs=12).board()
    assert (board.iteration, board.requests) == (0, ())
    assert (board.block_tokens, board.kv_blocks, board.batch_limit, board.max_batch_limit) == (BLOCK_TOKENS, 77, 12, 12)


def test_the_board_shows_who_runs_first_and_then_who_waits_in_order():
    engine = machine(max_num_seqs=2)
    for number, name in enumerate("abcd"):
        engine.submit(EngineRequest(name, 100, 50), 0.01 * number)
    engine.advance(0.2)
    assert (names(engine, running=True), names(engine, running=False)) == (["a", "b"], ["c", "d"])
    last = engine.board().requests[-1]
    assert last == RequestView("d", pytest.approx(0.17), 100, 0, running=False, output_tokens=50)


def test_a_running_request_shows_its_tokens_and_when_it_was_scheduled():
    engine = machine()
    engine.submit(EngineRequest("first", 3000, 400), 1.0)
    engine.submit(EngineRequest("second", 3000, 400, cached_tokens=1600), 1.0)
    engine.advance(1.001)
    first, second = engine.board().requests
    assert (first.running, first.generated_tokens, first.computed_tokens, first.scheduled_age_seconds) == (
        True, 0, 0, pytest.approx(0.001),
    )  # fmt: skip
    assert (second.running, second.computed_tokens, second.scheduled_age_seconds) == (False, 1600, None)
    engine.advance(3.0)
    steps = engine.board().iteration
    first = engine.board().requests[0]
    assert (first.computed_tokens, first.age_seconds) == (3000, pytest.approx(2.0))
    assert 100 < first.generated_tokens < steps < 400
    engine.advance(3.0 + 10 * 0.01)
    later = engine.board()
    assert later.requests[0].generated_tokens - first.generated_tokens == later.iteration - steps


def test_looking_at_the_board_changes_nothing():
    looked, left = machine(), machine()
    for engine in (looked, left):
        for number in range(20):
            engine.submit(EngineRequest(str(number), 300, 40 + number), 0.05 * number)
            engine.advance(0.05 * number + 0.02)
            if engine is looked:
                engine.board()
        engine.advance(30.0)
    assert [timing[:3] for timing in looked.take_finished()] == [timing[:3] for timing in left.take_finished()]
    assert looked.energy_joules == pytest.approx(left.energy_joules, rel=1e-9)


# -- admission ---------------------------------------------------------------------------------------------


def test_nobody_enters_the_batch_while_admission_is_closed_and_idle_cards_stay_idle():
    engine, idle = machine(), machine()
    engine.set_admission(0.0, 0)
    for number, name in enumerate("abc"):
        engine.submit(EngineRequest(name, 10, 20), 0.1 * number)
    engine.set_lock(1.0, (345, 1200))
    engine.set_lock(1.5, None)
    engine.advance(5.0)
    idle.set_lock(1.0, (345, 1200))
    idle.set_lock(1.5, None)
    idle.advance(5.0)
    assert (engine.running, engine.waiting, engine.next_event_seconds()) == (0, 3, None)
    assert engine.energy_joules == pytest.approx(idle.energy_joules)


def test_so_many_are_admitted_as_it_was_said_the_oldest_first_until_it_is_said_again():
    engine = machine()
    engine.set_admission(0.0, 0)
    for name in "abcd":
        engine.submit(EngineRequest(name, 10, 1000), 0.0)
    engine.set_admission(1.0, 2)
    engine.advance(2.0)
    engine.submit(EngineRequest("e", 10, 1000), 2.0)
    engine.advance(3.0)
    assert (names(engine, running=True), names(engine, running=False)) == (["a", "b"], ["c", "d", "e"])
    engine.set_admission(3.0, 1)
    engine.advance(3.1)
    assert names(engine, running=True) == ["a", "b", "c"]
    engine.set_admission(4.0, None)
    engine.advance(4.1)
    assert names(engine, running=True) == ["a", "b", "c", "d", "e"]


def test_a_batch_limit_of_none_is_the_engines_own():
    engine = machine(max_num_seqs=3)
    for name in "abcd":
        engine.submit(EngineRequest(name, 10, 1000), 0.0)
    engine.set_batch_limit(0.0, 1)
    assert engine.board().batch_limit == 1
    engine.set_batch_limit(1.0, None)
    engine.advance(1.5)
    assert (engine.board().batch_limit, engine.running) == (3, 3)


@given(
    work=st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(1, 200), st.integers(1, 40)), min_size=1, max_size=12),
    gates=st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(0, 3)), max_size=8),
    kv_blocks=st.integers(16, 60),
)
@settings(deadline=None, max_examples=60)
def test_no_request_is_lost_behind_a_gate_and_none_slips_through(work, gates, kv_blocks):
    engine = machine(kv_blocks)
    stops, now = [], 0.0
    for number, (gap, prompt, output) in enumerate(work):
        now += gap
        stops.append((now, EngineRequest(str(number), prompt, output)))
    now = 0.0
    for gap, admit in gates:
        now += gap
        stops.append((now, admit))
    engine.set_admission(0.0, 0)
    allowed = 0
    for moment, what in sorted(stops, key=lambda stop: stop[0]):
        engine.advance(moment)
        if isinstance(what, EngineRequest):
            engine.submit(what, moment)
        else:
            engine.set_admission(moment, what)
            allowed += what
        entered = sum(request.scheduled_age_seconds is not None for request in engine.board().requests)
        assert entered <= allowed
    last = stops[-1][0] + 1.0 if stops else 1.0
    engine.set_admission(max(last, engine.now_seconds), None)
    while (due := engine.next_event_seconds()) is not None:
        engine.advance(due)
    assert sorted(timing.request_id for timing in engine.take_finished()) == sorted(map(str, range(len(work))))


# -- over HTTP ---------------------------------------------------------------------------------------------


class Engine:
    """A served engine and a client of it."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url, self._http = url, http

    async def board(self) -> dict:
        async with self._http.get(f"{self._url}/flyball/board") as response:
            assert response.status == 200
            return await response.json()

    async def limit(self, **body: object) -> int:
        async with self._http.post(f"{self._url}/flyball/limits", json=body) as response:
            return response.status

    async def ask(self, tokens: int) -> int:
        body = {"model": "chat", "prompt": [1] * 40, "max_tokens": tokens, "ignore_eos": True}
        async with self._http.post(f"{self._url}/v1/completions", json=body) as response:
            return (await response.json())["usage"]["completion_tokens"]

    async def until_here(self, count: int) -> dict:
        for _ in range(1000):
            board = await self.board()
            if len(board["requests"]) == count:
                return board
            await asyncio.sleep(0.005)
        raise AssertionError(f"there never were {count} requests")


@asynccontextmanager
async def serving() -> AsyncIterator[Engine]:
    metrics = EngineMetrics("chat", max_model_len=4000, kv_blocks=MODEL.kv_blocks, created_seconds=0.0)
    runtime = EngineRuntime(MODEL, EngineLimits(4000, max_num_seqs=8), FreeRunningGpus(1980), metrics)
    server = EngineServer(runtime, metrics, ServedModel(("chat",), 4000), natural_length=lambda: 6)
    try:
        async with listening(server, "127.0.0.1", 0) as port, aiohttp.ClientSession() as http:
            yield Engine(f"http://127.0.0.1:{port}", http)
    finally:
        runtime.close()


async def test_over_http_the_board_shows_a_closed_gate_and_opening_it_lets_the_requests_through():
    async with serving() as engine:
        assert await engine.limit(admit=0, batchLimit=4) == 204
        asked = [asyncio.create_task(engine.ask(5)) for _ in range(2)]
        board = await engine.until_here(2)
        assert (board["batchLimit"], board["maxBatchLimit"], board["blockTokens"]) == (4, 8, BLOCK_TOKENS)
        assert board["kvBlocks"] == MODEL.kv_blocks
        shown = board["requests"][0]
        assert shown["ageSeconds"] >= 0
        assert {name: value for name, value in shown.items() if name not in {"id", "ageSeconds"}} == {
            "promptTokens": 40, "generatedTokens": 0, "running": False, "scheduledAgeSeconds": None,
            "computedTokens": 0, "outputTokens": 5,
        }  # fmt: skip
        assert await engine.limit() == 204
        assert await asyncio.gather(*asked) == [5, 5]
        assert (await engine.board())["batchLimit"] == 8


async def test_limits_given_for_a_time_are_lifted_when_nobody_renews_them():
    async with serving() as engine:
        assert await engine.limit(admit=0, seconds=0.05) == 204
        assert await engine.ask(3) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "no JSON"),
        (b"[]", "JSON object"),
        (b'{"admitt": 1}', "field admitt is unknown: give batchLimit, admit or seconds"),
        (b'{"admit": -1}', "admit must be at least 0"),
        (b'{"admit": true}', "admit is true: it must be an integer"),
        (b'{"batchLimit": 0}', "batchLimit must be at least 1"),
        (b'{"batchLimit": 9}', "batchLimit is 9: give 1 to 8"),
        (b'{"seconds": 0}', "seconds is 0: give a number above 0"),
        (b'{"seconds": NaN}', "seconds is NaN"),
    ],
)
def test_limits_out_of_their_bounds_are_refused_by_name(body, message):
    with pytest.raises(BadRequestError, match=message):
        parse_limits(body, 8)


async def test_refused_limits_change_nothing():
    async with serving() as engine:
        assert await engine.limit(batchLimit=9, admit=0) == 400
        assert await engine.ask(2) == 2
