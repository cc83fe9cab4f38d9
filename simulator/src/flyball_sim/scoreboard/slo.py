"""When a request meets its service-level objective, and how many may miss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball_sim.load.traces import TraceRequest
from flyball_sim.world import slo as world_slo

ATTAINMENT = 0.99
"""Energy ranks only what attains this share in a cell."""
CAPACITY_ATTAINMENT = 0.995
"""SLO capacity is where unlocked clocks attain this share."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slo:
    """Both must hold, counted from arrival: time to first token, and mean time per output token after it."""

    name: str
    ttft_seconds: float
    tpot_seconds: float

    @property
    def bounds(self) -> world_slo.Slo:
        """As the world judges single requests."""
        return world_slo.Slo(self.ttft_seconds, self.tpot_seconds)

    def deadlines(self, trace: Sequence[TraceRequest]) -> Floats:
        """By when each request's last token must have left for its SLO to hold."""
        return np.array(
            [
                request.arrival_seconds + self.ttft_seconds + (request.output_tokens - 1) * self.tpot_seconds
                for request in trace
            ]
        )

    def met(self, ttft_seconds: Floats, tpot_seconds: Floats) -> NDArray[np.bool_]:
        """Which requests met it.

        Args:
            ttft_seconds: from arrival; NaN for a request that was refused, lost or had no token by the end.
            tpot_seconds: NaN where an answer has one token, infinite where it was not finished by the end.
        """
        return (ttft_seconds <= self.ttft_seconds) & ~(tpot_seconds > self.tpot_seconds)


def allowed_misses(requests: int, attainment: float = ATTAINMENT) -> int:
    """How many of so many requests may miss at that attainment."""
    return math.floor(requests * (1.0 - attainment) + 1e-9)
