"""One engine without agent or operator, under a schedule of clocks and caps: what it did to each request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge

import numpy as np

from flyball_agent.scanner import Histogram
from flyball_sim.engine.book import EnergyBook
from flyball_sim.engine.core import EngineLimits, EngineRefusalError, EngineRequest, QueueFullError
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel
from flyball_sim.gpu.dies import Die
from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard.slo import Floats, Slo


@dataclass(frozen=True, slots=True)
class Setting:
    """What a schedule asks for from a time on: a lock on one clock (None: unlocked) and a cap (None: the default)."""

    sm_mhz: int | None = None
    cap_watts: float | None = None


UNLOCKED = Setting()
Schedule = Sequence[tuple[float, Setting]]
"""(from when, what), by time; the first from 0."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs: step times and limits, and the cards' dies (nominal ones if empty)."""

    model: StepModel
    limits: EngineLimits
    dies: tuple[Die, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of each request, by arrival, and the energy.

    Attributes:
        ttft_seconds: from arrival; NaN for what was refused or had no answer by the end.
        tpot_seconds: mean time per output token after the first; NaN for one-token answers.
        finished_seconds: NaN for what was not finished by the end.
        marks_joules: energy of all cards up to each mark.
        energy_joules: up to the end.
        refused: requests the engine did not take.
        preemptions: sequences that lost their cache and were computed again.
        itl_p99_seconds: of all gaps between tokens, from the histogram of `/metrics`; NaN without any.
        book: energy by clock, to be had again for other power coefficients.
    """

    ttft_seconds: Floats
    tpot_seconds: Floats
    finished_seconds: Floats
    marks_joules: Floats
    energy_joules: float
    refused: int
    preemptions: int
    itl_p99_seconds: float
    book: EnergyBook

    @property
    def completed(self) -> int:
        """Requests that were finished by the end."""
        return int(np.count_nonzero(~np.isnan(self.finished_seconds)))

    def met(self, slo: Slo) -> Floats:
        """1 for each request that met its SLO, else 0."""
        unfinished = np.isnan(self.finished_seconds)
        return (slo.met(self.ttft_seconds, self.tpot_seconds) & ~unfinished).astype(float)


def run_machine(
    engine: Engine,
    trace: Sequence[TraceRequest],
    schedule: Schedule,
    *,
    end_seconds: float,
    marks: Sequence[float] | Floats = (),
) -> Outcomes:
    """Serve a trace from 0 to `end_seconds`; what the schedule says acts at once.

    Args:
        engine: what runs.
        trace: requests by arrival.
        schedule: clocks and caps, the first from 0.
        end_seconds: the common end.
        marks: times at which the energy so far is noted, rising, none after the end.
    """
    machine = Machine(engine.model, engine.limits, dies=engine.dies, actuation_delays=False)
    default_cap = engine.model.gpu.cap_default_watts
    ttft, tpot, finished = (np.full(len(trace), math.nan) for _ in range(3))
    marks_joules: list[float] = []
    refused = 0
    now_setting = UNLOCKED
    # At one time a setting comes before the requests it is meant for, and both before the mark.
    events = merge(
        ((at, 0, index) for index, (at, _) in enumerate(schedule) if at < end_seconds),
        ((request.arrival_seconds, 1, index) for index, request in enumerate(trace)),
        ((at, 2, index) for index, at in enumerate(np.asarray(marks).tolist())),
    )
    for at, kind, index in events:
        if kind == 1:
            try:
                request = trace[index]
                machine.submit(EngineRequest(str(index), request.prompt_tokens, request.output_tokens), at)
            except (EngineRefusalError, QueueFullError):
                refused += 1
        elif kind == 0:
            setting = schedule[index][1]
            if setting.sm_mhz != now_setting.sm_mhz:
                machine.set_lock(at, None if setting.sm_mhz is None else (setting.sm_mhz, setting.sm_mhz))
            if setting.cap_watts != now_setting.cap_watts:
                machine.set_cap(at, default_cap if setting.cap_watts is None else setting.cap_watts)
            now_setting = setting
        else:
            machine.advance(at)
            marks_joules.append(machine.energy_joules)
    machine.advance(end_seconds)
    for timing in machine.take_finished():
        index = int(timing.request_id)
        ttft[index] = timing.first_token_seconds - timing.arrival_seconds
        finished[index] = timing.finished_seconds
        if timing.output_tokens > 1:
            tpot[index] = (timing.finished_seconds - timing.first_token_seconds) / (timing.output_tokens - 1)
    return Outcomes(
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        finished_seconds=finished,
        marks_joules=np.array(marks_joules),
        energy_joules=machine.energy_joules,
        refused=refused,
        preemptions=machine.preemptions,
        itl_p99_seconds=_quantile(machine.page().histograms["inter_token_latency"], 0.99),
        book=machine.book,
    )


def _quantile(histogram: Histogram, share: float) -> float:
    """As `histogram_quantile` of Prometheus, straight within a bucket."""
    wanted, below, lower = share * histogram.count, 0.0, 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        if count >= wanted and count > below:
            return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (count - below)
        below, lower = count, bound
    return math.nan
