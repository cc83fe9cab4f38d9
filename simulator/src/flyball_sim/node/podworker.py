"""One pod's life on this node: volumes, init containers, containers, status, deletion."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from flyball_api.kube import PODS, ConflictError, KubeApi, KubeError, NotFoundError
from flyball_sim.node.addresses import AddressPool
from flyball_sim.node.clock import Clock
from flyball_sim.node.containers import ContainerRunner, EventType
from flyball_sim.node.gpus import GpuAllocator, GpuShortageError
from flyball_sim.node.podspec import (
    PodContext,
    PodSpecError,
    ProcessSpec,
    gpu_count,
    mounts_of,
    process_spec,
)
from flyball_sim.node.processes import ProcessTable
from flyball_sim.node.status import (
    Kind,
    PodSituation,
    Terminated,
    first_records,
    ordered_containers,
    phase_of,
    pod_status,
)
from flyball_sim.node.volumes import ObjectSource, PodVolumes, object_texts, referenced_objects

FIELD_MANAGER = "flyball-node"
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 10.0
DEFAULT_GRACE_SECONDS = 30.0
_OWNER_MARK = ".uid"
GONE_GRACE_SECONDS = 2.0
"""What a pod gets whose object vanished without a grace period (a forced deletion)."""


@dataclass(frozen=True)
class NodeServices:
    """What all pods of a node share.

    Attributes:
        directory: Of pod logs, `<root>/pods`.
        volumes: Of pod volumes, `<root>/v`.
        rootfs: Root of the node's file system.
        api_host: Address of the API server as containers shall use it.
        api_port: Its port.
        base_env: What every container inherits, HOME excepted.
        gpu_env: Env that goes with a container's GPUs, besides their ids (where their state is).
        honour_users: The node runs as root: containers run as the users they name.
        event: Posts an Event about a pod.
        changed: Something of a pod changed (for the node's own status file).
    """

    api: KubeApi
    objects: ObjectSource
    processes: ProcessTable
    http: aiohttp.ClientSession
    clock: Clock
    addresses: AddressPool
    gpus: GpuAllocator
    directory: Path
    volumes: Path
    rootfs: Path
    api_host: str
    api_port: int
    base_env: Mapping[str, str]
    gpu_env: Mapping[str, str]
    honour_users: bool
    event: Callable[[Mapping[str, Any], EventType, str, str], None]
    changed: Callable[[], None]


class PodWorker:
    """Runs one pod from its binding to its end. `run` is its task; `update` and `gone` tell it what happened."""

    def __init__(self, pod: Mapping[str, Any], services: NodeServices) -> None:
        self._pod = pod
        self._services = services
        self._log = structlog.get_logger().bind(pod=f"{self.namespace}/{self.name}")
        self._logs = services.directory / self.uid
        self._volume_directory = _volume_directory(services.volumes, self.uid)
        self._volumes = PodVolumes(
            pod,
            self._volume_directory,
            services.rootfs,
            services.objects,
            services.clock.now,
            change_owner=services.honour_users,
        )
        self._paths: Mapping[str, str] = {}
        self.pod_ip = str((pod.get("status") or {}).get("podIP", ""))
        self._holds_address = False
        self.restart_policy: str = pod["spec"].get("restartPolicy", "Always")
        self.grace_seconds = float(pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS))
        now = services.clock.now()
        started = (pod.get("status") or {}).get("startTime")
        self._started_at = datetime.fromisoformat(started) if started else now
        self._failure: tuple[str, str] | None = None
        self._stopping = asyncio.Event()
        self._dirty = asyncio.Event()
        self._vanished = False
        self._leaving = False
        self._written: Mapping[str, Any] | None = None
        self.runners = [
            ContainerRunner(
                record,
                container,
                self,
                processes=services.processes,
                http=services.http,
                log=self._logs / f"{record.name}.log",
                clock=services.clock,
            )
            for record, (_, container) in zip(first_records(pod, now), ordered_containers(pod), strict=True)
        ]
        self.update(pod)

    @property
    def name(self) -> str:
        """The pod's name."""
        return str(self._pod["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self._pod["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        """Its uid."""
        return str(self._pod["metadata"]["uid"])

    @property
    def phase(self) -> str:
        """Its phase now."""
        return phase_of(self._pod, self._situation())

    def gpus(self) -> Mapping[str, Sequence[str]]:
        """GPU ids by container name."""
        return self._services.gpus.held_by(self.uid)

    def update(self, pod: Mapping[str, Any]) -> None:
        """A version of the pod was seen; an older one than the last is ignored."""
        if _version(pod) < _version(self._pod):
            return
        self._pod = pod
        self._volumes.update(pod)
        if "deletionTimestamp" in pod["metadata"]:
            grace = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
            if self._stopping.is_set() and grace < self.grace_seconds:
                asyncio.get_running_loop().call_later(grace, self.kill)
            self.grace_seconds = grace
            self._stopping.set()
        if self._written is not None and _ready(pod.get("status")) != _ready(self._written):
            # Somebody else wrote our condition (the node lifecycle controller, while we were silent).
            self._written = None
            self._dirty.set()

    def gone(self) -> None:
        """The pod's object is no more."""
        self._vanished = True
        self.grace_seconds = min(self.grace_seconds, GONE_GRACE_SECONDS)
        self._stopping.set()

    def leave(self, grace_seconds: float) -> None:
        """The node ends: end the processes, leave the object as it is."""
        self._leaving = True
        self.grace_seconds = min(self.grace_seconds, grace_seconds)
        self._stopping.set()

    def kill(self) -> None:
        """KILL to every container."""
        for runner in self.runners:
            runner.kill()

    def changed(self) -> None:
        """See `PodSide.changed`."""
        self._dirty.set()
        self._services.changed()

    def event(self, kind: EventType, reason: str, note: str) -> None:
        """See `PodSide.event`."""
        self._services.event(self._pod, kind, reason, note)

    def mounts(self, container: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See `PodSide.mounts`."""
        return mounts_of(container, self._paths)

    async def process_spec(self, container: Mapping[str, Any]) -> ProcessSpec:
        """See `PodSide.process_spec`."""
        services = self._services
        stores: dict[str, dict[str, Mapping[str, str]]] = {"configMap": {}, "secret": {}}
        try:
            for kind, name in referenced_objects(self._pod):
                read = services.objects.config_map if kind == "configMap" else services.objects.secret
                if found := await read(self.namespace, name):
                    stores[kind][name] = object_texts(kind, found)
        except KubeError as error:
            raise PodSpecError("CreateContainerConfigError", str(error)) from error
        gpus = self.gpus().get(container["name"])
        gpu_env = {"NVIDIA_VISIBLE_DEVICES": ",".join(gpus), **services.gpu_env} if gpus else {}
        home = self._volume_directory / f".home-{container['name']}"
        home.mkdir(exist_ok=True)
        home.chmod(0o777)
        context = PodContext(
            pod_ip=self.pod_ip,
            host_ip=services.addresses.host_ip,
            volumes=self._paths,
            config_maps=stores["configMap"],
            secrets=stores["secret"],
            api_host=services.api_host,
            api_port=services.api_port,
            base_env={**services.base_env, "HOME": str(home)},
            honour_users=services.honour_users,
            extra_env={container["name"]: gpu_env},
        )
        return process_spec(self._pod, container, context, str(home))

    async def run(self) -> None:
        """Live until the pod is gone or the node ends."""
        publishing = asyncio.create_task(self._publish_changes())
        living = asyncio.create_task(self._live())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if living.done() and (error := living.exception()):
                self._log.error("pod_worker_failed", exc_info=error)
                self.kill()
                self._fail("NodeError", f"{type(error).__name__}: {error}")
            await stopping
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
            await self._end_containers(self.runners)
        finally:
            for task in (publishing, living, stopping):
                task.cancel()
            await asyncio.gather(publishing, living, stopping, return_exceptions=True)
            self.kill()
            self._release()
        if not self._leaving:
            await self._finish()

    async def _live(self) -> None:
        if self.phase in {"Succeeded", "Failed"}:
            if (self._pod.get("status") or {}).get("phase") != self.phase:
                self.changed()
            return
        wanted = {
            container["name"]: gpu_count(container)
            for kind, container in ordered_containers(self._pod)
            if kind is not Kind.INIT
        }
        try:
            self._services.gpus.allocate(self.uid, wanted)
        except GpuShortageError as error:
            self._fail("UnexpectedAdmissionError", str(error))
            return
        self._take_address()
        self._logs.mkdir(parents=True, exist_ok=True)
        self.changed()
        await self._mount()
        async with asyncio.TaskGroup() as background:
            refreshing = background.create_task(self._refresh_volumes())
            await self._run_containers(background)
            refreshing.cancel()
        self._release()
        self.changed()

    async def _run_containers(self, background: asyncio.TaskGroup) -> None:
        """Init containers in order, then the others; returns when none of these is to run again."""
        sidecars = []
        for runner in self.runners:
            if runner.record.kind is Kind.INIT:
                await runner.run()
                state = runner.record.state
                if isinstance(state, Terminated) and state.exit_code != 0:
                    break
            elif runner.record.kind is Kind.SIDECAR:
                sidecars.append((runner, background.create_task(runner.run())))
                await runner.started()
        else:
            mains = [runner for runner in self.runners if runner.record.kind is Kind.MAIN]
            await asyncio.gather(*(runner.run() for runner in mains))
        for _, task in sidecars:
            task.cancel()
        await self._end_containers([runner for runner, _ in sidecars])

    async def _end_containers(self, runners: Sequence[ContainerRunner]) -> None:
        """All main containers at once, then the sidecars, within one grace period."""
        begun = self._services.clock.monotonic_seconds()
        for kinds in ((Kind.INIT, Kind.MAIN), (Kind.SIDECAR,)):
            left = max(0.0, self.grace_seconds - (self._services.clock.monotonic_seconds() - begun))
            await asyncio.gather(*(runner.stop(left) for runner in runners if runner.record.kind in kinds))

    def _take_address(self) -> None:
        addresses = self._services.addresses
        if self._pod["spec"].get("hostNetwork"):
            self.pod_ip = addresses.host_ip
            return
        if not addresses.claim(self.pod_ip):
            self.pod_ip = addresses.take()
        self._holds_address = True

    def _release(self) -> None:
        """Give back what only running containers need; the status keeps telling the address."""
        self._services.gpus.release(self.uid)
        if self._holds_address:
            self._services.addresses.give_back(self.pod_ip)
            self._holds_address = False

    def _fail(self, reason: str, message: str) -> None:
        self._failure = (reason, message)
        self.event("Warning", reason, message)
        self.changed()

    async def _mount(self) -> None:
        delay, told = FIRST_RETRY_SECONDS, ""
        while True:
            try:
                self._paths = await self._volumes.prepare(self.pod_ip, self._services.addresses.host_ip)
            except (PodSpecError, KubeError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    self.event("Warning", "FailedMount", told)
                    self._explain_waiting(told)
            else:
                self._explain_waiting("")
                return
            await self._services.clock.sleep(delay)
            delay = min(2 * delay, LONGEST_RETRY_SECONDS)

    def _explain_waiting(self, message: str) -> None:
        for runner in self.runners:
            runner.explain_waiting(message)

    async def _refresh_volumes(self) -> None:
        while True:
            due = self._volumes.refresh_at()
            if due is None:
                return
            await self._services.clock.sleep(max(1.0, (due - self._services.clock.now()).total_seconds()))
            try:
                await self._volumes.prepare(self.pod_ip, self._services.addresses.host_ip)
            except (PodSpecError, KubeError, OSError) as error:
                # The containers go on with what they have; the next round is not earlier than after a pause.
                self._log.warning("volume_refresh_failed", why=str(error))
                await self._services.clock.sleep(LONGEST_RETRY_SECONDS)

    def _situation(self) -> PodSituation:
        return PodSituation(
            containers=[runner.record for runner in self.runners],
            pod_ip=self.pod_ip,
            host_ip=self._services.addresses.host_ip,
            started_at=self._started_at,
            stopping=self._stopping.is_set(),
            failure=self._failure,
        )

    async def _publish_changes(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._publish()
                delay = FIRST_RETRY_SECONDS
            except KubeError as error:
                self._log.warning("status_not_written", why=str(error), retry_seconds=delay)
                self._dirty.set()
                await self._services.clock.sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY_SECONDS)

    async def _publish(self) -> None:
        status = pod_status(self._pod, self._situation(), self._services.clock.now())
        if status == self._written or self._vanished or self._leaving:
            return
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid},
            "status": status,
        }
        try:
            written = await self._services.api.apply(PODS, body, field_manager=FIELD_MANAGER, subresource="status")
        except (NotFoundError, ConflictError):
            self.gone()
            return
        self._written = status
        self.update(written)

    async def _finish(self) -> None:
        """Tell the end, then take the pod's object away; the API server may be away for a while."""
        delay = FIRST_RETRY_SECONDS
        while not self._vanished:
            try:
                await self._publish()
                if not self._vanished:
                    await self._services.api.delete(
                        PODS, self.name, self.namespace, uid=self.uid, grace_period_seconds=0
                    )
                break
            except (NotFoundError, ConflictError):
                break
            except KubeError as error:
                self._log.warning("pod_not_removed", why=str(error), retry_seconds=delay)
                await self._services.clock.sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY_SECONDS)
        await asyncio.to_thread(shutil.rmtree, self._volume_directory, ignore_errors=True)


def volume_owner(directory: Path) -> str | None:
    """The uid of the pod whose volumes a directory holds."""
    mark = directory / _OWNER_MARK
    return mark.read_text() if mark.exists() else None


def _volume_directory(volumes: Path, uid: str) -> Path:
    """A short directory of the pod's own: as much of its uid as no other pod's directory has, 8 characters mostly."""
    for length in range(8, len(uid) + 1, 4):
        directory = volumes / uid[:length]
        directory.mkdir(parents=True, exist_ok=True)
        if volume_owner(directory) is None:
            (directory / _OWNER_MARK).write_text(uid)
        if volume_owner(directory) == uid:
            return directory
    raise AssertionError(f"no directory for pod {uid}: uids are unique")


def _version(pod: Mapping[str, Any]) -> int:
    return int(pod["metadata"].get("resourceVersion") or 0)


def _ready(status: Mapping[str, Any] | None) -> str | None:
    conditions = (status or {}).get("conditions") or ()
    return next((entry["status"] for entry in conditions if entry["type"] == "Ready"), None)
