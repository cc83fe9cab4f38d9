"""One container: start its process, probe it, start it again, end it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp
import structlog

from flyball_sim.node.clock import Clock
from flyball_sim.node.podspec import PodSpecError, ProcessSpec, exec_spec
from flyball_sim.node.probes import ProbeCount, ProbeSchedule, ask_http, ask_tcp
from flyball_sim.node.processes import ProcessTable, RunningProcess, StartError
from flyball_sim.node.restarts import Backoff
from flyball_sim.node.status import ContainerRecord, Running, Terminated, Waiting, restarts_after

CONFIG_RETRY_SECONDS = 5.0
MESSAGE_BYTES = 2048

EventType = Literal["Normal", "Warning"]


class PodSide(Protocol):
    """What a container needs of its pod."""

    pod_ip: str
    restart_policy: str
    grace_seconds: float

    async def process_spec(self, container: Mapping[str, Any]) -> ProcessSpec:
        """The process to start. Raises PodSpecError."""

    def mounts(self, container: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(mountPath, real path) of the container."""

    def changed(self) -> None:
        """A record changed: the status wants to be written."""

    def event(self, kind: EventType, reason: str, note: str) -> None:
        """Something a user wants to read in `kubectl describe pod`."""


class ContainerRunner:
    """Runs one container until it is not to be started again.

    Args:
        record: What is known of it from an earlier life of the node, or a fresh record.
        container: Its entry in the pod's spec.
        pod: The pod it belongs to.
        processes: Starts processes.
        http: For probes.
        log: Its output is appended here.
        clock: Time.
    """

    def __init__(
        self,
        record: ContainerRecord,
        container: Mapping[str, Any],
        pod: PodSide,
        *,
        processes: ProcessTable,
        http: aiohttp.ClientSession,
        log: Path,
        clock: Clock,
    ) -> None:
        self.record = record
        self.log = log
        self._container = container
        self._pod = pod
        self._processes = processes
        self._http = http
        self._clock = clock
        self._process: RunningProcess | None = None
        self._spec: ProcessSpec | None = None
        self._started = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id of the running process."""
        process = self._process
        return process.pid if process is not None and process.exit_code is None else None

    async def run(self) -> None:
        """Start and restart; returns when the pod's restart policy leaves the container ended."""
        backoff = Backoff()
        again = isinstance(self.record.state, Terminated)
        if again and not self._wants_restart():
            return
        while True:
            ran_seconds = await self._run_once(again)
            if not self._wants_restart():
                return
            backoff = backoff.after_run(ran_seconds)
            self._wait_for_restart(backoff)
            await self._clock.sleep(backoff.delay_seconds)
            again = True

    async def started(self) -> None:
        """Wait until it runs and its startup probe (if any) has passed."""
        await self._started.wait()

    async def stop(self, grace_seconds: float) -> None:
        """End it: preStop, TERM, and KILL after the grace. `run` must have been cancelled."""
        process = self._process
        if process is None or process.exit_code is not None:
            return
        self._pod.event("Normal", "Killing", f"Stopping container {self.record.name}")
        begun = self._clock.monotonic_seconds()
        await self._pre_stop(grace_seconds)
        left = max(0.0, grace_seconds - (self._clock.monotonic_seconds() - begun))
        self._end(await process.stop(left))

    def explain_waiting(self, message: str) -> None:
        """Say what a container that has not started waits for."""
        if isinstance(self.record.state, Waiting) and self.record.state.message != message:
            self._set(state=Waiting(self.record.state.reason, message))

    def kill(self) -> None:
        """KILL now, if it runs."""
        if self._process is not None:
            self._process.kill()

    def _wants_restart(self) -> bool:
        state = self.record.state
        return isinstance(state, Terminated) and restarts_after(
            self._pod.restart_policy, self.record.kind, state.exit_code
        )

    def _wait_for_restart(self, backoff: Backoff) -> None:
        state = self.record.state
        if not isinstance(state, Terminated):
            return
        what = f"restarting failed container={self.record.name}"
        if self.record.restarts:
            self._pod.event("Warning", "BackOff", f"Back-off {what}")
        message = f"back-off {backoff.delay_seconds:.0f}s {what}"
        self._set(state=Waiting("CrashLoopBackOff", message), last=state)

    async def _run_once(self, again: bool) -> float:
        """One run from start to end; returns how many seconds it lasted."""
        spec = await self._spec_when_possible()
        before = self.record.state if isinstance(self.record.state, Terminated) else self.record.last
        begun_at, begun = self._clock.now(), self._clock.monotonic_seconds()
        self._set(
            state=Waiting("ContainerCreating"),
            last=before,
            restarts=self.record.restarts + (1 if again else 0),
            container_id=f"flyball://{secrets.token_hex(32)}",
        )
        try:
            process = self._processes.start(spec, self.log)
        except StartError as error:
            self._pod.event("Warning", "Failed", f"Error: {error}")
            self._set(state=Terminated(128, "StartError", begun_at, begun_at, self.record.container_id, str(error)))
            return 0.0
        self._process, self._spec = process, spec
        starting = "startupProbe" in self._container
        self._set(
            state=Running(begun_at),
            started=not starting,
            ready=not starting and "readinessProbe" not in self._container,
        )
        self._pod.event("Normal", "Started", f"Started container {self.record.name}")
        if not starting:
            self._started.set()
        probing = asyncio.create_task(self._probe(process))
        try:
            code = await process.wait()
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
        self._end(code)
        return self._clock.monotonic_seconds() - begun

    async def _spec_when_possible(self) -> ProcessSpec:
        told = ""
        while True:
            try:
                return await self._pod.process_spec(self._container)
            except PodSpecError as error:
                if str(error) != told:
                    told = str(error)
                    self._pod.event("Warning", "Failed", f"Error: {error}")
                    self._set(state=Waiting(error.reason, told))
            await self._clock.sleep(CONFIG_RETRY_SECONDS)

    def _end(self, code: int) -> None:
        state = self.record.state
        if not isinstance(state, Running):
            return
        message = ""
        if code != 0 and self._container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            message = self.log.read_bytes()[-MESSAGE_BYTES:].decode(errors="replace")
        self._set(
            state=Terminated(
                exit_code=code,
                reason="Completed" if code == 0 else "Error",
                started_at=state.started_at,
                finished_at=self._clock.now(),
                container_id=self.record.container_id,
                message=message,
            ),
            started=False,
            ready=False,
        )

    def _set(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        self._pod.changed()

    async def _probe(self, process: RunningProcess) -> None:
        """All the probes of one run, until cancelled or until one of them has the process ended."""
        if startup := self._container.get("startupProbe"):
            await self._watch(startup, "Startup", process, self._on_startup)
        async with asyncio.TaskGroup() as probes:
            if liveness := self._container.get("livenessProbe"):
                probes.create_task(self._watch(liveness, "Liveness", process, _never_done))
            if readiness := self._container.get("readinessProbe"):
                probes.create_task(self._watch(readiness, "Readiness", process, self._on_readiness))

    async def _watch(
        self,
        probe: Mapping[str, Any],
        name: Literal["Startup", "Liveness", "Readiness"],
        process: RunningProcess,
        answered: Callable[[bool], bool],
    ) -> None:
        """Ask again and again; `answered(verdict)` says whether that was enough."""
        schedule = ProbeSchedule.of(probe)
        count = ProbeCount()
        await self._clock.sleep(schedule.initial_delay_seconds)
        while True:
            failure = await self._ask(probe, schedule)
            if failure is not None and (count.ok or count.run == 0):
                self._pod.event("Warning", "Unhealthy", f"{name} probe failed: {failure}")
            count = count.after(failure is None)
            verdict = count.verdict(schedule)
            if verdict is not None and answered(verdict):
                return
            if verdict is False and name != "Readiness":
                note = f"Container {self.record.name} failed {name.lower()} probe, will be restarted"
                self._pod.event("Normal", "Killing", note)
                await process.stop(float(probe.get("terminationGracePeriodSeconds", self._pod.grace_seconds)))
                return
            await self._clock.sleep(schedule.period_seconds)

    def _on_startup(self, ok: bool) -> bool:
        if ok:
            self._set(started=True, ready="readinessProbe" not in self._container)
            self._started.set()
        return ok

    def _on_readiness(self, ok: bool) -> bool:
        if ok != self.record.ready:
            self._set(ready=ok)
        return False

    async def _ask(self, probe: Mapping[str, Any], schedule: ProbeSchedule) -> str | None:
        if action := probe.get("httpGet"):
            return await ask_http(self._http, self._container, action, self._pod.pod_ip, schedule.timeout_seconds)
        if action := probe.get("tcpSocket"):
            return await ask_tcp(self._container, action, self._pod.pod_ip, schedule.timeout_seconds)
        if action := probe.get("exec"):
            return await self._exec(action["command"], schedule.timeout_seconds)
        kinds = ", ".join(key for key in probe if isinstance(probe[key], dict))
        return f"probe kind {kinds} is not supported by the simulated node: use httpGet, tcpSocket or exec"

    async def _exec(self, words: list[str], timeout_seconds: float) -> str | None:
        """Run a command beside the container; None if it exits with 0 in time."""
        if self._spec is None:
            return "the container is not running"
        try:
            process = self._processes.start(exec_spec(self._spec, words, self._pod.mounts(self._container)), self.log)
        except StartError as error:
            return str(error)
        try:
            async with asyncio.timeout(timeout_seconds):
                code = await process.wait()
        except TimeoutError:
            return f"command timed out after {timeout_seconds} s"
        finally:
            process.kill()
        return None if code == 0 else f"command exited with {code}"

    async def _pre_stop(self, grace_seconds: float) -> None:
        hook = (self._container.get("lifecycle") or {}).get("preStop")
        if not hook:
            return
        if "exec" in hook:
            failure = await self._exec(hook["exec"]["command"], grace_seconds)
        elif "sleep" in hook:
            failure = None
            await self._clock.sleep(min(float(hook["sleep"]["seconds"]), grace_seconds))
        else:
            failure = f"{', '.join(hook)} is not supported by the simulated node: use exec or sleep"
        if failure:
            self._pod.event("Warning", "FailedPreStopHook", failure)
            structlog.get_logger().warning("pre_stop_failed", container=self.record.name, why=failure)


def _never_done(_ok: bool) -> bool:
    return False
