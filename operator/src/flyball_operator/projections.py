"""From the API server's JSON to what the planner sees. Small on purpose: 100,000 pods are held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flyball_api.common import ObjectMeta
from flyball_api.names import AGENT_LEASE_PREFIX, GPU_RESOURCE, RELEASED_BY_HAND, SWITCH_KEY
from flyball_api.nodeenergyplan import NodeEnergyPlanSpec, NodeEnergyPlanStatus
from flyball_operator.state import Node, Plan, Pod, Switch

JsonMapping = Mapping[str, Any]

PRODUCT_LABEL: Final = "nvidia.com/gpu.product"


@dataclass(frozen=True, slots=True)
class LeaseView:
    """What of an agent's Lease matters: whose it is, and a text that changes with every beat."""

    node: str
    session: str
    renewed: str


def node_of(raw: JsonMapping) -> Node | None:
    """A Node; None when it offers no GPU."""
    gpus = int((raw.get("status") or {}).get("capacity", {}).get(GPU_RESOURCE, 0))
    if gpus <= 0:
        return None
    metadata = raw["metadata"]
    return Node(metadata["name"], gpus, (metadata.get("labels") or {}).get(PRODUCT_LABEL, ""))


def pod_of(raw: JsonMapping) -> Pod | None:
    """A Pod; None when it is not bound to a node, or has ended and holds nothing any more."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    phase = status.get("phase", "")
    if not spec.get("nodeName") or phase in {"Succeeded", "Failed"}:
        return None
    return Pod(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec["nodeName"],
        ip=status.get("podIP") or "",
        labels=metadata.get("labels") or {},
        running=phase == "Running",
        gpus=sum(_gpus(container) for container in spec.get("containers") or ()),
    )


def _gpus(container: JsonMapping) -> int:
    return int(((container.get("resources") or {}).get("limits") or {}).get(GPU_RESOURCE, 0))


def plan_of(raw: JsonMapping) -> Plan:
    """A NodeEnergyPlan."""
    metadata = ObjectMeta.model_validate(raw["metadata"])
    return Plan(
        name=metadata.name,
        resource_version=metadata.resource_version,
        spec=NodeEnergyPlanSpec.model_validate(raw["spec"]),
        status=NodeEnergyPlanStatus.model_validate(raw.get("status") or {}),
        released_by_hand=metadata.annotations.get(RELEASED_BY_HAND, ""),
    )


def agent_lease_of(raw: JsonMapping) -> LeaseView | None:
    """An agent's Lease; None when it is another's."""
    name = raw["metadata"]["name"]
    if not name.startswith(AGENT_LEASE_PREFIX):
        return None
    spec = raw.get("spec") or {}
    return LeaseView(
        node=name.removeprefix(AGENT_LEASE_PREFIX),
        session=spec.get("holderIdentity") or "",
        renewed=spec.get("renewTime") or "",
    )


def switch_text_of(raw: JsonMapping) -> str:
    """What the switch ConfigMap says, as it says it."""
    return str((raw.get("data") or {}).get(SWITCH_KEY, Switch.ENABLED.value))


def switch_of(text: str | None) -> Switch:
    """The switch; no ConfigMap (None) means enabled, a word nobody knows means stopped."""
    if text is None:
        return Switch.ENABLED
    try:
        return Switch(text.strip())
    except ValueError:
        return Switch.STOPPED
