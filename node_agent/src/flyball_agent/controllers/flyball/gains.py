"""Bounded recursive least squares of positive coefficients, in their logarithms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flyball_agent.controllers.flyball.memory import numbers

_LARGEST_SURPRISE: Final = 3.0
"""A residual counts for no more than so many of its standard deviations: one odd look must not undo a thousand."""


class LogGains:
    """Coefficients `exp(x)` of a function that is known but for them.

    Extended Kalman filter on x: the covariance grows by `drift` with each sample and never beyond the prior's.

    Args:
        values: the prior's, all above 0.
        spreads: standard deviations of their logarithms.
        together: rows (spread, indices): coefficients that are wrong by a common factor of this spread.
        low: lowest factor on each prior value.
        high: highest.
        drift: standard deviation that each sample adds.
    """

    def __init__(
        self,
        values: Sequence[float],
        spreads: Sequence[float],
        *,
        together: Sequence[tuple[float, Sequence[int]]] = (),
        low: Sequence[float],
        high: Sequence[float],
        drift: float,
    ) -> None:
        count = len(values)
        self._low = [math.log(value * factor) for value, factor in zip(values, low, strict=True)]
        self._high = [math.log(value * factor) for value, factor in zip(values, high, strict=True)]
        self._start = [[spreads[row] ** 2 if row == column else 0.0 for column in range(count)] for row in range(count)]
        for spread, indices in together:
            for row in indices:
                for column in indices:
                    self._start[row][column] += spread**2
        self._drift = drift**2
        self.logs = [math.log(value) for value in values]
        self.values = list(values)
        self.covariance = [row[:] for row in self._start]
        self.unsure = 1.0
        """Standard deviation of the last prediction that is the coefficients', over the prediction."""

    def spread(self, index: int) -> float:
        """Standard deviation of a coefficient's logarithm."""
        return math.sqrt(self.covariance[index][index])

    def inflate(self, factor: float) -> None:
        """Distrust what was learnt: all variances grow by this factor, up to the prior's."""
        count = len(self.logs)
        for row in range(count):
            for column in range(count):
                self.covariance[row][column] *= factor
        self._bound()

    def learn(self, measured: float, predicted: float, slopes: Sequence[float], noise: float) -> float:
        """Correct the coefficients by one sample.

        Args:
            measured: what was seen.
            predicted: what the present values give.
            slopes: of the prediction by each logarithm.
            noise: standard deviation of what is seen.

        Returns:
            The residual in its standard deviations.
        """
        covariance, count = self.covariance, len(slopes)
        for index in range(count):
            covariance[index][index] += self._drift
        along = [sum([row[j] * slopes[j] for j in range(count)]) for row in covariance]
        known = sum([along[i] * slopes[i] for i in range(count)])
        if known < 0.0:
            # Rounding has eaten the matrix: its diagonal alone is always a covariance.
            self._keep_diagonal()
            covariance = self.covariance
            along = [covariance[i][i] * slopes[i] for i in range(count)]
            known = sum([along[i] * slopes[i] for i in range(count)])
        variance = known + noise * noise
        deviation = math.sqrt(variance)
        self.unsure = math.sqrt(known) / predicted
        surprise = (measured - predicted) / deviation
        bounded = min(max(surprise, -_LARGEST_SURPRISE), _LARGEST_SURPRISE) * deviation
        for i in range(count):
            gain = along[i] / variance
            moved = self.logs[i] + gain * bounded
            self.logs[i] = min(max(moved, self._low[i]), self._high[i])
            row = covariance[i]
            for j in range(i, count):
                # Both halves from one number: a matrix that is not symmetric soon is no covariance.
                row[j] -= gain * along[j]
                covariance[j][i] = row[j]
        self._bound()
        self.values = [math.exp(value) for value in self.logs]
        return surprise

    def _keep_diagonal(self) -> None:
        count = len(self.logs)
        self.covariance = [
            [max(self.covariance[row][row], self._drift) if row == column else 0.0 for column in range(count)]
            for row in range(count)
        ]

    def _bound(self) -> None:
        """No variance above the prior's; shrinking rows and columns alike keeps the matrix a covariance."""
        covariance = self.covariance
        if any(covariance[index][index] <= 0.0 for index in range(len(covariance))):
            self._keep_diagonal()
            covariance = self.covariance
        for index, start in enumerate(self._start):
            if covariance[index][index] > start[index]:
                shrink = math.sqrt(start[index] / covariance[index][index])
                for j in range(len(self.logs)):
                    covariance[index][j] *= shrink
                    covariance[j][index] *= shrink

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"logs": list(self.logs), "covariance": [list(row) for row in self.covariance]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it is damaged.
        """
        count = len(self.logs)
        logs = numbers(state.get("logs"), "logs", count)
        rows = state.get("covariance")
        if not isinstance(rows, Sequence) or len(rows) != count:
            raise ValueError(f"state: covariance is no list of {count} rows")
        covariance = [numbers(row, "covariance", count) for row in rows]
        if any(covariance[index][index] < 0.0 for index in range(count)):
            raise ValueError("state: covariance has a negative variance")
        self.logs = [min(max(v, low), high) for v, low, high in zip(logs, self._low, self._high, strict=True)]
        self.values = [math.exp(value) for value in self.logs]
        self.covariance = covariance
        self._bound()
