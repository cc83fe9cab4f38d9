"""Time that real code takes of the machine that runs the simulation, kept apart by who used it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class CpuSeconds:
    """What was used so far; of the machine that ran this, and no part of a result.

    Attributes:
        controllers: agents: reading, deciding, counting, commanding, the actuator's governors included.
        statuses: agents: building plans' statuses.
        planner: the operator's plans.
    """

    controllers: float = 0.0
    statuses: float = 0.0
    planner: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.controllers + self.statuses + self.planner


Stopwatch = Callable[[], float]
"""Seconds of a clock that runs while code runs; `time.process_time`, or one that stands still."""


def standing_still() -> float:
    """A stopwatch for runs that are not timed."""
    return 0.0
