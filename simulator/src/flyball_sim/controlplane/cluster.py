"""A Kubernetes control plane of this process: four children, one directory, nothing left behind."""

from __future__ import annotations

import datetime
import functools
import http.client
import os
import random
import signal
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from flyball_sim.controlplane.assets import Reporter, find_assets
from flyball_sim.controlplane.components import (
    COMPONENTS,
    LOOPBACK,
    Component,
    Layout,
    Ports,
    components,
    files,
)
from flyball_sim.controlplane.keeper import Keeper
from flyball_sim.controlplane.toolchain import tail
from flyball_sim.controlplane.tools import ClusterTools

START_SECONDS = 120.0
POLL_SECONDS = 0.05
DEFAULT_SERVICE_ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"


class ClusterError(RuntimeError):
    """The control plane did not do what was asked; the message holds the end of the log and the mend."""


@dataclass(frozen=True)
class ComponentStatus:
    """One component as seen now."""

    name: str
    pid: int
    running: bool
    healthy: bool
    health_url: str
    log: Path


class HealthProbe:
    """Asks components over HTTP(S) whether they are well, as the administrator."""

    def __init__(self, layout: Layout) -> None:
        """Load the cluster's CA and the administrator's certificate."""
        self._tls = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
        self._tls.load_cert_chain(layout.pki / "admin.crt", layout.pki / "admin.key")

    def ok(self, url: str, timeout_seconds: float = 5.0) -> bool:
        """Whether GET answers 200."""
        parts = urlsplit(url)
        address = (parts.hostname or LOOPBACK, parts.port)
        connection = (
            http.client.HTTPSConnection(*address, timeout=timeout_seconds, context=self._tls)
            if parts.scheme == "https"
            else http.client.HTTPConnection(*address, timeout=timeout_seconds)
        )
        try:
            connection.request("GET", parts.path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class _Running:
    """What a started cluster consists of."""

    programs: Path
    layout: Layout
    server: str
    components: Mapping[str, Component]
    probe: HealthProbe
    tools: ClusterTools
    keeper: Keeper

    @classmethod
    def prepare(cls, programs: Path, directory: Path, keeper: Keeper, *, audit: bool) -> _Running:
        """Choose ports, write keys and kubeconfigs; starts no component."""
        ports = Ports.choose(random.SystemRandom())
        layout = Layout(directory)
        server = f"https://{LOOPBACK}:{ports.apiserver}"
        for path in (layout.pki, layout.home):
            path.mkdir(mode=0o700, exist_ok=True)
        for path, content in files(layout, server, datetime.datetime.now(datetime.UTC)).items():
            path.touch(mode=0o600)
            path.write_bytes(content)
        return cls(
            programs=programs,
            layout=layout,
            server=server,
            components={each.name: each for each in components(programs, layout, ports, audit=audit)},
            probe=HealthProbe(layout),
            tools=ClusterTools(
                layout.kubeconfig, programs / "kubectl", programs / "helm", tool_environment(layout.home)
            ),
            keeper=keeper,
        )

    def component(self, name: str) -> Component:
        if name not in self.components:
            raise ClusterError(f"no component {name!r}; there are {', '.join(COMPONENTS)}")
        return self.components[name]

    def launch(self, name: str) -> None:
        # A bare environment: etcd takes settings from ETCD_*, and all of them take proxies.
        environ = {"PATH": os.defpath, "HOME": str(self.layout.home)}
        self.keeper.start(name, self.component(name).argv, self.layout.log(name), environ)

    def healthy(self, name: str) -> bool:
        return self.probe.ok(self.component(name).health_url)

    def wait(self, what: str, needed: Sequence[str], met: Callable[[], bool], within_seconds: float) -> None:
        """Poll until `met`; `ClusterError` when one of `needed` ends first or time is up."""
        deadline = time.monotonic() + within_seconds
        while not met():
            children = self.keeper.children()
            for name in needed:
                pid, returncode = children[name]
                if returncode is not None:
                    raise ClusterError(self._failure(f"{name} (pid {pid}) ended with {returncode}", [name]))
            if time.monotonic() > deadline:
                raise ClusterError(self._failure(f"waited {within_seconds:.0f} s in vain for {what}", needed))
            time.sleep(POLL_SECONDS)

    def _failure(self, what: str, names: Sequence[str]) -> str:
        parts = [f"{what}."]
        for log in map(self.layout.log, names):
            text = log.read_text(errors="replace") if log.exists() else ""
            parts.append(f"The end of {log.name}:\n{tail(text)}")
        parts.append(
            "If the machine is busy, try again when it is less so. For a folder of your own in KUBEBUILDER_ASSETS, "
            "check that its programs are of one Kubernetes version; unset it to build the tested ones."
        )
        return "\n".join(parts)


class LocalCluster:
    """etcd, kube-apiserver, kube-controller-manager and kube-scheduler on the loopback interface.

    Use it as a context manager, or call `start` and `stop`. The children end when this process ends, `kill -9`
    included (see `keeper`). No nodes: `flyball-sim node` brings those.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        audit: bool = False,
        programs: Path | None = None,
        reporter: Reporter | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """Nothing is written or started before `start`.

        Args:
            directory: where data, keys and logs go; it is kept. None: a temporary directory, removed at the end.
            audit: write an audit event of Metadata level per request to `audit_log`.
            programs: folder with the programs. None: found or built (`assets.find_assets`).
            reporter: told about a build. None: standard error.
            start_seconds: how long each step of the start may take before it is given up.
        """
        self._given_directory = directory
        self._audit = audit
        self._programs = programs
        self._reporter = reporter
        self._start_seconds = start_seconds
        self._running: _Running | None = None

    @property
    def directory(self) -> Path:
        """Data, keys, kubeconfig and logs of this cluster."""
        return self._now.layout.directory

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, credentials embedded."""
        return self._now.layout.kubeconfig

    @property
    def audit_log(self) -> Path:
        """One JSON audit event per line; exists when made with `audit=True`."""
        return self._now.layout.audit_log

    @property
    def bin(self) -> Path:
        """Folder with kubectl, helm and the components' programs."""
        return self._now.programs

    @property
    def server(self) -> str:
        """URL of the API server; the same for the life of the cluster."""
        return self._now.server

    @property
    def tools(self) -> ClusterTools:
        """This folder's kubectl and helm as this cluster's administrator, with caches of their own."""
        return self._now.tools

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - the name subprocess gives it
        check: bool = False,
        timeout_seconds: float = 120,
    ) -> CompletedProcess[str]:
        """Run kubectl as the administrator; see `ClusterTools.kubectl`."""
        return self.tools.kubectl(*args, input=input, check=check, timeout_seconds=timeout_seconds)

    def helm(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - the name subprocess gives it
        check: bool = False,
        timeout_seconds: float = 300,
    ) -> CompletedProcess[str]:
        """Run helm as the administrator; see `ClusterTools.helm`."""
        return self.tools.helm(*args, input=input, check=check, timeout_seconds=timeout_seconds)

    def start(self) -> None:
        """Start and wait until the API server is ready and the default ServiceAccount exists.

        Raises:
            AssetsError: the programs cannot be had.
            ClusterError: a component ended or was not well in time; everything has been ended again.
        """
        if self._running is not None:
            raise ClusterError(f"the cluster in {self.directory} runs already; stop() it first")
        programs = self._programs or find_assets(reporter=self._reporter)
        if self._given_directory is None:
            directory = Path(tempfile.mkdtemp(prefix="flyball-cluster-"))
        else:
            directory = self._given_directory.resolve()
            if (directory / "pki").exists():
                raise ClusterError(f"{directory} holds another cluster's data; delete it or name another directory")
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # No grace at the end: nobody reads the data again, and the API server would drain its watches for seconds.
        keeper = Keeper(scratch=directory if self._given_directory is None else None, grace_seconds=0.0)
        try:
            self._running = _Running.prepare(programs, directory, keeper, audit=self._audit)
            self._start_components(self._running)
        except BaseException:
            keeper.close()
            self._running = None
            raise

    def stop(self) -> None:
        """End every component, and remove the directory if it was a temporary one. Harmless when called twice."""
        if self._running is not None:
            self._running.keeper.close()
            self._running = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def kill(self, name: str) -> None:
        """End a component by SIGKILL and leave it ended; `restart` brings it back."""
        now = self._now
        now.keeper.stop(now.component(name).name, signal.SIGKILL)

    def restart(self, name: str) -> None:
        """Bring a component back on its old port and data, ending it first if it runs; returns when it is well."""
        now = self._now
        if now.keeper.children()[now.component(name).name][1] is None:
            now.keeper.stop(name)
        now.launch(name)
        now.wait(f"{name} to be well again", [name], lambda: now.healthy(name), self._start_seconds)

    def status(self) -> list[ComponentStatus]:
        """Return each component's process and health, in the order they start."""
        now = self._now
        children = now.keeper.children()
        return [
            ComponentStatus(
                name=name,
                pid=children[name][0],
                running=children[name][1] is None,
                healthy=children[name][1] is None and now.healthy(name),
                health_url=component.health_url,
                log=now.layout.log(name),
            )
            for name, component in now.components.items()
        ]

    @property
    def _now(self) -> _Running:
        if self._running is None:
            raise ClusterError("the cluster is not started; call start(), or use it in a with statement")
        return self._running

    def _start_components(self, now: _Running) -> None:
        """Start in two waves: controller-manager gives up for good when the API server is 10 s late."""
        first, second = COMPONENTS[:2], COMPONENTS[2:]
        for name in first:
            now.launch(name)
        patience = self._start_seconds
        now.wait("the API server to be ready", first, lambda: now.healthy("kube-apiserver"), patience)
        for name in second:
            now.launch(name)
        account = now.server + DEFAULT_SERVICE_ACCOUNT
        now.wait("the default ServiceAccount", COMPONENTS, lambda: now.probe.ok(account), patience)
        for name in second:
            now.wait(f"{name} to be well", COMPONENTS, functools.partial(now.healthy, name), patience)


def tool_environment(home: Path) -> dict[str, str]:
    """Return the environment of kubectl and helm: the caller's, with settings and caches kept under `home`."""
    return {
        **os.environ,
        "KUBECACHEDIR": str(home / "kubectl"),
        "KUBERC": "off",
        "HELM_CACHE_HOME": str(home / "helm" / "cache"),
        "HELM_CONFIG_HOME": str(home / "helm" / "config"),
        "HELM_DATA_HOME": str(home / "helm" / "data"),
    }
