"""Several simulated nodes as child processes: for the demo, the bench and the tests."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

POLL_SECONDS = 0.05
STOP_SECONDS = 20.0


class FleetError(Exception):
    """A node did not come up, or something unknown was asked for; the message says what its log says."""


@dataclass(frozen=True)
class NodeSpec:
    """One node of a fleet; without `index` it takes the lowest one that no node of this machine has."""

    name: str
    index: int | None = None
    gpus: int = 8
    gpu_type: str = "H100-SXM5"


class FleetNode:
    """A node process and what it tells about itself."""

    def __init__(self, spec: NodeSpec, root: Path) -> None:
        self.spec = spec
        self.root = root
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def rootfs(self) -> Path:
        """Root of the node's file system."""
        return self.root / "rootfs"

    @property
    def log(self) -> Path:
        """The node process's own log."""
        return self.root / "node.log"

    @property
    def gpu_state(self) -> Path:
        """The GPUs' state file (`flyball_sim.gpu.statefile.GpuStateFile`)."""
        return self.rootfs / "run/nvidia/driver/usr/lib/x86_64-linux-gnu/flyball-gpus.state"

    @property
    def podresources_socket(self) -> Path:
        """The kubelet's PodResources socket."""
        return self.rootfs / "var/lib/kubelet/pod-resources/kubelet.sock"

    def forget_process(self) -> None:
        """Drop the handle of a process that has ended."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None

    def status(self) -> dict[str, Any]:
        """The node's `status.json`: pods with uid, ip, phase, and per container pid, restarts, ready, gpus, log."""
        try:
            status: dict[str, Any] = json.loads((self.root / "status.json").read_text())
        except FileNotFoundError:
            return {"pods": {}}
        return status

    def container(self, pod: str, container: str) -> dict[str, Any] | None:
        """What the status says of a container; `pod` is `namespace/name` or, where it is unique, its beginning."""
        pods = self.status()["pods"]
        names = [pod] if pod in pods else [name for name in pods if name.startswith(pod)]
        if len(names) > 1:
            raise FleetError(f"{pod!r} fits {', '.join(sorted(names))} on {self.spec.name}: name one of them")
        found: dict[str, Any] | None = pods[names[0]]["containers"].get(container) if names else None
        return found


class Fleet:
    """Starts, watches and ends node processes.

    Use it as a context manager. The nodes end with this process, and their containers with their node, also when
    these are killed.

    Args:
        kubeconfig: An identity that may do what a kubelet does.
        specs: The nodes.
        directory: Where the nodes keep their files, one folder each; kept. None: a temporary one, removed at the end.
            A short path: sockets of pods lie below it.
    """

    def __init__(self, kubeconfig: Path, specs: Sequence[NodeSpec], directory: Path | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._scratch = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="fb-"))
        self.nodes = {spec.name: FleetNode(spec, self.directory / spec.name) for spec in specs}

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def node(self, name: str) -> FleetNode:
        """One node.

        Raises:
            FleetError: There is none of that name.
        """
        if name not in self.nodes:
            raise FleetError(f"no node {name!r}: there are {', '.join(self.nodes)}")
        return self.nodes[name]

    def start(self, *names: str) -> None:
        """Start these nodes, or all, that do not run."""
        for node in [self.node(name) for name in names] or list(self.nodes.values()):
            if node.process is not None and node.process.poll() is None:
                continue
            node.forget_process()
            node.root.mkdir(parents=True, exist_ok=True)
            # A status file of an earlier life would name processes that are no more.
            (node.root / "status.json").unlink(missing_ok=True)
            spec = node.spec
            with node.log.open("ab") as log:
                node.process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "flyball_sim.cli",
                        "node",
                        f"--name={spec.name}",
                        *([] if spec.index is None else [f"--index={spec.index}"]),
                        f"--kubeconfig={self._kubeconfig}",
                        f"--gpus={spec.gpus}",
                        f"--gpu-type={spec.gpu_type}",
                        f"--root={node.root}",
                        # The pipe closes with this process, by whatever way it ends: so do the nodes.
                        "--until-stdin-closes",
                    ],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    bufsize=0,
                )

    def wait_ready(self, within_seconds: float = 60.0) -> None:
        """Wait until every node that runs has told the API server that it is ready.

        Raises:
            FleetError: One ended or was not ready in time; with the end of its log.
        """
        deadline = time.monotonic() + within_seconds
        for node in self.nodes.values():
            while not node.status().get("ready"):
                if node.process is None or node.process.poll() is not None or time.monotonic() > deadline:
                    log = node.log.read_text(errors="replace") if node.log.exists() else ""
                    raise FleetError(
                        f"node {node.spec.name} is not ready (waited up to {within_seconds:.0f} s). "
                        f"The end of {node.log}:\n{log[-2000:]}"
                    )
                time.sleep(POLL_SECONDS)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a node process; waits for its end if it is KILL."""
        process = self.node(name).process
        if process is None:
            raise FleetError(f"node {name} was not started")
        process.send_signal(number)
        if number is signal.SIGKILL:
            process.wait()

    def reboot(self, name: str) -> None:
        """Stop a node and start it as freshly booted: new boot id, GPUs at the driver's defaults."""
        node = self.node(name)
        self._end([node])
        (node.root / "boot_id").unlink(missing_ok=True)
        self.start(name)

    def containers(self, wanted: Callable[[str, str], bool]) -> list[tuple[FleetNode, str, str, dict[str, Any]]]:
        """(node, `namespace/pod`, container, status) of every container for which `wanted(pod, container)` holds."""
        return [
            (node, pod, name, container)
            for node in self.nodes.values()
            for pod, state in node.status()["pods"].items()
            for name, container in state["containers"].items()
            if wanted(pod, name)
        ]

    def stop(self) -> None:
        """End all nodes (TERM, then KILL) and remove a temporary directory. Harmless when called twice."""
        self._end(list(self.nodes.values()))
        if self._scratch:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, nodes: Sequence[FleetNode]) -> None:
        running = [node.process for node in nodes if node.process is not None and node.process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()
        for node in nodes:
            node.forget_process()
