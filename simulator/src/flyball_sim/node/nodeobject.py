"""The Node and Lease objects of a simulated node. Pure: the time is passed in."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flyball_api.kube import rfc3339_micro
from flyball_sim.node.podspec import GPU_RESOURCE
from flyball_sim.node.status import timestamp

KUBELET_VERSION = "v1.36.2"
LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
LEASE_RENEW_SECONDS = 10.0

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class NodeIdentity:
    """What a node tells about itself and does not change while it runs.

    Attributes:
        gpu_product: NVML's product name of its GPUs, for example `NVIDIA H100 80GB HBM3`; empty without GPUs.
        boot_id: Changes when the node reboots, which resets its GPUs; a restart of the node process is no reboot.
    """

    name: str
    host_ip: str
    gpu_count: int
    gpu_product: str
    boot_id: str


def node_labels(identity: NodeIdentity) -> dict[str, str]:
    """The labels kubelet and NVIDIA's feature discovery would set."""
    labels = {
        "kubernetes.io/hostname": identity.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": _architecture(),
        "flyball.dev/simulated": "true",
    }
    if identity.gpu_count:
        labels["nvidia.com/gpu.present"] = "true"
        labels["nvidia.com/gpu.count"] = str(identity.gpu_count)
        labels["nvidia.com/gpu.product"] = identity.gpu_product.replace(" ", "-")
    return labels


def node_body(identity: NodeIdentity) -> dict[str, Any]:
    """The Node to apply (labels; its status is a subresource)."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": identity.name, "labels": node_labels(identity)},
    }


def node_status(
    identity: NodeIdentity, ready: bool, now: datetime, existing: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The status to apply.

    Args:
        identity: The node.
        ready: False when it ends.
        now: Heartbeat of the conditions.
        existing: The status there is, whose transition times hold for conditions that stay as they are.
    """
    # A GPU server's size: the pods are to be limited by its GPUs.
    resources = {
        "cpu": "128",
        "memory": "2048Gi",
        "ephemeral-storage": "1024Gi",
        "pods": "110",
        GPU_RESOURCE: str(identity.gpu_count),
    }
    machine_id = hashlib.sha256(identity.name.encode()).hexdigest()[:32]
    return {
        "capacity": resources,
        "allocatable": resources,
        "addresses": [
            {"type": "InternalIP", "address": identity.host_ip},
            {"type": "Hostname", "address": identity.name},
        ],
        "conditions": _conditions(ready, now, existing or {}),
        "nodeInfo": {
            "machineID": machine_id,
            "systemUUID": machine_id,
            "bootID": identity.boot_id,
            "kernelVersion": os.uname().release,
            "osImage": "Flyball simulated node",
            "containerRuntimeVersion": "flyball-sim://0.1.0",
            "kubeletVersion": KUBELET_VERSION,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": _architecture(),
        },
    }


def lease_body(node_name: str, node_uid: str, now: datetime) -> dict[str, Any]:
    """The node's heartbeat Lease."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": node_name,
            "namespace": LEASE_NAMESPACE,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_uid}],
        },
        "spec": {
            "holderIdentity": node_name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": rfc3339_micro(now),
        },
    }


def _architecture() -> str:
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def _conditions(ready: bool, now: datetime, existing: Mapping[str, Any]) -> list[dict[str, str]]:
    before = {entry["type"]: entry for entry in existing.get("conditions") or ()}
    wanted = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "the simulated node has sufficient memory"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "the simulated node has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "the simulated node has sufficient PIDs"),
        ("Ready", "True", "KubeletReady", "flyball-sim node is running")
        if ready
        else ("Ready", "False", "KubeletStopped", "flyball-sim node was stopped"),
    ]
    return [
        {
            "type": kind,
            "status": verdict,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": timestamp(now),
            "lastTransitionTime": before[kind]["lastTransitionTime"]
            if before.get(kind, {}).get("status") == verdict
            else timestamp(now),
        }
        for kind, verdict, reason, message in wanted
    ]
