"""The agent's loops: what moves news in and commands and status out. Decisions are `node`'s and `status`'s.

No loop waits for another: with the API server gone the control loop goes on with the last plan; with the actuator gone
the status says so; with an engine gone the others are scraped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import structlog

from flyball_agent.actuator_client import ActuatorClient, ActuatorLostError, ActuatorRefusedError
from flyball_agent.cards import Command
from flyball_agent.engines import EngineScraper
from flyball_agent.exposition import AgentCounts
from flyball_agent.facts import Engine, EngineState
from flyball_agent.files import ProfileFolder, StateFile
from flyball_agent.knobs import EngineCommand
from flyball_agent.memory import read, write
from flyball_agent.node import NodeControl
from flyball_agent.podresources import LIST, PodResourcesError, allocation_of, call_unary
from flyball_agent.status import DrawMeter, build_status, due
from flyball_api.kube import NODE_ENERGY_PLANS, KubeError, KubeWriter, NotFoundError
from flyball_api.names import AGENT_FIELD_MANAGER, API_VERSION
from flyball_api.nodeenergyplan import NodeEnergyPlan, NodeEnergyPlanStatus
from flyball_api.reflector import Backoff

TICK_SECONDS: Final = 0.5
ALLOCATION_SECONDS: Final = 2.0
STATUS_CHECK_SECONDS: Final = 1.0
GATHER_SECONDS: Final = 0.05
"""How long a status write waits for what changes along: eight GPUs acknowledge within milliseconds of each other."""
STALLED_SECONDS: Final = 15.0
LEAST_WAKE_SECONDS: Final = 0.05
"""The least wait between two looks at the controllers, but for a page that one of them waits for."""
PROFILES_SECONDS: Final = 10.0
KEEP_SECONDS: Final = 10.0
EXPLAIN_SECONDS: Final = 60.0
"""A group's decisions are logged at most this often, and only when the setpoint is another."""
FAREWELL_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What does not change over the agent's life.

    Attributes:
        node_name: of the Node and of the plan.
        actuator_socket: where the actuator listens.
        podresources_socket: where the actuator relays the kubelet's PodResources.
        version: the agent's.
        boot_id: the node's boot.
    """

    node_name: str
    actuator_socket: Path
    podresources_socket: Path
    version: str
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the agent reaches for beside the API server and the actuator.

    Attributes:
        scraper: of local engines.
        tell: gives an engine its limits; returns why it did not take them.
        profiles: files.
        states: what controllers learnt, in a file.
    """

    scraper: EngineScraper
    tell: Callable[[EngineCommand], Awaitable[str]]
    profiles: ProfileFolder
    states: StateFile


@dataclass(slots=True)
class Signals:
    """Who is to look again.

    Attributes:
        control: something happened that may change what is wanted.
        status: something happened that may change what is told.
    """

    control: asyncio.Event = field(default_factory=asyncio.Event)
    status: asyncio.Event = field(default_factory=asyncio.Event)

    def both(self) -> None:
        """Wake both."""
        self.control.set()
        self.status.set()


class Agent:
    """The loops of one agent.

    Args:
        settings: see there.
        control: the agent's state.
        around: what else it reaches for.
        kube: where status is written.
        counts: of the agent's own doings.
        signals: that news from elsewhere sets.
        clock: monotonic seconds.
        utc_now: wall clock, aware.
        sleep: waits that many seconds.
        uniform: draws the jitter of retries.
    """

    def __init__(
        self,
        settings: AgentSettings,
        control: NodeControl,
        *,
        around: Surroundings,
        kube: KubeWriter,
        counts: AgentCounts,
        signals: Signals,
        clock: Callable[[], float],
        utc_now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        uniform: Callable[[float, float], float],
    ) -> None:
        self._settings = settings
        self._control = control
        self._around = around
        self._scraper = around.scraper
        self._kube = kube
        self._counts = counts
        self._signals = signals
        self._clock = clock
        self._utc_now = utc_now
        self._sleep = sleep
        self._uniform = uniform
        self._log = structlog.get_logger("flyball.agent")
        self._meter = DrawMeter()
        self._written: NodeEnergyPlanStatus | None = None
        self._written_at = clock()
        self._beat_at = clock()
        self._sending: set[asyncio.Task[None]] = set()
        self._explained: dict[str, tuple[float, str]] = {}
        self._explain_at = clock()

    # -- news from the API server --------------------------------------------------------------------------

    def on_plan(self, plan: NodeEnergyPlan | None) -> None:
        """The plan of this node changed."""
        if not self._control.take_plan(plan):
            epoch = plan.spec.leader_epoch if plan is not None else 0
            self._log.warning("plan of an older leader ignored", epoch=epoch, highest=self._control.epoch)
        if plan is not None and self._written is not None and plan.status.agent_session != self._control.session:
            # Deleted and made anew, or restored from a backup: what it says of us is not ours.
            self._written = None
        self._scraper.want(self._control.wishes())
        self._look_for_profiles()
        self._signals.both()

    def on_page(self, engine: Engine, state: EngineState) -> None:
        """An engine gave a page."""
        if self._control.take_page(engine, state):
            self._signals.control.set()

    def on_switch(self, value: str | None) -> None:
        """The cluster-wide switch changed."""
        if value != self._control.switch:
            self._log.warning("switch of writing", writes=value)
        self._control.take_switch(value)
        self._signals.both()

    # -- probes --------------------------------------------------------------------------------------------

    def unhealthy(self) -> str:
        """Why this process must be restarted: only its own loop counts."""
        silent = self._clock() - self._beat_at
        return f"the control loop has not run for {silent:.0f} s" if silent > STALLED_SECONDS else ""

    def unready(self) -> str:
        """Why this agent does not control."""
        if not self._control.actuator.connected:
            return f"the actuator is not connected: {self._control.actuator.trouble}"
        return "" if self._control.plan_seen else f"no plan {self._settings.node_name} has been seen"

    # -- control -------------------------------------------------------------------------------------------

    async def keep_control(self) -> None:
        """Connect to the actuator, control until it is lost, connect again; until cancelled."""
        backoff = Backoff(0.2, 2.0, self._uniform)
        try:
            while True:
                self._beat_at = self._clock()
                try:
                    client = await ActuatorClient.connect(
                        self._settings.actuator_socket, self._control.session, self._signals.control.set
                    )
                except (ActuatorLostError, ActuatorRefusedError) as error:
                    self._lost(str(error))
                    self._tell_engines()
                    await self._sleep(backoff.next_seconds())
                    continue
                backoff.reset()
                self._counts.actuator_connections += 1
                self._log.info("actuator connected", life=client.life)
                self._control.take_actuator(client.life, client.boot_id)
                self._signals.both()
                try:
                    await self._control_through(client)
                except (ActuatorLostError, ActuatorRefusedError) as error:
                    self._log.error("actuator lost", reason=str(error))
                    self._lost(str(error))
                finally:
                    await client.close()
        finally:
            for task in self._sending:
                task.cancel()

    def _lost(self, why: str) -> None:
        self._control.lose_actuator(why)
        self._signals.status.set()

    async def _control_through(self, client: ActuatorClient) -> None:
        read_at = self._clock()
        while not client.lost:
            now = self._beat_at = self._clock()
            if now >= read_at:
                read_at = max(read_at + TICK_SECONDS, now)
                await self._look(client)
            self._dispatch(client)
            wake = self._control.next_wake()
            until = read_at if wake is None else min(read_at, max(wake, now + LEAST_WAKE_SECONDS))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._signals.control.wait(), max(0.0, until - self._clock()))
            self._signals.control.clear()
        raise ActuatorLostError(await client.wait_lost())

    async def _look(self, client: ActuatorClient) -> None:
        """Renew the leases and read every card; two lines, one round trip."""
        if self._control.actuator.trouble:
            self._control.take_cards(await client.ask("capabilities"))
            self._signals.status.set()
        _, answer = await asyncio.gather(client.ask("renew", writes=self._control.writes), client.ask("read"))
        self._control.take_reports(answer["gpus"])

    def _dispatch(self, client: ActuatorClient) -> None:
        for command in self._control.commands(self._scraper.states):
            self._in_background(self._send(client, command))
        self._tell_engines()
        self._scraper.want(self._control.wishes())
        self._explain()

    def _in_background(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, client: ActuatorClient, command: Command) -> None:
        self._counts.commands += 1
        try:
            if command.operation == "release":
                answer = await client.ask("release", gpu=command.uuid)
            else:
                answer = await client.ask(
                    "set",
                    gpu=command.uuid,
                    sm_mhz=command.sm_mhz,
                    cap_watts=command.cap_watts,
                    ceiling_watts=command.ceiling_watts,
                    lease_seconds=command.lease_seconds,
                )
        except ActuatorRefusedError as error:
            self._counts.commands_refused += 1
            self._log.error("command refused", gpu=command.uuid, code=error.code, reason=str(error))
            self._control.failed(command, error.code, str(error))
        except ActuatorLostError:
            self._control.abandoned(command)
        else:
            self._control.answered(command, answer["gpu"])
        self._signals.status.set()

    # -- engines -------------------------------------------------------------------------------------------

    def _tell_engines(self) -> None:
        for command in self._control.engine_commands(self._scraper.states):
            self._in_background(self._tell(command))

    async def _tell(self, command: EngineCommand) -> None:
        self._counts.engine_commands += 1
        trouble = await self._around.tell(command)
        if not trouble:
            self._control.engine_answered(command)
            return
        self._counts.engine_commands_failed += 1
        self._log.warning("engine not limited", url=command.engine.limits_url, reason=trouble)
        self._control.engine_failed(command, trouble)
        self._signals.status.set()

    async def farewell(self) -> None:
        """Give engines their own limits back and keep what controllers learnt, as far as time allows."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                # At once: an engine that does not answer must not cost what was learnt.
                telling = (self._around.tell(command) for command in self._control.hand_back())
                await asyncio.gather(self._keep(), *telling)

    # -- files ---------------------------------------------------------------------------------------------

    def _look_for_profiles(self) -> None:
        self._control.take_profiles(self._around.profiles.shelf(self._control.profile_names()))

    async def follow_profiles(self) -> None:
        """Look whether profiles changed, until cancelled."""
        while True:
            await self._sleep(PROFILES_SECONDS)
            self._look_for_profiles()

    def recall(self) -> None:
        """Take up what controllers learnt in an earlier life of this agent."""
        try:
            content = self._around.states.read()
        except OSError as error:
            self._log.warning("kept states not read: controllers start afresh", error=str(error))
            return
        if content is None:
            return
        kept, trouble = read(content, self._settings.boot_id)
        if trouble:
            self._log.warning("kept states discarded: controllers start afresh", reason=trouble)
        self._control.recall(kept)

    async def keep_states(self) -> None:
        """Keep what controllers learnt, until cancelled."""
        while self._around.states.kept:
            await self._sleep(KEEP_SECONDS)
            await self._keep()

    async def _keep(self) -> None:
        learnt = self._control.remembered()
        if learnt is None or not self._around.states.kept:
            return
        content, notes = write(learnt, self._settings.boot_id)
        for note in notes:
            self._log.warning("state not kept", reason=note)
        try:
            # In a thread: a disk that hangs must not hang control.
            await asyncio.to_thread(self._around.states.write, content)
        except OSError as error:
            if not self._counts.state_writes_failing:
                self._log.warning("states not kept", error=str(error))
            self._counts.state_writes_failing = True
        else:
            self._counts.state_writes_failing = False

    # -- explaining ----------------------------------------------------------------------------------------

    def _explain(self) -> None:
        for note in self._control.take_notes():
            self._log.warning("controller", news=note)
        now = self._clock()
        if now < self._explain_at:
            return
        self._explain_at = now + 1.0
        for said in self._control.explain_groups():
            setpoint = str(said["setpoint"])
            at, before = self._explained.get(said["gpu"], (-EXPLAIN_SECONDS, ""))
            if setpoint != before and now - at >= EXPLAIN_SECONDS:
                self._explained[said["gpu"]] = (now, setpoint)
                self._log.info("decision", **said)

    # -- allocation ----------------------------------------------------------------------------------------

    async def follow_allocation(self) -> None:
        """Ask the kubelet who holds which GPU, until cancelled."""
        failing = False
        while True:
            try:
                async with asyncio.timeout(ALLOCATION_SECONDS * 2):
                    raw = await call_unary(self._settings.podresources_socket, LIST)
                allocation = allocation_of(raw)
            except (PodResourcesError, TimeoutError) as error:
                self._counts.allocation_failures += 1
                if not failing:
                    self._log.warning("allocation not read", error=str(error) or type(error).__name__)
                failing = True
            else:
                failing = False
                if allocation != self._control.allocation:
                    self._control.take_allocation(allocation)
                    self._signals.both()
            await self._sleep(ALLOCATION_SECONDS)

    # -- status --------------------------------------------------------------------------------------------

    async def tell_status(self) -> None:
        """Write the plan's status when it is due, one write at a time, until cancelled."""
        backoff = Backoff(0.5, 10.0, self._uniform)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._signals.status.wait(), STATUS_CHECK_SECONDS)
                await self._sleep(GATHER_SECONDS)
            self._signals.status.clear()
            if not self._control.plan_seen:
                continue
            now = self._clock()
            status = build_status(
                self._control,
                self._scraper.states,
                self._meter,
                now=now,
                wall_time=self._utc_now(),
                version=self._settings.version,
                earlier=self._written,
            )
            if not due(status, self._written, now - self._written_at):
                continue
            try:
                await self._write(status)
            except NotFoundError:
                # The plan is being deleted or made: the watch will say which.
                await self._sleep(backoff.next_seconds())
            except KubeError as error:
                self._counts.status_write_failures += 1
                self._log.warning("status not written", error=str(error))
                self._signals.status.set()
                await self._sleep(backoff.next_seconds())
            else:
                backoff.reset()
                self._written, self._written_at = status, now
                self._meter.restart()

    async def _write(self, status: NodeEnergyPlanStatus) -> None:
        self._counts.status_writes += 1
        body = {
            "apiVersion": API_VERSION,
            "kind": NodeEnergyPlan.KIND,
            "metadata": {"name": self._settings.node_name},
            "status": status.to_json(),
        }
        await self._kube.apply(NODE_ENERGY_PLANS, body, field_manager=AGENT_FIELD_MANAGER, subresource="status")
