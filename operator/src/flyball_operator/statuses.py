"""A policy's status, when it is worth writing, and which Events its changes are worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Final, Literal

from flyball_api.common import Condition
from flyball_api.energypolicy import EnergyPolicyStatus, Targets
from flyball_operator import attainment
from flyball_operator.conditions import Finding, Report, findings
from flyball_operator.state import Instant

STATUS_SECONDS: Final = 5.0
"""Numbers alone are written at most this often per policy."""

MATERIAL_SHARE: Final = 0.02
"""A number that moved by less than this share of itself is not written."""

DRAW_NOISE_WATTS: Final = 5
"""Per GPU: NVML's readings are accurate to about that (nvidia-smi's manual), which is more than 2 % of an idle card."""

EVENT_SECONDS: Final = 60.0
"""An Event of one reason about one policy is sent at most this often."""

EventKind = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class PolicyEvent:
    """An Event about a policy.

    Attributes:
        policy: its name.
        uid: its uid.
        kind: Normal or Warning.
        reason: one CamelCase word.
        note: a sentence.
    """

    policy: str
    uid: str
    kind: EventKind
    reason: str
    note: str


def compose(report: Report, now: Instant) -> EnergyPolicyStatus:
    """The status that a policy should have now."""
    spec = report.policy.spec
    targets = report.targets
    draws = [gpu.status.draw_watts for gpu in targets.gpus if gpu.status and gpu.status.draw_watts is not None]
    nodes = {gpu.node for gpu in targets.gpus}
    return EnergyPolicyStatus(
        # A refused generation is not acted on, but it has been judged: that is what Accepted=False says of it.
        observed_generation=report.policy.generation,
        targets=Targets(
            pods=len(targets.pods),
            gpus=len(targets.gpus),
            nodes=len(nodes),
            lost_pods=len(targets.lost),
            enforced_gpus=report.enforced_gpus,
        ),
        draw_watts=sum(draws) if draws else None,
        ledger=None if report.budgeting is None else report.budgeting.ledger,
        slo=attainment.slo_status(spec.slo if spec else None, report.evidence),
        joules_per_token=report.evidence.joules_per_token(),
        conditions=_timed(findings(report), report, now),
    )


def _timed(found: Iterable[Finding], report: Report, now: Instant) -> tuple[Condition, ...]:
    before = {condition.type: condition for condition in report.policy.status.conditions}
    moment = now.wall.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = []
    for finding in found:
        old = before.get(finding.type)
        conditions.append(
            Condition(
                type=finding.type,
                status=finding.status,
                reason=finding.reason,
                message=finding.message,
                last_transition_time=old.last_transition_time if old and old.status == finding.status else moment,
                observed_generation=report.policy.generation,
            )
        )
    return tuple(conditions)


def is_urgent(old: EnergyPolicyStatus, new: EnergyPolicyStatus) -> bool:
    """Whether the change must not wait: another condition, another generation, another budget in force."""
    return (
        _verdicts(old) != _verdicts(new)
        or old.observed_generation != new.observed_generation
        or (old.ledger.budget_watts if old.ledger else None) != (new.ledger.budget_watts if new.ledger else None)
    )


def is_material(old: EnergyPolicyStatus, new: EnergyPolicyStatus) -> bool:
    """Whether anything a person would notice changed: messages, or numbers by more than 2 %."""
    messages_old = {condition.type: condition.message for condition in old.conditions}
    messages_new = {condition.type: condition.message for condition in new.conditions}
    before, after = _numbers(old), _numbers(new)
    return (
        is_urgent(old, new)
        or messages_old != messages_new
        or old.targets != new.targets
        or before.keys() != after.keys()
        or any(_moved(key, before[key], after[key], new) for key in after)
    )


def _moved(name: str, before: float, after: float, status: EnergyPolicyStatus) -> bool:
    noise = DRAW_NOISE_WATTS * status.targets.gpus if name == "draw" and status.targets is not None else 0
    return abs(after - before) > max(MATERIAL_SHARE * abs(before), noise)


def _verdicts(status: EnergyPolicyStatus) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in status.conditions}


def _numbers(status: EnergyPolicyStatus) -> dict[str, float]:
    ledger = status.ledger.model_dump() if status.ledger is not None else {}
    loose = {
        "draw": status.draw_watts,
        "joules": status.joules_per_token,
        "attainment": status.slo.attainment_percent if status.slo is not None else None,
    }
    return ledger | {name: value for name, value in loose.items() if value is not None}


_OPENED: Final[Mapping[tuple[str, str], tuple[EventKind, str]]] = {
    ("Enforced", "ReadBack"): ("Normal", "Enforced"),
    # Every cut begins with one; what makes it last (a silent node, a fault) has a Warning of its own.
    ("BudgetRespected", "Deficit"): ("Normal", "BudgetDeficit"),
    ("BudgetRespected", "BudgetBelowFloors"): ("Warning", "BudgetBelowFloors"),
    ("Degraded", "NodeUnreachable"): ("Warning", "NodeUnreachable"),
    ("Degraded", "GpuFault"): ("Warning", "Degraded"),
    ("Degraded", "EnginesStale"): ("Warning", "Degraded"),
    ("Degraded", "LimitsOutOfRange"): ("Warning", "Degraded"),
    ("Degraded", "PodsRefused"): ("Warning", "PodsRefused"),
    ("Accepted", "NotActedOn"): ("Warning", "NotActedOn"),
    ("Released", "NodeUnreachable"): ("Warning", "ReleaseBlocked"),
    ("Released", "Restored"): ("Normal", "Released"),
}
"""Events by the (condition type, reason) that came up."""

_SEVERE: Final = ("NodeUnreachable", "GpuFault", "EnginesStale", "LimitsOutOfRange", "PodsRefused")


def events_of(policy: str, uid: str, old: EnergyPolicyStatus, new: EnergyPolicyStatus) -> tuple[PolicyEvent, ...]:
    """Events that the change from `old` to `new` is worth."""
    before = _verdicts(old)
    events = []
    for condition in new.conditions:
        past_status, past_reason = before.get(condition.type, ("", ""))
        now_reason = condition.reason
        if past_reason == now_reason:
            continue
        opened = _OPENED.get((condition.type, now_reason))
        if opened is not None and not (now_reason == "Restored" and not past_reason):
            events.append(PolicyEvent(policy, uid, opened[0], opened[1], condition.message))
        elif condition.type == "BudgetRespected" and condition.status == "True" and past_status == "False":
            events.append(PolicyEvent(policy, uid, "Normal", "DeficitCleared", condition.message))
        elif condition.type == "Degraded" and condition.status == "False" and past_reason in _SEVERE:
            events.append(PolicyEvent(policy, uid, "Normal", "Recovered", f"no longer {past_reason}"))
    return tuple(events)
