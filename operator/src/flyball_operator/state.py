"""What the planner sees: one frozen picture of the cluster, and what it remembers from plan to plan.

Nothing here does I/O or reads a clock. The same picture is built by the operator's reflectors and, in virtual time,
by the simulator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from flyball_api.energypolicy import EnergyPolicySpec, EnergyPolicyStatus
from flyball_api.nodeenergyplan import NodeEnergyPlanSpec, NodeEnergyPlanStatus, PolicyCounters


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on two clocks.

    Attributes:
        monotonic_seconds: for durations; never compared between processes.
        wall: aware; only for the times a person reads (lastTransitionTime).
    """

    monotonic_seconds: float
    wall: datetime


class Switch(StrEnum):
    """The cluster-wide switch (ConfigMap flyball-switch, key `writes`)."""

    ENABLED = "enabled"
    STOPPED = "stopped"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Pod:
    """The part of a Pod that selection needs.

    Attributes:
        uid: of this life of the pod.
        namespace: its namespace.
        name: its name.
        node: where it is bound; empty while pending.
        ip: its address; empty before it has one.
        labels: its labels.
        running: phase Running. A terminating pod still runs, draws and holds its GPUs.
        gpus: `nvidia.com/gpu` it asks for, over its containers.
    """

    uid: str
    namespace: str
    name: str
    node: str = ""
    ip: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    running: bool = False
    gpus: int = 0

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Node:
    """A Node: how many GPUs it offers and of which product (from the label `nvidia.com/gpu.product`)."""

    name: str
    gpus: int
    product: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A NodeEnergyPlan.

    Attributes:
        name: of the plan and of its node.
        resource_version: of the whole object; writes are conditional on it.
        spec: what was granted.
        status: what the agent said last.
        released_by_hand: why a person vouches that nothing of ours is in force there; empty: nobody does.
    """

    name: str
    resource_version: str
    spec: NodeEnergyPlanSpec
    status: NodeEnergyPlanStatus = field(default_factory=NodeEnergyPlanStatus)
    released_by_hand: str = ""


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent's Lease as this process has watched it.

    Attributes:
        session: holderIdentity.
        first_seen_seconds: when this process first saw this session in the Lease (monotonic).
        changed_seconds: when this process last saw it change; None: never yet. Clocks of other machines are not used.
    """

    session: str
    first_seen_seconds: float
    changed_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """An EnergyPolicy.

    Attributes:
        name: its name.
        uid: of this life of the policy.
        generation: metadata.generation of the object as it stands.
        created: metadata.creationTimestamp (RFC 3339, so it sorts as text).
        spec: the last spec that was accepted, which is in force; None: none was since this process started.
        refusal: why the present spec is not accepted; empty when it is.
        deleting: metadata.deletionTimestamp is set.
        has_finalizer: our finalizer is on it.
        status: as last written.
    """

    name: str
    uid: str
    generation: int = 1
    created: str = ""
    spec: EnergyPolicySpec | None = None
    refusal: str = ""
    deleting: bool = False
    has_finalizer: bool = False
    status: EnergyPolicyStatus = field(default_factory=EnergyPolicyStatus)


@dataclass(frozen=True, slots=True)
class Need:
    """What a group of GPUs wants, held still against noise.

    Attributes:
        watts: per GPU.
        lower_since_seconds: since when less would do; None: not so.
    """

    watts: int
    lower_since_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DivisionMemory:
    """The last division of one policy's budget.

    Attributes:
        key: what it rested on, needs aside; another key divides anew at once.
        caps: watts per GPU by group.
        needs: per group.
        at_seconds: when `caps` last changed.
        reserve_key: what the default reserve rested on.
        reserve_watts: the default reserve; finding it takes many divisions.
    """

    key: tuple[object, ...]
    caps: Mapping[str, int]
    needs: Mapping[str, Need]
    at_seconds: float
    reserve_key: tuple[object, ...] = ()
    reserve_watts: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters of one policy on one node at one time.

    Attributes:
        at_seconds: monotonic.
        counters: as read.
        totals: the same, added up over restarts of the counters; see `attainment.TOTALS`.
    """

    at_seconds: float
    counters: PolicyCounters
    totals: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What one plan hands to the next. All of it may be lost at a restart without harm.

    Attributes:
        divisions: by policy.
        samples: by (policy uid, node).
        status_seconds: by policy, when its status was last written.
        event_seconds: by (policy uid, reason), when that Event was last sent.
        grants: by plan, the highest grant number ever used.
        plan_seconds: by plan, when its spec was last written.
        pending_seconds: by policy, since when not all of its GPUs are as they should be.
    """

    divisions: Mapping[str, DivisionMemory] = field(default_factory=dict)
    samples: Mapping[tuple[str, str], tuple[Sample, ...]] = field(default_factory=dict)
    status_seconds: Mapping[str, float] = field(default_factory=dict)
    event_seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)
    grants: Mapping[str, int] = field(default_factory=dict)
    plan_seconds: Mapping[str, float] = field(default_factory=dict)
    pending_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClusterState:
    """One picture of the cluster. Nobody acts on it before it is `synced`.

    Attributes:
        synced: every kind has been listed to its end once.
        leader_epoch: epoch of this leadership; 0 when not leading.
        switch: the cluster-wide switch.
        policies: by name.
        pods: by namespace/name.
        nodes: by name; those with GPUs and others.
        plans: by name.
        agents: by node name.
        uncertain_plans: plans whose last write got no answer, so it may yet be carried out.
        memory: what the last plan handed on.
    """

    synced: bool
    leader_epoch: int
    switch: Switch = Switch.ENABLED
    policies: Mapping[str, Policy] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    agents: Mapping[str, Agent] = field(default_factory=dict)
    uncertain_plans: frozenset[str] = frozenset()
    memory: Memory = field(default_factory=Memory)
