"""One engine replica on its GPUs in virtual time: what Flyball's agent sees of a pod, without processes."""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from flyball_agent.controllers.base import GpuReading
from flyball_agent.scanner import EngineSample, Histogram
from flyball_sim.engine.book import EnergyBook, power_line
from flyball_sim.engine.core import EngineCore, EngineLimits, EngineRequest, RequestTiming
from flyball_sim.engine.metrics import ITL_BUCKETS, REQUEST_BUCKETS, TTFT_BUCKETS
from flyball_sim.engine.models import StepModel
from flyball_sim.gpu.delays import cap_tau_seconds, lock_delay_seconds
from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.model import REASON_SW_POWER_CAP, unlocked_or_locked_mhz
from flyball_sim.gpu.sensors import Sensor
from flyball_sim.gpu.steps import settle

START_SECONDS = 30.0
"""A usual `ready_seconds` of an engine that starts while a run goes on: weights, CUDA graphs, warm-up."""
_LAG_GRID_SECONDS = 0.01
_SETTLED_WATTS = 0.5


class _Counted:
    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.bounds = (*edges, math.inf)
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.edges, seconds)] += 1
        self.total += seconds

    def shown(self) -> Histogram:
        return Histogram(self.bounds, tuple(map(float, accumulate(self.counts))), self.total)


class Machine:
    """One engine on the cards of its group.

    Args:
        model: step times, GPU type and group size.
        limits: the engine's.
        dies: one per card; nominal ones if not given.
        seed: of the delays of actuation.
        start_seconds: now.
        ready_seconds: the engine answers from this time on; requests before it wait.
        actuation_delays: whether locks and caps take effect late, as on real cards.
    """

    def __init__(
        self,
        model: StepModel,
        limits: EngineLimits,
        *,
        dies: Sequence[Die] = (),
        seed: int = 0,
        start_seconds: float = 0.0,
        ready_seconds: float = 0.0,
        actuation_delays: bool = True,
    ) -> None:
        self.model = model
        self.limits = limits
        self.dies = tuple(dies) or (NOMINAL_DIE,) * model.gpus
        if len(self.dies) != model.gpus:
            raise ValueError(f"{len(self.dies)} dies for {model.gpus} GPUs: give one for each, or none")
        self._rng = random.Random(seed)  # noqa: S311
        self._delays = actuation_delays
        self._ready = max(ready_seconds, start_seconds)
        gpu = model.gpu
        self._core = EngineCore(model, limits)
        self._core.advance(start_seconds)
        self._core.take_load()
        self.now_seconds = start_seconds
        self._early: list[EngineRequest] = []
        self._controls: list[tuple[float, int, str, object]] = []
        self._number = 0
        self._lock: tuple[int, int] | None = None
        self._cap = self._lagged = gpu.cap_default_watts
        self._reasons = 0
        self._last_busy = -math.inf
        self.book = EnergyBook()
        self.energy_joules = 0.0
        self.watts = power_line(gpu, float(gpu.sm_max_mhz), self.dies).waiting
        self._sensors = [Sensor(gpu, die, start_seconds) for die in self.dies]
        self._finished: list[RequestTiming] = []
        self._prompt_tokens = self._generated = 0
        self._first, self._gaps, self._ends = _Counted(TTFT_BUCKETS), _Counted(ITL_BUCKETS), _Counted(REQUEST_BUCKETS)

    def advance(self, now_seconds: float) -> None:
        """Work out all that happens up to and at `now_seconds`."""
        if now_seconds < self.now_seconds:
            raise ValueError(f"time {now_seconds} is before the machine's clock {self.now_seconds}: it never runs back")
        while True:
            until = now_seconds
            if self._controls:
                until = min(until, self._controls[0][0])
            if self.now_seconds < self._ready:
                until = min(until, self._ready)
            if self._lagged != self._cap:
                grid = (math.floor(self.now_seconds / _LAG_GRID_SECONDS + 1e-9) + 1) * _LAG_GRID_SECONDS
                until = min(until, grid)
            before = self.now_seconds
            self._run(until)
            self.now_seconds = until
            self._approach(until - before)
            while self._controls and self._controls[0][0] <= until:
                self._apply(*heapq.heappop(self._controls)[2:])
            if self._early and until >= self._ready:
                for request in self._early:
                    self._core.submit(request, until)
                self._early.clear()
            if until >= now_seconds:
                return

    def submit(self, request: EngineRequest, now_seconds: float) -> None:
        """Queue a request that arrives now.

        Raises:
            EngineRefusalError: it is empty or exceeds the context length or the KV cache.
            QueueFullError: the queue is at its limit.
        """
        self.advance(now_seconds)
        if now_seconds < self._ready:
            self._early.append(request)
            return
        self._core.submit(request, now_seconds)

    def cancel(self, request_id: str, now_seconds: float) -> bool:
        """Forget a request; False if it is not here."""
        self.advance(now_seconds)
        return self._core.cancel(request_id)

    def set_lock(self, now_seconds: float, sm_mhz: tuple[int, int] | None) -> None:
        """Lock the SM clock of every card to (lowest, highest); None takes the lock off."""
        self.advance(now_seconds)
        delay = max(lock_delay_seconds(self.model.gpu, self._rng) for _ in self.dies) if self._delays else 0.0
        self._later(now_seconds + delay, "lock", sm_mhz)

    def set_cap(self, now_seconds: float, watts: float) -> None:
        """Cap the power of every card."""
        self.advance(now_seconds)
        self._later(now_seconds + (self.model.gpu.cap_call_seconds if self._delays else 0.0), "cap", watts)

    def set_batch_limit(self, now_seconds: float, max_num_seqs: int) -> None:
        """Admit no more than this many sequences to the batch; those that run go on."""
        self.advance(now_seconds)
        self._core.set_batch_limit(max_num_seqs)

    def take_finished(self) -> list[RequestTiming]:
        """Requests that finished since the last call."""
        taken, self._finished = self._finished, []
        return taken

    def page(self) -> EngineSample:
        """What a scrape of `/metrics` at `now_seconds` gives the agent."""
        values = {
            "requests_running": float(self.running),
            "requests_waiting": float(self.waiting),
            "kv_cache_usage": self.kv_usage,
            "prompt_tokens": float(self._prompt_tokens),
            "generation_tokens": float(self._generated),
        }
        histograms = {
            "time_to_first_token": self._first.shown(),
            "inter_token_latency": self._gaps.shown(),
            "end_to_end": self._ends.shown(),
        }
        return EngineSample(values, histograms)

    def readings(self) -> tuple[GpuReading, ...]:
        """What NVML shows of each card at `now_seconds`."""
        return tuple(
            GpuReading(
                power_watts=sensor.power_watts(self.now_seconds),
                sm_mhz=int(self.sm_mhz),
                utilisation_percent=100 if self.running else 0,
                cap_limited=bool(self._reasons & REASON_SW_POWER_CAP),
                energy_joules=sensor.energy_joules(self.now_seconds),
            )
            for sensor in self._sensors
        )

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return self._core.running

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return self._core.waiting + len(self._early)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use."""
        return self._core.kv_usage

    @property
    def sm_mhz(self) -> float:
        """The SM clock of the group now."""
        return self._core.sm_mhz

    def _later(self, when: float, kind: str, value: object) -> None:
        self._number += 1
        heapq.heappush(self._controls, (when, self._number, kind, value))
        self.advance(self.now_seconds)

    def _apply(self, kind: str, value: object) -> None:
        if kind == "lock":
            self._lock = value  # type: ignore[assignment]
        else:
            self._cap = float(value)  # type: ignore[arg-type]
            if not self._delays:
                self._lagged = self._cap

    def _approach(self, seconds: float) -> None:
        if self._lagged != self._cap:
            tau = cap_tau_seconds(self.model.gpu, self._cap > self._lagged)
            self._lagged = self._cap + (self._lagged - self._cap) * math.exp(-seconds / tau)
            if abs(self._lagged - self._cap) < _SETTLED_WATTS:
                self._lagged = self._cap

    def _run(self, until: float) -> None:
        core, gpu = self._core, self.model.gpu
        while True:
            before = core.now_seconds
            core.next_event_seconds()
            cost = core.step_cost
            if cost is None:
                self._reasons = 0
                sm_mhz = float(unlocked_or_locked_mhz(gpu, self._lock))
            else:
                settled = [
                    settle(gpu, cost, self._lagged, self._lock, die, reference_mhz=self.model.reference_mhz)
                    for die in self.dies
                ]
                sm_mhz, self._reasons = min((float(mhz), reasons) for mhz, _, reasons in settled)
            core.advance(before, sm_mhz)
            due = core.next_event_seconds()
            end = until if due is None else min(due, until)
            for event in core.advance(end):
                self._generated += 1
                if event.number == 1:
                    self._first.observe(event.since_seconds)
                else:
                    self._gaps.observe(event.since_seconds)
                if event.finished is not None:
                    self._finished.append(event.finished)
                    self._prompt_tokens += event.finished.prompt_tokens
                    self._ends.observe(event.finished.finished_seconds - event.finished.arrival_seconds)
            self._account(before, end, sm_mhz, idle=cost is None)
            if end >= until:
                return

    def _account(self, begin: float, end: float, sm_mhz: float, *, idle: bool) -> None:
        seconds = end - begin
        load = self._core.take_load()
        if seconds <= 0.0:
            return
        gpu = self.model.gpu
        sums, line = self.book.at(sm_mhz), power_line(gpu, sm_mhz, self.dies)
        lingering = 0.0
        if idle:
            sums.idle_seconds += seconds
            lingering = max(0.0, min(end, self._last_busy + gpu.linger_seconds) - begin)
            sums.linger_seconds += lingering
        else:
            self._last_busy = end
            sums.step_seconds += seconds
        sums.busy_seconds += load.busy * seconds
        sums.memory_seconds += load.memory_use * seconds
        sums.compute_seconds += load.compute_use * seconds
        self.watts = line.waiting + line.busy * load.busy
        self.watts += line.memory * load.memory_use + line.compute * load.compute_use
        self.watts += gpu.linger_watts * lingering / seconds
        self.energy_joules += self.watts * seconds
        for sensor in self._sensors:
            sensor.run(end, self.watts / len(self.dies))
