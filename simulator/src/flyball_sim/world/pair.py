"""Prefill engines that hand over to decode engines, each under a controller of its own, without a control plane.

What `direct.run_engine` is for one engine: for cells of many short runs. Hand-overs are those of `serving`: the keys
and values of the prompt travel over a link, and the decode engine computes the last prompt token, which gives the first
token of the answer. A controller is asked at ticks and, where its own signals are wanted (`native`), exactly when it
said it wants to wake, on the events it declares, and each `iteration_seconds` while its engine is busy where it wants
iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from flyball_agent.actuator.limits import clamp_clocks
from flyball_agent.controllers.base import (
    NEVER_SECONDS,
    Board,
    ControlLimits,
    Event,
    GroupController,
    GroupSetpoint,
    Observation,
)
from flyball_agent.scanner import EngineSample
from flyball_api.common import Role
from flyball_sim.engine.core import EngineLimits, EngineRefusalError, EngineRequest, QueueFullError, RequestTiming
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cpu import Stopwatch, standing_still
from flyball_sim.world.delays import AGENT_TICK_SECONDS
from flyball_sim.world.direct import control_limits
from flyball_sim.world.events import EventQueue
from flyball_sim.world.outcomes import OutcomeBook, Outcomes
from flyball_sim.world.routers import MakeRouter, make_router

ITERATION_SECONDS = 0.01
"""How often a busy engine's controller looks where it wants every iteration: a decode step takes 10 to 40 ms."""
_NEVER = float("inf")
_PREFILL_MARK = "p"


@dataclass(frozen=True, slots=True)
class Handover:
    """The link between the engines of a pool; the defaults are those of `cluster.PoolSpec`.

    Attributes:
        gigabytes_per_second: between two engines, for one request at a time.
        latency_seconds: of every hand-over, besides.
    """

    gigabytes_per_second: float = 50.0
    latency_seconds: float = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class PairRun:
    """What came of it.

    Attributes:
        end_seconds: energy is of 0 to exactly this.
        outcomes: of every request; `engine` is the one that had it last.
        energy_joules: true energy of all cards.
        prefill_joules: of the prefill engines' cards.
        decisions: how often controllers were asked.
        changes: how often a setpoint changed.
        controller_seconds: their CPU time, observations not included; no part of the result.
    """

    end_seconds: float
    outcomes: Outcomes
    energy_joules: float
    prefill_joules: float
    decisions: int
    changes: int
    controller_seconds: float


class _Unit:
    """One engine with its controller: the `EngineView` of routers."""

    weight = 1.0

    def __init__(self, machine: Machine, controller: GroupController, *, role: Role, index: int, name: str) -> None:
        self.machine = machine
        self.controller = controller
        self.role: Role = role
        self.index = index
        self.name = name
        self.in_flight = 0
        self.wake = 0.0
        self.due = _NEVER
        self.polling = False
        self.sample: tuple[float, EngineSample] | None = None
        self.before_joules = machine.energy_joules
        self.changes = 0
        self._set = GroupSetpoint()
        self._cap_watts = machine.cap_watts

    @property
    def model(self) -> StepModel:
        """See `EngineView`."""
        return self.machine.model

    @property
    def limits(self) -> EngineLimits:
        """See `EngineView`."""
        return self.machine.limits

    @property
    def running(self) -> int:
        """See `EngineView`."""
        return self.machine.running

    @property
    def waiting(self) -> int:
        """See `EngineView`."""
        return self.machine.waiting

    @property
    def kv_usage(self) -> float:
        """See `EngineView`."""
        return self.machine.kv_usage

    @property
    def sm_mhz(self) -> float:
        """See `EngineView`."""
        return self.machine.sm_mhz

    @property
    def busy(self) -> bool:
        """Whether it has requests."""
        return bool(self.machine.running or self.machine.waiting)

    def page(self) -> EngineSample:
        """See `EngineView`."""
        return self.machine.page()

    def hold(self, setpoint: GroupSetpoint, granted_watts: int | None, now: float) -> None:
        """Put a setpoint on the engine as the actuator would."""
        machine, gpu, before = self.machine, self.machine.model.gpu, self._set
        lock = None if setpoint.sm_mhz is None else clamp_clocks(*setpoint.sm_mhz, tuple(gpu.supported_sm_mhz()))
        now_set = GroupSetpoint(lock, setpoint.cap_watts, setpoint.batch_limit, setpoint.admit)
        if lock != before.sm_mhz:
            machine.set_lock(now, lock)
            self.changes += 1
        if granted_watts is not None:
            wanted = granted_watts if setpoint.cap_watts is None else min(granted_watts, setpoint.cap_watts)
            cap = min(max(float(wanted), gpu.cap_min_watts), gpu.cap_max_watts)
            if cap != self._cap_watts:
                self._cap_watts = cap
                machine.set_cap(now, cap)
                self.changes += 1
        if setpoint.batch_limit != before.batch_limit:
            machine.set_batch_limit(now, setpoint.batch_limit)
            self.changes += 1
        if setpoint.admit is not None or before.admit is not None:
            machine.set_admission(now, setpoint.admit)
        self._set = now_set


class _Pair:
    """A run."""

    def __init__(
        self,
        units: Sequence[_Unit],
        prefills: int,
        *,
        router: str | MakeRouter,
        prefill_router: str | MakeRouter,
        at_arrival: bool,
        handover: Handover,
        limits: ControlLimits,
        native: bool,
        periods: tuple[float, float],
        stopwatch: Stopwatch,
    ) -> None:
        self.queue = EventQueue()
        self.book = OutcomeBook()
        self.units = units
        self.decisions = 0
        self.controller_seconds = 0.0
        self._entrance, self._decoders = make_router(prefill_router), make_router(router)
        for unit in units:
            (self._entrance if unit.index < prefills else self._decoders).join(unit)
        self._at_arrival = at_arrival
        self._decoder_of: dict[int, _Unit] = {}
        self._handover = handover
        self._limits = limits
        self._native = native
        self._period, self._iteration = periods
        self._stopwatch = stopwatch
        self._requests: Iterator[TraceRequest] = iter(())
        self._coming: TraceRequest | None = None

    def go_on(self) -> bool:
        """Whether anything is left to be decided."""
        return self._coming is not None or self.book.open > 0

    def begin(self, requests: Iterable[TraceRequest]) -> None:
        """Requests in order of arrival; first looks of all controllers."""
        self._requests = iter(requests)
        self._tick(0)
        self._next()

    def settle(self) -> None:
        """Bring all engines up to the end."""
        for unit in self.units:
            self._advance(unit)

    # -- requests --------------------------------------------------------------------------------------------

    def _next(self) -> None:
        self._coming = next(self._requests, None)
        if self._coming is not None:
            self.queue.at(self._coming.arrival_seconds, self._arrive)

    def _arrive(self) -> None:
        request, now = self._coming, self.queue.now
        if request is None:
            return
        number = self.book.offer(request.arrival_seconds, request.prompt_tokens, request.output_tokens)
        for unit in self.units:
            self._advance(unit)  # routers look at all
        entrance = self._entrance.choose(request, now)
        if entrance is not None:
            if self._at_arrival:
                self._choose_decoder(number, request)
            prompt = EngineRequest(f"{_PREFILL_MARK}{number}", request.prompt_tokens, 1)
            if not self._hand(self.units[entrance.index], number, prompt):
                self._free_decoder(number)
        else:
            self.book.reject(number, now)
        self._next()

    def _choose_decoder(self, number: int, request: TraceRequest) -> _Unit | None:
        chosen = self._decoders.choose(request, self.queue.now)
        if chosen is None:
            return None
        unit = self._decoder_of[number] = self.units[chosen.index]
        self._count(unit, 1)
        return unit

    def _free_decoder(self, number: int) -> None:
        unit = self._decoder_of.pop(number, None)
        if unit is not None:
            self._count(unit, -1)

    def _count(self, unit: _Unit, more: int) -> None:
        unit.in_flight += more
        (self._entrance if unit.role == "prefill" else self._decoders).counted(unit)

    def _hand(self, unit: _Unit, number: int, request: EngineRequest) -> bool:
        now = self.queue.now
        self._advance(unit)
        self.book.send(number, unit.index)
        try:
            unit.machine.submit(request, now)
        except (EngineRefusalError, QueueFullError):
            self.book.reject(number, now)
            return False
        if unit.role == "prefill":
            self._count(unit, 1)
        self._watch(unit)
        self._poll_on(unit)
        self._tell(unit, "arrival")
        return True

    def _transfer(self, number: int, timing: RequestTiming, model: StepModel) -> None:
        gigabytes = timing.prompt_tokens * model.model.kv_bytes_per_token() / 1e9
        seconds = self._handover.latency_seconds + gigabytes / self._handover.gigabytes_per_second
        self.queue.at(timing.finished_seconds + seconds, self._decode, number)

    def _decode(self, number: int) -> None:
        prompt, output = self.book.sizes(number)
        unit = self._decoder_of.get(number)
        if unit is None:
            for each in self.units:
                self._advance(each)
            unit = self._choose_decoder(number, TraceRequest(self.queue.now, prompt, output))
        if unit is None:
            self.book.reject(number, self.queue.now)
        elif not self._hand(unit, number, EngineRequest(str(number), prompt, output, prompt - 1)):
            self._free_decoder(number)

    # -- engines ---------------------------------------------------------------------------------------------

    def _advance(self, unit: _Unit) -> bool:
        """Bring it up to the present; whether anything finished."""
        unit.machine.advance(self.queue.now)
        finished = unit.machine.take_finished()
        for timing in finished:
            if unit.role == "prefill":
                self._count(unit, -1)
                self._transfer(int(timing.request_id.removeprefix(_PREFILL_MARK)), timing, unit.model)
            else:
                number = int(timing.request_id)
                self.book.finish(number, timing.first_token_seconds, timing.finished_seconds)
                self._free_decoder(number)
        return bool(finished)

    def _watch(self, unit: _Unit) -> None:
        """Look again no later than its next request can finish."""
        due = unit.machine.next_event_seconds()
        if due is not None and due < unit.due:
            unit.due = due
            self.queue.at(due, self._look, unit, due)

    def _look(self, unit: _Unit, due: float) -> None:
        if unit.due != due:
            return
        unit.due = _NEVER
        finished = self._advance(unit)
        self._watch(unit)
        if finished:
            self._tell(unit, "completion")

    # -- controllers -----------------------------------------------------------------------------------------

    def _tick(self, number: int) -> None:
        now = self.queue.now
        for unit in self.units:
            self._advance(unit)
            if self._native:
                unit.sample = (now, unit.machine.page())
            if now >= unit.wake:
                self._ask(unit, None)
        self.queue.at((number + 1) * self._period, self._tick, number + 1)

    def _tell(self, unit: _Unit, event: Event) -> None:
        if self._native and event in unit.controller.events:
            self._ask(unit, event)

    def _poll_on(self, unit: _Unit) -> None:
        if self._native and not unit.polling and "iteration" in unit.controller.events:
            unit.polling = True
            self.queue.after(self._iteration, self._poll, unit)

    def _poll(self, unit: _Unit) -> None:
        self._advance(unit)
        unit.polling = False
        if unit.busy:
            self._poll_on(unit)
        self._ask(unit, "iteration")

    def _wake(self, unit: _Unit, at: float) -> None:
        if unit.wake == at:
            self._advance(unit)
            self._ask(unit, None)

    def _ask(self, unit: _Unit, event: Event | None) -> None:
        now, controller, machine = self.queue.now, unit.controller, unit.machine
        board: Board | None = None
        read_at, sample = now, unit.sample[1] if unit.sample else None
        if self._native and controller.wants_board:
            board = machine.board()
            read_at = unit.sample[0] if unit.sample else now
        else:
            sample = machine.page()
        observation = Observation(
            unit.role,
            machine.readings(),
            sample,
            None if sample is None else now - read_at,
            () if sample is None else sample.missing,
            board,
            event,
        )
        began = self._stopwatch()
        decision = controller.decide(observation, self._limits, now)
        self.controller_seconds += self._stopwatch() - began
        self.decisions += 1
        unit.wake = now + decision.next_wake_seconds
        unit.hold(decision.setpoint, self._limits.cap_watts, now)
        self._watch(unit)
        if self._native and decision.next_wake_seconds < NEVER_SECONDS:
            self.queue.at(unit.wake, self._wake, unit, unit.wake)


def run_pair(
    prefill: Sequence[Machine],
    decode: Sequence[Machine],
    requests: Iterable[TraceRequest],
    *,
    controllers: Callable[[Role, int], GroupController],
    limits: ControlLimits | None = None,
    router: str | MakeRouter = "least-requests",
    prefill_router: str | MakeRouter = "least-requests",
    decode_at_arrival: bool = False,
    handover: Handover = Handover(),
    end_seconds: float | None = None,
    native: bool = False,
    period_seconds: float = AGENT_TICK_SECONDS,
    iteration_seconds: float = ITERATION_SECONDS,
    stopwatch: Stopwatch = standing_still,
) -> PairRun:
    """Let controllers drive a pool of prefill and decode engines.

    Args:
        prefill: fresh engines whose clocks are at 0 or earlier.
        decode: likewise.
        requests: in order of arrival.
        controllers: makes one by role and number within it.
        limits: of setpoints; None: what the cards take, caps not to be touched.
        router: of decode engines; a name or a maker.
        prefill_router: of prefill engines.
        decode_at_arrival: choose the decode engine when a request comes and not when its prompt is computed, and count
            it there from then on.
        handover: the link.
        end_seconds: when it ends; None: when the last request is decided.
        native: give each controller the signals it was made for; else a page at every tick, no events, no board.
        period_seconds: between two ticks; with `native` pages of controllers that look at boards are as old.
        iteration_seconds: between two looks of controllers that want every iteration, while their engine is busy.
        stopwatch: measures the controllers' CPU time.

    Raises:
        ValueError: one side has no engine.
    """
    if not prefill or not decode:
        raise ValueError(f"{len(prefill)} prefill and {len(decode)} decode engines: give at least one of each")
    sides: tuple[tuple[Role, Sequence[Machine]], ...] = (("prefill", prefill), ("decode", decode))
    units: list[_Unit] = []
    for role, machines in sides:
        for number, machine in enumerate(machines):
            machine.advance(0.0)
            made = controllers(role, number)
            units.append(_Unit(machine, made, role=role, index=len(units), name=f"{role}-{number}"))
    run = _Pair(
        units,
        len(prefill),
        router=router,
        prefill_router=prefill_router,
        at_arrival=decode_at_arrival,
        handover=handover,
        limits=limits or control_limits(prefill[0].model),
        native=native,
        periods=(period_seconds, iteration_seconds),
        stopwatch=stopwatch,
    )
    run.begin(requests)
    run.queue.run(_NEVER if end_seconds is None else end_seconds, run.go_on if end_seconds is None else lambda: True)
    end = run.queue.now
    run.settle()
    joules = [unit.machine.energy_joules - unit.before_joules for unit in units]
    return PairRun(
        end_seconds=end,
        outcomes=run.book.outcomes(tuple(unit.name for unit in units)),
        energy_joules=sum(joules),
        prefill_joules=sum(joules[: len(prefill)]),
        decisions=run.decisions,
        changes=sum(unit.changes for unit in units),
        controller_seconds=run.controller_seconds,
    )
