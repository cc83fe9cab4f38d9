"""The energy of a run as sums per clock, so that it can be had again for other power coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.kind import GpuType
from flyball_sim.gpu.model import GpuLoad, power_at


@dataclass(slots=True)
class ClockSums:
    """What was done at one SM clock, seconds of each card.

    Attributes:
        idle_seconds: no step under way.
        linger_seconds: of those, within the linger after the last kernel.
        step_seconds: a step under way, its host part included.
        busy_seconds: of those, with kernels on the card.
        memory_seconds: bytes moved over peak bandwidth.
        compute_seconds: operations over the dense peak at this clock.
    """

    idle_seconds: float = 0.0
    linger_seconds: float = 0.0
    step_seconds: float = 0.0
    busy_seconds: float = 0.0
    memory_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PowerLine:
    """The power law at one clock: watts = waiting + busy*b + memory*mu + compute*cu, the shares those of `GpuLoad`."""

    waiting: float
    busy: float
    memory: float
    compute: float


def power_line(gpu_type: GpuType, sm_mhz: float, dies: Sequence[Die] = (NOMINAL_DIE,)) -> PowerLine:
    """The power law at `sm_mhz`, summed over cards."""
    nominal = _nominal_line(gpu_type, sm_mhz)
    above = sum(die.power_factor for die in dies)
    return PowerLine(
        nominal.waiting * sum(die.idle_factor for die in dies),
        nominal.busy * above,
        nominal.memory * above,
        nominal.compute * above,
    )


@lru_cache(maxsize=8192)
def _nominal_line(gpu_type: GpuType, sm_mhz: float) -> PowerLine:
    # The law is linear in the load, so unit loads give its coefficients.
    waiting = power_at(gpu_type, GpuLoad(0.0, 0.0, 0.0), sm_mhz)
    busy = power_at(gpu_type, GpuLoad(0.0, 0.0, 1.0), sm_mhz) - waiting
    memory = power_at(gpu_type, GpuLoad(1.0, 0.0, 0.0), sm_mhz) - waiting
    compute = power_at(gpu_type, GpuLoad(0.0, 1.0, 0.0), sm_mhz) - waiting
    return PowerLine(waiting, busy, memory, compute)


@dataclass(slots=True)
class EnergyBook:
    """Sums per SM clock (MHz), each of them true of every card of the group.

    They fix the energy of the run for any power coefficients, as long as the run would have had the same clocks: no
    cap bound, and the times of steps (clock shares, memory knee) are the same.
    """

    clocks: dict[float, ClockSums] = field(default_factory=dict)

    @property
    def linger_seconds(self) -> float:
        """At all clocks together."""
        return sum(sums.linger_seconds for sums in self.clocks.values())

    def at(self, sm_mhz: float) -> ClockSums:
        """The sums of one clock."""
        sums = self.clocks.get(sm_mhz)
        if sums is None:
            sums = self.clocks[sm_mhz] = ClockSums()
        return sums

    def energy_joules(self, gpu_type: GpuType, dies: Sequence[Die] = (NOMINAL_DIE,)) -> float:
        """Energy of all cards, had they been of this type and these dies."""
        joules = gpu_type.linger_watts * sum(die.power_factor for die in dies) * self.linger_seconds
        for sm_mhz in sorted(self.clocks):
            sums, line = self.clocks[sm_mhz], power_line(gpu_type, sm_mhz, dies)
            joules += line.waiting * (sums.idle_seconds + sums.step_seconds) + line.busy * sums.busy_seconds
            joules += line.memory * sums.memory_seconds + line.compute * sums.compute_seconds
        return joules
