"""The node process: registers its Node, renews its Lease, runs the pods bound to it, serves PodResources."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import structlog

from flyball_api.kube import LEASES, NODES, PODS, KubeApi, KubeError
from flyball_api.reflector import Reflector
from flyball_sim.node.addresses import AddressPool, hold_network
from flyball_sim.node.clock import Clock
from flyball_sim.node.containers import EventType
from flyball_sim.node.gpuhost import GpuHost
from flyball_sim.node.gpus import GpuAllocator
from flyball_sim.node.nodeobject import (
    LEASE_RENEW_SECONDS,
    NodeIdentity,
    lease_body,
    node_body,
    node_status,
)
from flyball_sim.node.objects import ApiObjects
from flyball_sim.node.podresources import SOCKET_PATH, PodDevices, PodResourcesServer
from flyball_sim.node.podspec import GPU_RESOURCE
from flyball_sim.node.podworker import FIELD_MANAGER, NodeServices, PodWorker, volume_owner
from flyball_sim.node.processes import ProcessTable, Sweeper, interpreter_directories

HEARTBEAT_SECONDS = 300.0
"""How often the Node's status is written when nothing changes, as the kubelet does it; the Lease says it lives."""

RETRY_SECONDS = 1.0
STATUS_FILE = "status.json"
BOOT_ID_FILE = "boot_id"
STATUS_FILE_DELAY_SECONDS = 0.05
SOCKET_PATH_LIMIT = 107


@dataclass(frozen=True)
class NodeOptions:
    """What `flyball-sim node` is told.

    Attributes:
        name: Of the Node object.
        index: Makes its network, 127.<index+1>.0.0/16; None for the lowest that no node of this machine has.
        kubeconfig: An identity that may do what a kubelet does.
        gpus: 0 to 8.
        gpu_type: For example `H100-SXM5`.
        root: Directory of everything the node keeps; made if absent.
        shutdown_grace_seconds: What containers get between TERM and KILL when the node ends.
        until_stdin_closes: End when stdin does.
    """

    name: str
    index: int | None
    kubeconfig: Path
    gpus: int
    gpu_type: str
    root: Path
    shutdown_grace_seconds: float = 5.0
    until_stdin_closes: bool = False


class NodeError(Exception):
    """The node cannot run as it is told to; the message says what to change."""


class Kubelet:
    """One simulated node.

    Args:
        options: What it is.
        api: The API server, with an identity that may do what a kubelet does.
        processes: Starts containers' processes.
        http: For probes.
        gpu_host: Its GPUs; None without any.
        addresses: Of the node and its pods.
        boot_id: Of the node.
        clock: Time.
    """

    def __init__(
        self,
        options: NodeOptions,
        api: KubeApi,
        *,
        processes: ProcessTable,
        http: aiohttp.ClientSession,
        gpu_host: GpuHost | None,
        addresses: AddressPool,
        boot_id: str,
        clock: Clock,
    ) -> None:
        self._options = options
        self._api = api
        self._clock = clock
        self._gpu_host = gpu_host
        self._log = structlog.get_logger().bind(node=options.name)
        self._identity = NodeIdentity(
            name=options.name,
            host_ip=addresses.host_ip,
            gpu_count=options.gpus,
            gpu_product=gpu_host.product if gpu_host else "",
            boot_id=boot_id,
        )
        server = urlsplit(api.credentials.server)
        self._services = NodeServices(
            api=api,
            objects=ApiObjects(api, clock),
            processes=processes,
            http=http,
            clock=clock,
            addresses=addresses,
            gpus=GpuAllocator(gpu_host.uuids if gpu_host else ()),
            directory=options.root / "pods",
            volumes=options.root / "v",
            rootfs=options.root / "rootfs",
            api_host=server.hostname or "127.0.0.1",
            api_port=server.port or 443,
            base_env=_base_environment(os.environ),
            gpu_env=gpu_host.env() if gpu_host else {},
            honour_users=os.geteuid() == 0,
            event=self._post_event,
            changed=self._pod_changed,
        )
        self._workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}
        self._events: set[asyncio.Task[None]] = set()
        self._status_dirty = asyncio.Event()
        self._node_status: Mapping[str, Any] | None = None
        self._node_uid = ""
        self._registered = asyncio.Event()
        self._ready = False

    async def run(self, stop: asyncio.Event) -> None:
        """Be the node until `stop` is set; then end its containers and mark it not ready."""
        resources = PodResourcesServer(
            self._services.rootfs / SOCKET_PATH,
            self._pod_devices,
            {GPU_RESOURCE: self._services.gpus.uuids} if self._services.gpus.uuids else {},
        )
        await resources.start()
        pods = Reflector(
            self._api,
            PODS,
            lambda pod: pod,
            on_change=self._on_pod,
            field_selector=f"spec.nodeName={self._options.name}",
            backoff_limit_seconds=2.0,
        )
        try:
            await self._write_status_file()
            tasks = [
                asyncio.create_task(work)
                for work in (
                    self._heartbeat(),
                    self._renew_lease(),
                    pods.run(),
                    self._keep_status_file(),
                    self._clear_old_volumes(pods),
                    *([self._gpu_host.tick_forever(self._clock)] if self._gpu_host else []),
                )
            ]
            stopping = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self._log.info("node_stopping")
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            await self._leave()
            for task in done:
                # None of the loops ends by itself: one that did has failed, and the node with it.
                task.result()
        finally:
            await resources.stop()

    async def _leave(self) -> None:
        for worker, _ in self._workers.values():
            worker.leave(self._options.shutdown_grace_seconds)
        await asyncio.gather(*(task for _, task in self._workers.values()), return_exceptions=True)
        try:
            async with asyncio.timeout(3.0):
                await self._write_node(ready=False)
        except (KubeError, TimeoutError) as error:
            self._log.warning("node_not_marked", why=str(error))
        await self._write_status_file()

    # -- the Node and its Lease ------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        while True:
            try:
                first = self._node_status is None
                await self._write_node(ready=True)
                if first:
                    self._log.info("node_ready", host_ip=self._identity.host_ip, gpus=self._options.gpus)
            except KubeError as error:
                self._log.warning("node_not_written", why=str(error))
                await self._clock.sleep(RETRY_SECONDS)
                continue
            await self._clock.sleep(HEARTBEAT_SECONDS)

    async def _write_node(self, *, ready: bool) -> None:
        if self._node_status is None:
            if not ready:
                return
            node = await self._api.apply(NODES, node_body(self._identity), field_manager=FIELD_MANAGER)
            self._node_status = node.get("status") or {}
            self._node_uid = node["metadata"]["uid"]
            self._registered.set()
        status = node_status(self._identity, ready, self._clock.now(), self._node_status)
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._options.name},
            "status": status,
        }
        written = await self._api.apply(NODES, body, field_manager=FIELD_MANAGER, subresource="status")
        self._node_status = written["status"]
        self._ready = ready
        self._status_dirty.set()

    async def _renew_lease(self) -> None:
        await self._registered.wait()
        while True:
            try:
                body = lease_body(self._options.name, self._node_uid, self._clock.now())
                await self._api.apply(LEASES, body, field_manager=FIELD_MANAGER)
                wait = LEASE_RENEW_SECONDS
            except KubeError as error:
                self._log.warning("lease_not_renewed", why=str(error))
                wait = RETRY_SECONDS
            await self._clock.sleep(wait)

    # -- pods ------------------------------------------------------------------------------------------------

    async def _clear_old_volumes(self, pods: Reflector[dict[str, Any]]) -> None:
        """Remove, once, the volumes of pods that were deleted while this node was down; then wait for ever."""
        await pods.wait_synced()
        for directory in self._services.volumes.iterdir():
            if volume_owner(directory) not in self._workers:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        await asyncio.Event().wait()

    def _on_pod(self, _key: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
        """A pod of this node appeared, changed or went; a successor of the same name has another uid."""
        if old is not None and (new is None or new["metadata"]["uid"] != old["metadata"]["uid"]):
            self._forget(old["metadata"]["uid"])
        if new is None:
            return
        uid = new["metadata"]["uid"]
        if uid in self._workers:
            self._workers[uid][0].update(new)
        else:
            worker = PodWorker(new, self._services)
            self._workers[uid] = (worker, asyncio.create_task(worker.run()))
            self._pod_changed()

    def _forget(self, uid: str) -> None:
        worker, task = self._workers[uid]
        worker.gone()
        task.add_done_callback(lambda _: self._drop(uid))

    def _drop(self, uid: str) -> None:
        _, task = self._workers.pop(uid)
        if not task.cancelled() and (error := task.exception()):
            self._log.error("pod_worker_failed", uid=uid, exc_info=error)
        self._pod_changed()

    def _pod_devices(self) -> list[PodDevices]:
        return [
            PodDevices(
                worker.namespace,
                worker.name,
                {
                    runner.record.name: {GPU_RESOURCE: ids} if (ids := worker.gpus().get(runner.record.name)) else {}
                    for runner in worker.runners
                },
            )
            for worker, _ in self._workers.values()
            if worker.phase not in {"Succeeded", "Failed"}
        ]

    def _post_event(self, pod: Mapping[str, Any], kind: EventType, reason: str, note: str) -> None:
        task = asyncio.create_task(self._send_event(pod, kind, reason, note, self._clock.now()))
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def _send_event(self, pod: Mapping[str, Any], kind: EventType, reason: str, note: str, now: datetime) -> None:
        metadata = pod["metadata"]
        self._log.info("pod_event", pod=f"{metadata['namespace']}/{metadata['name']}", reason=reason, note=note)
        try:
            await self._api.post_event(
                regarding={
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "namespace": metadata["namespace"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
                kind=kind,
                reason=reason,
                note=note,
                action=reason,
                controller="flyball.dev/simulated-node",
                instance=self._options.name,
                now=now,
            )
        except KubeError as error:
            # The namespace goes, or the API server is away: the node's log has it all the same.
            self._log.info("event_not_posted", reason=reason, why=str(error))

    # -- the node's own status file --------------------------------------------------------------------------

    def _pod_changed(self) -> None:
        self._status_dirty.set()

    async def _keep_status_file(self) -> None:
        while True:
            await self._status_dirty.wait()
            self._status_dirty.clear()
            await self._write_status_file()
            await self._clock.sleep(STATUS_FILE_DELAY_SECONDS)

    async def _write_status_file(self) -> None:
        """`status.json` for tools that kill and measure: which process is which container."""
        content = {
            "node": self._options.name,
            "pid": os.getpid(),
            "host_ip": self._identity.host_ip,
            "ready": self._ready,
            "rootfs": str(self._services.rootfs),
            "gpu_state": str(self._gpu_host.state_path) if self._gpu_host else None,
            "pods": {
                f"{worker.namespace}/{worker.name}": {
                    "uid": worker.uid,
                    "ip": worker.pod_ip,
                    "phase": worker.phase,
                    "containers": {
                        runner.record.name: {
                            "pid": runner.pid,
                            "restarts": runner.record.restarts,
                            "ready": runner.record.ready,
                            "gpus": list(worker.gpus().get(runner.record.name, ())),
                            "log": str(runner.log),
                        }
                        for runner in worker.runners
                    },
                }
                for worker, _ in self._workers.values()
            },
        }
        path = self._options.root / STATUS_FILE
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(path)


async def run_node(options: NodeOptions) -> None:
    """Wire a node together and run it until TERM or INT.

    Raises:
        NodeError: The options cannot work here.
        CredentialError: The kubeconfig cannot be used.
    """
    clock = Clock()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.until_stdin_closes:
        # Nobody writes to it: it becomes readable when it closes.
        loop.add_reader(sys.stdin.fileno(), _stop_reading_stdin, loop, stop)
    root = options.root.resolve()
    options = NodeOptions(**{**vars(options), "root": root})
    index, network = hold_network(options.index)
    addresses = AddressPool(index)
    boot_id, rebooted = _prepare_root(root)
    gpu_host = None
    if options.gpus:
        gpu_host = GpuHost(root / "rootfs", options.gpu_type, options.gpus, options.name, rebooted=rebooted)
    async with _resources(options) as (api, sweeper, http):
        table = ProcessTable(sweeper, [*interpreter_directories(), root])
        kubelet = Kubelet(
            options,
            api,
            processes=table,
            http=http,
            gpu_host=gpu_host,
            addresses=addresses,
            boot_id=boot_id,
            clock=clock,
        )
        await kubelet.run(stop)
    if gpu_host:
        gpu_host.close()
    network.close()


def _stop_reading_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    loop.remove_reader(sys.stdin.fileno())
    stop.set()


@contextlib.asynccontextmanager
async def _resources(
    options: NodeOptions,
) -> AsyncIterator[tuple[KubeApi, Sweeper, aiohttp.ClientSession]]:
    api = await KubeApi.from_environment(
        options.kubeconfig, None, os.environ, user_agent=f"flyball-sim-node/{options.name}"
    )
    sweeper = Sweeper()
    try:
        async with api, aiohttp.ClientSession() as http:
            yield api, sweeper, http
    finally:
        sweeper.close()


def _prepare_root(root: Path) -> tuple[str, bool]:
    """Make the node's directory; returns its boot id and whether it boots for the first time since `reboot`.

    Raises:
        NodeError: The path is too long for the sockets below it.
    """
    longest = len(str(root / "rootfs" / SOCKET_PATH))
    if longest > SOCKET_PATH_LIMIT:
        raise NodeError(
            f"--root {root} is too long: the kubelet's socket below it would have a path of {longest} characters, and "
            f"a Unix socket takes {SOCKET_PATH_LIMIT}: choose a root of at most "
            f"{SOCKET_PATH_LIMIT - longest + len(str(root))} characters"
        )
    for directory in (root, root / "rootfs", root / "pods", root / "v"):
        directory.mkdir(parents=True, exist_ok=True)
        # Containers of other users have to pass; what they must not read is closed further down.
        directory.chmod(0o755)
    boot_id = root / BOOT_ID_FILE
    if boot_id.exists():
        return boot_id.read_text().strip(), False
    boot_id.write_text(f"{uuid.uuid4()}\n")
    return boot_id.read_text().strip(), True


def _base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What every container inherits of this process' environment."""
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    base = {"PATH": f"{Path(sys.executable).parent}:{system}"}
    base.update({name: environ[name] for name in ("LANG", "TZ") if name in environ})
    return base
