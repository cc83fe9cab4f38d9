"""Which pods a policy governs, and in which role each serves.

Overlapping policies are settled pod by pod: higher priority, then the older, then the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from flyball_api.common import Role
from flyball_api.energypolicy import LabelRequirement, PodSelector, Roles
from flyball_operator.state import Pod, Policy

_PLAIN: Final[Mapping[str, Role]] = MappingProxyType({"prefill": "prefill", "decode": "decode"})

ROLE_LABELS: Final[tuple[tuple[str, Mapping[str, Role]], ...]] = (
    ("llm-d.ai/role", _PLAIN),
    ("disaggregatedset.x-k8s.io/role", _PLAIN),
    ("nvidia.com/dynamo-component-type", _PLAIN),
    ("nvidia.com/dynamo-sub-component-type", _PLAIN),
    ("rbg.workloads.x-k8s.io/role-name", _PLAIN),
    ("rolebasedgroup.workloads.x-k8s.io/role-name", _PLAIN),
    ("role-name", _PLAIN),
    # KServe's plain `llminferenceservice-workload` decodes or does both: its llm-d.ai/role, asked above, tells.
    ("app.kubernetes.io/component", MappingProxyType({"llminferenceservice-workload-prefill": "prefill"})),
)
"""Labels that llm-d, KServe, DisaggregatedSet, Dynamo, RoleBasedGroup and AIBrix put on pods, in the order in which
they are asked. A value not listed (llm-d's `both`, Dynamo's `worker`) asks the next; none: unified."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who governs what.

    Attributes:
        owners: policy name by pod key.
        lost: by policy name, the pods it selects but another won, as (pod key, winner's name).
    """

    owners: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


def precedence(policy: Policy) -> tuple[int, str, str]:
    """Sort key: the first policy in this order wins a pod that several select."""
    return (-(policy.spec.priority if policy.spec else 0), policy.created, policy.name)


def assign(policies: Iterable[Policy], pods: Iterable[Pod]) -> Assignment:
    """Settle every running pod. A policy that is being deleted, or has no accepted spec, competes for none."""
    ordered = sorted((policy for policy in policies if policy.spec and not policy.deleting), key=precedence)
    owners: dict[str, str] = {}
    lost: dict[str, list[tuple[str, str]]] = {}
    for pod in pods:
        if not pod.running or not pod.node:
            continue
        for policy in ordered:
            if policy.spec is None or not selects(policy.spec.selector, pod):
                continue
            winner = owners.setdefault(pod.key, policy.name)
            if winner != policy.name:
                lost.setdefault(policy.name, []).append((pod.key, winner))
    return Assignment(owners, {name: tuple(sorted(entries)) for name, entries in lost.items()})


def selects(selector: PodSelector, pod: Pod) -> bool:
    """Whether the pod matches every given part of the selector."""
    return (
        (not selector.namespaces or pod.namespace in selector.namespaces)
        and all(pod.labels.get(key) == value for key, value in selector.match_labels.items())
        and all(_satisfies(requirement, pod.labels) for requirement in selector.match_expressions)
    )


def _satisfies(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In":
            return value in requirement.values
        case "NotIn":
            # As in Kubernetes: a pod without the label is not in the set.
            return value not in requirement.values


def role_of(pod: Pod, roles: Roles | None) -> Role:
    """The pod's role: by the policy's own label when it names one, else by `ROLE_LABELS`, else unified."""
    if roles is not None:
        value = pod.labels.get(roles.label_key)
        return next((entry.role for entry in roles.values if entry.value == value), "unified")
    found = (meaning.get(pod.labels.get(key, "")) for key, meaning in ROLE_LABELS)
    return next((role for role in found if role is not None), "unified")
