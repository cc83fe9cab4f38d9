"""Counts between bucket edges, of one value or of a whole straight line of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
STEP_BUCKETS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
STEP_BOUNDS = (*STEP_BUCKETS, math.inf)
STEP_BUCKET = bytes(bisect_left(STEP_BUCKETS, tokens) for tokens in range(int(STEP_BUCKETS[-1]) + 2))
"""The bucket of a step by its tokens; the last one is of all that have more."""


class Tally:
    """A histogram. `counts[i]` is what fell in (edge i-1, edge i], the last one what lay above all edges."""

    __slots__ = ("bounds", "counts", "edges", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.bounds = (*edges, math.inf)
        self.counts = [0.0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times."""
        self.total += value * count
        self.counts[bisect_left(self.edges, value)] += count

    def observe_line(self, first: float, growth: float, steps: int, each: int, total: float) -> None:
        """Count `first + i * growth` for i in 0 .. steps - 1, each of them `each` times.

        Args:
            first: the first value.
            growth: from one to the next, 0 or more.
            steps: how many values.
            each: how often each counts.
            total: the sum of the values, each taken once.
        """
        self.total += total * each
        bucket = bisect_left(self.edges, first)
        if first + growth * (steps - 1) <= self.bounds[bucket]:
            self.counts[bucket] += steps * each
            return
        below = 0
        while below < steps:
            upto = self.bounds[bucket]
            through = steps if upto == math.inf else min(steps, math.floor((upto - first) / growth) + 1)
            self.counts[bucket] += (through - below) * each
            below = through
            bucket += 1

    def cumulative(self) -> tuple[float, ...]:
        """Observations at most as large as each edge, and all of them last."""
        return tuple(accumulate(self.counts))


class EngineCounts:
    """What an engine counts of itself; times are the engine's own, whoever looks how late."""

    __slots__ = (
        "cached_tokens",
        "end_to_end",
        "generation_tokens",
        "inter_token",
        "prompt_tokens",
        "step_buckets",
        "step_tokens",
        "steps",
        "time_per_token",
        "time_to_first",
    )

    def __init__(self) -> None:
        self.prompt_tokens = 0
        """Of requests that had their first token, cached ones included."""
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.steps = 0
        self.step_tokens = 0
        """Computed in all steps, those of prompts included."""
        self.step_buckets = [0] * (len(STEP_BUCKETS) + 1)
        """Steps by the tokens they computed; the bucket of each number is in `STEP_BUCKET`."""
        self.time_to_first = Tally(TTFT_BUCKETS)
        self.inter_token = Tally(ITL_BUCKETS)
        self.time_per_token = Tally(ITL_BUCKETS)
        """Of each answered request: the mean time between its tokens."""
        self.end_to_end = Tally(REQUEST_BUCKETS)

    def cumulative_steps(self) -> tuple[float, ...]:
        """Steps that computed at most as many tokens as each edge of `STEP_BUCKETS`, and all of them last."""
        return tuple([float(count) for count in accumulate(self.step_buckets)])
