"""What AGFT sees: polls of one window, and the context that it makes of them (paper and its code, brief 1.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.controllers.base import Observation
from flyball_agent.scanner import METRIC_NAMES, EngineSample

GAUGE_WEIGHT: Final = 0.4
"""Of the newest poll in a gauge's mean over a window."""
LEAST_TOKENS: Final = 1e-3
FEATURES: Final = (
    "has_queue",
    "prefill_tokens",
    "decode_tokens",
    "packing_efficiency",
    "concurrency",
    "kv_use_percent",
    "prefix_hit_percent",
)
STALE_SECONDS: Final = 2.0

_GAUGES: Final = ("requests_waiting", "requests_running", "kv_cache_usage")
_COUNTERS: Final = ("prompt_tokens", "generation_tokens", "prefix_cache_hits", "prefix_cache_queries")
_HISTOGRAMS: Final = ("iteration_tokens", "inter_token_latency", "time_to_first_token")
REQUIRES: Final = frozenset({*_GAUGES, *_COUNTERS, *_HISTOGRAMS})


def trouble(observation: Observation) -> str:
    """Why an observation is of no use; empty when it is."""
    page = observation.engine
    if page is None:
        return "no page of the engine has come yet"
    age = observation.engine_age_seconds or 0.0
    if age > STALE_SECONDS:
        return f"the engine's page is {age:.1f} s old, more than {STALE_SECONDS:.0f} s"
    lacking = sorted(METRIC_NAMES[name] for name in REQUIRES.intersection(observation.missing))
    if lacking:
        return f"the engine lacks {', '.join(lacking)}: serve it, or take another controller"
    strange = _strange(page)
    if strange:
        return strange
    if not observation.gpus or any(gpu.power_watts is None for gpu in observation.gpus):
        return "a GPU of the group does not tell its power"
    return ""


def _strange(page: EngineSample) -> str:
    for name in (*_GAUGES, *_COUNTERS):
        value = page.values.get(name)
        if value is None or not math.isfinite(value):
            return f"the engine gives {METRIC_NAMES[name]} as {value}"
    for name in _HISTOGRAMS:
        histogram = page.histograms.get(name)
        if histogram is None or not math.isfinite(histogram.count + histogram.total):
            return f"the engine gives no usable {METRIC_NAMES[name]}"
    return ""


@dataclass(frozen=True, slots=True)
class Window:
    """What a window gave.

    Attributes:
        raw: the context in the paper's order and units.
        tpot_seconds: mean between output tokens; None: none came.
        ttft_seconds: mean time to first token; None: no request got one.
        joules: of the group.
    """

    raw: tuple[float, ...]
    tpot_seconds: float | None
    ttft_seconds: float | None
    joules: float

    @property
    def running(self) -> float:
        """Sequences in the batch."""
        return self.raw[4]

    @property
    def edp(self) -> float | None:
        """Energy-delay product in joule seconds; None where no token came."""
        return None if self.tpot_seconds is None else self.joules * self.tpot_seconds


class Polls:
    """One window while it lasts.

    Args:
        began_seconds: when.
        use_counter: whether energy comes from the cards' counter instead of from polled power.
    """

    def __init__(self, began_seconds: float, *, use_counter: bool) -> None:
        self.began_seconds = began_seconds
        self._use_counter = use_counter
        self._first: EngineSample | None = None
        self._last: EngineSample | None = None
        self._gauges = (0.0, 0.0, 0.0)
        self._watts = 0.0
        self._count = 0
        self._first_joules: float | None = None
        self._last_joules: float | None = None

    def add(self, observation: Observation) -> bool:
        """One poll whose `trouble` is empty.

        Returns:
            False when a counter went back: the engine was restarted, and the window is of no use.
        """
        page = observation.engine
        if page is None:
            return False
        if self._last is not None and page is not self._last and _went_back(self._last, page):
            return False
        now = (page.values["requests_waiting"], page.values["requests_running"], page.values["kv_cache_usage"])
        if self._first is None:
            self._first, self._gauges = page, now
        else:
            waiting, running, usage = self._gauges
            weight = GAUGE_WEIGHT
            self._gauges = (
                waiting + weight * (now[0] - waiting),
                running + weight * (now[1] - running),
                usage + weight * (now[2] - usage),
            )
        self._last = page
        self._watts += sum([gpu.power_watts or 0.0 for gpu in observation.gpus])
        self._count += 1
        if self._use_counter:
            self._add_joules(observation)
        return True

    @property
    def busy(self) -> bool:
        """Whether the last poll showed requests."""
        page = self._last
        return page is None or page.values["requests_waiting"] + page.values["requests_running"] > 0.0

    def close(self, now_seconds: float) -> Window:
        """What it gave; there was at least one poll."""
        first, last = self._first, self._last
        if first is None or last is None:
            raise ValueError("a window without a poll was closed")
        waiting, running, usage = self._gauges
        steps, step_tokens = _delta(first, last, "iteration_tokens")
        queries = last.values["prefix_cache_queries"] - first.values["prefix_cache_queries"]
        hits = last.values["prefix_cache_hits"] - first.values["prefix_cache_hits"]
        raw = (
            1.0 if waiting > 0.0 else 0.0,
            max(last.values["prompt_tokens"] - first.values["prompt_tokens"], LEAST_TOKENS),
            max(last.values["generation_tokens"] - first.values["generation_tokens"], LEAST_TOKENS),
            step_tokens / steps if steps else 0.0,
            running,
            100.0 * usage,
            100.0 * hits / max(queries, 1.0),
        )
        seconds = now_seconds - self.began_seconds
        joules = self._watts / self._count * seconds
        counted = (self._last_joules or 0.0) - (self._first_joules or 0.0)
        if self._first_joules is not None and counted > 0.0:  # a counter that stands still counts nothing
            joules = counted
        return Window(raw, _mean(first, last, "inter_token_latency"), _mean(first, last, "time_to_first_token"), joules)

    def _add_joules(self, observation: Observation) -> None:
        told = [gpu.energy_joules for gpu in observation.gpus if gpu.energy_joules is not None]
        if len(told) < len(observation.gpus):
            self._use_counter, self._first_joules = False, None
            return
        joules = sum(told)
        if self._first_joules is None:
            self._first_joules = joules
        elif joules < (self._last_joules or 0.0):
            self._use_counter, self._first_joules = False, None
        self._last_joules = joules


def _went_back(before: EngineSample, after: EngineSample) -> bool:
    values = any(after.values[name] < before.values[name] for name in _COUNTERS)
    return values or any(after.histograms[name].count < before.histograms[name].count for name in _HISTOGRAMS)


def _delta(first: EngineSample, last: EngineSample, name: str) -> tuple[float, float]:
    before, after = first.histograms[name], last.histograms[name]
    return after.count - before.count, after.total - before.total


def _mean(first: EngineSample, last: EngineSample, name: str) -> float | None:
    count, total = _delta(first, last, name)
    return total / count if count > 0.0 else None


class Welford:
    """Running mean and variance of each feature, of all time; makes the context of a window."""

    LIMIT: Final = 3.0

    def __init__(self) -> None:
        self._count = 0
        self._means = [0.0] * len(FEATURES)
        self._squares = [0.0] * len(FEATURES)

    def take(self, raw: tuple[float, ...]) -> tuple[float, ...]:
        """Learn a window's features, and give them normalised and clipped."""
        self._count += 1
        scores = []
        for index, value in enumerate(raw):
            difference = value - self._means[index]
            self._means[index] += difference / self._count
            self._squares[index] += difference * (value - self._means[index])
            deviation = math.sqrt(self._squares[index] / self._count)
            score = (value - self._means[index]) / (deviation + 1e-8)
            scores.append(min(max(score, -self.LIMIT), self.LIMIT))
        return tuple(scores)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"count": self._count, "means": list(self._means), "squares": list(self._squares)}

    @staticmethod
    def of(state: Mapping[str, Any]) -> Welford:
        """What `state` gave; KeyError, TypeError, ValueError where it is damaged."""
        made = Welford()
        made._count = int(state["count"])
        made._means = [float(value) for value in state["means"]]
        made._squares = [float(value) for value in state["squares"]]
        if not len(made._means) == len(made._squares) == len(FEATURES):
            raise ValueError(f"the context has {len(made._means)} features, not {len(FEATURES)}")
        return made
