"""Least squares with signs that physics gives: times do not fall with more work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls


def nondecreasing(values: Sequence[float]) -> list[float]:
    """The nearest sequence in relative squares that never falls (pool adjacent violators)."""
    blocks: list[list[float]] = []  # weighted sum, weight, length
    for value in values:
        weight = 1.0 / (value * value) if value > 0.0 else 1e12
        blocks.append([value * weight, weight, 1.0])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] > blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [sum(pair) for pair in zip(blocks[-1], last, strict=True)]
    return [total / weight for total, weight, length in blocks for _ in range(int(length))]


def nonnegative(
    columns: NDArray[np.float64], values: NDArray[np.float64], weights: NDArray[np.float64], *, rounds: int = 12
) -> NDArray[np.float64]:
    """Coefficients >= 0 of `columns` that bring them nearest to `values`; a few wild values pull little.

    Weighted absolute errors are made small by repeated least squares.
    """
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    pull = np.ones(len(values))
    found = np.zeros(columns.shape[1])
    for _ in range(rounds):
        by = weights * np.sqrt(pull)
        found = nnls(columns / scale * by[:, None], values * by)[0] / scale
        errors = np.abs((columns @ found - values) * weights)
        pull = 1.0 / np.maximum(errors, 0.01)
        pull /= pull.max()
    return found


def line(xs: Sequence[float], ys: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """``a, b >= 0`` of ``a + b*x``."""
    columns = np.column_stack([np.ones(len(xs)), np.asarray(xs, dtype=float)])
    found = nonnegative(columns, np.asarray(ys, dtype=float), np.asarray(weights, dtype=float))
    return float(found[0]), float(found[1])
