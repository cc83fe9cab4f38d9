"""The engine's side of its GPUs: the SM clock they really run at, and the load it puts on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from flyball_sim.engine.requests import LoadSample


class EngineGpus(Protocol):
    """The GPUs of one engine."""

    def sm_mhz(self) -> float:
        """The SM clock of the slowest GPU of the group, which all others wait for."""

    def write_load(self, load: LoadSample) -> None:
        """Tell every GPU of the group what the engine does to it."""


class LoadSlot(Protocol):
    """What the engine uses of a GPU in the state file (`flyball_sim.gpu.statefile.GpuSlot`)."""

    @property
    def sm_mhz(self) -> float:
        """The SM clock now, MHz."""

    def write_load(self, memory_use: float, compute_use: float, busy: float, monotonic_ns: int, pid: int) -> None:
        """Shares of 1 of memory bandwidth, dense compute and time, in force until the next call."""


class StateFileGpus:
    """GPUs in the state file the simulated driver and NVML share."""

    def __init__(self, slots: Sequence[LoadSlot], monotonic_ns: Callable[[], int]) -> None:
        self._slots = slots
        self._monotonic_ns = monotonic_ns
        self._pid = os.getpid()

    def sm_mhz(self) -> float:
        """The SM clock of the slowest GPU of the group."""
        return min(slot.sm_mhz for slot in self._slots)

    def write_load(self, load: LoadSample) -> None:
        """Tensor parallelism loads its GPUs alike."""
        now = self._monotonic_ns()
        for slot in self._slots:
            slot.write_load(load.memory_use, load.compute_use, load.busy, now, self._pid)


class FreeRunningGpus:
    """GPUs that nobody controls: always at their highest clock."""

    def __init__(self, sm_max_mhz: float) -> None:
        self._sm_max_mhz = sm_max_mhz

    def sm_mhz(self) -> float:
        """The highest SM clock."""
        return self._sm_max_mhz

    def write_load(self, load: LoadSample) -> None:
        """Nobody reads it."""
