"""What a world needs of an engine in virtual time; `flyball_sim.engine.machine.Machine` is the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flyball_agent.controllers.base import GpuReading
from flyball_agent.scanner import EngineSample
from flyball_sim.engine.core import EngineLimits, EngineRequest, RequestTiming
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel
from flyball_sim.gpu.dies import Die


class Replica(Protocol):
    """One engine on its cards. Its clock moves when it is told to: `advance` before anything is read."""

    @property
    def now_seconds(self) -> float:
        """Its clock."""
        ...

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        ...

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        ...

    @property
    def kv_usage(self) -> float:
        """Share of its KV blocks in use."""
        ...

    @property
    def sm_mhz(self) -> float:
        """The SM clock in force."""
        ...

    @property
    def energy_joules(self) -> float:
        """Of all its cards since it was made."""
        ...

    def advance(self, now_seconds: float) -> None:
        """Work out all that happens up to a time."""
        ...

    def next_event_seconds(self) -> float | None:
        """No request finishes before this time if nothing is told to it; None: none is in flight."""
        ...

    def submit(self, request: EngineRequest, now_seconds: float) -> None:
        """A request arrives."""
        ...

    def set_lock(self, now_seconds: float, sm_mhz: tuple[int, int] | None) -> None:
        """Lock the SM clock of its cards; None: unlock."""
        ...

    def set_cap(self, now_seconds: float, watts: float) -> None:
        """Cap the power of each card."""
        ...

    def take_finished(self) -> Sequence[RequestTiming]:
        """Requests that finished since this was last called."""
        ...

    def page(self) -> EngineSample:
        """What a scrape gives now."""
        ...

    def readings(self) -> tuple[GpuReading, ...]:
        """What NVML shows of each card now."""
        ...


class MakeMachine(Protocol):
    """Makes an engine."""

    def __call__(
        self,
        model: StepModel,
        limits: EngineLimits,
        *,
        dies: Sequence[Die],
        seed: int,
        start_seconds: float,
        ready_seconds: float,
    ) -> Replica:
        """An idle engine whose clock is at `start_seconds`."""
        ...


def make_machine(
    model: StepModel,
    limits: EngineLimits,
    *,
    dies: Sequence[Die],
    seed: int,
    start_seconds: float,
    ready_seconds: float,
) -> Replica:
    """The simulator's own engine."""
    return Machine(model, limits, dies=dies, seed=seed, start_seconds=start_seconds, ready_seconds=ready_seconds)
