"""EnergyPolicy: which inference pods, which SLOs, how many watts, which controller.

Cluster-scoped. Only what this version acts on is in it. Field descriptions are what `kubectl explain` prints.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from flyball_api.common import (
    ApiModel,
    CapRange,
    ClockRange,
    Conditions,
    ListMap,
    ListSet,
    Name,
    ObjectMeta,
    Role,
    Rule,
    RuledModel,
    Unit,
    Watts,
    field_value,
)
from flyball_api.controllers.fixed import RoleClock
from flyball_api.controllers.needs import NEEDS
from flyball_api.controllers.union import Controller

LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]


class LabelRequirement(RuledModel):
    """One expression of a label selector, as in Kubernetes' own selectors."""

    RULES = (
        Rule(
            # An unknown operator is refused for itself, with a sentence of its own.
            cel="self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0"
            " : !(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || self.values.size() == 0",
            holds=lambda self: (self.operator in {"In", "NotIn"}) == bool(self.values),
            message="operator %s with values of size %s: give In and NotIn at least one value,"
            " and Exists and DoesNotExist none",
            values=(
                field_value("operator"),
                ("has(self.values) ? self.values.size() : 0", lambda self: len(self.values)),
            ),
        ),
    )

    key: LabelKey = Field(description="The label's key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How the label is compared.")
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32), ListSet()] = Field(
        default=(), description="The values to compare with; none for Exists and DoesNotExist."
    )


class PodSelector(RuledModel):
    """Which pods a policy governs: all that match every given part."""

    RULES = (
        Rule(
            cel="(has(self.matchLabels) && self.matchLabels.size() > 0)"
            " || (has(self.matchExpressions) && self.matchExpressions.size() > 0)",
            holds=lambda self: bool(self.match_labels or self.match_expressions),
            message="the selector has 0 label terms and would govern every pod: give at least one entry in matchLabels"
            " or matchExpressions",
        ),
    )

    namespaces: Annotated[tuple[Name, ...], Field(max_length=64), ListSet()] = Field(
        default=(), description="Namespaces to look in; absent: all."
    )
    match_labels: Annotated[dict[str, LabelValue], Field(max_length=16)] = Field(
        default_factory=dict, description="Labels that a pod must have, with these values."
    )
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=16)] = Field(
        default=(),
        description="Expressions that a pod's labels must satisfy, all of them.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class Engine(RuledModel):
    """How the pods' inference engine is read."""

    RULES = (
        Rule(
            cel="!has(self.metricsPath) || self.metricsPath.startsWith('/')",
            holds=lambda self: self.metrics_path.startswith("/"),
            message='the metricsPath "%s" does not begin with a slash: give a path such as /metrics',
            values=(field_value("metricsPath"),),
        ),
    )

    type: Literal["vLLM"] = Field(default="vLLM", description="The engine, which fixes the names of its metrics.")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(default=8000, description="The pod's port that serves metrics.")
    metrics_path: Annotated[str, Field(max_length=256)] = Field(
        default="/metrics", description="The path of the Prometheus text page; begins with /."
    )


class RoleValue(ApiModel):
    """One value of the role label and what it means."""

    value: Annotated[str, Field(min_length=1, max_length=63)] = Field(description="The label's value.")
    role: Role = Field(description="The role it stands for.")


class Roles(ApiModel):
    """How a pod's role is told."""

    label_key: LabelKey = Field(description="The pod label that carries the role.")
    values: Annotated[tuple[RoleValue, ...], Field(min_length=1, max_length=16), ListMap("value")] = Field(
        description="What its values mean; a pod with another value is unified."
    )


class LatencyTarget(ApiModel):
    """A latency that a share of requests must stay within."""

    threshold_milliseconds: Annotated[int, Field(ge=1, le=3_600_000), Unit("ms")] = Field(
        description="The bound in milliseconds."
    )
    percentile: Annotated[float, Field(ge=1, le=100)] = Field(
        default=99, description="The percentage of observations that must be within the threshold."
    )


class Attainment(ApiModel):
    """Over what the SLO is judged."""

    window_seconds: Annotated[int, Field(ge=10, le=86_400), Unit("s")] = Field(
        default=300, description="How far back observations count, in seconds."
    )
    minimum_requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=20, description="Fewer first tokens than this in the window: SLOMet is Unknown."
    )


class Slo(RuledModel):
    """Service-level objectives of the selected pods."""

    RULES = (
        Rule(
            cel="has(self.timeToFirstToken) || has(self.interTokenLatency) || has(self.endToEnd)",
            holds=lambda self: bool(self.time_to_first_token or self.inter_token_latency or self.end_to_end),
            message="the slo names 0 latencies: give at least one of timeToFirstToken, interTokenLatency and endToEnd,"
            " or leave slo out",
        ),
    )

    time_to_first_token: LatencyTarget | None = Field(
        default=None, description="From a request's arrival to its first output token (TTFT)."
    )
    inter_token_latency: LatencyTarget | None = Field(
        default=None,
        description="Between two output tokens of one request (ITL), as a mean over the request; over single gaps where"
        " the engine has no histogram of that mean.",
    )
    end_to_end: LatencyTarget | None = Field(
        default=None, description="From a request's arrival to its last output token (E2E)."
    )
    attainment: Attainment = Field(default=Attainment(), description="Over what the SLO is judged.")


class Limits(ApiModel):
    """Bounds that no controller leaves."""

    sm_clock: ClockRange = Field(default=ClockRange(), description="SM clocks in MHz that controllers stay within.")
    cap_watts: CapRange = Field(
        default=CapRange(), description="Power caps of one GPU, in watts, that grants stay within."
    )


class PowerBudget(RuledModel):
    """Watts that the policy's GPUs share."""

    RULES = (
        Rule(
            cel="!has(self.reserveWatts) || self.reserveWatts < self.watts",
            holds=lambda self: self.reserve_watts is None or self.reserve_watts < self.watts,
            message="the reserve of %s W is not below the budget of %s W: give a smaller reserveWatts or more watts",
            values=(field_value("reserveWatts"), field_value("watts")),
        ),
    )

    watts: Annotated[int, Field(ge=1, le=100_000_000), Unit("W")] = Field(
        description="The sum of power caps of the policy's GPUs never exceeds this, in watts, once status says so."
    )
    reserve_watts: Watts | None = Field(
        default=None,
        description="Watts kept back for what software cannot forbid (a reboot puts cards back to their default cap)."
        " Absent: what such a reset of its worst node would add, but at most half of what is above the lowest caps.",
    )


class FailSafe(ApiModel):
    """When a node gives up controlling and unlocks its clocks. A power cap is never given up."""

    metrics_stale_seconds: Annotated[int, Field(ge=1, le=300), Unit("s")] = Field(
        default=5,
        description="Engine metrics older than this many seconds: clocks are unlocked and the GPU reported Degraded.",
    )
    actuator_lease_seconds: Annotated[int, Field(ge=1, le=60), Unit("s")] = Field(
        default=3, description="An agent silent for this many seconds: the actuator unlocks the clocks by itself."
    )


def _clocks_beyond(spec: Any, bound: Literal["min", "max"]) -> list[RoleClock]:
    """The fixed clocks below limits.smClock.min, or above limits.smClock.max."""
    limit = getattr(spec.limits.sm_clock, bound)
    if limit is None or spec.controller.fixed is None:
        return []
    clocks: tuple[RoleClock, ...] = spec.controller.fixed.clocks
    if bound == "min":
        return [clock for clock in clocks if clock.min_megahertz < limit]
    return [clock for clock in clocks if clock.max_megahertz > limit]


def _within_limit(bound: Literal["min", "max"]) -> Rule:
    limit = f"self.limits.smClock.{bound}"
    beyond = f"self.controller.fixed.clocks.filter(c, c.{bound}Megahertz {'<' if bound == 'min' else '>'} {limit})"
    side, mend, other = ("below", "raise", "lower") if bound == "min" else ("above", "lower", "raise")
    return Rule(
        cel=f"!has(self.limits) || !has(self.limits.smClock) || !has({limit}) || !has(self.controller.fixed)"
        f" || !has(self.controller.fixed.clocks) || {beyond}.size() == 0",
        holds=lambda spec: not _clocks_beyond(spec, bound),
        message=f"role %s has a fixed SM clock of %s MHz, which is {side} limits.smClock.{bound} of %s MHz:"
        f" {mend} {bound}Megahertz or {other} the limit",
        values=(
            (f"{beyond}[0].role", lambda spec: _clocks_beyond(spec, bound)[0].role),
            (
                f"{beyond}[0].{bound}Megahertz",
                lambda spec: getattr(_clocks_beyond(spec, bound)[0], f"{bound}_megahertz"),
            ),
            field_value(f"limits.smClock.{bound}"),
        ),
    )


class EnergyPolicySpec(RuledModel):
    """Which inference pods are governed, which latencies they owe, how many watts they share, what controls them."""

    RULES = (_within_limit("min"), _within_limit("max"), *NEEDS)

    mode: Literal["Observe", "Enforce"] = Field(
        default="Observe", description="Observe changes nothing and reports what Enforce would do."
    )
    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(
        default=0,
        description="Where policies select the same pod the higher priority wins, then the older, then the name.",
    )
    selector: PodSelector = Field(description="Which pods are governed: all that match every given part.")
    engine: Engine = Field(default=Engine(), description="How the pods' inference engine is read.")
    roles: Roles | None = Field(
        default=None,
        description="How prefill and decode pods are told apart; absent: by the labels of well-known serving stacks.",
    )
    slo: Slo | None = Field(
        default=None,
        description="Service-level objectives: latencies that a share of the requests must stay within, at least one of"
        " three. Absent: none is judged.",
    )
    controller: Controller = Field(description="Which controller drives the GPUs.")
    limits: Limits = Field(default=Limits(), description="Bounds that no controller leaves.")
    power_budget: PowerBudget | None = Field(default=None, description="Watts to share; absent: no cap is touched.")
    fail_safe: FailSafe = Field(default=FailSafe(), description="When a node gives up controlling.")


class Targets(ApiModel):
    """What the policy governs now."""

    pods: int = Field(default=0, description="Pods governed by this policy.")
    gpus: int = Field(default=0, description="GPUs of those pods.")
    nodes: int = Field(default=0, description="Nodes they are on.")
    lost_pods: int = Field(default=0, description="Pods selected here but won by another policy.")
    enforced_gpus: int = Field(default=0, description="GPUs whose present grant is read back and acknowledged.")


class Ledger(ApiModel):
    """Where the budget's watts are: enforced + inFlight + unknown + reserved + free = budget + deficit."""

    budget_watts: int = Field(description="The budget that is in force.")
    enforced_watts: int = Field(description="Caps read back and acknowledged.")
    in_flight_watts: int = Field(description="GPUs whose cap is being changed, at the highest that may be in force.")
    unknown_watts: int = Field(description="GPUs whose node is not proven alive, at the most they can draw.")
    reserved_watts: int = Field(description="Kept back for resets.")
    free_watts: int = Field(description="Not promised to anyone.")
    deficit_watts: int = Field(
        default=0, description="By how much all that exceeds the budget; no cap is raised until it is 0."
    )


class MetricAttainment(ApiModel):
    """How one latency did over the window."""

    metric: Literal["timeToFirstToken", "interTokenLatency", "endToEnd"] = Field(description="Which latency.")
    within_percent: float = Field(description="The percentage of observations within the threshold.")
    observations: int = Field(description="How many observations that rests on.")
    interpolated: bool = Field(
        default=False, description="The threshold is inside a histogram bucket, so the share is interpolated."
    )


class SloStatus(ApiModel):
    """SLO attainment with its evidence."""

    attainment_percent: float = Field(description="The worst of the metrics' shares.")
    window_seconds: int = Field(description="Seconds of evidence this rests on.")
    metrics: Annotated[tuple[MetricAttainment, ...], Field(max_length=3), ListMap("metric")] = Field(
        default=(), description="Each latency by itself."
    )


class EnergyPolicyStatus(ApiModel):
    """What Flyball found and did: pods and GPUs governed, watts, SLO attainment, conditions with plain reasons."""

    observed_generation: int | None = Field(default=None, description="The metadata.generation acted on.")
    targets: Targets | None = Field(default=None, description="What the policy governs now.")
    draw_watts: int | None = Field(
        default=None, description="What the policy's GPUs draw now, as their nodes last said."
    )
    ledger: Ledger | None = Field(default=None, description="Where the budget's watts are.")
    slo: SloStatus | None = Field(default=None, description="SLO attainment with its evidence.")
    joules_per_token: float | None = Field(
        default=None, description="GPU energy per generated token over the attainment window."
    )
    conditions: Conditions = Field(
        default=(),
        description="What holds now: Accepted, Ready, Enforced, BudgetRespected, SLOMet, Degraded, Released.",
    )


class EnergyPolicy(ApiModel):
    """An energy policy for a set of inference pods: their SLOs, their watts and what drives their GPUs."""

    KIND: ClassVar[str] = "EnergyPolicy"
    PLURAL: ClassVar[str] = "energypolicies"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("epol",)
    # (name, type, jsonPath, priority): priority 0 is in the plain view, 1 only in `-o wide`.
    PRINTER_COLUMNS: ClassVar[tuple[tuple[str, str, str, int], ...]] = (
        ("Mode", "string", ".spec.mode", 0),
        ("Controller", "string", ".spec.controller.type", 0),
        ("GPUs", "integer", ".status.targets.gpus", 0),
        ("Draw(W)", "integer", ".status.drawWatts", 0),
        ("Budget(W)", "integer", ".status.ledger.budgetWatts", 0),
        ("SLO(%)", "number", ".status.slo.attainmentPercent", 0),
        ("J/Token", "number", ".status.joulesPerToken", 0),
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
        ("Pods", "integer", ".status.targets.pods", 1),
        ("Free(W)", "integer", ".status.ledger.freeWatts", 1),
        ("Why", "string", '.status.conditions[?(@.type=="Ready")].message', 1),
    )

    metadata: ObjectMeta
    spec: EnergyPolicySpec
    status: EnergyPolicyStatus = EnergyPolicyStatus()
