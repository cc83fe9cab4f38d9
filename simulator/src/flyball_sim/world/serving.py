"""Requests on their way: chosen engines, hand-overs from prefill to decode, losses and second tries.

An engine is brought up to the present only when something needs to know: an arrival, a completion that its router or
its pool waits for, a scrape, a sample. In between it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from flyball_agent.scanner import EngineSample
from flyball_api.common import Role
from flyball_sim.engine.core import (
    EngineLimits,
    EngineRefusalError,
    EngineRequest,
    QueueFullError,
    RequestTiming,
)
from flyball_sim.engine.models import BLOCK_TOKENS, StepModel
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cards import CardGroup
from flyball_sim.world.delays import Delays, Link
from flyball_sim.world.events import EventQueue
from flyball_sim.world.layout import EnginePlace
from flyball_sim.world.machines import Replica
from flyball_sim.world.outcomes import OutcomeBook
from flyball_sim.world.routers import MakeRouter, Router, make_router

_PREFILL_MARK = "p"
"""In front of a request's number while its prompt is computed for another engine."""


class Unit:
    """One engine with what is known of its requests: the `EngineView` of routers.

    Args:
        place: where it is.
        machine: the engine.
        group: its cards.
        queue: time.
    """

    __slots__ = ("_queue", "due", "group", "in_flight", "index", "machine", "name", "numbers", "place", "ready", "role")

    def __init__(self, place: EnginePlace, machine: Replica, group: CardGroup, queue: EventQueue) -> None:
        self.place = place
        self.machine = machine
        self.group = group
        self.name = place.name
        self.index = place.index
        self.role: Role = place.spec.role
        self.in_flight = 0
        self.numbers: dict[int, None] = {}
        """Requests it has, oldest first."""
        self.ready = False
        self.due = float("inf")
        """When it is next looked at for completions."""
        self._queue = queue

    @property
    def weight(self) -> float:
        """Its share, where shares are given."""
        return self.place.spec.weight

    @property
    def model(self) -> StepModel:
        """Its step times and KV capacity."""
        return self.place.model

    @property
    def limits(self) -> EngineLimits:
        """Of its batches."""
        return self.place.limits

    @property
    def alive(self) -> bool:
        """Whether the engine runs."""
        return self.group.machine is not None

    def now(self) -> Replica:
        """The engine, brought up to the present."""
        self.machine.advance(self._queue.now)
        return self.machine

    @property
    def running(self) -> int:
        """Sequences in its batch now."""
        return self.now().running if self.alive else 0

    @property
    def waiting(self) -> int:
        """Sequences in its queue now."""
        return self.now().waiting if self.alive else 0

    @property
    def kv_usage(self) -> float:
        """Share of its KV blocks in use now."""
        return self.now().kv_usage if self.alive else 0.0

    @property
    def sm_mhz(self) -> float:
        """Its SM clock now."""
        return self.now().sm_mhz if self.alive else float(self.group.gpu_type.sm_min_mhz)

    def page(self) -> EngineSample:
        """Its whole metrics page now."""
        return self.now().page()


@dataclass(slots=True)
class Totals:
    """Tokens that came, and what became of them.

    Attributes:
        offered_tokens: output tokens asked for.
        finished_tokens: of requests that finished.
        dropped_tokens: of requests that were rejected or lost.
        retries: requests that were sent again after their engine died.
    """

    offered_tokens: int = 0
    finished_tokens: int = 0
    dropped_tokens: int = 0
    retries: int = 0


@dataclass(slots=True)
class _Entrance:
    """The engines that take requests from outside, or the decode engines of one pool."""

    router: Router
    counts: bool
    units: list[Unit] = field(default_factory=list)


class Serving:
    """The gateway and what is behind it.

    Args:
        units: all engines.
        router: name or maker; each pool's decode side gets one of its own.
        queue: time.
        book: outcomes.
        delays: of second tries.
        seed: of their draws.
        check: refuses a request that no engine has room for; None: nobody asks.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        router: str | MakeRouter,
        *,
        queue: EventQueue,
        book: OutcomeBook,
        delays: Delays,
        seed: int,
        check: Callable[[int, TraceRequest], None],
    ) -> None:
        self._queue = queue
        self._book = book
        self._delays = delays
        self._link = Link(seed, "clients")
        self._check = check
        self._units = tuple(units)
        counts = router not in ("round-robin", "weighted")
        self._entrance = _Entrance(make_router(router), counts)
        self._decoders: dict[str, _Entrance] = {}
        for unit in self._units:
            if unit.place.pool is not None and unit.place.pool.name not in self._decoders:
                self._decoders[unit.place.pool.name] = _Entrance(make_router(router), counts)
        self._requests: Iterator[TraceRequest] = iter(())
        self._next: TraceRequest | None = None
        self.totals = Totals()

    @property
    def units(self) -> tuple[Unit, ...]:
        """All engines."""
        return self._units

    @property
    def idle(self) -> bool:
        """Nothing is to come and everything that came is decided."""
        return self._next is None and not self._book.open

    # -- engines -------------------------------------------------------------------------------------------

    def open(self, unit: Unit) -> None:
        """The engine answers from now on."""
        if unit.alive and not unit.ready:
            unit.ready = True
            self._entrance_of(unit).router.join(unit)

    def close(self, unit: Unit, *, retry: bool) -> None:
        """The engine died, and with it what its requests had got so far.

        Args:
            unit: which.
            retry: whether their clients send them again; else they are lost.
        """
        now = self._queue.now
        if unit.alive:
            unit.machine.advance(now)
            self.collect(unit)
            unit.group.stop(now)
        if unit.ready:
            unit.ready = False
            self._entrance_of(unit).router.leave(unit)
        left, unit.numbers, unit.in_flight, unit.due = list(unit.numbers), {}, 0, float("inf")
        for number in left:
            self._orphan(number, retry=retry)

    def _orphan(self, number: int, *, retry: bool) -> None:
        if retry:
            self.totals.retries += 1
            self._queue.after(self._link.draw(self._delays.retry), self._send, number)
        else:
            self._book.lose(number, self._queue.now)
            self.totals.dropped_tokens += self._book.sizes(number)[1]

    def _entrance_of(self, unit: Unit) -> _Entrance:
        pool = unit.place.pool
        return self._decoders[pool.name] if pool is not None and unit.role == "decode" else self._entrance

    # -- requests ------------------------------------------------------------------------------------------

    def offer(self, requests: Iterator[TraceRequest]) -> None:
        """Requests in order of arrival, taken one by one as their time comes."""
        self._requests = requests
        self._await_next()

    def _await_next(self) -> None:
        self._next = next(self._requests, None)
        if self._next is not None:
            if self._next.arrival_seconds < self._queue.now:
                raise ValueError(
                    f"a request arrives at {self._next.arrival_seconds} s, after one at {self._queue.now} s: sort them"
                )
            self._queue.at(self._next.arrival_seconds, self._arrive)
            return
        # What is left is waited for: the run may end with the last of it.
        for entrance in (self._entrance, *self._decoders.values()):
            entrance.counts = True
        for unit in self._units:
            if unit.alive:
                self.watch(unit)

    def _arrive(self) -> None:
        request = self._next
        if request is None:
            return
        self._check(len(self._book), request)
        number = self._book.offer(request.arrival_seconds, request.prompt_tokens, request.output_tokens)
        self.totals.offered_tokens += request.output_tokens
        self._send_request(number, request)
        self._await_next()

    def _send(self, number: int) -> None:
        prompt, output = self._book.sizes(number)
        self._send_request(number, TraceRequest(self._queue.now, prompt, output))

    def _send_request(self, number: int, request: TraceRequest) -> None:
        chosen = self._entrance.router.choose(request, self._queue.now)
        if chosen is None:
            self._reject(number)
            return
        unit = self._units[chosen.index]
        share = unit.place.spec.prefix_cache_share
        cached = _whole_blocks(share * request.prompt_tokens, request.prompt_tokens) if share else 0
        prefills = unit.role == "prefill"
        self._hand(
            unit,
            number,
            EngineRequest(
                f"{_PREFILL_MARK}{number}" if prefills else str(number),
                request.prompt_tokens,
                1 if prefills else request.output_tokens,
                cached,
            ),
        )

    def _hand(self, unit: Unit, number: int, request: EngineRequest) -> None:
        now, machine = self._queue.now, unit.machine
        machine.advance(now)
        self.collect(unit)
        self._book.send(number, unit.index)
        try:
            machine.submit(request, now)
        except (EngineRefusalError, QueueFullError):
            self._reject(number)
            return
        unit.numbers[number] = None
        unit.in_flight += 1
        entrance = self._entrance_of(unit)
        entrance.router.counted(unit)
        if entrance.counts or unit.role == "prefill":
            self.watch(unit)

    def _reject(self, number: int) -> None:
        self._book.reject(number, self._queue.now)
        self.totals.dropped_tokens += self._book.sizes(number)[1]

    # -- completions ---------------------------------------------------------------------------------------

    def watch(self, unit: Unit) -> None:
        """Look at the engine again no later than its next request can finish."""
        due = unit.machine.next_event_seconds()
        if due is not None and due < unit.due:
            unit.due = due
            self._queue.at(due, self._look, unit, due)

    def _look(self, unit: Unit, due: float) -> None:
        if unit.due != due or not unit.alive:
            return
        unit.due = float("inf")
        unit.machine.advance(self._queue.now)
        self.collect(unit)
        self.watch(unit)

    def collect(self, unit: Unit) -> None:
        """The engine was brought up to the present: see what finished."""
        finished = unit.machine.take_finished()
        if not finished:
            return
        for timing in finished:
            if unit.role == "prefill":
                self._hand_over(unit, timing)
            else:
                number = int(timing.request_id)
                del unit.numbers[number]
                self._book.finish(number, timing.first_token_seconds, timing.finished_seconds)
                self.totals.finished_tokens += timing.output_tokens
        unit.in_flight = len(unit.numbers)
        self._entrance_of(unit).router.counted(unit)

    def _hand_over(self, unit: Unit, timing: RequestTiming) -> None:
        """The prompt is computed: its keys and values travel to a decode engine of the pool."""
        pool = unit.place.pool
        number = int(timing.request_id.removeprefix(_PREFILL_MARK))
        del unit.numbers[number]
        if pool is None:
            raise ValueError(f"engine {unit.name} computes prompts for no pool")
        gigabytes = timing.prompt_tokens * unit.model.model.kv_bytes_per_token() / 1e9
        seconds = pool.transfer_latency_seconds + gigabytes / pool.transfer_gigabytes_per_second
        self._queue.at(timing.finished_seconds + seconds, self._decode, number, pool.name)

    def _decode(self, number: int, pool: str) -> None:
        prompt, output = self._book.sizes(number)
        now = self._queue.now
        chosen = self._decoders[pool].router.choose(TraceRequest(now, prompt, output), now)
        if chosen is None:
            self._reject(number)
            return
        # The last prompt token is computed here, as vLLM does: it gives the first token of the answer.
        self._hand(self._units[chosen.index], number, EngineRequest(str(number), prompt, output, prompt - 1))


def _whole_blocks(tokens: float, prompt_tokens: int) -> int:
    """Cached tokens: whole blocks, and never the whole prompt."""
    return min(int(tokens) // BLOCK_TOKENS * BLOCK_TOKENS, prompt_tokens - 1)
