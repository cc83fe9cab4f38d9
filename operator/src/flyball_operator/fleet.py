"""Plans, Leases and Nodes joined: every GPU with what it was granted, what its agent says, and whether that holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from flyball_api.names import AGENT_LEASE_DURATION_SECONDS
from flyball_api.nodeenergyplan import GpuStatus, PlanGpu, PlanPolicy
from flyball_operator.state import Agent, ClusterState, Instant, Node, Plan

PRODUCT_MAX_WATTS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "NVIDIA A10": 150,
        "NVIDIA A100 80GB PCIe": 300,
        "NVIDIA A100-PCIE-40GB": 250,
        "NVIDIA A100-SXM4-40GB": 400,
        "NVIDIA A100-SXM4-80GB": 500,
        "NVIDIA A30": 165,
        "NVIDIA A40": 300,
        "NVIDIA B200": 1000,
        "NVIDIA GB200": 1200,
        "NVIDIA H100 80GB HBM3": 700,
        "NVIDIA H100 NVL": 400,
        "NVIDIA H100 PCIe": 350,
        "NVIDIA H20": 500,
        "NVIDIA H200": 700,
        "NVIDIA H200 NVL": 600,
        "NVIDIA L4": 72,
        "NVIDIA L40": 300,
        "NVIDIA L40S": 350,
    }
)
"""Highest power limit per product, from NVIDIA's data sheets (A100 SXM4 80GB: of its 500 W variant). Only asked until
the node's agent has spoken."""

UNKNOWN_PRODUCT_WATTS: Final = 3000
"""What a GPU of a product nobody knows is charged: the API's own bound for a cap. It also blocks raises."""


LOWEST_CAP_WATTS: Final = 50
"""The API's own lower bound for a cap."""


UNWRITABLE_FAULTS: Final = frozenset({"NoPermission", "NotSupported", "GpuLost", "NvmlHung"})
"""Faults that stay until somebody mends the card or its permissions."""


UNRESTORABLE_FAULTS: Final = UNWRITABLE_FAULTS | {
    "ActuatorLost",
    "CapNotInForce",
    "NvmlError",
    "RecordFailed",
    "RecordLost",
    "UnknownGpu",
}
"""Faults with which an agent cannot prove a release. Others only tell of something, a driver reload for example."""


class Liveness(StrEnum):
    """Whether what a node's agent said last still holds."""

    ALIVE = "alive"
    SETTLING = "settling"
    """Too early to tell: the Lease was not yet seen to move, or a new agent has not yet reported. It counts as UNKNOWN,
    but is nothing to alarm anyone."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of one node.

    Attributes:
        node: the node's name.
        uuid: the GPU's UUID.
        entry: its grant; None: it has none.
        status: what the agent said of it last; None: never anything.
        liveness: of the node.
        vouched: a person vouches that nothing of ours is in force on the node.
        product_max_watts: from the product table; None: the product is unknown.
    """

    node: str
    uuid: str
    entry: PlanGpu | None
    status: GpuStatus | None
    liveness: Liveness
    vouched: bool = False
    product_max_watts: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(node, uuid)."""
        return (self.node, self.uuid)

    @property
    def card_max_watts(self) -> int:
        """The highest cap the card takes: what it is charged when nothing better is known."""
        if self.status is not None and self.status.cap_max_watts > 0:
            return self.status.cap_max_watts
        return self.product_max_watts or UNKNOWN_PRODUCT_WATTS

    @property
    def card_min_watts(self) -> int:
        """The lowest cap the card takes, and the API can say."""
        return max(LOWEST_CAP_WATTS, self.status.cap_min_watts if self.status is not None else 0)

    @property
    def card_default_watts(self) -> int:
        """The card's default cap."""
        if self.status is not None and self.status.cap_default_watts > 0:
            return self.status.cap_default_watts
        return self.card_max_watts

    @property
    def enforced_cap_watts(self) -> int | None:
        """The cap last read back, whoever's it is; None: not read."""
        return self.status.enforced_cap_watts if self.status is not None else None

    @property
    def acknowledged(self) -> bool:
        """The present grant was read back, by the agent that is alive now."""
        if self.entry is None or self.status is None or self.liveness is not Liveness.ALIVE:
            return False
        given = self.status.acknowledged
        return given is not None and given.grant == self.entry.grant

    @property
    def released(self) -> bool:
        """A Release entry whose carrying out is proved, or vouched for by a person."""
        if self.entry is None or self.entry.action != "Release":
            return False
        return self.acknowledged or self.taken_on_trust

    @property
    def taken_on_trust(self) -> bool:
        """A person's word stands in for the node's: the node is silent, or says itself that it cannot restore this."""
        if not self.vouched or self.liveness is Liveness.SETTLING:
            return False
        return self.liveness is Liveness.UNKNOWN or bool(self.unrestorable)

    @property
    def unrestorable(self) -> str:
        """The fault that keeps its agent from proving a release; empty: none."""
        faults = self.status.faults if self.status is not None else ()
        return next((fault.code for fault in faults if fault.code in UNRESTORABLE_FAULTS), "")

    @property
    def unwritable(self) -> bool:
        """Its agent lives and cannot write to the card, and will not before a person mends it."""
        if self.status is None or self.liveness is not Liveness.ALIVE:
            return False
        return any(fault.code in UNWRITABLE_FAULTS for fault in self.status.faults)

    @property
    def pod_key(self) -> str | None:
        """`namespace/name` of the pod that holds it; None: nobody does."""
        if self.status is None or self.status.pod is None:
            return None
        return f"{self.status.pod.namespace}/{self.status.pod.name}"

    @property
    def unsupported(self) -> str | None:
        """Fault that forbids driving it (MIG, sharing); None: it can be driven."""
        faults = self.status.faults if self.status is not None else ()
        return next((fault.code for fault in faults if fault.code in {"MigEnabled", "Shared"}), None)


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node that has a plan."""

    plan: Plan
    liveness: Liveness
    gpus: Mapping[str, Gpu]
    plan_policies: Mapping[str, PlanPolicy]

    @property
    def forgotten(self) -> bool:
        """A person vouches for it and its agent does not speak: nothing there counts."""
        return bool(self.plan.released_by_hand) and self.liveness is Liveness.UNKNOWN


@dataclass(frozen=True, slots=True)
class Fleet:
    """All nodes that have a plan, by name, and the products of those that do not."""

    nodes: Mapping[str, NodeView]

    def gpus(self) -> Iterator[Gpu]:
        """Every GPU, in the order of node names and of each agent's list."""
        for node in self.nodes.values():
            yield from node.gpus.values()


def liveness(plan: Plan, agent: Agent | None, now: Instant) -> Liveness:
    """Whether the plan's status is the word of an agent that is alive: its Lease moves, and names the same session."""
    if agent is None:
        return Liveness.UNKNOWN
    moment = now.monotonic_seconds
    if agent.changed_seconds is not None and moment - agent.changed_seconds > AGENT_LEASE_DURATION_SECONDS:
        return Liveness.UNKNOWN
    # A new agent beats before it has read its cards; they may have been reset under the old one.
    spoken = bool(agent.session) and agent.session == plan.status.agent_session
    if agent.changed_seconds is not None and spoken:
        return Liveness.ALIVE
    judged = moment - agent.first_seen_seconds > AGENT_LEASE_DURATION_SECONDS
    return Liveness.UNKNOWN if judged else Liveness.SETTLING


def view(state: ClusterState, now: Instant) -> Fleet:
    """Join what is known about every GPU."""
    nodes: dict[str, NodeView] = {}
    for name in sorted(state.plans):
        plan = state.plans[name]
        alive = liveness(plan, state.agents.get(name), now)
        product = product_max_watts(state.nodes.get(name))
        entries = {entry.uuid: entry for entry in plan.spec.gpus}
        statuses = {status.uuid: status for status in plan.status.gpus}
        gpus = {
            uuid: Gpu(
                node=name,
                uuid=uuid,
                entry=entries.get(uuid),
                status=statuses.get(uuid),
                liveness=alive,
                vouched=bool(plan.released_by_hand),
                product_max_watts=product,
            )
            for uuid in dict.fromkeys((*statuses, *entries))
        }
        nodes[name] = NodeView(plan, alive, gpus, {policy.name: policy for policy in plan.spec.policies})
    return Fleet(nodes)


def product_max_watts(node: Node | None) -> int | None:
    """The product table's word on a node's GPUs; None: the product is unknown.

    The label has dashes where NVML has spaces: `NVIDIA-H100-80GB-HBM3`.
    """
    if node is None or not node.product:
        return None
    wanted = node.product.replace(" ", "-")
    return next((watts for name, watts in PRODUCT_MAX_WATTS.items() if name.replace(" ", "-") == wanted), None)
