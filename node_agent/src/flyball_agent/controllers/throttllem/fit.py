"""Trains the performance model from a profile; needs scikit-learn, which the agent's image does not have.

The paper boosts trees on (engine size, batch, KV usage, clock) and reports R2 >= 0.97 and a mean error below one
iteration per second, also when it learns from a tenth of the profile. Two things are not the paper's. Ours are forced
to be monotone in the clock: binary search for the least feasible one needs that. (Not in the batch: with the same
tokens in the cache a larger one can be faster, for attention is spread over more sequences.) And the trees learn the
logarithm of the rate, in which clock and batch nearly add up, so that a tenth of a profile is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from flyball_agent.controllers.throttllem.performance import VERSION
from flyball_agent.profiles import PrefillPoint, Profile

_MONOTONE: Final = (0, 0, 0, 1)
_ROUNDS: Final = 300
_LEAVES: Final = 12
_RATE: Final = 0.1


class Sample(NamedTuple):
    """One point of a profile as the model sees it."""

    gpus: int
    running: int
    kv_tokens: float
    sm_mhz: int
    iterations_per_second: float


def samples_of(profile: Profile) -> list[Sample]:
    """A profile's decode points: an iteration gives each sequence one token, so it takes the time per token."""
    return [
        Sample(profile.gpus, point.running, point.kv_tokens, point.sm_mhz, 1.0 / point.tpot_seconds)
        for point in profile.decode
    ]


def fit(profile: Profile) -> dict[str, Any]:
    """What `performance.Performance` reads.

    Raises:
        ValueError: the profile has too few decode points.
        ImportError: scikit-learn is not installed.
    """
    return train(samples_of(profile), profile.prefill)


def train(samples: Sequence[Sample], prefill: Iterable[PrefillPoint] = ()) -> dict[str, Any]:
    """Train on any samples, of one engine size or of several.

    Raises:
        ValueError: there are fewer than 20 samples.
        ImportError: scikit-learn is not installed.
    """
    if len(samples) < 20:
        raise ValueError(f"{len(samples)} decode points: at least 20 are needed")
    from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415 - not in the agent's image
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - comes with scikit-learn

    model = HistGradientBoostingRegressor(
        learning_rate=_RATE,
        max_iter=_ROUNDS,
        max_leaf_nodes=_LEAVES,
        min_samples_leaf=2 if len(samples) < 400 else 4,
        monotonic_cst=list(_MONOTONE),
        early_stopping=False,
        random_state=0,
    )
    with threadpool_limits(1):  # threads that wait for each other are slower than one, on so little
        model.fit([sample[:4] for sample in samples], [math.log(sample[4]) for sample in samples])
    clocks = sorted({sample.sm_mhz for sample in samples})
    points = list(prefill)
    return {
        "version": VERSION,
        "clocks": clocks,
        "base": float(model._baseline_prediction.ravel()[0]),  # noqa: SLF001 - no public way to the trees
        "trees": [_tree(predictor.nodes) for (predictor,) in model._predictors],  # noqa: SLF001
        "prefill_seconds_per_token": [_per_token(points, mhz) for mhz in clocks],
    }


def _tree(nodes: Any) -> list[list[float | int]]:
    return [
        [_short(float(node["value"]))]
        if node["is_leaf"]
        else [int(node["feature_idx"]), _short(float(node["num_threshold"])), int(node["left"]), int(node["right"])]
        for node in nodes
    ]


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def _per_token(points: Sequence[PrefillPoint], sm_mhz: int) -> float:
    """Seconds per prompt token at a clock: all prompts of the nearest clock together; 0 where none was measured."""
    if not points:
        return 0.0
    nearest = min((point.sm_mhz for point in points), key=lambda mhz: (abs(mhz - sm_mhz), mhz))
    mine = [point for point in points if point.sm_mhz == nearest]
    return sum(point.seconds for point in mine) / sum(point.prompt_tokens for point in mine)
