"""Engines of one model in several sizes under throttLL'eM's autoscaler, in virtual time.

One node has the cards. The variant that serves gets the requests; one that starts draws its cards' power while it does,
serves when it is ready, and the old one drains and then gives its cards back. Cards without an engine wait at the power
of an idle card. Each engine can have a controller of its own; while a larger engine starts the old one runs
unthrottled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from flyball_agent.controllers.base import ControlLimits, GroupController
from flyball_agent.scaling.tensorparallel import PERIOD_SECONDS, START_SECONDS, ScalePlan, TensorParallelScaler
from flyball_sim.engine.core import EngineRefusalError, EngineRequest, QueueFullError
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.direct import Asking, control_limits
from flyball_sim.world.outcomes import OutcomeBook, Outcomes

_NEVER = float("inf")
MakeController = Callable[[StepModel], GroupController]


@dataclass(frozen=True, slots=True)
class Size:
    """A variant as the simulator runs it.

    Attributes:
        name: of the variant.
        model: step times on its cards.
        limits: of its engine.
    """

    name: str
    model: StepModel
    limits: EngineLimits


@dataclass(frozen=True, slots=True, eq=False)
class VariantsRun:
    """What came of it.

    Attributes:
        end_seconds: energy is of 0 to exactly this.
        outcomes: of every request; `engine` is the variant that had it.
        engine_joules: true energy of cards while they hold an engine, starting and draining ones included.
        empty_joules: of the node's other cards, idle.
        changes: of the serving variant: (seconds, name), the first one included.
        serving_seconds: by variant, how long new requests went to it.
    """

    end_seconds: float
    outcomes: Outcomes
    engine_joules: float
    empty_joules: float
    changes: tuple[tuple[float, str], ...]
    serving_seconds: dict[str, float]

    @property
    def energy_joules(self) -> float:
        """Of all cards of the node."""
        return self.engine_joules + self.empty_joules


@dataclass(slots=True)
class _Engine:
    """One engine, from its start to the end of its drain."""

    size: Size
    machine: Machine
    asking: Asking | None
    started_seconds: float
    ready_seconds: float
    before_joules: float
    numbers: set[int] = field(default_factory=set)
    draining: bool = False


class _Node:
    """A run."""

    def __init__(
        self,
        sizes: Sequence[Size],
        cards: int,
        *,
        serving: str,
        make: MakeController | None,
        limits: ControlLimits | None,
        start_seconds: float,
        seed: int,
    ) -> None:
        self._sizes = {size.name: size for size in sizes}
        self._index = {size.name: number for number, size in enumerate(sizes)}
        self._cards, self._make, self._limits = cards, make, limits
        self._start_seconds, self._seed = start_seconds, seed
        self.book = OutcomeBook()
        self.engines: list[_Engine] = []
        self.engine_joules = 0.0
        self.held_card_seconds = 0.0
        self.changes: list[tuple[float, str]] = [(0.0, serving)]
        self.serving = self.start(serving, 0.0, ready_seconds=0.0)

    def start(self, name: str, now: float, *, ready_seconds: float) -> _Engine:
        size = self._sizes[name]
        machine = Machine(
            size.model, size.limits, seed=self._seed + len(self.changes), start_seconds=now, ready_seconds=ready_seconds
        )
        asking = None
        if self._make is not None:
            own = control_limits(size.model)
            own = own if self._limits is None else replace(own, targets=self._limits.targets)
            asking = Asking(machine, self._make(size.model), model=size.model, limits=own, native=True)
        engine = _Engine(size, machine, asking, now, ready_seconds, machine.energy_joules)
        self.engines.append(engine)
        return engine

    def starting(self) -> _Engine | None:
        return next((each for each in self.engines if each is not self.serving and not each.draining), None)

    def follow(self, plan: ScalePlan, now: float) -> None:
        """Do what the rule says."""
        starting = self.starting()
        if starting is not None and starting.size.name != plan.start:
            self._stop(starting, now)
            starting = None
        if plan.start is not None and starting is None:
            self.start(plan.start, now, ready_seconds=now + self._start_seconds)
        if plan.unthrottled and self.serving.asking is not None:
            self._unthrottle(self.serving, now)

    @staticmethod
    def _unthrottle(engine: _Engine, now: float) -> None:
        engine.asking = None
        engine.machine.set_lock(now, None)
        engine.machine.set_admission(now, None)

    def switch(self, engine: _Engine, now: float) -> None:
        """From now on requests go to this one; the other drains, at the speed it has."""
        old, self.serving = self.serving, engine
        old.draining = True
        self.changes.append((now, engine.size.name))
        self.collect(now)

    def _stop(self, engine: _Engine, now: float) -> None:
        engine.machine.advance(now)
        self.engine_joules += engine.machine.energy_joules - engine.before_joules
        self.held_card_seconds += engine.size.model.gpus * (now - engine.started_seconds)
        self.engines.remove(engine)

    def submit(self, request: TraceRequest, now: float) -> None:
        engine = self.serving
        number = self.book.offer(now, request.prompt_tokens, request.output_tokens)
        self.book.send(number, self._index[engine.size.name])
        engine.machine.advance(now)
        try:
            engine.machine.submit(EngineRequest(str(number), request.prompt_tokens, request.output_tokens), now)
        except (EngineRefusalError, QueueFullError):
            self.book.reject(number, now)
            return
        engine.numbers.add(number)
        if engine.asking is not None:
            engine.asking.arrived(now)

    def collect(self, now: float) -> None:
        """Bring all engines up to now; drained ones go."""
        for engine in list(self.engines):
            engine.machine.advance(now)
            finished = engine.machine.take_finished()
            for timing in finished:
                number = int(timing.request_id)
                engine.numbers.discard(number)
                self.book.finish(number, timing.first_token_seconds, timing.finished_seconds)
            if finished and engine.asking is not None:
                engine.asking.finished(now)
            if engine.draining and not engine.numbers:
                self._stop(engine, now)

    def next_seconds(self) -> float:
        """When an engine or its controller is to be looked at."""
        times = [_NEVER]
        for engine in self.engines:
            due = engine.machine.next_event_seconds()
            if due is not None:
                times.append(due)
            if engine.asking is not None:
                times.append(engine.asking.next_seconds)
        return min(times)

    def look(self, now: float) -> None:
        for engine in list(self.engines):
            if engine.asking is not None and engine.asking.next_seconds <= now:
                engine.asking.look(now)

    def finish(self, end: float) -> tuple[float, float]:
        """Energy of cards with and without an engine."""
        for engine in list(self.engines):
            self._stop(engine, end)
        gpu = next(iter(self._sizes.values())).model.gpu
        empty = self._cards * end - self.held_card_seconds
        return self.engine_joules, max(0.0, empty) * gpu.waiting_watts(float(gpu.sm_min_mhz))


def run_variants(
    sizes: Sequence[Size],
    requests: Iterable[TraceRequest],
    *,
    scaler: TensorParallelScaler | None = None,
    serving: str | None = None,
    make: MakeController | None = None,
    limits: ControlLimits | None = None,
    cards: int = 8,
    end_seconds: float,
    start_seconds: float = START_SECONDS,
    seed: int = 1,
) -> VariantsRun:
    """Serve requests with one variant, or with those that the rule chooses.

    Args:
        sizes: what there is.
        requests: in order of arrival.
        scaler: the rule; None: `serving` serves all the time.
        serving: the variant that serves at first; None: the rule's.
        make: makes a controller for an engine, which gets its own signals; None: clocks stay unlocked.
        limits: targets of those controllers; what else they hold is each variant's own.
        cards: of the node.
        end_seconds: when it ends; whatever is in flight then is unfinished.
        start_seconds: how long a new engine takes to start.
        seed: of delays.

    Raises:
        ValueError: neither a rule nor a variant is given.
    """
    first = serving or (None if scaler is None else scaler.serving)
    if first is None:
        raise ValueError("neither a scaler nor a serving variant is given: give one")
    node = _Node(sizes, cards, serving=first, make=make, limits=limits, start_seconds=start_seconds, seed=seed)
    coming = iter(requests)
    request = next(coming, None)
    period, arrived = PERIOD_SECONDS if scaler is not None else _NEVER, 0
    while True:
        starting = node.starting()
        arrival = _NEVER if request is None else request.arrival_seconds
        ready = _NEVER if starting is None else starting.ready_seconds
        now = min(arrival, period, ready, node.next_seconds())
        if now >= end_seconds:
            break
        node.collect(now)
        if scaler is not None and now == ready and starting is not None:
            node.switch(starting, now)
            node.follow(scaler.ready(now, starting.size.name), now)
        if now == period and scaler is not None:
            node.follow(scaler.decide(now, arrived / PERIOD_SECONDS), now)
            period, arrived = period + PERIOD_SECONDS, 0
        if request is not None and now == arrival:
            node.submit(request, now)
            arrived += 1
            request = next(coming, None)
        node.look(now)
    node.collect(end_seconds)
    engine_joules, empty_joules = node.finish(end_seconds)
    spans: dict[str, float] = {}
    for (since, name), until in zip(node.changes, [*(at for at, _ in node.changes[1:]), end_seconds], strict=True):
        spans[name] = spans.get(name, 0.0) + until - since
    return VariantsRun(
        end_seconds=end_seconds,
        outcomes=node.book.outcomes(tuple(size.name for size in sizes)),
        engine_joules=engine_joules,
        empty_joules=empty_joules,
        changes=tuple(node.changes),
        serving_seconds=spans,
    )
