"""The feedback on the model's error: PID on what output lacks to its target, deaf to what does not persist."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gains:
    """Of the feedback, as shares.

    Attributes:
        proportional: on the deviation.
        integral_per_second: on its sum over time.
        derivative_seconds: on its slope.
        most: largest correction, up or down.
        deviation: what is not more than this is not acted on.
        ticks: for how many periods a deviation must have been there.
    """

    proportional: float = 0.5
    integral_per_second: float = 0.1
    derivative_seconds: float = 0.05
    most: float = 0.25
    deviation: float = 0.05
    ticks: int = 2


@dataclass(slots=True)
class Feedback:
    """Corrects the target by what the output persistently lacks.

    Args:
        gains: the constants.
    """

    gains: Gains
    _sum: float = 0.0
    _last: float | None = None
    _ticks: int = 0

    def see(self, error: float, elapsed_seconds: float, *, frozen: bool) -> float:
        """The correction of the target, a share.

        Args:
            error: (target - output) / target.
            elapsed_seconds: since the last call; 0: this is the first.
            frozen: the error is none that a choice could mend, and is not to be summed up.
        """
        gains = self.gains
        self._ticks = self._ticks + 1 if abs(error) > gains.deviation else 0
        slope = 0.0
        if self._last is not None and elapsed_seconds > 0.0:
            slope = (error - self._last) / elapsed_seconds
        self._last = error
        if not frozen and gains.integral_per_second > 0.0:
            # No more than what the correction can use: beyond it the sum would only have to be undone again.
            bound = gains.most / gains.integral_per_second
            self._sum = min(max(self._sum + error * elapsed_seconds, -bound), bound)
        raw = gains.proportional * error + gains.integral_per_second * self._sum + gains.derivative_seconds * slope
        return min(max(raw, -gains.most), gains.most)

    @property
    def persists(self) -> bool:
        """Whether the error has been there for long enough to be acted on."""
        return self._ticks >= self.gains.ticks

    def to_json(self) -> dict[str, Any]:
        """Its sum; the last error is of a moment that has passed."""
        return {"sum": self._sum}

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_json`.

        Raises:
            ValueError: the sum is no number.
        """
        total = float(state["sum"])
        if not math.isfinite(total):
            raise ValueError(f"the feedback's sum is {total}")
        self._sum = total
