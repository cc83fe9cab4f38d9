"""What the control plane consists of: every file, port and flag, decided without touching anything."""

from __future__ import annotations

import datetime
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flyball_sim.controlplane import pki

LOOPBACK = "127.0.0.1"
SERVICE_RANGE = "10.96.0.0/16"
KUBERNETES_SERVICE_ADDRESS = "10.96.0.1"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
"""


@dataclass(frozen=True)
class Ports:
    """TCP ports on the loopback interface, the same for the life of the cluster."""

    etcd: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    scheduler: int

    @classmethod
    def choose(cls, choice: random.Random) -> Ports:
        """Pick ports nobody listens on, below the range the kernel hands to outgoing connections.

        Above that line any connection of this machine could sit on the API server's port while it restarts.
        """
        chosen: list[int] = []
        candidates = list(range(20000, _first_ephemeral_port()))
        choice.shuffle(candidates)
        for port in candidates:
            if _is_free(port):
                chosen.append(port)
            if len(chosen) == 5:
                return cls(*chosen)
        raise OSError(f"only {len(chosen)} of 5 ports are free on {LOOPBACK} from 20000 on; end what uses them")


def _first_ephemeral_port() -> int:
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")
    return max(21000, int(setting.read_text().split()[0])) if setting.exists() else 32768


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Component:
    """One process of the control plane."""

    name: str
    argv: tuple[str, ...]
    health_url: str


@dataclass(frozen=True)
class Layout:
    """Where a cluster keeps its files."""

    directory: Path

    @property
    def pki(self) -> Path:
        """Directory of certificates, keys and the components' kubeconfigs."""
        return self.directory / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.directory / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """One JSON audit event per line, when auditing is on."""
        return self.directory / "audit.log"

    @property
    def home(self) -> Path:
        """HOME of the components, and of kubectl's and helm's caches."""
        return self.directory / "home"

    def log(self, component: str) -> Path:
        """The component's output."""
        return self.directory / f"{component}.log"


def files(layout: Layout, server: str, now: datetime.datetime) -> Mapping[Path, bytes]:
    """Return every file the components read: path -> content."""
    authority = pki.Authority(now)
    signing, checking = pki.service_account_keys()
    contents: dict[Path, bytes] = {
        layout.pki / "ca.crt": authority.certificate,
        layout.pki / "sa.key": signing,
        layout.pki / "sa.pub": checking,
        layout.pki / "audit-policy.yaml": AUDIT_POLICY.encode(),
    }
    in_cluster = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    in_cluster += ["kubernetes.default.svc.cluster.local", KUBERNETES_SERVICE_ADDRESS]
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        hosts = [LOOPBACK, "localhost", *(in_cluster if name == "kube-apiserver" else [])]
        serving = authority.issue(name, "server", hosts=hosts)
        contents[layout.pki / f"{name}.crt"] = serving.certificate
        contents[layout.pki / f"{name}.key"] = serving.key
    for name in ("kube-controller-manager", "kube-scheduler"):
        identity = authority.issue(f"system:{name}", "client")
        text = pki.kubeconfig(server, authority.certificate, identity, "flyball")
        contents[layout.pki / f"{name}.kubeconfig"] = text.encode()
    admin = authority.issue("flyball-admin", "client", organizations=["system:masters"])
    contents[layout.pki / "admin.crt"], contents[layout.pki / "admin.key"] = admin.certificate, admin.key
    contents[layout.kubeconfig] = pki.kubeconfig(server, authority.certificate, admin, "flyball").encode()
    return contents


def components(programs: Path, layout: Layout, ports: Ports, *, audit: bool) -> tuple[Component, ...]:
    """Return the four processes in the order they start.

    Flags follow kubeadm where there is a choice (authorizers, NodeRestriction, service-account credentials), with
    what one machine needs: loopback addresses, no leader election, no fsync, and no endpoint reconciler (it refuses
    a loopback advertise address).
    """
    etcd_url = f"http://{LOOPBACK}:{ports.etcd}"
    peer_url = f"http://{LOOPBACK}:{ports.etcd_peer}"
    secret = layout.pki
    apiserver_flags = [
        f"--etcd-servers={etcd_url}",
        f"--bind-address={LOOPBACK}",
        f"--advertise-address={LOOPBACK}",
        f"--secure-port={ports.apiserver}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--endpoint-reconciler-type=none",
        f"--client-ca-file={secret}/ca.crt",
        f"--tls-cert-file={secret}/kube-apiserver.crt",
        f"--tls-private-key-file={secret}/kube-apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={secret}/sa.key",
        f"--service-account-key-file={secret}/sa.pub",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
    ]
    if audit:
        apiserver_flags += [
            f"--audit-log-path={layout.audit_log}",
            f"--audit-policy-file={secret}/audit-policy.yaml",
        ]
    flags = {
        "etcd": [
            "--name=flyball",
            f"--data-dir={layout.directory}/etcd",
            "--unsafe-no-fsync",
            "--quota-backend-bytes=8589934592",
            f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=flyball={peer_url}",
        ],
        "kube-apiserver": apiserver_flags,
        "kube-controller-manager": [
            *_client_flags(layout, "kube-controller-manager", ports.controller_manager),
            f"--service-account-private-key-file={secret}/sa.key",
            f"--root-ca-file={secret}/ca.crt",
            "--use-service-account-credentials",
            # the default 20/s makes some forty controllers queue for their tokens at start
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ],
        "kube-scheduler": _client_flags(layout, "kube-scheduler", ports.scheduler),
    }
    health = {
        "etcd": f"{etcd_url}/health",
        "kube-apiserver": f"https://{LOOPBACK}:{ports.apiserver}/readyz",
        "kube-controller-manager": f"https://{LOOPBACK}:{ports.controller_manager}/healthz",
        "kube-scheduler": f"https://{LOOPBACK}:{ports.scheduler}/readyz",
    }
    return tuple(Component(name, (str(programs / name), *flags[name]), health[name]) for name in COMPONENTS)


def _client_flags(layout: Layout, name: str, port: int) -> list[str]:
    """Flags that controller-manager and scheduler share."""
    kubeconfig = layout.pki / f"{name}.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={port}",
        f"--tls-cert-file={layout.pki}/{name}.crt",
        f"--tls-private-key-file={layout.pki}/{name}.key",
        "--leader-elect=false",
    ]
