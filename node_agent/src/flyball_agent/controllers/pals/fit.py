"""The offline model: random forests for output and power over cap, batch and group size.

A forest is piecewise constant, so that a table of it on a grid loses nothing on that grid: the node agent reads the
table and needs no library for it. Fitting needs scikit-learn, the agent's extra `profile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from flyball_agent.controllers.pals.table import VERSION
from flyball_agent.profiles import LoadPoint, Profile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TREES: Final = 100
LEAF: Final = 2
FOLDS: Final = 5
SEED: Final = 2605_21427
CAP_STEP_WATTS: Final = 5
THROUGHPUT_ERROR_PERCENT: Final = 6.8
"""Published mean absolute error on held-out configurations."""
POWER_ERROR_PERCENT: Final = 4.5
LEAST_POINTS: Final = 20


def fit(profile: Profile) -> dict[str, Any]:
    """The table of a profile, as JSON for `profile.fits["PALS"]`; the same for the same profile.

    Args:
        profile: with load points of its group size; those of others help to fit.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: it has too few load points.
    """
    points = [point for point in profile.load if point.tokens_per_second > 0.0 and point.power_watts > 0.0]
    own = [point for point in points if point.gpus == profile.gpus]
    if len(own) < LEAST_POINTS:
        raise ValueError(
            f"profile {profile.name} has {len(own)} load points of {profile.gpus} GPUs and PALS needs {LEAST_POINTS}:"
            " let flyball profile run to its end"
        )
    features = [_features(point) for point in points]
    output, watts = [point.tokens_per_second for point in points], [point.power_watts for point in points]
    throughput_error, power_error = held_out_errors(points)
    caps = sorted({point.cap_watts for point in own})
    caps = sorted({*caps, *range(caps[0], caps[-1], CAP_STEP_WATTS)})
    batches = sorted({point.batch_limit for point in own})
    grid = [(float(cap), float(batch), float(profile.gpus)) for cap in caps for batch in batches]
    predicted = [_grown(features, values, grid) for values in (output, watts)]
    rows = [
        [
            [round(float(value), 3) for value in values[at : at + len(batches)]]
            for at in range(0, len(grid), len(batches))
        ]
        for values in predicted
    ]
    return {
        "version": VERSION,
        "gpus": profile.gpus,
        "caps_watts": caps,
        "batch_limits": batches,
        "tokens_per_second": rows[0],
        "power_watts": rows[1],
        "points": len(points),
        "trees": TREES,
        "throughput_error_percent": round(throughput_error, 3),
        "power_error_percent": round(power_error, 3),
        "accepted": throughput_error <= THROUGHPUT_ERROR_PERCENT and power_error <= POWER_ERROR_PERCENT,
    }


def held_out_errors(points: Sequence[LoadPoint]) -> tuple[float, float]:
    """Mean absolute errors of output and power in percent, each configuration predicted by forests that never saw it.

    Args:
        points: of which all of one configuration (cap, batch, GPUs) are held out together.
    """
    from sklearn.model_selection import GroupKFold  # noqa: PLC0415 - the node agent has no such library

    features = [_features(point) for point in points]
    groups = [f"{point.cap_watts}/{point.batch_limit}/{point.gpus}" for point in points]
    # Which fold a configuration is in must not go with its cap, as it would in the order they were measured in.
    folds = list(GroupKFold(FOLDS, shuffle=True, random_state=SEED % 2**32).split(features, groups=groups))
    errors = []
    for values in ([point.tokens_per_second for point in points], [point.power_watts for point in points]):
        wrong = []
        for train, test in folds:
            predicted = _grown([features[i] for i in train], [values[i] for i in train], [features[i] for i in test])
            wrong += [abs(found / values[i] - 1.0) for i, found in zip(test, predicted, strict=True)]
        errors.append(100.0 * sum(wrong) / len(wrong))
    return errors[0], errors[1]


def _features(point: LoadPoint) -> tuple[float, float, float]:
    return float(point.cap_watts), float(point.batch_limit), float(point.gpus)


def _grown(
    features: Sequence[tuple[float, ...]], values: Sequence[float], wanted: Sequence[tuple[float, ...]]
) -> list[float]:
    """What a forest grown on `features` and `values` says of what is wanted."""
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415 - as above

    forest = RandomForestRegressor(TREES, min_samples_leaf=LEAF, random_state=SEED % 2**32)
    forest.fit(features, values)
    return [float(value) for value in forest.predict(wanted)]
