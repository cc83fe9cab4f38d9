"""Fits the coefficients of `lengths` and `servegen` again, from the measured data: `python -m flyball_sim.load.fits`.

Prints each with how far it is from what it was fitted to. Nothing at run time imports this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import ndtr

from flyball_sim.load.measured import SERVEGEN_MODELS, LengthTable, lmsys_lengths, servegen_lengths, servegen_rates
from flyball_sim.load.traces import TraceError

Vector = NDArray[np.float64]

PARTS = {
    "m-large prompts": (5, 0.1),
    "m-large answers": (3, 0.1),
    "m-small prompts": (2, 0.4),
    "m-small answers": (2, 0.6),
    "lmsys tokens": (4, 0.3),
}
"""How many lognormals, and the least sigma of one. The tables tell nothing below their first step, at 16 or 64 tokens:
where that holds many requests, a part that lies there must not be a spike."""
LEAST_MEAN = 1.4
"""Of the logarithm of tokens: the middle of 1 to 16."""
HARMONICS = 4
WINDOWS_PER_DAY = 144


def mixture_cdf(mixture: Sequence[tuple[float, float, float]], tokens: Vector) -> Vector:
    """The share of a mixture's draws, rounded to whole tokens, of at most so many tokens."""
    weights, means, sigmas = (np.array(column)[:, None] for column in zip(*mixture, strict=True))
    shares: Vector = (weights * ndtr((np.log(tokens + 0.5) - means) / sigmas)).sum(axis=0)
    return shares


def fit_mixture(table: LengthTable, components: int, least_sigma: float) -> list[tuple[float, float, float]]:
    """Lognormals whose cumulative distribution is nearest to the table's in the square."""
    tokens, shares = np.array(table.tokens), np.array(table.shares)

    def unpacked(parameters: Vector) -> list[tuple[float, float, float]]:
        scores, means, logs = parameters.reshape(3, components)
        weights = np.exp(scores - scores.max())
        columns = ((weights / weights.sum()).tolist(), means.tolist(), np.exp(logs).tolist())
        return list(zip(*columns, strict=True))

    start = np.interp((np.arange(components) + 0.5) / components, shares, np.log(tokens))
    low, high = np.array([-12.0, LEAST_MEAN, np.log(least_sigma)]), np.array([12.0, 12.0, np.log(2.5)])
    found = [
        least_squares(
            lambda parameters: mixture_cdf(unpacked(parameters), tokens) - shares,
            np.concatenate([np.zeros(components), start, np.full(components, np.log(max(width, least_sigma) + 0.01))]),
            bounds=(low.repeat(components), high.repeat(components)),
            max_nfev=2000,
        )
        for width in (0.3, 0.6, 1.0)
    ]
    best = min(found, key=lambda result: float(np.abs(result.fun).max()))
    rounded = [(round(weight, 4), round(mean, 4), round(sigma, 4)) for weight, mean, sigma in unpacked(best.x)]
    return sorted(rounded, reverse=True)


def fit_day(rates: Sequence[float]) -> tuple[list[tuple[float, float]], float, float, float]:
    """Harmonics (cosine, sine) of the mean day, sigma and correlation of the drift, share of variance explained.

    The harmonics are of the rate over its mean. The drift is the logarithm of what remains, window by window; windows
    without requests are left out.
    """
    relative = np.array(rates) / np.mean(rates)
    angle = 2 * np.pi * np.arange(len(relative)) / WINDOWS_PER_DAY + np.pi / WINDOWS_PER_DAY
    columns = [np.ones_like(angle)]
    for harmonic in range(1, HARMONICS + 1):
        columns += [np.cos(harmonic * angle), np.sin(harmonic * angle)]
    design = np.column_stack(columns)
    found, *_ = np.linalg.lstsq(design, relative, rcond=None)
    mean = design @ found
    explained = 1 - float(np.var(relative - mean) / np.var(relative))
    served = relative > 0.05
    drift = np.log(relative[served] / mean[served])
    correlation = float(np.corrcoef(drift[:-1], drift[1:])[0, 1])
    pairs = [(round(float(a), 4), round(float(b), 4)) for a, b in found[1:].reshape(-1, 2)]
    return pairs, float(drift.std()), correlation, explained


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit and print; 2 when the data cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m flyball_sim.load.fits", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="directory of the measured data")
    data = parser.parse_args(arguments).data
    try:
        tables = {"lmsys tokens": lmsys_lengths(data)}
        for model in SERVEGEN_MODELS:
            tables[f"{model} prompts"], tables[f"{model} answers"] = servegen_lengths(data, model)
        days = {model: servegen_rates(data, model) for model in SERVEGEN_MODELS}
    except TraceError as error:
        print(f"fits: {error}", file=sys.stderr)
        return 2
    for name, table in tables.items():
        mixture = fit_mixture(table, *PARTS[name])
        off = np.abs(mixture_cdf(mixture, np.array(table.tokens)) - np.array(table.shares)).max()
        print(f"{name}: at most {100 * off:.2f} points off\n  {mixture}")
    for model, day in days.items():
        harmonics, sigma, correlation, explained = fit_day(day.rates)
        print(
            f"{model} day: explains {100 * explained:.0f} % of the variance, drift sigma {sigma:.3f},"
            f" correlation {correlation:.3f}, gaps vary by {np.median(day.variations):.2f}\n  {harmonics}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
