"""Makes EcoPred's tables from a profile, as the authors' notebooks do. Needs scikit-learn; no agent imports it.

Robust lines (`RANSACRegressor` on `LinearRegression(positive=True)`, random state 1): slopes are never negative. Decode
points count from 3 to 300 ms, prompts from 2,000 to 20,000 tokens.

Differences. The authors sweep each bin's two ends and let the KV cache fill up meanwhile; a profile has a point for
each batch and cache, and a bin without 3 points has no plane (`ecopred` interpolates). A bin with a single batch is
flat over sequences. Where a profile has fewer than 3 prompts of 2,000 to 20,000 tokens, the line is fitted on all from
500 up: an engine that takes 8,192 tokens at most leaves too few.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import comb
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LinearRegression, RANSACRegressor

from flyball_agent.controllers.voltanallm.ecopred import DECODE_COLUMNS, PREFILL_COLUMNS, VERSION
from flyball_agent.profiles import DecodePoint, PrefillPoint, Profile

DECODE_MS: Final = (3.0, 300.0)
"""Exclusive bounds of the times that are fitted."""
PREFILL_TOKENS: Final = (2000, 20_000)
"""Exclusive bounds of the prompts that are fitted."""
SHORT_PREFILL_TOKENS: Final = 500
"""The lower bound where there are too few of those."""
RANDOM_STATE: Final = 1
DECODE_TRIALS: Final = 10_000
PREFILL_TRIALS: Final = 100_000
_LEAST_POINTS: Final = 3
_TRIALS_OF_A_SUBSET: Final = 20

_Numbers = NDArray[np.float64]


def batch_bins() -> tuple[tuple[int, int], ...]:
    """First and last batch of each bin: 1-4, 5-8, 9-16, then eights up to 128, then 128s up to 2,048."""
    eights = [(first, first + 7) for first in range(9, 129, 8)]
    tiles = [(first, first + 127) for first in range(129, 2049, 128)]
    return ((1, 4), (5, 8), *eights, *tiles)


def fit(profile: Profile) -> dict[str, Any]:
    """Prefill lines and decode planes by clock, in milliseconds, as JSON.

    Raises:
        ValueError: there are not enough points for any line or any plane.
    """
    clocks = sorted({point.sm_mhz for point in profile.decode} | {point.sm_mhz for point in profile.prefill})
    prefill, decode = [], []
    for sm_mhz in clocks:
        prefill += _prefill_rows(sm_mhz, [point for point in profile.prefill if point.sm_mhz == sm_mhz])
        decode += _decode_rows(sm_mhz, [point for point in profile.decode if point.sm_mhz == sm_mhz])
    if not prefill or not decode:
        raise ValueError(
            f"profile {profile.name!r} gives {len(prefill)} prefill lines and {len(decode)} decode planes:"
            f" measure at least {_LEAST_POINTS} prompt lengths and {_LEAST_POINTS} points of one batch bin at a clock"
        )
    return {
        "version": VERSION,
        "prefill": {"columns": list(PREFILL_COLUMNS), "rows": prefill},
        "decode": {"columns": list(DECODE_COLUMNS), "rows": decode},
    }


def _prefill_rows(sm_mhz: int, points: Sequence[PrefillPoint]) -> list[list[float]]:
    low, high = PREFILL_TOKENS
    chosen = [point for point in points if low < point.prompt_tokens < high]
    if len(chosen) < _LEAST_POINTS:
        chosen = [point for point in points if SHORT_PREFILL_TOKENS <= point.prompt_tokens < high]
    if len(chosen) < _LEAST_POINTS:
        return []
    given = np.array([[point.prompt_tokens] for point in chosen], dtype=np.float64)
    times = np.array([1e3 * point.seconds for point in chosen])
    (per_token,), constant = _robust(given, times, PREFILL_TRIALS)
    tokens = np.array([point.prompt_tokens for point in points], dtype=np.float64)
    all_times = np.array([1e3 * point.seconds for point in points])
    return [[sm_mhz, per_token, constant, _r_squared(all_times, per_token * tokens + constant)]]


def _decode_rows(sm_mhz: int, points: Sequence[DecodePoint]) -> list[list[float]]:
    rows: list[list[float]] = []
    for first, last in batch_bins():
        chosen = [point for point in points if first <= point.running <= last and _counts(point)]
        if len(chosen) < _LEAST_POINTS:
            continue
        given = np.array([[point.running, point.kv_tokens] for point in chosen], dtype=np.float64)
        times = np.array([1e3 * point.tpot_seconds for point in chosen])
        (per_sequence, per_token), constant = _robust(given, times, DECODE_TRIALS)
        r_squared = _r_squared(times, given @ np.array([per_sequence, per_token]) + constant)
        rows.append([sm_mhz, first, last, per_sequence, per_token, constant, r_squared])
    return rows


def _counts(point: DecodePoint) -> bool:
    low, high = DECODE_MS
    return low < 1e3 * point.tpot_seconds < high


def _robust(given: _Numbers, times: _Numbers, trials: int) -> tuple[list[float], float]:
    """Slopes and constant of the line that most points lie near; of all points where there is no such line."""
    points, slopes = given.shape
    # Few points have few subsets: trying them over and over finds nothing new.
    trials = min(trials, _TRIALS_OF_A_SUBSET * comb(points, slopes + 1))
    robust = RANSACRegressor(
        LinearRegression(positive=True), random_state=RANDOM_STATE, max_trials=trials, loss="squared_error"
    )
    with warnings.catch_warnings():
        # A candidate of two or three points has no R2 of its own; it is judged by the points near it.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        try:
            line = robust.fit(given, times).estimator_
        except ValueError:
            line = LinearRegression(positive=True).fit(given, times)
    return [float(slope) for slope in line.coef_], float(line.intercept_)


def _r_squared(times: _Numbers, predicted: _Numbers) -> float:
    spread = float(np.sum((times - times.mean()) ** 2))
    return 1.0 if spread == 0.0 else 1.0 - float(np.sum((times - predicted) ** 2)) / spread
