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

import numpy as np
from numpy.typing import NDArray

from flyball_agent.controllers.base import ControlLimits, GroupController
from flyball_agent.scanner import EngineSample
from flyball_api.common import Role
from flyball_sim.engine.core import EngineLimits, EngineRefusalError, EngineRequest, QueueFullError, RequestTiming
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cpu import Stopwatch, standing_still
from flyball_sim.world.delays import AGENT_TICK_SECONDS
from flyball_sim.world.direct import ITERATION_SECONDS, Asking, control_limits
from flyball_sim.world.events import EventQueue
from flyball_sim.world.outcomes import OutcomeBook, Outcomes
from flyball_sim.world.routers import MakeRouter, Router, make_router

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
        end_seconds: when it ended.
        outcomes: of every request; `engine` is the one that had it last.
        energy_joules: true energy of all cards, from `score_seconds` to the end.
        marks_joules: of that, up to each mark.
        prefill_joules: of that, what the prefill engines' cards drew.
        serving_joules: of each engine's cards from its first request until it is empty for the last time: idle ends are
            left out, as VoltanaLLM's benchmark counts.
        decisions: how often controllers were asked.
        changes: how often a setpoint changed.
        controller_seconds: their CPU time, observations not included; no part of the result.
        degraded: sentences of their last decisions, each once.
        preemptions: sequences that lost their cache and were computed again.
    """

    end_seconds: float
    outcomes: Outcomes
    energy_joules: float
    marks_joules: NDArray[np.float64]
    prefill_joules: float
    serving_joules: float
    decisions: int
    changes: int
    controller_seconds: float
    degraded: tuple[str, ...]
    preemptions: int


class _Unit:
    """One engine with its controller: the `EngineView` of routers."""

    weight = 1.0

    def __init__(self, machine: Machine, asking: Asking, router: Router, *, role: Role, index: int, name: str) -> None:
        self.machine = machine
        self.asking = asking
        self.router = router
        self.role: Role = role
        self.index = index
        self.name = name
        self.in_flight = 0
        self.due = _NEVER
        self.asked_due = _NEVER
        self.first_joules: float | None = None
        self.last_joules = 0.0

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

    def page(self) -> EngineSample:
        """See `EngineView`."""
        return self.machine.page()

    @property
    def serving_joules(self) -> float:
        """From its first request until it was empty for the last time."""
        return 0.0 if self.first_joules is None else self.last_joules - self.first_joules

    def weigh(self) -> None:
        """Requests have come or gone."""
        machine = self.machine
        if self.first_joules is None:
            self.first_joules = self.last_joules = machine.energy_joules
        elif not machine.running and not machine.waiting:
            self.last_joules = machine.energy_joules

    def count(self, more: int) -> None:
        """It has so many requests more."""
        self.in_flight += more
        self.router.counted(self)


class _Pool:
    """A run.

    Args:
        units: prefill engines, then decode engines.
        entrance: chooses among the first.
        decoders: chooses among the others.
        at_arrival: when the decode engine is chosen.
        handover: the link.
    """

    def __init__(
        self, units: Sequence[_Unit], entrance: Router, decoders: Router, *, at_arrival: bool, handover: Handover
    ) -> None:
        self.queue = EventQueue()
        self.book = OutcomeBook()
        self.noted: list[list[float]] = []
        self._units = units
        self._entrance, self._decoders = entrance, decoders
        self._at_arrival = at_arrival
        self._handover = handover
        self._decoder_of: dict[int, _Unit] = {}
        self._requests: Iterator[TraceRequest] = iter(())
        self._coming: TraceRequest | None = None

    def go_on(self) -> bool:
        """Whether anything is left to be decided or noted."""
        return self._coming is not None or self.book.open > 0 or not self.noted

    def begin(self, requests: Iterable[TraceRequest], marks: Iterable[float]) -> None:
        """Requests in order of arrival; times at which energies are noted."""
        for mark in marks:
            self.queue.at(mark, self._note)
        for unit in self._units:
            unit.router.join(unit)
            self._await_look(unit)
        self._requests = iter(requests)
        self._next()

    def joules(self) -> list[float]:
        """Of each engine's cards, up to the present."""
        for unit in self._units:
            self._advance(unit)
        return [unit.machine.energy_joules for unit in self._units]

    def _note(self) -> None:
        self.noted.append(self.joules())

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
        self._advance_all()
        chosen = self._entrance.choose(request, now)
        if chosen is None:
            self.book.reject(number, now)
        else:
            if self._at_arrival:
                self._choose_decoder(number, request)
            prompt = EngineRequest(f"{_PREFILL_MARK}{number}", request.prompt_tokens, 1)
            unit = self._units[chosen.index]
            if self._submit(unit, number, prompt):
                unit.count(1)
                self._asked(unit)
            else:
                self._free_decoder(number)
        self._next()

    def _choose_decoder(self, number: int, request: TraceRequest) -> _Unit | None:
        chosen = self._decoders.choose(request, self.queue.now)
        if chosen is None:
            return None
        unit = self._decoder_of[number] = self._units[chosen.index]
        unit.count(1)
        return unit

    def _free_decoder(self, number: int) -> None:
        unit = self._decoder_of.pop(number, None)
        if unit is not None:
            unit.count(-1)

    def _submit(self, unit: _Unit, number: int, request: EngineRequest) -> bool:
        self._advance(unit)
        if unit.first_joules is None:
            unit.weigh()
        self.book.send(number, unit.index)
        try:
            unit.machine.submit(request, self.queue.now)
        except (EngineRefusalError, QueueFullError):
            self.book.reject(number, self.queue.now)
            return False
        return True

    def _transfer(self, timing: RequestTiming, model: StepModel) -> None:
        gigabytes = timing.prompt_tokens * model.model.kv_bytes_per_token() / 1e9
        seconds = self._handover.latency_seconds + gigabytes / self._handover.gigabytes_per_second
        number = int(timing.request_id.removeprefix(_PREFILL_MARK))
        self.queue.at(timing.finished_seconds + seconds, self._decode, number)

    def _decode(self, number: int) -> None:
        prompt, output = self.book.sizes(number)
        unit = self._decoder_of.get(number)
        if unit is None:
            self._advance_all()
            unit = self._choose_decoder(number, TraceRequest(self.queue.now, prompt, output))
        if unit is None:
            self.book.reject(number, self.queue.now)
        # The last prompt token is computed here, as vLLM does: it gives the first token of the answer.
        elif self._submit(unit, number, EngineRequest(str(number), prompt, output, prompt - 1)):
            self._asked(unit)
        else:
            self._free_decoder(number)

    # -- engines and their controllers -----------------------------------------------------------------------

    def _advance_all(self) -> None:
        for unit in self._units:  # routers look at all
            self._advance(unit)

    def _advance(self, unit: _Unit) -> None:
        """Bring it up to the present and see what finished."""
        unit.machine.advance(self.queue.now)
        finished = unit.machine.take_finished()
        for timing in finished:
            if unit.role == "prefill":
                unit.count(-1)
                self._transfer(timing, unit.model)
            else:
                number = int(timing.request_id)
                self.book.finish(number, timing.first_token_seconds, timing.finished_seconds)
                self._free_decoder(number)
        if not finished:
            return
        unit.weigh()
        if unit.asking.wants_completions:
            unit.asking.finished(self.queue.now)
            self._await_look(unit)

    def _asked(self, unit: _Unit) -> None:
        """It took a request."""
        unit.asking.arrived(self.queue.now)
        self._await_look(unit)
        self._watch(unit)

    def _watch(self, unit: _Unit) -> None:
        """Bring it up to date no later than its next request can finish."""
        due = unit.machine.next_event_seconds()
        if due is not None and due < unit.due:
            unit.due = due
            self.queue.at(due, self._see, unit, due)

    def _see(self, unit: _Unit, due: float) -> None:
        if unit.due == due:
            unit.due = _NEVER
            self._advance(unit)
            self._watch(unit)

    def _await_look(self, unit: _Unit) -> None:
        due = unit.asking.next_seconds
        if due != unit.asked_due:
            unit.asked_due = due
            self.queue.at(due, self._look, unit, due)

    def _look(self, unit: _Unit, due: float) -> None:
        if unit.asked_due != due:
            return
        self._advance(unit)
        if unit.asking.next_seconds <= self.queue.now:
            unit.asking.look(self.queue.now)
        unit.asked_due = _NEVER
        self._await_look(unit)
        self._watch(unit)


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
    score_seconds: float = 0.0,
    marks: Iterable[float] = (),
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
        native: whether controllers get the signals they declare, beyond ticks and the page.
        period_seconds: between two looks; a controller is asked only when it wants to be.
        iteration_seconds: between two looks of controllers that want every iteration, while their engine has work.
        score_seconds: energy counts from here.
        marks: times at which the energy so far is noted, rising, none before `score_seconds`.
        stopwatch: measures the controllers' CPU time.

    Raises:
        ValueError: one side has no engine.
    """
    if not prefill or not decode:
        raise ValueError(f"{len(prefill)} prefill and {len(decode)} decode engines: give at least one of each")
    entrance, decoders = make_router(prefill_router), make_router(router)
    sides: tuple[tuple[Role, Sequence[Machine], Router], ...] = (
        ("prefill", prefill, entrance),
        ("decode", decode, decoders),
    )
    units: list[_Unit] = []
    for role, machines, chooser in sides:
        for number, machine in enumerate(machines):
            machine.advance(0.0)
            asking = Asking(
                machine,
                controllers(role, number),
                model=machine.model,
                limits=limits or control_limits(machine.model),
                role=role,
                native=native,
                period_seconds=period_seconds,
                iteration_seconds=iteration_seconds,
                stopwatch=stopwatch,
            )
            units.append(_Unit(machine, asking, chooser, role=role, index=len(units), name=f"{role}-{number}"))
    pool = _Pool(units, entrance, decoders, at_arrival=decode_at_arrival, handover=handover)
    pool.begin(requests, (score_seconds, *marks))
    if end_seconds is None:
        pool.queue.run(_NEVER, pool.go_on)
    else:
        pool.queue.run(end_seconds, lambda: True)
    for unit in units:
        if unit.in_flight:
            unit.last_joules = unit.machine.energy_joules
    last, first = np.array(pool.joules()), np.array(pool.noted[0])
    return PairRun(
        end_seconds=pool.queue.now,
        outcomes=pool.book.outcomes(tuple(unit.name for unit in units)),
        energy_joules=float(np.sum(last - first)),
        marks_joules=np.array([float(np.sum(np.array(noted) - first)) for noted in pool.noted[1:]]),
        prefill_joules=float(np.sum((last - first)[: len(prefill)])),
        serving_joules=sum(unit.serving_joules for unit in units),
        decisions=sum(unit.asking.decisions for unit in units),
        changes=sum(unit.asking.changes for unit in units),
        controller_seconds=sum(unit.asking.seconds for unit in units),
        degraded=tuple(dict.fromkeys(sentence for unit in units for sentence in unit.asking.degraded)),
        preemptions=sum(unit.machine.preemptions for unit in units),
    )
