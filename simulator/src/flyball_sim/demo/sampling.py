"""Samples what the simulated GPUs do while the demo runs, from their own state files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flyball_sim.gpu.statefile import GpuSlot, GpuStateFile

SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Sample:
    """One moment of the policy's GPUs.

    Attributes:
        seconds: Since the sampler began.
        draw_watts: Sum over the GPUs.
        cap_watts: Sum of the caps in force.
        sm_mhz: Lowest, mean and highest SM clock.
        energy_joules: Sum of the energy counters.
        lock_writes: Clock locks written to them so far.
    """

    seconds: float
    draw_watts: float
    cap_watts: float
    sm_mhz: tuple[float, float, float]
    energy_joules: float
    lock_writes: int = 0


@dataclass
class Sampler:
    """Collects a `Sample` every half second of the GPUs that `choose` picks."""

    files: Sequence[GpuStateFile]
    clock: Callable[[], float]
    samples: list[Sample] = field(default_factory=list)
    _uuids: frozenset[str] = frozenset()
    _began: float | None = None

    def choose(self, uuids: Sequence[str]) -> None:
        """From now on sum over these GPUs."""
        self._uuids = frozenset(uuids)

    def slots(self) -> list[GpuSlot]:
        """The chosen GPUs."""
        return [slot for file in self.files for slot in file.gpus if slot.uuid in self._uuids]

    def now(self) -> float:
        """Seconds since the first sample."""
        if self._began is None:
            self._began = self.clock()
        return self.clock() - self._began

    def take(self) -> Sample:
        """Take one sample."""
        slots = self.slots()
        clocks = [float(slot.sm_mhz) for slot in slots] or [0.0]
        sample = Sample(
            seconds=self.now(),
            draw_watts=sum(slot.power_watts for slot in slots),
            cap_watts=sum(slot.enforced_cap_watts for slot in slots),
            sm_mhz=(min(clocks), sum(clocks) / len(clocks), max(clocks)),
            energy_joules=sum(slot.energy_joules for slot in slots),
            lock_writes=sum(slot.lock_set_calls for slot in slots),
        )
        self.samples.append(sample)
        return sample

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            self.take()
            await asyncio.sleep(SAMPLE_SECONDS)
