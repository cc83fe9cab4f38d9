"""How far the predicted time between tokens is off, learned while serving.

The public code v0.1 collects measured latencies and never looks at them; the paper's third version is said to adapt
EcoPred online without the public code showing how. This is ours: once a second the measured mean time between tokens
over the mean of what was predicted for the clock in force, smoothed (EWMA), within 0.5 to 2.
"""

from __future__ import annotations

from typing import Final

from flyball_agent.controllers.signals import increase_of
from flyball_agent.scanner import EngineSample, Histogram

LEAST_SECONDS: Final = 1.0
"""Between two corrections."""
LEAST_TOKENS: Final = 20
"""Fewer say nothing."""
BOUNDS: Final = (0.5, 2.0)


class Correction:
    """The factor on predicted times between tokens.

    Args:
        weight: of each second's ratio; 0: never corrects.
    """

    def __init__(self, weight: float) -> None:
        self.factor = 1.0
        self._weight = weight
        self._before: Histogram | None = None
        self._since = 0.0
        self._predicted = 0.0
        self._predictions = 0

    def predict(self, seconds: float | None) -> None:
        """A step was predicted, without the factor, to take this long at the clock in force."""
        if seconds is not None and seconds > 0.0:
            self._predicted += seconds
            self._predictions += 1

    def measure(self, page: EngineSample, now_seconds: float) -> None:
        """A page came."""
        now = page.histograms.get("inter_token_latency")
        if not self._weight or now is None or (self._before is not None and now_seconds - self._since < LEAST_SECONDS):
            return
        increase, restarted = increase_of(self._before, now)
        predicted = self._predicted / self._predictions if self._predictions else None
        self._before, self._since = now, now_seconds
        self._predicted, self._predictions = 0.0, 0
        if restarted or predicted is None or increase.mean is None or increase.count < LEAST_TOKENS:
            return
        low, high = BOUNDS
        ratio = min(max(increase.mean / predicted, low), high)
        self.factor += self._weight * (ratio - self.factor)
