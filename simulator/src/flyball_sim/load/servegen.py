"""The day of two ServeGen models as coefficients; `python -m flyball_sim.load.fits` prints them again.

Fitted to 14 days of request rates in windows of 10 minutes (ServeGen, Apache-2.0). The table's time 0 is the day's
beginning here; which hour it was is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class ServegenDay:
    """How the rate of one model moves.

    Attributes:
        harmonics: cosine and sine of the mean day's rate over its mean, from once a day on.
        drift_sigma: of the logarithm of what the mean day leaves, window by window.
        drift_correlation: between one window's and the next's.
        gap_variation: median over windows of the coefficient of variation of gaps, averaged over clients.
        window_share: a window's share of the day.
    """

    harmonics: tuple[tuple[float, float], ...]
    drift_sigma: float
    drift_correlation: float
    gap_variation: float
    window_share: float = 1 / 144

    def mean_rate(self, share: float) -> float:
        """The mean day's rate over its mean, at this share of the day."""
        angle = 2 * math.pi * share
        return 1 + sum(
            cosine * math.cos(times * angle) + sine * math.sin(times * angle)
            for times, (cosine, sine) in enumerate(self.harmonics, 1)
        )


SERVEGEN_DAYS: Final[Mapping[str, ServegenDay]] = MappingProxyType(
    {
        "m-large": ServegenDay(
            harmonics=((0.032, -0.1169), (0.0349, 0.0014), (-0.0302, 0.0097), (0.0126, -0.0274)),
            drift_sigma=0.392,
            drift_correlation=0.910,
            gap_variation=2.02,
        ),
        "m-small": ServegenDay(
            harmonics=((-0.035, -0.2262), (0.0688, -0.1737), (-0.0303, -0.0412), (-0.0684, -0.0398)),
            drift_sigma=0.227,
            drift_correlation=0.882,
            gap_variation=2.18,
        ),
    }
)
