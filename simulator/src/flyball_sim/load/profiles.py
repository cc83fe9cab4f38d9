"""How the rate of a trace moves, and arrivals that follow it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """A rate that is constant for stretches of time.

    Attributes:
        edges: seconds at which the rate changes, from 0 to the trace's end; one more than levels.
        levels: the rate in between, in any unit.
    """

    edges: tuple[float, ...]
    levels: tuple[float, ...]

    def with_mean(self, requests_per_second: float) -> Profile:
        """The same movement at this mean rate over the whole trace."""
        area = sum(level * (end - start) for start, end, level in self.stretches())
        factor = requests_per_second * self.edges[-1] / area
        return Profile(self.edges, tuple(level * factor for level in self.levels))

    def stretches(self) -> Iterator[tuple[float, float, float]]:
        """Start, end and rate of each stretch."""
        yield from (
            (start, end, level) for (start, end), level in zip(itertools.pairwise(self.edges), self.levels, strict=True)
        )

    def arrivals(self, variation: float, rng: random.Random) -> Iterator[float]:
        """Seconds of arrival, in order: gamma distributed gaps, stretched to the rate of the moment.

        Args:
            variation: standard deviation of the gaps over their mean where the rate is constant; 1: Poisson.
            rng: draws the gaps.
        """
        shape = 1 / variation**2
        # The first gap is cut at a random point, as one that was under way at the start; else a bursty trace would
        # begin with a burst each time, and have more requests than asked.
        due = rng.random() * rng.gammavariate(shape + 1, 1 / shape)
        passed = 0.0
        for start, end, level in self.stretches():
            area = level * (end - start)
            while due < passed + area:
                yield min(end, start + (due - passed) / level)
                due += rng.gammavariate(shape, 1 / shape)
            passed += area


def sampled(seconds: float, shape: Callable[[float], float], *, steps: int = 600) -> Profile:
    """A smooth movement in steps; `shape` gives the rate at a share (0 to 1) of the trace."""
    edges = tuple(seconds * step / steps for step in range(steps + 1))
    return Profile(edges, tuple(shape((step + 0.5) / steps) for step in range(steps)))


def constant(seconds: float) -> Profile:
    """No movement."""
    return Profile((0.0, seconds), (1.0,))


def diurnal(seconds: float, *, swing: float, period: float) -> Profile:
    """A sine that begins at its mean and rises; `swing` is its amplitude over the mean, `period` in seconds."""
    cycles = seconds / period
    steps = min(20_000, max(96, round(96 * cycles)))
    return sampled(seconds, lambda share: 1 + swing * math.sin(2 * math.pi * cycles * share), steps=steps)


def step(seconds: float, *, factor: float, at: float) -> Profile:
    """`factor` times the rate from a share `at` of the trace on."""
    return Profile((0.0, at * seconds, seconds), (1.0, factor))


def ramp(seconds: float, *, factor: float) -> Profile:
    """A straight line to `factor` times the rate."""
    return sampled(seconds, lambda share: 1 + (factor - 1) * share)


def flash_crowd(seconds: float, *, factor: float, at: float, lasting: float) -> Profile:
    """`factor` times the rate at a share `at` of the trace, decaying back by 1/e in `lasting` seconds."""
    begin = at * seconds
    fade = [1 + (factor - 1) * math.exp(-(tenth + 0.5) / 10) for tenth in range(80)]
    edges = [begin + lasting * tenth / 10 for tenth in range(81)]
    kept = [(edge, level) for edge, level in zip(edges, [*fade, 1.0], strict=True) if edge < seconds]
    return Profile((0.0, *(edge for edge, _ in kept), seconds), (1.0, *(level for _, level in kept)))


def bursts(seconds: float, rng: random.Random, *, busy: float, burst: float) -> Profile:
    """Now and then requests, else none: exponential bursts of mean `burst` seconds in a share `busy` of the time."""
    edges, levels = [0.0], [float(rng.random() < busy)]
    while edges[-1] < seconds:
        mean = burst if levels[-1] else burst * (1 - busy) / busy
        edges.append(min(seconds, edges[-1] + rng.expovariate(1 / mean)))
        levels.append(1.0 - levels[-1])
    levels.pop()
    served = sum(end - start for (start, end), level in zip(itertools.pairwise(edges), levels, strict=True) if level)
    if served < busy * seconds / 4:
        # Too short a trace for its bursts: one in the middle, or all requests would come at once.
        half = busy * seconds / 2
        edges, levels = [0.0, seconds / 2 - half, seconds / 2 + half, seconds], [0.0, 1.0, 0.0]
    return Profile(tuple(edges), tuple(levels))


@dataclass(frozen=True, slots=True)
class Drift:
    """A rate that wanders: a lognormal first-order autoregression from window to window."""

    window_seconds: float
    sigma: float
    correlation: float


def _steady(_: float) -> float:
    return 1.0


def drifting(seconds: float, rng: random.Random, drift: Drift, mean: Callable[[float], float] = _steady) -> Profile:
    """A rate that wanders about `mean`, which is given the seconds from the trace's start."""
    window = drift.window_seconds
    count = math.ceil(seconds / window)
    level = rng.gauss(0.0, drift.sigma)
    innovation = drift.sigma * math.sqrt(1 - drift.correlation**2)
    levels = []
    for index in range(count):
        levels.append(mean((index + 0.5) * window) * math.exp(level))
        level = drift.correlation * level + rng.gauss(0.0, innovation)
    return Profile((*(index * window for index in range(count)), seconds), tuple(levels))


def measured(seconds: float, *, window: float, rates: Sequence[float]) -> Profile:
    """Rates read from a table, one per window; from the table's start again when it ends."""
    count = math.ceil(seconds / window)
    levels = tuple(rates[index % len(rates)] for index in range(count))
    return Profile((*(index * window for index in range(count)), seconds), levels)
