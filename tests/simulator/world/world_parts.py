"""What tests of worlds share: small clusters, policies, and an engine so simple that its answers are known."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from itertools import accumulate

from flyball_agent.controllers.base import GpuReading
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.energypolicy import EnergyPolicy
from flyball_sim.engine.core import EngineLimits, EngineRequest, RequestTiming
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cluster import uniform_cluster
from flyball_sim.world.simulate import Simulation

PREFILL_SECONDS_PER_TOKEN = 1e-4
DECODE_SECONDS = 0.01
IDLE_WATTS, BUSY_WATTS = 100.0, 400.0
EDGES = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, math.inf)


def policy(name="chat", *, mode="Enforce", clock=None, watts=None, reserve=None, labels=None, **spec):
    """A policy that holds one clock, or none, and a budget where watts are given."""
    clocks = [] if clock is None else [{"role": "unified", "minMegahertz": clock, "maxMegahertz": clock}]
    document = {
        "metadata": {"name": name},
        "spec": {
            "mode": mode,
            "selector": {"matchLabels": labels or {"app": "llm"}},
            "controller": {"type": "Fixed", "fixed": {"clocks": clocks}},
            **spec,
        },
    }
    if watts is not None:
        document["spec"]["powerBudget"] = {"watts": watts}
        if reserve is not None:
            document["spec"]["powerBudget"]["reserveWatts"] = reserve
    return EnergyPolicy.model_validate(document)


def steady(count, *, seconds, prompt=200, output=50, start=0.0):
    """So many equal requests, evenly spaced."""
    step = seconds / count
    return [TraceRequest(start + step * (number + 0.5), prompt, output) for number in range(count)]


@dataclass
class _Job:
    request: EngineRequest
    arrival: float
    first: float | None = None


class PlainEngine:
    """Every request is served beside the others at a pace that only the clock sets: work done is clock times time.

    A prompt token costs 0.1 ms and an output token 10 ms at the highest clock. A card draws 100 W, and up to 400 W more
    while it works, with the square of the clock; a cap lowers the clock until that fits.
    """

    def __init__(self, model, limits, *, dies=(), seed=0, start_seconds=0.0, ready_seconds=0.0):
        del seed, ready_seconds
        self.model, self.limits, self.dies = model, limits, dies
        self.now_seconds = start_seconds
        self.energy_joules = 0.0
        self.lock = None
        self.cap = model.gpu.cap_default_watts
        self.told = []
        self._work = 0.0
        self._queue: list[tuple[float, str, str]] = []
        self._jobs: dict[str, _Job] = {}
        self._finished: list[RequestTiming] = []
        self._generated = self._prompts = 0
        self._ttfts: list[float] = []

    @property
    def sm_mhz(self) -> float:
        top = float(self.model.gpu.sm_max_mhz)
        wanted = top if self.lock is None else float(self.lock[1])
        if not self._jobs:
            return wanted
        room = max(0.0, (self.cap - IDLE_WATTS) / BUSY_WATTS)
        return max(float(self.model.gpu.sm_min_mhz), min(wanted, top * math.sqrt(room)))

    @property
    def running(self) -> int:
        return len(self._jobs)

    waiting = 0

    @property
    def kv_usage(self) -> float:
        return 0.0

    def _pace(self) -> float:
        return self.sm_mhz / self.model.gpu.sm_max_mhz

    def advance(self, now_seconds):
        assert now_seconds >= self.now_seconds, "time never runs back"
        while self._queue:
            at = self.now_seconds + (self._queue[0][0] - self._work) / self._pace()
            if at > now_seconds:
                break
            self._spend(max(at, self.now_seconds))
            work, what, key = heapq.heappop(self._queue)
            self._work = max(self._work, work)
            self._reach(what, key)
        self._spend(now_seconds)

    def _spend(self, until):
        seconds = until - self.now_seconds
        watts = IDLE_WATTS + (BUSY_WATTS * self._pace() ** 2 if self._jobs else 0.0)
        self.energy_joules += watts * seconds * self.model.gpus
        self._work += self._pace() * seconds
        self.now_seconds = until

    def _reach(self, what, key):
        job = self._jobs.get(key)
        if job is None:
            return
        if what == "first":
            job.first = self.now_seconds
            self._ttfts.append(job.first - job.arrival)
            self._prompts += job.request.prompt_tokens
            return
        del self._jobs[key]
        request = job.request
        self._generated += request.output_tokens
        self._finished.append(
            RequestTiming(
                request.prompt_tokens,
                request.output_tokens,
                job.arrival,
                job.arrival,
                job.first,
                self.now_seconds,
                key,
            )
        )

    def next_event_seconds(self):
        if not self._queue:
            return None
        return self.now_seconds + max(0.0, self._queue[0][0] - self._work) / self._pace()

    def submit(self, request, now_seconds):
        self.advance(now_seconds)
        key = request.request_id
        assert key not in self._jobs, "ids are unique while a request lives"
        self._jobs[key] = _Job(request, now_seconds)
        first = self._work + (request.prompt_tokens - request.cached_tokens) * PREFILL_SECONDS_PER_TOKEN
        heapq.heappush(self._queue, (first, "first", key))
        heapq.heappush(self._queue, (first + (request.output_tokens - 1) * DECODE_SECONDS, "last", key))

    def cancel(self, request_id, now_seconds):
        self.advance(now_seconds)
        return self._jobs.pop(request_id, None) is not None

    def set_lock(self, now_seconds, sm_mhz):
        self.advance(now_seconds)
        self.lock = sm_mhz
        self.told.append((now_seconds, "lock", sm_mhz))

    def set_cap(self, now_seconds, watts):
        self.advance(now_seconds)
        self.cap = watts
        self.told.append((now_seconds, "cap", watts))

    def take_finished(self):
        taken, self._finished = self._finished, []
        return taken

    def page(self):
        counts = [0] * len(EDGES)
        for seconds in self._ttfts:
            counts[next(i for i, edge in enumerate(EDGES) if seconds <= edge)] += 1
        shown = Histogram(EDGES, tuple(map(float, accumulate(counts))), sum(self._ttfts))
        values = {
            "requests_running": float(self.running),
            "requests_waiting": 0.0,
            "kv_cache_usage": 0.0,
            "prompt_tokens": float(self._prompts),
            "generation_tokens": float(self._generated),
        }
        histograms = dict.fromkeys(("time_to_first_token", "inter_token_latency", "end_to_end"), shown)
        return EngineSample(values, histograms)

    def readings(self):
        busy = bool(self._jobs)
        watts = IDLE_WATTS + (BUSY_WATTS * self._pace() ** 2 if busy else 0.0)
        capped = busy and watts > self.cap - 1.0
        return tuple(
            GpuReading(watts, int(self.sm_mhz), 100 if busy else 0, capped, self.energy_joules / self.model.gpus)
            for _ in range(self.model.gpus)
        )


def plain(cluster=None, policies=(), requests=(), **options):
    """A simulation of plain engines; four on one node where no cluster is given."""
    options.setdefault("make_engine", PlainEngine)
    return Simulation(cluster or uniform_cluster(engines=4), policies, requests, **options)


def run_plain(*arguments, **options):
    """Its result."""
    simulation = plain(*arguments, **options)
    simulation.run()
    return simulation.result()


__all__ = ["EngineLimits", "PlainEngine", "plain", "policy", "run_plain", "steady"]
