"""Bootstrap intervals over paired stretches of a run."""

from __future__ import annotations

import numpy as np
from scipy.stats import bootstrap

from flyball_sim.scoreboard.slo import Floats

RESAMPLES = 2000
CONFIDENCE = 0.95


def ratio_interval(joules: Floats, reference: Floats, *, seed: int) -> tuple[float, float]:
    """The interval of the ratio of two energies, from blocks of the two runs over the same arrivals.

    Blocks are resampled in pairs, so what the arrivals do to both cancels. They are much longer than the memory of an
    engine's queue, and taken as independent.

    Args:
        joules: by block.
        reference: of the other run, the same blocks.
        seed: of the resampling.
    """

    def ratio(upper: Floats, lower: Floats, axis: int = -1) -> Floats:
        return np.asarray(upper.sum(axis=axis) / lower.sum(axis=axis))

    found = bootstrap(
        (joules, reference),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def share_interval(hits: Floats, *, blocks: int, seed: int) -> tuple[float, float]:
    """The interval of a share of requests, from blocks of requests in order of arrival."""
    parts = [part for part in np.array_split(hits, blocks) if len(part)]
    if len(parts) < 2:
        return float(hits.mean()), float(hits.mean())
    sums, sizes = np.array([part.sum() for part in parts]), np.array([float(len(part)) for part in parts])
    if np.ptp(sums / sizes) == 0.0:
        return float(hits.mean()), float(hits.mean())
    return ratio_interval(sums, sizes, seed=seed)
