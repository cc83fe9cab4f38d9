"""An engine on cards that do not do, or do not say, what they should."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from flyball_agent.controllers.base import Board, GpuReading
from flyball_agent.scanner import EngineSample
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.requests import EngineRequest, RequestTiming
from flyball_sim.gpu.delays import cap_call_seconds, lock_call_seconds, lock_delay_seconds
from flyball_sim.robustness.faults import Fault, page_of

_NEVER: Final = float("inf")


class FaultyMachine:
    """A machine behind a fault: a `Replica` with a scheduler.

    Args:
        machine: the engine as it is.
        fault: what is wrong.
        seed: of what is drawn.
    """

    def __init__(self, machine: Machine, fault: Fault, seed: int = 0) -> None:
        self._machine, self._fault = machine, fault
        self._rng = random.Random(seed)  # noqa: S311 - noise of a simulation
        self._shown = page_of(fault)
        self._top_mhz = round(fault.clamp_share * machine.model.gpu.sm_max_mhz)
        self._lock: tuple[float, tuple[int, int] | None] = (_NEVER, None)
        self._cap: tuple[float, float] = (_NEVER, 0.0)
        self._joules: dict[int, tuple[float, float]] = {}

    # -- what fails ------------------------------------------------------------------------------------------

    def set_lock(self, now_seconds: float, sm_mhz: tuple[int, int] | None) -> None:
        """Lock the SM clock: late, or lower than asked."""
        if sm_mhz is not None and self._fault.clamp_share < 1.0:
            sm_mhz = (min(sm_mhz[0], self._top_mhz), min(sm_mhz[1], self._top_mhz))
        gpu, more = self._machine.model.gpu, self._fault.delay_factor - 1.0
        late = more * (lock_call_seconds(gpu) + lock_delay_seconds(gpu, self._rng)) if more > 0.0 else 0.0
        self._lock = (now_seconds + late, sm_mhz)
        self.advance(now_seconds)

    def set_cap(self, now_seconds: float, watts: float) -> None:
        """Cap each card's power: late."""
        more = self._fault.delay_factor - 1.0
        self._cap = (now_seconds + more * cap_call_seconds(self._machine.model.gpu), watts)
        self.advance(now_seconds)

    def advance(self, now_seconds: float) -> None:
        """Work out all that happens up to a time; what was asked for late happens on the way."""
        while (due := min(self._lock[0], self._cap[0])) <= now_seconds:
            at = max(due, self._machine.now_seconds)
            if self._lock[0] <= due:
                sm_mhz, self._lock = self._lock[1], (_NEVER, None)
                self._machine.set_lock(at, sm_mhz)
            else:
                watts, self._cap = self._cap[1], (_NEVER, 0.0)
                self._machine.set_cap(at, watts)
        self._machine.advance(now_seconds)

    def next_event_seconds(self) -> float | None:
        """See `Replica`."""
        due = self._machine.next_event_seconds()
        return None if due is None else min(due, self._lock[0], self._cap[0])

    def page(self) -> EngineSample:
        """What a scrape gives."""
        return self._shown(self._machine.page(), self._machine.now_seconds)

    def readings(self) -> tuple[GpuReading, ...]:
        """What NVML shows of each card: energy goes on from what it showed before, by a wrong amount."""
        readings, noise = self._machine.readings(), self._fault.power_noise
        if noise <= 0.0:
            return readings
        return tuple(self._noisy(index, reading, noise) for index, reading in enumerate(readings))

    def _noisy(self, index: int, reading: GpuReading, noise: float) -> GpuReading:
        true = reading.energy_joules or 0.0
        before, shown = self._joules.get(index, (true, true))
        shown += (true - before) * (1.0 + self._rng.uniform(-noise, noise))
        self._joules[index] = (true, shown)
        power = None if reading.power_watts is None else reading.power_watts * (1.0 + self._rng.uniform(-noise, noise))
        return replace(reading, power_watts=power, energy_joules=shown)

    # -- what works ------------------------------------------------------------------------------------------

    @property
    def now_seconds(self) -> float:
        """Its clock."""
        return self._machine.now_seconds

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return self._machine.running

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return self._machine.waiting

    @property
    def kv_usage(self) -> float:
        """Share of its KV blocks in use."""
        return self._machine.kv_usage

    @property
    def sm_mhz(self) -> float:
        """The SM clock in force."""
        return self._machine.sm_mhz

    @property
    def energy_joules(self) -> float:
        """Of all its cards, truly."""
        return self._machine.energy_joules

    def submit(self, request: EngineRequest, now_seconds: float) -> None:
        """A request arrives."""
        self.advance(now_seconds)
        self._machine.submit(request, now_seconds)

    def take_finished(self) -> Sequence[RequestTiming]:
        """Requests that finished since this was last called."""
        return self._machine.take_finished()

    def board(self) -> Board:
        """What its scheduler holds."""
        return self._machine.board()

    def set_batch_limit(self, now_seconds: float, max_num_seqs: int) -> None:
        """Most sequences in its batch."""
        self.advance(now_seconds)
        self._machine.set_batch_limit(now_seconds, max_num_seqs)

    def set_admission(self, now_seconds: float, admit: int | None) -> None:
        """How many waiting requests may enter the batch."""
        self.advance(now_seconds)
        self._machine.set_admission(now_seconds, admit)
