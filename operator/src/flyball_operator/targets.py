"""From policies, pods and reported allocations to what each GPU should be under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flyball_api.common import Role
from flyball_operator.fleet import Fleet, Gpu, Liveness, NodeView
from flyball_operator.selection import Assignment, assign, role_of
from flyball_operator.state import ClusterState, Pod, Policy, Switch

GpuKey = tuple[str, str]
"""(node name, GPU UUID)."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one GPU should be under.

    Attributes:
        policy: the governing policy's name.
        action: Enforce or Observe.
        group: the pod's uid; its GPUs step together.
        role: of the pod.
        pod_ip: where its engine is scraped.
    """

    policy: str
    action: Literal["Enforce", "Observe"]
    group: str
    role: Role
    pod_ip: str | None


@dataclass(slots=True)
class PolicyTargets:
    """What one policy governs; filled by `find`.

    Attributes:
        pods: keys of its running pods.
        gpus: its GPUs.
        lost: (pod key, winner) of the pods another policy won.
        unallocated: its pods that ask for GPUs of which no agent has told yet.
        refused: (pod key, fault) of pods on GPUs that cannot be driven.
    """

    pods: list[str] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    lost: tuple[tuple[str, str], ...] = ()
    unallocated: list[Pod] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Targets:
    """All of it: by GPU and by policy."""

    by_gpu: Mapping[GpuKey, Target]
    by_policy: Mapping[str, PolicyTargets]


def find(state: ClusterState, fleet: Fleet) -> Targets:
    """Settle who governs which GPU. With the switch at `release`, nobody governs any."""
    assignment = (
        Assignment() if state.switch is Switch.RELEASE else assign(state.policies.values(), state.pods.values())
    )
    by_policy = {name: PolicyTargets(lost=assignment.lost.get(name, ())) for name in state.policies}
    by_gpu: dict[GpuKey, Target] = {}
    held = _gpus_by_pod(state, fleet)
    for pod_key in sorted(assignment.owners):
        pod = state.pods[pod_key]
        name = assignment.owners[pod_key]
        found = by_policy[name]
        found.pods.append(pod_key)
        node = fleet.nodes.get(pod.node)
        if node is not None and node.forgotten:
            continue
        gpus = held.get((pod.node, pod_key), [])
        fault = next((gpu.unsupported for gpu in gpus if gpu.unsupported), None)
        if fault is not None:
            found.refused.append((pod_key, fault))
        elif gpus:
            target = _target(state.policies[name], pod)
            by_gpu.update({gpu.key: target for gpu in gpus})
            found.gpus.extend(gpus)
        elif pod.gpus:
            found.unallocated.append(pod)
    return Targets(by_gpu, by_policy)


def _gpus_by_pod(state: ClusterState, fleet: Fleet) -> dict[tuple[str, str], list[Gpu]]:
    """GPUs by (node, pod key)."""
    running = {pod.uid: pod for pod in state.pods.values() if pod.running}
    held: dict[tuple[str, str], list[Gpu]] = {}
    told = {(gpu.node, gpu.pod_key) for gpu in fleet.gpus() if gpu.pod_key is not None}
    for gpu in fleet.gpus():
        key = gpu.pod_key
        if key is None and gpu.entry is not None:
            # An agent that has just started may not have read the allocation yet. A container keeps its GPUs for
            # life, so what was granted for a pod that still runs there is still that pod's.
            granted_for = running.get(gpu.entry.group)
            key = granted_for.key if granted_for is not None and granted_for.node == gpu.node else None
            if gpu.liveness is Liveness.ALIVE and (gpu.node, key) in told:
                key = None  # the agent has told which GPUs that pod holds, and this is none of them
        if key is not None:
            held.setdefault((gpu.node, key), []).append(gpu)
    return held


def _target(policy: Policy, pod: Pod) -> Target:
    spec = policy.spec
    if spec is None:
        raise ValueError(f"policy {policy.name} owns pod {pod.key} without an accepted spec: it must not compete")
    return Target(policy.name, spec.mode, pod.uid, role_of(pod, spec.roles), pod.ip or None)


def unknown_gpus_watts(pod: Pod, node: NodeView | None, product_max_watts: int | None) -> int | None:
    """What the GPUs of a pod are charged while no agent has told which they are.

    Returns:
        Watts; None when neither the node's agent nor the product table knows the card.
    """
    cards = [gpu.card_max_watts for gpu in node.gpus.values() if gpu.status is not None] if node is not None else []
    per_gpu = max(cards, default=product_max_watts or 0)
    return pod.gpus * per_gpu if per_gpu else None


def is_alive(node: NodeView | None) -> bool:
    """The node has a plan and its agent speaks."""
    return node is not None and node.liveness is Liveness.ALIVE
