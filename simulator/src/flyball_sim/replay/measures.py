"""A run in numbers: energy, latency, and how well the requests held their objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flyball_sim.replay.objectives import Objective
from flyball_sim.replay.record import FINISHED, LOST, OUTCOMES, REJECTED, UNFINISHED, Floats, Record, Requests

PERCENTILES = (50, 90, 95, 99)
Bools = NDArray[np.bool_]
Latency = Literal["ttft", "tpot", "e2e"]


@dataclass(frozen=True, slots=True)
class Measures:
    """One run. Latencies are over the requests that have them, in seconds; percentiles by percent.

    Attributes:
        attainment: share of all offered requests that hold their objective; one that was rejected, lost or not
            finished by the end misses.
        keeps_slo: whether the target share is reached for each policy's requests.
        outside_seconds: seconds outside the SLO, see `outside`.
        judged_seconds: seconds in which enough requests had arrived to judge.
    """

    requests: int
    outcomes: dict[str, int]
    output_tokens: int
    energy_joules: float
    mean_watts: float
    peak_watts: float
    joules_per_token: float
    attainment: float
    keeps_slo: bool
    missed: int
    outside_seconds: int
    judged_seconds: int
    ttft: dict[int, float]
    tpot: dict[int, float]
    e2e: dict[int, float]
    mean_sm_mhz: float
    breaches: int
    overshoot_seconds: float
    overshoot_joules: float


def judge_of(requests: Requests, objectives: Sequence[Objective]) -> NDArray[np.int16]:
    """The index of the objective that judges each request; the first where no policy governs its engine."""
    return np.clip(requests.judge, 0, len(objectives) - 1)


def holds(requests: Requests, objectives: Sequence[Objective]) -> Bools:
    """Which requests hold the objective they are judged by; where no policy governs, the first one judges.

    A request of one output token has no time per output token: the other latencies alone judge it.
    """
    which = judge_of(requests, objectives)
    bounds = np.array([(o.ttft_seconds, o.tpot_seconds, o.e2e_seconds) for o in objectives])[which]
    # NaN compares false: a latency that is not there fails here, but for the time per token of a one-token answer.
    with_tpot = ~np.isnan(requests.tpot_seconds)
    return np.asarray(
        (requests.outcome == FINISHED)
        & (requests.ttft_seconds <= bounds[:, 0])
        & (~with_tpot | (requests.tpot_seconds <= bounds[:, 1]))
        & (requests.finished_seconds - requests.arrival_seconds <= bounds[:, 2])
    )


def windowed(arrivals: Floats, held: Bools, at_seconds: Floats, window_seconds: float) -> tuple[Floats, Floats]:
    """Arrivals in (t - window, t] for each t, and the share of them that held (NaN of none)."""
    total = np.concatenate(([0.0], np.cumsum(held, dtype=np.float64)))
    first = np.searchsorted(arrivals, at_seconds - window_seconds, side="right")
    last = np.searchsorted(arrivals, at_seconds, side="right")
    count = (last - first).astype(np.float64)
    share = np.full(len(at_seconds), np.nan)
    np.divide(total[last] - total[first], count, out=share, where=count > 0)
    return count, share


def whole_seconds(arrivals: Floats) -> Floats:
    """The seconds that are judged: every whole one up to the last arrival."""
    return np.arange(1, np.ceil(arrivals[-1]) + 1) if len(arrivals) else np.zeros(0)


def outside(requests: Requests, held: Bools, objectives: Sequence[Objective]) -> tuple[int, int]:
    """Whole seconds outside the SLO, and whole seconds judged.

    A second is outside when, of the requests that arrived in the window that ends with it, a smaller share than the
    target held the objective, for any of the policies' objectives. It is judged when at least the minimum of requests
    had arrived in that window. Requests count by arrival, so that two runs of one trace judge the same windows, and
    a request that never ends counts where it came.
    """
    seconds = whole_seconds(requests.arrival_seconds)
    out = np.zeros(len(seconds), dtype=bool)
    judged = np.zeros(len(seconds), dtype=bool)
    which = judge_of(requests, objectives)
    for index, objective in enumerate(objectives):
        mine = which == index
        count, share = windowed(requests.arrival_seconds[mine], held[mine], seconds, objective.window_seconds)
        enough = count >= objective.minimum_requests
        judged |= enough
        out |= enough & (np.nan_to_num(share, nan=1.0) < objective.target_percent / 100)
    return int(out.sum()), int(judged.sum())


def keeps(requests: Requests, held: Bools, objectives: Sequence[Objective]) -> bool:
    """Whether each objective's target is reached by the requests it judges; one without requests is."""
    which = judge_of(requests, objectives)
    return all(
        not (mine := which == index).any() or bool(held[mine].mean() >= objective.target_percent / 100)
        for index, objective in enumerate(objectives)
    )


def percentiles(values: Floats) -> dict[int, float]:
    """Percentiles of the values that are numbers; none of no values."""
    numbers = values[~np.isnan(values)]
    if not len(numbers):
        return {}
    return dict(zip(PERCENTILES, (float(value) for value in np.percentile(numbers, PERCENTILES)), strict=True))


def measure(record: Record, objectives: Sequence[Objective]) -> Measures:
    """Sum up a run."""
    requests = record.requests
    held = holds(requests, objectives)
    finished = requests.outcome == FINISHED
    tokens = int(requests.output_tokens[finished].sum())
    outside_seconds, judged_seconds = outside(requests, held, objectives)
    clocks = record.series.get("sm_mhz_mean", np.zeros(0))
    return Measures(
        requests=len(requests),
        outcomes={
            OUTCOMES[code]: int((requests.outcome == code).sum()) for code in (FINISHED, REJECTED, LOST, UNFINISHED)
        },
        output_tokens=tokens,
        energy_joules=record.energy_joules,
        mean_watts=record.energy_joules / record.end_seconds,
        peak_watts=record.peak_watts,
        joules_per_token=record.energy_joules / tokens if tokens else float("nan"),
        attainment=float(held.mean()) if len(requests) else float("nan"),
        keeps_slo=keeps(requests, held, objectives),
        missed=int((~held).sum()),
        outside_seconds=outside_seconds,
        judged_seconds=judged_seconds,
        ttft=percentiles(requests.ttft_seconds),
        tpot=percentiles(requests.tpot_seconds),
        e2e=percentiles(requests.finished_seconds - requests.arrival_seconds),
        mean_sm_mhz=float(clocks.mean()) if len(clocks) else float("nan"),
        breaches=len(record.breaches),
        overshoot_seconds=record.overshoot_seconds,
        overshoot_joules=record.overshoot_joules,
    )
