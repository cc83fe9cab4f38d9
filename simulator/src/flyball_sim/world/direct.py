"""One engine under one controller, without agent, actuator or operator: for cells of many short runs.

The controller sees what `flyball_agent.groups` would show it at a tick whose page has just come, is asked when the
agent would ask it, and what it answers is clamped as the actuator clamps it. A controller may also be given the
signals its paper assumes (`native`): woken by the engine's events and exactly when it asked to be, with the engine's
scheduler to look at and to set. Its clocks and caps take effect as late as anybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flyball_agent.actuator.limits import clamp_clocks
from flyball_agent.controllers.base import (
    Board,
    ControlLimits,
    Event,
    GroupController,
    GroupSetpoint,
    Observation,
    Setup,
    Targets,
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

ITERATION_SECONDS = 0.01
"""How often a controller that wants every iteration is asked while the engine has work: asking it at every step would
cost far more and show it little else, for a step takes 5 to 50 ms."""
LEAST_WAKE_SECONDS = 0.001
"""A controller that wants to be asked sooner is asked then."""

_NEVER = float("inf")


@runtime_checkable
class Scheduled(Protocol):
    """An engine whose scheduler can be looked at and limited, which no standard engine's can."""

    def board(self) -> Board:
        """What its scheduler holds now."""
        ...

    def set_batch_limit(self, now_seconds: float, max_num_seqs: int | None) -> None:
        """Most sequences in its batch; None: the engine's own limit."""
        ...

    def set_admission(self, now_seconds: float, admit: int | None) -> None:
        """How many waiting requests may enter the batch from now on; None: as many as fit."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class EngineRun:
    """What came of it.

    Attributes:
        end_seconds: when it ended.
        outcomes: of every request.
        energy_joules: true energy of the engine's cards, from `score_seconds` to the end.
        marks_joules: of that, up to each mark.
        decisions: how often the controller was asked.
        changes: how often its setpoint changed.
        controller_seconds: its CPU time, observations not included; no part of the result.
        degraded: sentences of its last decision.
    """

    end_seconds: float
    outcomes: Outcomes
    energy_joules: float
    marks_joules: NDArray[np.float64]
    decisions: int
    changes: int
    controller_seconds: float
    degraded: tuple[str, ...]


def control_limits(model: StepModel, cap_watts: int | None = None, targets: Targets | None = None) -> ControlLimits:
    """What the cards of this model take, with this cap granted; None: caps are not to be touched."""
    gpu = model.gpu
    return ControlLimits(gpu.sm_min_mhz, gpu.sm_max_mhz, cap_watts, targets or Targets())


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


def scheduler_of(machine: Replica) -> Scheduled | None:
    """The engine's scheduler, where it lets one at it."""
    return machine if isinstance(machine, Scheduled) else None


class Hand:
    """Puts setpoints on one engine and its cards, clamped as the actuator clamps them.

    Args:
        machine: the engine.
        model: the machine's.
        limits: of setpoints.
        scheduler: what batch limits and admissions go to; None: nowhere.
    """

    def __init__(
        self, machine: Replica, model: StepModel, limits: ControlLimits, scheduler: Scheduled | None = None
    ) -> None:
        self._machine, self._scheduler = machine, scheduler
        self._gpu = model.gpu
        self._clocks = tuple(model.gpu.supported_sm_mhz())
        self._granted = limits.cap_watts
        self._lock: tuple[int, int] | None = None
        self._cap = self._gpu.cap_default_watts
        self._own_batch_limit = self._batch_limit = 0 if scheduler is None else scheduler.board().max_batch_limit
        self._admit: int | None = None
        self.changes = 0

    def hold(self, setpoint: GroupSetpoint, now: float) -> None:
        """Write what differs from what was written last."""
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
        if self._scheduler is not None:
            self._limit(self._scheduler, setpoint, now)

    def _limit(self, scheduler: Scheduled, setpoint: GroupSetpoint, now: float) -> None:
        own = self._own_batch_limit
        batch_limit = own if setpoint.batch_limit is None else min(max(setpoint.batch_limit, 1), own)
        if batch_limit != self._batch_limit:
            self._batch_limit = batch_limit
            scheduler.set_batch_limit(now, batch_limit)
            self.changes += 1
        # So many until the next decision: the same number again is another grant.
        if setpoint.admit is not None or self._admit is not None:
            self._admit = setpoint.admit
            scheduler.set_admission(now, setpoint.admit)


def observe(
    machine: Replica, role: Role, *, event: Event | None = None, scheduler: Scheduled | None = None
) -> Observation:
    """What a controller sees of an engine now; the scheduler's board where one is given."""
    sample = machine.page()
    board = None if scheduler is None else scheduler.board()
    return Observation(role, machine.readings(), sample, 0.0, sample.missing, board, event)


class Asking:
    """When one controller is asked, and what it answered.

    Args:
        machine: its engine.
        controller: a fresh one.
        model: the machine's.
        limits: of setpoints.
        role: of the engine.
        native: whether it gets the signals it declares; else it is asked at ticks and sees the page only.
        period_seconds: between two ticks.
        iteration_seconds: between two looks of a controller that wants every iteration, while the engine has work.
        stopwatch: measures its CPU time.
    """

    def __init__(
        self,
        machine: Replica,
        controller: GroupController,
        *,
        model: StepModel,
        limits: ControlLimits,
        role: Role = "unified",
        native: bool = False,
        period_seconds: float = AGENT_TICK_SECONDS,
        iteration_seconds: float = ITERATION_SECONDS,
        stopwatch: Stopwatch = standing_still,
    ) -> None:
        self._iteration_seconds = iteration_seconds
        self._machine, self._controller, self._limits = machine, controller, limits
        self._role: Role = role
        self._native, self._period_seconds, self._stopwatch = native, period_seconds, stopwatch
        scheduler = scheduler_of(machine) if native else None
        self._board = scheduler if native and controller.wants_board else None
        self._hand = Hand(machine, model, limits, scheduler)
        events: frozenset[Event] = controller.events if native else frozenset()
        self._arrivals, self._completions = "arrival" in events, "completion" in events
        self._iterations = "iteration" in events
        self._ticks, self._wake, self._iteration = 0, 0.0, _NEVER
        self.decisions, self.seconds = 0, 0.0
        self.degraded: tuple[str, ...] = ()

    @property
    def wants_completions(self) -> bool:
        """Whether it must be told at once when a request is finished."""
        return self._completions

    @property
    def changes(self) -> int:
        """How often its setpoint changed."""
        return self._hand.changes

    @property
    def next_seconds(self) -> float:
        """When it is to be looked at next, if nothing happens before."""
        if self._native:
            return min(self._wake, self._iteration)
        return self._ticks * self._period_seconds

    def arrived(self, now: float) -> None:
        """The engine took a request now."""
        if self._iterations:
            self._iteration = min(self._iteration, now)
        if self._arrivals:
            self._ask("arrival", now)

    def finished(self, now: float) -> None:
        """Requests were finished by now."""
        if self._completions:
            self._ask("completion", now)

    def look(self, now: float) -> None:
        """It is `next_seconds`."""
        if not self._native:
            self._ticks += 1
            if now >= self._wake:
                self._ask(None, now)
        elif now >= self._wake:
            self._ask(None, now)
        else:
            self._ask("iteration", now)

    def _ask(self, event: Event | None, now: float) -> None:
        observation = observe(self._machine, self._role, event=event, scheduler=self._board)
        began = self._stopwatch()
        decision = self._controller.decide(observation, self._limits, now)
        self.seconds += self._stopwatch() - began
        self.decisions += 1
        self.degraded = decision.degraded
        self._wake = now + decision.next_wake_seconds
        if self._native:
            self._wake = max(self._wake, now + LEAST_WAKE_SECONDS)
        self._hand.hold(decision.setpoint, now)
        if self._iterations:
            busy = self._machine.running + self._machine.waiting > 0
            self._iteration = now + self._iteration_seconds if busy else _NEVER


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
    native: bool = False,
    score_seconds: float = 0.0,
    marks: Sequence[float] | NDArray[np.float64] = (),
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
        native: whether the controller gets the signals it declares, beyond ticks and the page.
        score_seconds: energy counts from here.
        marks: times at which the energy so far is noted, rising, none before `score_seconds`.
        stopwatch: measures the controller's CPU time.
    """
    asking = Asking(
        machine,
        controller,
        model=model,
        limits=limits or control_limits(model),
        role=role,
        native=native,
        period_seconds=period_seconds,
        stopwatch=stopwatch,
    )
    book = OutcomeBook()
    machine.advance(0.0)
    noted: list[float] = []
    noting = iter([score_seconds, *np.asarray(marks).tolist()])
    mark = next(noting, _NEVER)
    waiting = iter(requests)
    coming = next(waiting, None)
    end = _NEVER if end_seconds is None else end_seconds
    while True:
        arrival = _NEVER if coming is None else coming.arrival_seconds
        now = min(arrival, asking.next_seconds, mark)
        if asking.wants_completions or (coming is None and end_seconds is None):
            now = min(now, _or_never(machine.next_event_seconds()))
        if now > end:
            break
        machine.advance(now)
        if collect(machine, book):
            asking.finished(now)
        if now == mark:
            noted.append(machine.energy_joules)
            mark = next(noting, _NEVER)
        if now == arrival and coming is not None:
            if _submit(machine, book, coming, now):
                asking.arrived(now)
            coming = next(waiting, None)
            continue
        if coming is None and not book.open and end_seconds is None:
            end = now
            break
        if now == asking.next_seconds:
            asking.look(now)
    machine.advance(end)
    collect(machine, book)
    return EngineRun(
        end_seconds=end,
        outcomes=book.outcomes(("engine",)),
        energy_joules=machine.energy_joules - noted[0],
        marks_joules=np.array(noted[1:]) - noted[0],
        decisions=asking.decisions,
        changes=asking.changes,
        controller_seconds=asking.seconds,
        degraded=asking.degraded,
    )


def _or_never(seconds: float | None) -> float:
    return _NEVER if seconds is None else seconds


def _submit(machine: Replica, book: OutcomeBook, request: TraceRequest, now: float) -> bool:
    number = book.offer(now, request.prompt_tokens, request.output_tokens)
    book.send(number, 0)
    try:
        machine.submit(EngineRequest(str(number), request.prompt_tokens, request.output_tokens), now)
    except (EngineRefusalError, QueueFullError):
        book.reject(number, now)
        return False
    return True


def collect(machine: Replica, book: OutcomeBook) -> int:
    """Note what an engine finished; how many requests."""
    timings = machine.take_finished()
    for timing in timings:
        book.finish(int(timing.request_id), timing.first_token_seconds, timing.finished_seconds)
    return len(timings)
