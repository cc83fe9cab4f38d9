"""NodeEnergyPlan: what the operator grants a node's GPUs, and what the node's agent did with it.

Cluster-scoped, one per node, of the node's name, not owned by the Node object: deleting a Node powers nothing off,
and the evidence must outlive it. `spec` is the operator's, `status` the agent's; each by server-side apply.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from flyball_api.common import (
    CEL_RULES,
    ApiModel,
    CapWatts,
    ClockRange,
    Conditions,
    GpuUuid,
    ListMap,
    Name,
    ObjectMeta,
    Role,
    Rule,
    RuledModel,
    cel_rule,
    field_value,
)
from flyball_api.controllers.union import Controller
from flyball_api.energypolicy import Engine, FailSafe, Slo

Grant = Annotated[int, Field(ge=1, le=2**53)]
"""Number of a grant; grows with every change of a GPU's entry, over the life of the plan."""

MAX_GPUS = 32
MAX_POLICIES = 32


class PlanPolicy(ApiModel):
    """The part of an EnergyPolicy that the node acts on."""

    name: Name = Field(description="The EnergyPolicy's name.")
    uid: Annotated[str, Field(max_length=64)] = Field(description="Its uid: counters of a namesake start anew.")
    engine: Engine = Field(default=Engine(), description="How the pods' inference engine is read.")
    slo: Slo | None = Field(default=None, description="Service-level objectives.")
    controller: Controller = Field(description="Which controller drives the GPUs.")
    sm_clock: ClockRange = Field(default=ClockRange(), description="SM clocks that the controller stays within.")
    fail_safe: FailSafe = Field(default=FailSafe(), description="When the node gives up controlling.")


class PlanGpu(RuledModel):
    """One GPU's grant."""

    RULES = (
        Rule(
            cel="!has(self.capWatts) || !has(self.ceilingWatts) || self.capWatts <= self.ceilingWatts",
            holds=lambda self: (
                self.cap_watts is None or self.ceiling_watts is None or self.cap_watts <= self.ceiling_watts
            ),
            message="the cap of %s W is above the ceiling of %s W: give a ceilingWatts of at least capWatts",
            values=(field_value("capWatts"), field_value("ceilingWatts")),
        ),
    )

    uuid: GpuUuid = Field(description="The GPU's UUID, as NVML gives it.")
    grant: Grant = Field(description="The number the node acknowledges once this entry is read back.")
    action: Literal["Enforce", "Observe", "Release"] = Field(
        description="Enforce drives the GPU, Observe only reports, Release restores default cap and unlocked clocks."
    )
    policy: Name = Field(description="The policy (of spec.policies) that this GPU is under.")
    group: Annotated[str, Field(max_length=128)] = Field(
        default="", description="GPUs of one tensor-parallel group carry the same value and get one setpoint."
    )
    role: Role = Field(default="unified", description="What the pod on this GPU does.")
    pod_ip: Annotated[str, Field(max_length=45)] | None = Field(
        default=None, description="Where that pod's engine is scraped."
    )
    cap_watts: CapWatts | None = Field(
        default=None, description="The granted power cap in watts; absent: do not touch."
    )
    ceiling_watts: CapWatts | None = Field(
        default=None,
        description="The highest cap that may be in force until this grant is acknowledged, in watts.",
    )


def _orphans(spec: Any) -> list[PlanGpu]:
    """The GPUs under a policy that the plan does not hold."""
    names = {policy.name for policy in spec.policies}
    return [gpu for gpu in spec.gpus if gpu.policy not in names]


_ORPHANS = "self.gpus.filter(g, !has(self.policies) || !self.policies.exists(p, p.name == g.policy))"


class NodeEnergyPlanSpec(RuledModel):
    """What the operator grants this node's GPUs; written by the operator only."""

    RULES = (
        Rule(
            cel="!has(self.gpus)"
            " || self.gpus.all(g, has(self.policies) && self.policies.exists(p, p.name == g.policy))",
            holds=lambda self: not _orphans(self),
            message="GPU %s is under policy %s, which spec.policies does not hold: add that policy or name another",
            values=(
                (f"{_ORPHANS}[0].uuid", lambda self: _orphans(self)[0].uuid),
                (f"{_ORPHANS}[0].policy", lambda self: _orphans(self)[0].policy),
            ),
        ),
    )

    # Only the API server sees the old object; this refuses a leader that was paused and replaced meanwhile.
    leader_epoch: Annotated[int, Field(ge=1, le=2**53)] = Field(
        description="Which leader wrote this; never goes back.",
        json_schema_extra={
            CEL_RULES: [
                cel_rule(
                    "self >= oldSelf",
                    "leader epoch %s is older than %s: end this leader, for a newer one has taken over",
                    "self",
                    "oldSelf",
                )
            ]
        },
    )
    policies: Annotated[tuple[PlanPolicy, ...], Field(max_length=MAX_POLICIES), ListMap("name")] = Field(
        default=(), description="Policies at work on this node."
    )
    gpus: Annotated[tuple[PlanGpu, ...], Field(max_length=MAX_GPUS), ListMap("uuid")] = Field(
        default=(), description="Grants, one per GPU."
    )


class PodReference(ApiModel):
    """The container that holds a GPU, as the kubelet's PodResources says."""

    namespace: Name = Field(description="The pod's namespace.")
    name: Name = Field(description="The pod's name.")
    container: Name = Field(description="The container's name.")


class Acknowledgement(ApiModel):
    """The last grant that was carried out and read back in this agent session."""

    leader_epoch: Annotated[int, Field(ge=0)] = Field(description="The leader that gave it.")
    grant: Annotated[int, Field(ge=0)] = Field(description="Its number.")


class Setpoint(ApiModel):
    """What a controller wants of a GPU; absent parts are not wanted (clocks unlocked, cap untouched)."""

    sm_clock: ClockRange | None = Field(default=None, description="SM clock range in MHz.")
    cap_watts: int | None = Field(default=None, description="Power cap in watts.")


class Fault(ApiModel):
    """Something that went wrong on a GPU or its engine and still holds."""

    code: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="One word: NoPermission, NotSupported, GpuLost, NvmlError, NvmlHung, DriverReloaded, CapNotInForce,"
        " CapAboveGrant, ForeignCap, ClockNotAchieved, RecordFailed, RecordLost, MetricsStale, MetricMissing, Degraded,"
        " ControllerFailed, EngineLimits, MigEnabled, Shared, ActuatorLost, UnknownGpu, Stopped."
    )
    message: Annotated[str, Field(max_length=512)] = Field(
        default="", description="A sentence with value, bound and mend."
    )


class GpuStatus(ApiModel):
    """One GPU as the agent sees it."""

    uuid: GpuUuid = Field(description="The GPU's UUID, as NVML gives it.")
    index: Annotated[int, Field(ge=0)] = Field(default=0, description="NVML index.")
    product: Annotated[str, Field(max_length=128)] = Field(default="", description="Product name, as NVML gives it.")
    cap_min_watts: int = Field(default=0, description="The lowest cap the card takes.")
    cap_max_watts: int = Field(
        default=0, description="The highest cap the card takes: what it is charged when unknown."
    )
    cap_default_watts: int = Field(default=0, description="The card's default cap.")
    sm_min_megahertz: int = Field(default=0, description="The lowest supported SM clock.")
    sm_max_megahertz: int = Field(default=0, description="The highest supported SM clock.")
    pod: PodReference | None = Field(default=None, description="Who holds it; absent: nobody.")
    acknowledged: Acknowledgement | None = Field(default=None, description="The last grant read back.")
    enforced_cap_watts: int | None = Field(default=None, description="The cap in force, read back from the card.")
    requested: Setpoint | None = Field(default=None, description="What was last written to the card.")
    clock_verified: Literal["True", "False", "Unknown"] = Field(
        default="Unknown",
        description="Whether the SM clock was seen inside the lock; NVML has no getter for a lock.",
    )
    would: Setpoint | None = Field(default=None, description="Observe: what Enforce would write.")
    draw_watts: int | None = Field(default=None, description="What the card draws, averaged since the last write.")
    sm_megahertz: int | None = Field(default=None, description="The SM clock when last read.")
    cap_limited: bool = Field(default=False, description="The power cap was slowing the card.")
    because: Annotated[str, Field(max_length=256)] = Field(
        default="",
        description="Why the controller chose the present setpoint; refreshed only when something else is written.",
    )
    faults: Annotated[tuple[Fault, ...], Field(max_length=8), ListMap("code")] = Field(
        default=(), description="What is wrong with it."
    )


class LatencyCounter(ApiModel):
    """A latency's observations since the counters began: all, and those within the threshold."""

    total: float = Field(default=0, description="Observations.")
    within: float = Field(default=0, description="Those within the threshold.")
    interpolated: bool = Field(
        default=False, description="The threshold is inside a histogram bucket, so `within` is interpolated."
    )


class PolicyCounters(ApiModel):
    """Cumulative counters of one policy on this node, since `since`; a lower value or another `since` is a restart."""

    name: Name = Field(description="The EnergyPolicy's name.")
    uid: Annotated[str, Field(max_length=64)] = Field(default="", description="Its uid.")
    since: Annotated[str, Field(max_length=64)] = Field(default="", description="Which life of the counters this is.")
    seconds: float = Field(default=0, description="Seconds counted.")
    energy_joules: float = Field(default=0, description="Energy of the policy's GPUs here.")
    generated_tokens: float = Field(default=0, description="Tokens generated by its engines here.")
    prompt_tokens: float = Field(default=0, description="Prompt tokens taken by its engines here.")
    time_to_first_token: LatencyCounter | None = Field(default=None, description="From arrival to the first token.")
    inter_token_latency: LatencyCounter | None = Field(default=None, description="Between two tokens of one request.")
    end_to_end: LatencyCounter | None = Field(default=None, description="From arrival to the last token.")
    engines: int = Field(default=0, description="Engines scraped.")
    engines_stale: int = Field(default=0, description="Engines whose metrics are missing or stale.")


class NodeEnergyPlanStatus(ApiModel):
    """What the node's agent observed and enforced; written by the agent only."""

    agent_session: Annotated[str, Field(max_length=64)] = Field(default="", description="This life of the agent.")
    boot_id: Annotated[str, Field(max_length=64)] = Field(default="", description="The node's boot.")
    driver_version: Annotated[str, Field(max_length=64)] = Field(default="", description="The NVIDIA driver's version.")
    agent_version: Annotated[str, Field(max_length=64)] = Field(default="", description="The agent's version.")
    gpus: Annotated[tuple[GpuStatus, ...], Field(max_length=MAX_GPUS), ListMap("uuid")] = Field(
        default=(), description="Each GPU of the node."
    )
    policies: Annotated[tuple[PolicyCounters, ...], Field(max_length=MAX_POLICIES), ListMap("name")] = Field(
        default=(), description="Counters per policy."
    )
    conditions: Conditions = Field(default=(), description="Ready: the agent controls; ActuatorReady: it can write.")


class NodeEnergyPlan(ApiModel):
    """What Flyball grants the GPUs of one node, and what the node did with it. Written by Flyball only."""

    KIND: ClassVar[str] = "NodeEnergyPlan"
    PLURAL: ClassVar[str] = "nodeenergyplans"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("nep",)
    # As in EnergyPolicy. None goes over all GPUs: of `gpus[*]` the API server prints the first only.
    PRINTER_COLUMNS: ClassVar[tuple[tuple[str, str, str, int], ...]] = (
        ("Product", "string", ".status.gpus[0].product", 0),
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Actuator", "string", '.status.conditions[?(@.type=="ActuatorReady")].status', 0),
        ("Epoch", "integer", ".spec.leaderEpoch", 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
        ("Driver", "string", ".status.driverVersion", 1),
        ("Session", "string", ".status.agentSession", 1),
        ("Why", "string", '.status.conditions[?(@.type=="Ready")].message', 1),
    )

    metadata: ObjectMeta
    spec: NodeEnergyPlanSpec
    status: NodeEnergyPlanStatus = NodeEnergyPlanStatus()
