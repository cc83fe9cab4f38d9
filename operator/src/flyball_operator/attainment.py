"""SLO attainment and joules per token over a window, from the cumulative counters that agents put into plans.

The operator keeps a few samples per policy and node. Every sample carries totals that are corrected for restarts of
the counters, so a window is one subtraction. The window ends with the newest evidence: a cluster that went idle
keeps its last word until that is older than the window, and nothing is written meanwhile.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from flyball_api.energypolicy import MetricAttainment, Slo, SloStatus
from flyball_api.nodeenergyplan import LatencyCounter, PolicyCounters
from flyball_operator.state import Sample

Metric = Literal["timeToFirstToken", "interTokenLatency", "endToEnd"]
METRICS: Final[tuple[Metric, ...]] = ("timeToFirstToken", "interTokenLatency", "endToEnd")

MAX_SAMPLES: Final = 120
"""Per policy and node; samples closer together than a hundredth of the window are not kept."""

DEFAULT_WINDOW_SECONDS: Final = 300
"""For joules per token of a policy without an slo."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was observed over the window, summed over nodes.

    Attributes:
        seconds: how far back it reaches.
        energy_joules: energy of the policy's GPUs.
        generated_tokens: tokens generated.
        latencies: (observations, of them within the threshold) by metric.
        interpolated: metrics whose threshold is inside a histogram bucket.
    """

    seconds: float = 0.0
    energy_joules: float = 0.0
    generated_tokens: float = 0.0
    latencies: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    interpolated: frozenset[Metric] = frozenset()

    def joules_per_token(self) -> float | None:
        """GPU energy per generated token; None when no token was generated."""
        if self.generated_tokens < 1:
            return None
        # Three digits: NVML's energy counter is good for no more, and kubectl prints the number as it is.
        return float(f"{self.energy_joules / self.generated_tokens:.3g}")


def window_seconds(slo: Slo | None) -> int:
    """Over how long a policy is judged."""
    return slo.attainment.window_seconds if slo is not None else DEFAULT_WINDOW_SECONDS


def remember(
    samples: tuple[Sample, ...], counters: PolicyCounters, window: int, now_seconds: float
) -> tuple[Sample, ...]:
    """The samples with these counters added; unchanged when the counters are."""
    raw = _raw(counters)
    if not samples:
        # What was counted before this process looked is evidence too, if it is young enough to be all of the window.
        began = now_seconds - counters.seconds
        if 0 < counters.seconds <= window:
            return (
                Sample(began, PolicyCounters(name=counters.name), (0.0,) * len(raw)),
                Sample(now_seconds, counters, raw),
            )
        return (Sample(now_seconds, counters, raw),)
    last = samples[-1]
    if last.counters == counters:
        return samples
    before = _raw(last.counters)
    restarted = counters.since != last.counters.since or any(new < old for new, old in zip(raw, before, strict=True))
    base = (0.0,) * len(raw) if restarted else before
    totals = tuple(total + new - old for total, new, old in zip(last.totals, raw, base, strict=True))
    kept = list(samples)
    if len(kept) > 1 and now_seconds - kept[-2].at_seconds < window / 100:
        kept.pop()
    kept.append(Sample(now_seconds, counters, totals))
    # One sample at or before the start of the window stays: it is what the window is measured from.
    start = bisect_right([sample.at_seconds for sample in kept], now_seconds - window)
    return tuple(kept[max(0, start - 1, len(kept) - MAX_SAMPLES) :])


def evaluate(series: Iterable[Sequence[Sample]], window: int, now_seconds: float) -> Evidence:
    """Sum the window over nodes. Series whose newest sample is older than the window say nothing any more."""
    alive = [samples for samples in series if samples and samples[-1].at_seconds > now_seconds - window]
    if not alive:
        return Evidence()
    end = max(samples[-1].at_seconds for samples in alive)
    totals = [0.0] * (2 + 2 * len(METRICS))
    begin = end
    interpolated: set[Metric] = set()
    for samples in alive:
        times = [sample.at_seconds for sample in samples]
        base = samples[max(0, bisect_right(times, end - window) - 1)]
        begin = min(begin, base.at_seconds)
        for index, (new, old) in enumerate(zip(samples[-1].totals, base.totals, strict=True)):
            totals[index] += new - old
        interpolated.update(
            metric
            for metric, counter in zip(METRICS, _latencies(samples[-1].counters), strict=True)
            if counter.interpolated
        )
    pairs = tuple((totals[2 + 2 * index], totals[3 + 2 * index]) for index in range(len(METRICS)))
    return Evidence(min(end - begin, float(window)), totals[0], totals[1], pairs, frozenset(interpolated))


def slo_status(slo: Slo | None, evidence: Evidence) -> SloStatus | None:
    """Attainment per named latency, and the worst of them; None when nothing was observed or nothing is asked."""
    if slo is None:
        return None
    asked = (slo.time_to_first_token, slo.inter_token_latency, slo.end_to_end)
    metrics = tuple(
        MetricAttainment(
            metric=metric,
            within_percent=round(100 * within / total, 2),
            observations=round(total),
            interpolated=metric in evidence.interpolated,
        )
        for metric, target, (total, within) in zip(METRICS, asked, evidence.latencies, strict=True)
        if target is not None and total >= 1
    )
    if not metrics:
        return None
    return SloStatus(
        attainment_percent=min(metric.within_percent for metric in metrics),
        window_seconds=max(1, round(evidence.seconds)),
        metrics=metrics,
    )


def _latencies(counters: PolicyCounters) -> tuple[LatencyCounter, ...]:
    counted = (counters.time_to_first_token, counters.inter_token_latency, counters.end_to_end)
    return tuple(counter or LatencyCounter() for counter in counted)


def _raw(counters: PolicyCounters) -> tuple[float, ...]:
    pairs = [value for counter in _latencies(counters) for value in (counter.total, counter.within)]
    return (counters.energy_joules, counters.generated_tokens, *pairs)
