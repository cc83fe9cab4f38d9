"""The agent's loops: what moves news in and commands and status out. Decisions are `node`'s and `status`'s.

No loop waits for another: with the API server gone the control loop goes on with the last plan; with the actuator gone
the status says so; with an engine gone the others are scraped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from flyball_agent.actuator_client import ActuatorClient, ActuatorLostError, ActuatorRefusedError
from flyball_agent.engines import EngineScraper
from flyball_agent.exposition import AgentCounts
from flyball_agent.node import Command, NodeControl
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


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What does not change over the agent's life.

    Attributes:
        node_name: of the Node and of the plan.
        actuator_socket: where the actuator listens.
        podresources_socket: where the actuator relays the kubelet's PodResources.
        version: the agent's.
    """

    node_name: str
    actuator_socket: Path
    podresources_socket: Path
    version: str


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
        scraper: of local engines.
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
        scraper: EngineScraper,
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
        self._scraper = scraper
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

    # -- news from the API server --------------------------------------------------------------------------

    def on_plan(self, plan: NodeEnergyPlan | None) -> None:
        """The plan of this node changed."""
        if not self._control.take_plan(plan):
            epoch = plan.spec.leader_epoch if plan is not None else 0
            self._log.warning("plan of an older leader ignored", epoch=epoch, highest=self._control.epoch)
        if plan is not None and self._written is not None and plan.status.agent_session != self._control.session:
            # Deleted and made anew, or restored from a backup: what it says of us is not ours.
            self._written = None
        self._scraper.want(self._control.engines())
        self._signals.both()

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
            until = read_at if wake is None else min(read_at, max(wake, now + 0.05))
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
            task = asyncio.create_task(self._send(client, command))
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
