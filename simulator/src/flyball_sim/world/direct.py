"""One engine under one controller, without agent, actuator or operator: for cells of many short runs.

The controller sees what `flyball_agent.groups` would show it at a tick whose page has just come, is asked when the
agent would ask it, and what it answers is clamped as the actuator clamps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flyball_agent.actuator.limits import clamp_clocks
from flyball_agent.controllers.base import (
    ControlLimits,
    Decision,
    GroupController,
    GroupSetpoint,
    Observation,
    Setup,
)
from flyball_agent.profiles import Profile
from flyball_api.common import Role
from flyball_sim.engine.core import EngineRefusalError, EngineRequest, QueueFullError
from flyball_sim.engine.models import StepModel
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cpu import Stopwatch, standing_still
from flyball_sim.world.delays import AGENT_TICK_SECONDS
from flyball_sim.world.machines import Replica
from flyball_sim.world.outcomes import OutcomeBook, Outcomes

_NEVER = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class EngineRun:
    """What came of it.

    Attributes:
        end_seconds: energy is of 0 to exactly this.
        outcomes: of every request.
        energy_joules: true energy of the engine's cards.
        decisions: how often the controller was asked.
        changes: how often its setpoint changed.
        controller_seconds: its CPU time, observations not included; no part of the result.
    """

    end_seconds: float
    outcomes: Outcomes
    energy_joules: float
    decisions: int
    changes: int
    controller_seconds: float


def control_limits(model: StepModel, cap_watts: int | None = None) -> ControlLimits:
    """What the cards of this model take, with this cap granted; None: caps are not to be touched."""
    gpu = model.gpu
    return ControlLimits(gpu.sm_min_mhz, gpu.sm_max_mhz, cap_watts)


def setup_of(model: StepModel, *, seed: int = 0, profile: Profile | None = None) -> Setup:
    """What a controller is told of the cards of this model."""
    gpu = model.gpu
    return Setup(
        product=gpu.product_name,
        gpus=model.gpus,
        clocks_mhz=tuple(gpu.supported_sm_mhz()),
        cap_min_watts=gpu.cap_min_watts,
        cap_max_watts=gpu.cap_max_watts,
        seed=seed,
        profile=profile,
    )


class _Hand:
    """Puts setpoints on the machine."""

    def __init__(self, machine: Replica, model: StepModel, limits: ControlLimits) -> None:
        self._machine = machine
        self._gpu = model.gpu
        self._clocks = tuple(model.gpu.supported_sm_mhz())
        self._granted = limits.cap_watts
        self._lock: tuple[int, int] | None = None
        self._cap = self._gpu.cap_default_watts
        self.changes = 0

    def hold(self, setpoint: GroupSetpoint, now: float) -> None:
        caps = [cap for cap in (self._granted, setpoint.cap_watts) if cap is not None]
        if caps and self._granted is not None:
            cap = min(max(float(min(caps)), self._gpu.cap_min_watts), self._gpu.cap_max_watts)
            if cap != self._cap:
                self._cap = cap
                self._machine.set_cap(now, cap)
                self.changes += 1
        lock = None if setpoint.sm_mhz is None else clamp_clocks(*setpoint.sm_mhz, self._clocks)
        if lock != self._lock:
            self._lock = lock
            self._machine.set_lock(now, lock)
            self.changes += 1


def run_engine(
    machine: Replica,
    requests: Iterable[TraceRequest],
    controller: GroupController,
    *,
    model: StepModel,
    end_seconds: float | None = None,
    period_seconds: float = AGENT_TICK_SECONDS,
    role: Role = "unified",
    limits: ControlLimits | None = None,
    stopwatch: Stopwatch = standing_still,
) -> EngineRun:
    """Let one controller drive one engine.

    Args:
        machine: a fresh one whose clock is at 0 or earlier; it is brought to 0 first.
        requests: in order of arrival.
        controller: a fresh one.
        model: the machine's.
        end_seconds: when it ends; None: when the last request is decided.
        period_seconds: between two looks; a controller is asked only when it wants to be.
        role: of the engine.
        limits: of setpoints; None: what the cards take, caps not to be touched.
        stopwatch: measures the controller's CPU time.
    """
    bounds = limits or control_limits(model)
    hand = _Hand(machine, model, bounds)
    book = OutcomeBook()
    machine.advance(0.0)
    before = machine.energy_joules
    waiting = iter(requests)
    coming = next(waiting, None)
    tick, ticks, wake = 0.0, 0, 0.0
    decisions, spent = 0, 0.0
    end = _NEVER if end_seconds is None else end_seconds
    while True:
        arrival = _NEVER if coming is None else coming.arrival_seconds
        now = min(arrival, tick)
        if coming is None and end_seconds is None:
            now = min(now, _or_never(machine.next_event_seconds()))
        if now > end:
            break
        if now == arrival and coming is not None:
            _submit(machine, book, coming, now)
            coming = next(waiting, None)
            continue
        machine.advance(now)
        _collect(machine, book)
        if coming is None and not book.open and end_seconds is None:
            end = now
            break
        if now != tick:
            continue
        ticks += 1
        tick = ticks * period_seconds
        if now >= wake:
            decision, seconds = _decide(machine, controller, role, limits=bounds, stopwatch=stopwatch)
            decisions, spent = decisions + 1, spent + seconds
            wake = now + decision.next_wake_seconds
            hand.hold(decision.setpoint, now)
    machine.advance(end)
    _collect(machine, book)
    return EngineRun(
        end_seconds=end,
        outcomes=book.outcomes(("engine",)),
        energy_joules=machine.energy_joules - before,
        decisions=decisions,
        changes=hand.changes,
        controller_seconds=spent,
    )


def _or_never(seconds: float | None) -> float:
    return _NEVER if seconds is None else seconds


def _submit(machine: Replica, book: OutcomeBook, request: TraceRequest, now: float) -> None:
    number = book.offer(now, request.prompt_tokens, request.output_tokens)
    book.send(number, 0)
    machine.advance(now)
    try:
        machine.submit(EngineRequest(str(number), request.prompt_tokens, request.output_tokens), now)
    except (EngineRefusalError, QueueFullError):
        book.reject(number, now)


def _collect(machine: Replica, book: OutcomeBook) -> None:
    for timing in machine.take_finished():
        book.finish(int(timing.request_id), timing.first_token_seconds, timing.finished_seconds)


def _decide(
    machine: Replica, controller: GroupController, role: Role, *, limits: ControlLimits, stopwatch: Stopwatch
) -> tuple[Decision, float]:
    sample = machine.page()
    observation = Observation(role, machine.readings(), sample, 0.0, sample.missing)
    began = stopwatch()
    decision = controller.decide(observation, limits, machine.now_seconds)
    return decision, stopwatch() - began
