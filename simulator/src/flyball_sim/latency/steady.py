"""A closed loop of equal requests at steady state: what a serving benchmark with fixed lengths and concurrency sees.

Scheduling is vLLM's, as in `engine.core`, for requests that all have the same lengths: those that move in lockstep
are one group, and decode steps between events are added up in closed form. So a run costs a few hundred steps
however long the answers are. The clients begin spread evenly over the life of a request, as lengths and arrivals
that vary spread them in time, so that each request meets the prefill of every other one once while it decodes.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean

from flyball_sim.gpu.model import unlocked_or_locked_mhz
from flyball_sim.gpu.steps import settle, step_seconds
from flyball_sim.latency.steps import StepCost, StepModel

API_SECONDS = 15.6e-3
"""From the end of one request to the scheduling of the client's next: BLIS's fit to vLLM's API server."""
_JITTER = (0.5, 1.5)
_LONGEST_SEGMENT = 256
_WARM_UP = 2
_MEASURED = 3


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of `isl` prompt and `osl` output tokens, `concurrency` of them at a time."""

    isl: int
    osl: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What bounds the engine and its cards: tokens in a step, sequences at a time, lock and cap."""

    max_num_batched_tokens: int
    max_num_seqs: int
    sm_mhz: int | None
    cap_watts: float


@dataclass(frozen=True, slots=True)
class SteadyState:
    """Means over the measured part of a run; `batch` is the sequences in decode, `sm_mhz` weighted by time."""

    tpot_seconds: float
    ttft_seconds: float
    tokens_per_second: float
    watts: float
    joules_per_token: float
    batch: float
    sm_mhz: float
    capped_share: float


class _Group:
    """Sequences in decode that hold equally many tokens."""

    __slots__ = ("arrivals", "first", "left")

    def __init__(self, left: int, first: float, arrivals: list[float]) -> None:
        self.left = left
        self.first = first
        self.arrivals = arrivals


class _Prompt:
    __slots__ = ("arrival", "computed")

    def __init__(self, arrival: float) -> None:
        self.arrival = arrival
        self.computed = 0


class _Loop:
    def __init__(self, model: StepModel, load: Load, bounds: Bounds, seed: int) -> None:
        self.model = model
        self.load = load
        self.bounds = bounds
        self.lock = None if bounds.sm_mhz is None else (bounds.sm_mhz, bounds.sm_mhz)
        self.random = random.Random(seed)  # noqa: S311
        self.now = 0.0
        self.groups: list[_Group] = []
        self.prompts: deque[_Prompt] = deque()  # admitted, in prefill
        self.coming: list[float] = []
        self.waiting: deque[float] = deque()
        self.decodes = 0
        self.held = 0
        self.reset()

    def reset(self) -> None:
        """Begin to measure."""
        self.began = self.now
        self.tokens = self.finished = 0
        self.tpot = self.ttft = self.joules = self.clock_time = self.decode_time = self.capped = 0.0

    def send(self, after_seconds: float = 0.0) -> None:
        """The next request of a client, so long after it could be sent."""
        api_seconds = API_SECONDS * self.random.uniform(*_JITTER)
        heapq.heappush(self.coming, self.now + after_seconds + api_seconds)

    def account(self, cost: StepCost, steps: int) -> None:
        """Run `steps` steps that cost `cost` on average."""
        gpu = self.model.gpu
        sm_mhz, watts, reasons = settle(gpu, cost, self.bounds.cap_watts, self.lock)
        seconds = steps * step_seconds(gpu, cost, sm_mhz, self.model.reference_mhz)
        self.now += seconds
        self.joules += watts * seconds
        self.clock_time += sm_mhz * seconds
        self.decode_time += self.decodes * seconds
        self.capped += seconds if reasons else 0.0

    def admit(self) -> None:
        while self.coming and self.coming[0] <= self.now:
            self.waiting.append(heapq.heappop(self.coming))
        room = self.bounds.max_num_seqs - self.decodes - len(self.prompts)
        while self.waiting and room > 0:
            self.prompts.append(_Prompt(self.waiting.popleft()))
            room -= 1

    def decode(self) -> None:
        """Pure decode steps up to the next end of a request, arrival or change of the clock."""
        line = self.model.decode_line(self.decodes)
        steps = min(self.groups[0].left, _LONGEST_SEGMENT)

        def mean(count: int) -> StepCost:
            held = self.held + self.decodes * (count - 1) / 2
            return StepCost(
                line.host_seconds,
                line.fixed_seconds + line.fixed_seconds_per_token * held,
                line.clocked_seconds + line.clocked_seconds_per_token * held,
                line.memory_bytes + line.memory_bytes_per_token * held,
                line.flops + line.flops_per_token * held,
            )

        if self.coming and self.decodes + len(self.prompts) < self.bounds.max_num_seqs:
            one = step_seconds(self.model.gpu, mean(1), self.model.gpu.sm_max_mhz, self.model.reference_mhz)
            steps = min(steps, max(1, math.ceil((self.coming[0] - self.now) / one)))
        self.account(mean(steps), steps)
        self.advance(steps)

    def mixed(self) -> None:
        """One step with prompts in it."""
        budget = self.bounds.max_num_batched_tokens - self.decodes
        chunks: list[tuple[int, int]] = []
        done: list[_Prompt] = []
        for prompt in self.prompts:
            if budget <= 0:
                break
            now = min(budget, self.load.isl - prompt.computed)
            chunks.append((prompt.computed, now))
            prompt.computed += now
            budget -= now
            if prompt.computed == self.load.isl:
                done.append(prompt)
        self.account(self.model.cost(self.decodes, self.held, chunks), 1)
        for _ in done:
            self.prompts.popleft()
        if self.decodes:
            self.advance(1)
        if done:
            self.tokens += len(done)
            self.groups.append(_Group(self.load.osl - 1, self.now, [prompt.arrival for prompt in done]))
            self.decodes += len(done)
            self.held += self.load.isl * len(done)

    def advance(self, steps: int) -> None:
        self.tokens += steps * self.decodes
        self.held += steps * self.decodes
        for group in self.groups:
            group.left -= steps
        while self.groups and self.groups[0].left <= 0:
            group = self.groups.pop(0)
            count = len(group.arrivals)
            self.decodes -= count
            self.held -= count * (self.load.isl + self.load.osl - 1)
            self.finished += count
            self.tpot += count * (self.now - group.first) / (self.load.osl - 1)
            self.ttft += sum(group.first - arrival + API_SECONDS for arrival in group.arrivals)
            for _ in range(count):
                self.send()

    def run(self, until_finished: int) -> None:
        while self.finished < until_finished:
            self.admit()
            if self.prompts:
                self.mixed()
            elif self.groups:
                self.decode()
            else:
                idle = self.coming[0] - self.now
                sm_mhz = unlocked_or_locked_mhz(self.model.gpu, self.lock)
                self.joules += idle * self.model.gpu.waiting_watts(sm_mhz)
                self.clock_time += idle * sm_mhz
                self.now = self.coming[0]


def mean_of(states: Sequence[SteadyState]) -> SteadyState:
    """The mean of several runs, field by field; joules per token stay power over tokens."""
    means = SteadyState(*(fmean(getattr(state, field.name) for state in states) for field in fields(SteadyState)))
    joules = fmean(state.joules_per_token * state.tokens_per_second for state in states)
    return replace(means, joules_per_token=joules / means.tokens_per_second)


def life_seconds(model: StepModel, load: Load, bounds: Bounds) -> float:
    """About how long a request takes, so that clients can begin spread over it."""
    decodes = min(load.concurrency, bounds.max_num_seqs)
    step = model.cost(decodes, decodes * (load.isl + load.osl // 2), [])
    prompt = model.cost(0, 0, [(0, load.isl)])
    seconds = load.osl * sum(step[:3]) + decodes * sum(prompt[:3])
    return seconds * load.concurrency / decodes


def run_closed_loop(model: StepModel, load: Load, bounds: Bounds, *, seed: int = 0) -> SteadyState:
    """Run the loop until it is steady, then measure three requests of each client."""
    loop = _Loop(model, load, bounds, seed)
    life = life_seconds(model, load, bounds)
    for client in range(load.concurrency):
        loop.send(life * client / load.concurrency)
    loop.run(_WARM_UP * load.concurrency)
    loop.reset()
    loop.run(_MEASURED * load.concurrency)
    seconds, count = loop.now - loop.began, loop.finished
    return SteadyState(
        tpot_seconds=loop.tpot / count,
        ttft_seconds=loop.ttft / count,
        tokens_per_second=loop.tokens / seconds,
        watts=loop.joules / seconds,
        joules_per_token=loop.joules * model.gpus / loop.tokens,
        batch=loop.decode_time / seconds,
        sm_mhz=loop.clock_time / seconds,
        capped_share=loop.capped / seconds,
    )
