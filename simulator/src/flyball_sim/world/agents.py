"""A node's agent in virtual time: the real `NodeControl` and the real status, with the loops of `flyball_agent.agent`.

The loops keep the agent's own periods and order of things; what they await there are messages with drawn delays here.
A killed agent starts anew with another session. A hung one does nothing until it goes on, and then everything at once
that it had not done, as a process does that was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flyball_agent.actuator.governor import RefusedError
from flyball_agent.cards import Command
from flyball_agent.controllers.base import Board
from flyball_agent.driving import MakeController
from flyball_agent.facts import Allocation, Engine, EngineState, Report, Wish
from flyball_agent.knobs import EngineCommand
from flyball_agent.memory import Remembered
from flyball_agent.node import NodeControl
from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample
from flyball_agent.status import DrawMeter, build_status, due
from flyball_api.common import ObjectMeta
from flyball_api.names import AGENT_LEASE_RENEW_SECONDS
from flyball_api.nodeenergyplan import NodeEnergyPlan, NodeEnergyPlanStatus
from flyball_operator.state import Plan
from flyball_sim.world import delays as timing
from flyball_sim.world.actuator import VirtualActuator
from flyball_sim.world.apiserver import ApiServer, Watch
from flyball_sim.world.cpu import CpuSeconds, Stopwatch
from flyball_sim.world.delays import Delays, Link
from flyball_sim.world.events import EventQueue

WALL_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Wall time at the trace's second 0."""
VERSION: Final = "simulated"


class ScrapeError(Exception):
    """An engine gave no page.

    Attributes:
        after_seconds: how long the agent waited for it; None: as long as a page takes.
    """

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


@dataclass(frozen=True, slots=True)
class Site:
    """What an agent finds on its node.

    Attributes:
        node: its name.
        actuator: of the node.
        allocation: which pod holds which card.
        scrape: the page of the engine at an address, now, and its board if that is wanted; raises `ScrapeError`.
        limit: limits the batch and the admission of the engine at an address; raises `ScrapeError`.
        profiles: by the name that policies give.
    """

    node: str
    actuator: VirtualActuator
    allocation: Allocation
    scrape: Callable[[str, bool], tuple[EngineSample, Board | None]]
    limit: Callable[[EngineCommand], None]
    profiles: Mapping[str, Profile]


@dataclass(slots=True)
class _Scrape:
    state: EngineState
    due: float
    wish: Wish


class VirtualAgent:
    """One node's agent.

    Args:
        site: its node.
        queue: time.
        api: the API server.
        delays: ranges of its messages.
        seed: of their draws.
        make: makes a controller.
        cpu: where the time of real code is added.
        stopwatch: that measures it.
    """

    def __init__(
        self,
        site: Site,
        queue: EventQueue,
        api: ApiServer,
        *,
        delays: Delays,
        seed: int,
        make: MakeController,
        cpu: CpuSeconds,
        stopwatch: Stopwatch,
    ) -> None:
        self._site = site
        self._queue = queue
        self._api = api
        self._delays = delays
        self._link = Link(seed, f"agent/{site.node}")
        self._make = make
        self._cpu = cpu
        self._stopwatch = stopwatch
        self._life = 0
        self._hung = False
        self._missed: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._learnt: dict[str, Remembered] = {}
        self._extra_watch_seconds = 0.0
        self._begin()

    def _begin(self) -> None:
        """The state of a process that has just started."""
        self.control = NodeControl(f"{self._site.node}/{self._life}", self._make, self._queue.monotonic)
        self.control.recall(self._learnt)
        self.states: dict[Engine, EngineState] = {}
        self._scrapes: dict[Engine, _Scrape] = {}
        self._watch: Watch = self._api.watch(f"agent/{self._site.node}/{self._life}")
        self._watch.extra_seconds = self._extra_watch_seconds
        self._meter = DrawMeter()
        self._written: NodeEnergyPlanStatus | None = None
        self._written_at = self._queue.monotonic()
        self._backoff_seconds = 0.5
        self._read_at = self._queue.now
        self._look_turn = 0
        self._worker_free_at = self._queue.now
        self._status_turn = 0
        self._status_signal = self._status_waiting = False

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The process starts."""
        self._life += 1
        self._watch.open = False
        self._hung = False
        self._begin()
        site, control = self._site, self.control
        site.actuator.hello()
        control.take_actuator(site.actuator.life, site.actuator.boot_id)
        control.take_allocation(site.allocation)
        self._look(self._look_turn)
        self._wait_status()
        self._beat()
        self._later(self._link.draw(self._delays.api_write), self._list)

    def kill(self) -> None:
        """The process dies; the actuator sees its socket closed, and its file of states is of just before."""
        learnt = self.control.remembered()
        if learnt is not None:
            self._learnt = {entry.key: entry for entry in learnt}
        self._life += 1
        self._watch.open = False
        self._hung = False
        self._missed.clear()
        self._site.actuator.gone()

    def hang(self) -> None:
        """The process is stopped: it does nothing, and nobody is told."""
        self._hung = True

    def go_on(self) -> None:
        """A hung process goes on."""
        self._hung = False
        missed, self._missed = self._missed, []
        for act, arguments in missed:
            act(*arguments)

    def delay_watch(self, extra_seconds: float) -> None:
        """From now on every event reaches this agent so much later."""
        self._extra_watch_seconds = self._watch.extra_seconds = extra_seconds

    def _later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        self._at(self._queue.now + seconds, act, *arguments)

    def _at(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        self._queue.at(seconds, self._alive, self._life, act, arguments)

    def _alive(self, life: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life != self._life:
            return
        if self._hung:
            self._missed.append((act, arguments))
        else:
            act(*arguments)

    # -- news from the API server --------------------------------------------------------------------------

    def _list(self) -> None:
        """The first list of switch and plan, and their watch from there on."""
        if not self._api.answers:
            self._later(self._api.gone_until - self._queue.now, self._list)
            return
        self.control.take_switch(None)
        name, life = self._site.node, self._life
        plan = self._api.plans.get(name)
        if plan is not None:
            self._take_plan(plan)
        self._api.follow_plans(self._watch, lambda news: self._alive(life, self._take_plan, (news,)), name)
        self._signal_control()
        self._signal_status()

    def _take_plan(self, plan: Plan) -> None:
        session = plan.status.agent_session
        status = NodeEnergyPlanStatus.model_construct(agent_session=session)
        object_ = NodeEnergyPlan(metadata=ObjectMeta(name=plan.name), spec=plan.spec, status=status)
        self.control.take_plan(object_)
        names = self.control.profile_names()
        self.control.take_profiles({name: self._site.profiles.get(name, _no_profile(name)) for name in sorted(names)})
        if self._written is not None and session != self.control.session:
            self._written = None
        self._want()
        self._signal_control()
        self._signal_status()

    def _beat(self) -> None:
        self._later(self._link.draw(self._delays.api_write), self._beat_lands)
        self._later(AGENT_LEASE_RENEW_SECONDS, self._beat)

    def _beat_lands(self) -> None:
        if self._api.answers:
            self._api.put_lease(self._site.node, self.control.session)

    # -- engines -------------------------------------------------------------------------------------------

    def _want(self) -> None:
        wishes = self.control.wishes()
        for engine in [engine for engine in self._scrapes if engine not in wishes]:
            del self._scrapes[engine], self.states[engine]
        now = self._queue.now
        for engine, wish in sorted(wishes.items(), key=lambda each: (each[0].host, each[0].port, each[0].path)):
            if engine in self._scrapes:
                self._scrapes[engine].wish = wish
                continue
            state = self.states[engine] = EngineState(self._queue.monotonic())
            phase = self._link.draw((0.0, timing.SCRAPE_PERIOD_SECONDS / 5))
            self._scrapes[engine] = _Scrape(state, now + phase, wish)
            self._later(phase, self._fetch, engine, self._scrapes[engine])

    def _fetch(self, engine: Engine, scrape: _Scrape) -> None:
        if self._scrapes.get(engine) is not scrape:
            return
        scrape.due = max(scrape.due + scrape.wish.period_seconds, self._queue.now)
        seconds = self._link.draw(self._delays.scrape)
        try:
            sample, board = self._site.scrape(engine.host, scrape.wish.board)
        except ScrapeError as error:
            waited = seconds if error.after_seconds is None else error.after_seconds
            self._later(waited, self._fetch_failed, engine, scrape, str(error))
            return
        self._later(seconds, self._take_page, engine, scrape, sample, board)

    def _take_page(self, engine: Engine, scrape: _Scrape, sample: EngineSample, board: Board | None) -> None:
        if self._scrapes.get(engine) is not scrape:
            return
        scrape.state.take(sample, self._queue.monotonic(), board)
        began = self._stopwatch()
        awaited = self.control.take_page(engine, scrape.state)
        self._cpu.controllers += self._stopwatch() - began
        if awaited:
            self._signal_control()
        self._fetch_again(engine, scrape)

    def _tell(self, command: EngineCommand) -> None:
        self._later(self._link.draw(self._delays.scrape), self._tell_lands, command)

    def _tell_lands(self, command: EngineCommand) -> None:
        try:
            self._site.limit(command)
        except ScrapeError as error:
            self.control.engine_failed(command, str(error))
        else:
            self.control.engine_answered(command)

    def _fetch_failed(self, engine: Engine, scrape: _Scrape, why: str) -> None:
        if self._scrapes.get(engine) is scrape:
            scrape.state.fail(why)
            self._fetch_again(engine, scrape)

    def _fetch_again(self, engine: Engine, scrape: _Scrape) -> None:
        self._at(scrape.due, self._fetch, engine, scrape)

    # -- control -------------------------------------------------------------------------------------------

    def _signal_control(self) -> None:
        self._look_turn += 1
        self._later(0.0, self._look, self._look_turn)

    def _look(self, turn: int) -> None:
        """One pass of `Agent._control_through`."""
        if turn != self._look_turn:
            return
        now, began = self._queue.now, self._stopwatch()
        if now >= self._read_at:
            self._read_at = max(self._read_at + timing.AGENT_TICK_SECONDS, now)
            self._read()
        for command in self.control.commands(self.states):
            self._send(command)
        for telling in self.control.engine_commands(self.states):
            self._tell(telling)
        self._cpu.controllers += self._stopwatch() - began
        self._want()
        until, wake = self._read_at, self.control.next_wake()
        if wake is not None:
            earliest = now + timing.AGENT_WAKE_SECONDS
            until = min(until, max(now + (wake - self._queue.monotonic()), earliest))
        self._at(until, self._look, turn)

    def _read(self) -> None:
        actuator, control = self._site.actuator, self.control
        if control.actuator.trouble:
            control.take_cards(actuator.capabilities())
            self._signal_status()
        actuator.renew(writes=control.writes)
        control.take_reports(actuator.read())

    def _send(self, command: Command) -> None:
        """One worker thread makes all NVML calls of a node, one after the other."""
        begins = max(self._worker_free_at, self._queue.now + self._link.draw(self._delays.socket))
        self._worker_free_at = begins + self._site.actuator.call_seconds(command)
        self._queue.at(self._worker_free_at, self._carry_out, self._life, command)

    def _carry_out(self, life: int, command: Command) -> None:
        if life != self._life:
            return
        began = self._stopwatch()
        try:
            report = self._site.actuator.carry_out(command)
        except RefusedError as error:
            self._alive(life, self._refused, (command, error.code, str(error)))
        else:
            self._alive(life, self._answered, (command, report))
        self._cpu.controllers += self._stopwatch() - began

    def _answered(self, command: Command, report: Report) -> None:
        self.control.answered(command, report)
        self._signal_status()

    def _refused(self, command: Command, code: str, message: str) -> None:
        self.control.failed(command, code, message)
        self._signal_status()

    # -- status --------------------------------------------------------------------------------------------

    def _signal_status(self) -> None:
        if not self._status_signal:
            self._status_signal = True
            if self._status_waiting:
                self._wait_status()

    def _wait_status(self) -> None:
        """Look in a second, or as soon as what was signalled has gathered."""
        self._status_waiting = True
        self._status_turn += 1
        seconds = timing.STATUS_GATHER_SECONDS if self._status_signal else timing.STATUS_CHECK_SECONDS
        self._later(seconds, self._check_status, self._status_turn)

    def _check_status(self, turn: int) -> None:
        if turn != self._status_turn:
            return
        self._status_signal = self._status_waiting = False
        if not self.control.plan_seen:
            self._wait_status()
            return
        began, now = self._stopwatch(), self._queue.monotonic()
        status = build_status(
            self.control,
            self.states,
            self._meter,
            now=now,
            wall_time=wall(self._queue.now),
            version=VERSION,
            earlier=self._written,
        )
        wanted = due(status, self._written, now - self._written_at)
        self._cpu.statuses += self._stopwatch() - began
        if wanted:
            self._later(self._link.draw(self._delays.api_write), self._status_lands, status, now)
        else:
            self._wait_status()

    def _status_lands(self, status: NodeEnergyPlanStatus, decided_at: float) -> None:
        if not self._api.answers or self._site.node not in self._api.plans:
            self._status_signal = True
            wait = self._link.draw((0.0, self._backoff_seconds))
            self._backoff_seconds = min(self._backoff_seconds * 2, 10.0)
            self._later(wait, self._wait_status)
            return
        self._backoff_seconds = 0.5
        self._api.put_plan_status(self._site.node, status)
        self._written, self._written_at = status, decided_at
        self._meter.restart()
        self._wait_status()


def _no_profile(name: str) -> str:
    return f"profile {name!r} is not among those given to this simulation"


def wall(seconds: float) -> datetime:
    """Wall time at a second of the trace."""
    return WALL_START + timedelta(seconds=seconds)
