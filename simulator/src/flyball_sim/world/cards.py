"""The cards of a simulated node, the actuator's `Device`s: a lock or cap written to one moves its engine's machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flyball_agent.actuator.device import GPU_IS_LOST, REASON_IDLE, REASONS_CAP, DeviceError, Identity, Sample
from flyball_agent.controllers.base import GpuReading
from flyball_sim.gpu.dies import Die
from flyball_sim.gpu.types import GpuType
from flyball_sim.world.machines import Replica


class CardGroup:
    """Cards that run one engine and so share its pace, or cards that run none.

    A group runs as its slowest card lets it: the lowest lock and the lowest cap count.

    Args:
        gpu_type: of all its cards.
        dies: one per card.
        machine: the engine; None: none, the cards idle.
        start_seconds: now.
    """

    def __init__(self, gpu_type: GpuType, dies: Sequence[Die], machine: Replica | None, start_seconds: float) -> None:
        self.gpu_type = gpu_type
        self.dies = tuple(dies)
        self.machine = machine
        self.cards: list[Card] = []
        self._idle_watts = tuple(gpu_type.idle_watts * die.idle_factor for die in dies)
        self._idle_since = start_seconds
        self._before = (0.0,) * len(self.dies)  # joules of each card before `_idle_since`
        self._lock: tuple[int, int] | None = None
        self._cap = gpu_type.cap_default_watts
        self._read_at = float("-inf")
        self._readings: tuple[GpuReading, ...] = ()

    def energy_joules(self, now: float) -> float:
        """True energy of all cards since the start."""
        if self.machine is None:
            return sum(self._before) + sum(self._idle_watts) * (now - self._idle_since)
        self.machine.advance(now)
        return self.machine.energy_joules

    def readings(self, now: float) -> tuple[GpuReading, ...]:
        """What NVML shows of each card."""
        if now != self._read_at:
            self._read_at = now
            if self.machine is None:
                self._readings = tuple(map(self._idle_reading, range(len(self.dies)), [now] * len(self.dies)))
            else:
                self.machine.advance(now)
                self._readings = self.machine.readings()
        return self._readings

    def _idle_reading(self, rank: int, now: float) -> GpuReading:
        gain, watts = self.dies[rank].sensor_gain, self._idle_watts[rank]
        joules = self._before[rank] + watts * (now - self._idle_since)
        return GpuReading(
            power_watts=watts * gain,
            sm_mhz=self.gpu_type.sm_min_mhz,
            utilisation_percent=0,
            energy_joules=joules * gain,
        )

    def settle(self, now: float) -> None:
        """A card's lock or cap was written."""
        locks = [card.locked_mhz for card in self.cards if card.locked_mhz is not None]
        lock = (min(low for low, _ in locks), min(high for _, high in locks)) if locks else None
        cap = min(card.cap_watts for card in self.cards)
        machine = self.machine
        self._read_at = float("-inf")
        if machine is None:
            return
        if cap != self._cap:
            machine.set_cap(now, cap)
        if lock != self._lock:
            machine.set_lock(now, lock)
        self._lock, self._cap = lock, cap

    def stop(self, now: float) -> None:
        """The engine died; its cards idle from now on."""
        if self.machine is None:
            return
        self.machine.advance(now)
        total, shown = self.machine.energy_joules, self.machine.readings()
        counted = [reading.energy_joules or 0.0 for reading in shown]
        # What NVML showed of each card says how the true energy is shared between them.
        gains = [max(joules / die.sensor_gain, 0.0) for joules, die in zip(counted, self.dies, strict=True)]
        scale = total / sum(gains) if sum(gains) > 0 else 0.0
        self._before = tuple(joules * scale for joules in gains)
        if scale == 0.0:
            self._before = (total / len(self.dies),) * len(self.dies)
        self.machine, self._idle_since, self._read_at = None, now, float("-inf")


class Card:
    """One GPU of a node: `flyball_agent.actuator.device.Device`.

    Args:
        identity: what it is.
        group: whose machine it moves.
        rank: its place there.
        clock: the time.
        on_cap: called after the cap in force has changed.
    """

    def __init__(
        self, identity: Identity, group: CardGroup, *, clock: Callable[[], float], on_cap: Callable[[Card], None]
    ) -> None:
        self._identity = identity
        self.group = group
        self.rank = len(group.cards)
        group.cards.append(self)
        self._clock = clock
        self._on_cap = on_cap
        self.cap_watts = identity.cap_default_watts
        """The cap in force: what was last requested of the card, by whomever."""
        self.locked_mhz: tuple[int, int] | None = None
        self.lost = False

    @property
    def identity(self) -> Identity:
        """See `Device`."""
        return self._identity

    @property
    def reading(self) -> GpuReading:
        """What NVML shows now.

        Raises:
            DeviceError: the card is lost.
        """
        self._answer()
        return self.group.readings(self._clock())[self.rank]

    def sample(self) -> Sample:
        """See `Device`."""
        reading = self.reading
        return Sample(
            power_average_watts=reading.power_watts,
            power_instant_watts=None,
            energy_joules=reading.energy_joules,
            sm_mhz=reading.sm_mhz or 0,
            reasons=(REASONS_CAP if reading.cap_limited else 0) | (0 if reading.utilisation_percent else REASON_IDLE),
            cap_watts=self.cap_watts,
            enforced_cap_watts=self.cap_watts,
            utilisation_percent=reading.utilisation_percent,
        )

    def caps(self) -> tuple[float, float]:
        """See `Device`."""
        self._answer()
        return self.cap_watts, self.cap_watts

    def set_cap(self, watts: float) -> None:
        """See `Device`."""
        self._answer()
        self.cap_watts = float(watts)
        self.group.settle(self._clock())
        self._on_cap(self)

    def lock(self, low_mhz: int, high_mhz: int) -> None:
        """See `Device`."""
        self._answer()
        self.locked_mhz = (low_mhz, high_mhz)
        self.group.settle(self._clock())

    def unlock(self) -> None:
        """See `Device`."""
        self._answer()
        self.locked_mhz = None
        self.group.settle(self._clock())

    def _answer(self) -> None:
        if self.lost:
            raise DeviceError(GPU_IS_LOST, "nvmlDeviceGetFieldValues", "GPU is lost")
