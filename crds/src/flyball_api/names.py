"""Names that more than one process must agree on: group, finalizer, labels, objects, ports."""

from __future__ import annotations

from typing import Final

GROUP: Final = "flyball.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FINALIZER: Final = f"{GROUP}/release"
"""On an EnergyPolicy from before its first grant until every GPU it touched is proved restored."""

RELEASED_BY_HAND: Final = f"{GROUP}/released-by-hand"
"""Annotation on a NodeEnergyPlan: a human vouches that this node's GPUs hold nothing of ours any more."""

OPERATOR_FIELD_MANAGER: Final = "flyball-operator"
AGENT_FIELD_MANAGER: Final = "flyball-agent"

SWITCH_CONFIG_MAP: Final = "flyball-switch"
SWITCH_KEY: Final = "writes"

OPERATOR_LEASE: Final = "flyball-operator"
AGENT_LEASE_PREFIX: Final = "flyball-agent-"
AGENT_LEASE_DURATION_SECONDS: Final = 30
AGENT_LEASE_RENEW_SECONDS: Final = 10

GPU_RESOURCE: Final = "nvidia.com/gpu"


def agent_lease_name(node_name: str) -> str:
    """The name of the heartbeat Lease of the agent on this node."""
    return f"{AGENT_LEASE_PREFIX}{node_name}"
