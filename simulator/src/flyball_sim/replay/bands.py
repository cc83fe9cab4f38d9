"""How sure a saving is: its band over parameter draws, each of them a paired run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flyball_sim.replay.measures import Measures

LOW_PERCENT, HIGH_PERCENT = 5, 95


@dataclass(frozen=True, slots=True)
class Pair:
    """Observe and Enforce on the same requests with the same parameters; `draw` is None for the nominal ones."""

    draw: int | None
    observe: Measures
    enforce: Measures

    @property
    def saving(self) -> float:
        """The share of Observe's energy that Enforce does not use; negative when it uses more."""
        return 1 - self.enforce.energy_joules / self.observe.energy_joules


@dataclass(frozen=True, slots=True)
class Band:
    """The middle and the band of a quantity.

    `low` and `high` are the 5th and the 95th percentile over the draws, moved out to the middle where that lies
    beyond: nominal parameters are one more of the possible worlds. Without draws both are None: no band is known.
    """

    nominal: float
    low: float | None
    high: float | None
    draws: int


def band(nominal: float, values: Sequence[float]) -> Band:
    """The band of a quantity from its value at nominal parameters and at each draw."""
    if not values:
        return Band(nominal, None, None, 0)
    low, high = (float(value) for value in np.percentile(values, (LOW_PERCENT, HIGH_PERCENT)))
    return Band(nominal, min(low, nominal), max(high, nominal), len(values))
