"""Measures a live engine: load over HTTP, time from its own counters, energy from the cards' counters."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from flyball_agent.profiles import DecodePoint, LoadPoint, PrefillPoint
from flyball_agent.profiling.cards import HeldCards
from flyball_agent.profiling.engine import EngineApi
from flyball_agent.profiling.plan import KV_SHARE, DecodeTask, Ground, LoadTask, PrefillTask
from flyball_agent.profiling.rig import RigError
from flyball_agent.scanner import EngineSample

QUIET_SECONDS: Final = 3.0
_TRIES: Final = 3
_LOOK_SECONDS: Final = 0.05
_MOST_OUTPUT: Final = 16_384
_START_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things are let go on.

    Attributes:
        settle_seconds: from a lock or a cap to the begin of a window.
        window_seconds: least length of a window; energy counters move ten times a second.
    """

    settle_seconds: float = 1.2
    window_seconds: float = 1.5

    @property
    def longest_seconds(self) -> float:
        """After so long a load is measured by the requests that have finished: a slow card must not hold all up."""
        return 20.0 * self.window_seconds


@dataclass(frozen=True, slots=True)
class _Mark:
    """Counters at one moment."""

    seconds: float
    page: EngineSample
    joules: float


class LiveRig:
    """See `Rig`.

    Args:
        runner: of the loop that everything below runs in.
        engine: to be profiled.
        cards: its.
        ground: what the plan was made for.
        clock: monotonic seconds.
        pace: of measuring.
    """

    def __init__(
        self,
        runner: asyncio.Runner,
        engine: EngineApi,
        cards: HeldCards,
        ground: Ground,
        *,
        clock: Callable[[], float],
        pace: Pace = Pace(),
    ) -> None:
        self._runner = runner
        self._engine = engine
        self._cards = cards
        self._ground = ground
        self._clock = clock
        self._pace = pace
        self._requests: set[asyncio.Task[float]] = set()

    def decode(self, task: DecodeTask) -> Iterator[DecodePoint]:
        """See `Rig`."""
        try:
            for sm_mhz in task.clocks_mhz:
                yield self._runner.run(self._decode(task, sm_mhz))
        finally:
            self._runner.run(self._stop())

    def prefill(self, task: PrefillTask) -> Iterator[PrefillPoint]:
        """See `Rig`."""
        for sm_mhz in task.clocks_mhz:
            yield self._runner.run(self._prefill(task.prompt_tokens, sm_mhz))

    def load(self, task: LoadTask) -> LoadPoint:
        """See `Rig`."""
        return self._runner.run(self._load(task))

    # -- decode ----------------------------------------------------------------------------------------------

    async def _decode(self, task: DecodeTask, sm_mhz: int) -> DecodePoint:
        for _ in range(_TRIES):
            if not self._requests:
                await self._start_batch(task)
            await self._set_clock(sm_mhz)
            await asyncio.sleep(self._pace.settle_seconds)
            began = await self._mark()
            await asyncio.sleep(self._pace.window_seconds)
            ended = await self._mark()
            if all(not request.done() for request in self._requests):
                return self._decode_point(task, sm_mhz, began, ended)
            # The answers ended within the window: what is left is no batch of this size.
            await self._stop()
        raise RigError(
            f"a batch of {task.running} ended {_TRIES} times within {self._pace.window_seconds} s at {sm_mhz} MHz: the"
            f" engine's context of {self._ground.max_model_len} tokens is too short for this window"
        )

    async def _start_batch(self, task: DecodeTask) -> None:
        await self._set_clock(None)
        self._begun = await self._engine.page()
        room = min(self._ground.max_model_len - task.prompt_tokens, _MOST_OUTPUT)
        if self._ground.kv_tokens:
            room = min(room, int(KV_SHARE * self._ground.kv_tokens / task.running) - task.prompt_tokens)
        self._requests = {
            asyncio.create_task(self._engine.complete(task.prompt_tokens, room)) for _ in range(task.running)
        }
        give_up = self._clock() + _START_SECONDS
        while True:
            page = await self._engine.page()
            running = page.values.get("requests_running", 0.0)
            if running > task.running:
                raise RigError(f"the engine runs {running:.0f} sequences, and we sent {task.running}: others use it")
            prompts = _counted(page, "prompt_tokens") - _counted(self._begun, "prompt_tokens")
            if running == task.running and prompts >= task.running * task.prompt_tokens:
                return
            for request in self._requests:
                if request.done():
                    request.result()
            if self._clock() > give_up:
                raise RigError(
                    f"the engine runs {running:.0f} of {task.running} sequences after {_START_SECONDS:.0f} s: give"
                    " --max-batch its own limit"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    def _decode_point(self, task: DecodeTask, sm_mhz: int, began: _Mark, ended: _Mark) -> DecodePoint:
        seconds = ended.seconds - began.seconds
        tokens = _counted(ended.page, "generation_tokens") - _counted(began.page, "generation_tokens")
        if tokens <= 0.0:
            raise RigError(f"the engine generated nothing in {seconds:.1f} s at {sm_mhz} MHz: see its log")
        at = (_counted(began.page, "generation_tokens") + _counted(ended.page, "generation_tokens")) / 2.0
        held = task.running * task.prompt_tokens + at - _counted(self._begun, "generation_tokens")
        return DecodePoint(sm_mhz, task.running, held, task.running * seconds / tokens, self._watts(began, ended))

    # -- prefill ---------------------------------------------------------------------------------------------

    async def _prefill(self, prompt_tokens: int, sm_mhz: int) -> PrefillPoint:
        await self._set_clock(sm_mhz)
        # Work while the clock settles, or an idle card would be measured.
        await self._prompts(prompt_tokens, self._pace.settle_seconds, 1)
        began = await self._mark()
        await self._prompts(prompt_tokens, self._pace.window_seconds, 2)
        ended = await self._mark()
        before, after = _histogram(began.page, "time_to_first_token"), _histogram(ended.page, "time_to_first_token")
        seconds = (after[1] - before[1]) / max(after[0] - before[0], 1.0)
        return PrefillPoint(sm_mhz, prompt_tokens, seconds, self._watts(began, ended))

    async def _prompts(self, prompt_tokens: int, least_seconds: float, least: int) -> None:
        until, sent = self._clock() + least_seconds, 0
        while sent < least or self._clock() < until:
            await self._engine.complete(prompt_tokens, 1)
            sent += 1

    # -- load ------------------------------------------------------------------------------------------------

    async def _load(self, task: LoadTask) -> LoadPoint:
        await self._cards.set(None, task.cap_watts)
        lengths = cycle(task.lengths)
        took: list[tuple[float, int]] = []

        async def client() -> float:
            while True:
                prompt, output = next(lengths)
                took.append((await self._engine.complete(prompt, output), output))

        async with self._clients([client() for _ in range(task.batch_limit)]):
            await self._until(took, task.batch_limit, self._pace.settle_seconds)
            # Each client is at another place of its answer by now.
            began = await self._mark()
            took.clear()
            await self._until(took, task.requests, self._pace.window_seconds)
            ended = await self._mark()
        seconds = ended.seconds - began.seconds
        tokens = _counted(ended.page, "generation_tokens") - _counted(began.page, "generation_tokens")
        before, after = _histogram(began.page, "time_to_first_token"), _histogram(ended.page, "time_to_first_token")
        first = (after[1] - before[1]) / max(after[0] - before[0], 1.0)
        per_token = sorted(max(total - first, 1e-6) / max(output - 1, 1) for total, output in took)
        return LoadPoint(
            cap_watts=task.cap_watts,
            batch_limit=task.batch_limit,
            gpus=self._ground.gpus,
            tokens_per_second=tokens / seconds,
            power_watts=self._watts(began, ended),
            tpot_p95_seconds=per_token[math.ceil(0.95 * len(per_token)) - 1],
        )

    async def _until(self, took: list[tuple[float, int]], requests: int, least_seconds: float) -> None:
        began = self._clock()
        while True:
            passed, enough = self._clock() - began, len(took) >= requests
            if passed >= least_seconds and (enough or (passed >= self._pace.longest_seconds and took)):
                return
            for task in self._requests:
                if task.done():
                    task.result()
            await asyncio.sleep(_LOOK_SECONDS)

    @asynccontextmanager
    async def _clients(self, clients: list[Coroutine[None, None, float]]) -> AsyncIterator[None]:
        self._requests = {asyncio.create_task(client) for client in clients}
        try:
            yield
        finally:
            await self._stop()

    # -- both ------------------------------------------------------------------------------------------------

    async def _set_clock(self, sm_mhz: int | None) -> None:
        """Lock the clock with no cap in its way."""
        await self._cards.set(sm_mhz, round(self._ground.cap_max_watts))

    async def _mark(self) -> _Mark:
        page, joules = await asyncio.gather(self._engine.page(), self._cards.joules())
        return _Mark(self._clock(), page, joules)

    def _watts(self, began: _Mark, ended: _Mark) -> float:
        return (ended.joules - began.joules) / (ended.seconds - began.seconds) / self._ground.gpus

    async def _stop(self) -> None:
        """Break off what is under way, and wait until the engine has forgotten it."""
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        self._requests = set()
        give_up = self._clock() + _START_SECONDS
        while await self.in_use():
            if self._clock() > give_up:
                raise RigError("the engine goes on after all our requests were broken off: others use it")
            await asyncio.sleep(_LOOK_SECONDS)

    async def in_use(self) -> bool:
        """Whether anything runs or waits in the engine now."""
        page = await self._engine.page()
        return _counted(page, "requests_running") + _counted(page, "requests_waiting") > 0.0


async def why_serving(engine: EngineApi, quiet_seconds: float = QUIET_SECONDS) -> str:
    """Why the engine must not be disturbed: it serves somebody; empty when it does not."""
    before = await engine.page()
    await asyncio.sleep(quiet_seconds)
    after = await engine.page()
    here = _counted(after, "requests_running") + _counted(after, "requests_waiting")
    if here:
        return f"the engine has {here:.0f} requests running or waiting"
    for name, what in (("generation_tokens", "generated"), ("prompt_tokens", "read")):
        grown = _counted(after, name) - _counted(before, name)
        if grown:
            return f"the engine {what} {grown:.0f} tokens within {quiet_seconds:g} s"
    return ""


def _counted(page: EngineSample, name: str) -> float:
    if name not in page.values:
        raise RigError(f"the engine's metrics lack {name}: profile an engine that serves vLLM's metrics")
    return page.values[name]


def _histogram(page: EngineSample, name: str) -> tuple[float, float]:
    found = page.histograms.get(name)
    if found is None:
        raise RigError(f"the engine's metrics lack {name}: profile an engine that serves vLLM's metrics")
    return found.count, found.total
