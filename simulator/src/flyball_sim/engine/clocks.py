"""What each SM clock means for a step: how long it takes and what it draws."""

from __future__ import annotations

from functools import lru_cache

from flyball_sim.engine.book import power_line
from flyball_sim.gpu.kind import GpuType

Coefficients = tuple[float, float, float, float, float, float]
"""Of a `Clock`: factors fixed and clocked, watts waiting, busy, memory and compute."""


class Clock:
    """One SM clock of a GPU type.

    A step takes ``host + fixed * fixed_factor + clocked * clocked_factor``. A nominal card draws ``waiting_watts``
    and on top ``busy_watts`` for the share with kernels on it, ``memory_watts`` for that of peak bandwidth and
    ``compute_watts`` for that of the dense peak at the highest clock: work takes the same operations at any clock.
    """

    __slots__ = (
        "busy_watts",
        "clocked_factor",
        "compute_factor",
        "compute_watts",
        "fixed_factor",
        "memory_watts",
        "sm_mhz",
        "waiting_watts",
    )

    def __init__(self, gpu_type: GpuType, sm_mhz: float, reference_mhz: float) -> None:
        self.sm_mhz = sm_mhz
        self.fixed_factor = 1.0 / gpu_type.bandwidth_factor(sm_mhz)
        self.clocked_factor = reference_mhz / sm_mhz
        self.compute_factor = gpu_type.sm_max_mhz / sm_mhz
        line = power_line(gpu_type, sm_mhz)
        self.waiting_watts = line.waiting
        self.busy_watts = line.busy
        self.memory_watts = line.memory
        self.compute_watts = line.compute * self.compute_factor

    def coefficients(self) -> Coefficients:
        """What the law needs, to be had at once."""
        return (
            self.fixed_factor,
            self.clocked_factor,
            self.waiting_watts,
            self.busy_watts,
            self.memory_watts,
            self.compute_watts,
        )


class ClockTable:
    """The clocks of a GPU type, made when they are first asked for; shared by all engines of the type.

    Args:
        gpu_type: the card.
        reference_mhz: the clock that step times hold at.
    """

    def __init__(self, gpu_type: GpuType, reference_mhz: float) -> None:
        self._gpu_type = gpu_type
        self._reference_mhz = reference_mhz
        self._clocks: dict[float, Clock] = {}
        self._grid: list[Coefficients] = []

    def at(self, sm_mhz: float) -> Clock:
        """The clock; one outside the card's range counts as the nearest, for no kernel ever runs at another."""
        clock = self._clocks.get(sm_mhz)
        if clock is None:
            kind = self._gpu_type
            supported = min(max(float(sm_mhz), float(kind.sm_min_mhz)), float(kind.sm_max_mhz))
            clock = self._clocks.get(supported) or Clock(kind, supported, self._reference_mhz)
            self._clocks[sm_mhz] = self._clocks[supported] = clock
        return clock

    def grid(self) -> list[Coefficients]:
        """The coefficients of all supported clocks, lowest first."""
        if not self._grid:
            self._grid = [self.at(sm_mhz).coefficients() for sm_mhz in self._gpu_type.supported_sm_mhz()]
        return self._grid


@lru_cache(maxsize=1024)
def clock_table(gpu_type: GpuType, reference_mhz: float) -> ClockTable:
    """The table of a type; the same one for all who ask."""
    return ClockTable(gpu_type, reference_mhz)
