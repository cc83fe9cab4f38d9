"""The conditions of a policy: what holds now, with a reason in one word and a message for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from flyball_api.energypolicy import EnergyPolicySpec, Slo
from flyball_api.names import GPU_RESOURCE, RELEASED_BY_HAND, SWITCH_CONFIG_MAP, SWITCH_KEY
from flyball_operator.attainment import METRICS, Evidence
from flyball_operator.budgets import Budgeting
from flyball_operator.fleet import Gpu, Liveness
from flyball_operator.state import Policy, Switch
from flyball_operator.targets import PolicyTargets

Truth = Literal["True", "False", "Unknown"]
MESSAGE_CHARACTERS = 1024
NAMED = 3
"""How many things a message names before it says `and N more`."""

CONTROLLER_FAULTS: Final = frozenset({"Degraded", "MetricMissing", "ControllerFailed", "EngineLimits"})
"""Codes of faults that are a controller's or its engine's: the card obeys."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition before it has a time."""

    type: str
    status: Truth
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that keeps a policy from working as meant; `reason` is the Degraded condition's."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the conditions of one policy are made from.

    Attributes:
        policy: the policy.
        switch: the cluster-wide switch.
        targets: what it governs.
        entries: GPUs whose entry names it.
        budgeting: of its power budget; None: it has none, or nothing is divided now.
        pending: GPUs of it whose entry is not yet as wanted, or not yet acknowledged.
        enforced_gpus: GPUs of it under an acknowledged Enforce grant.
        dark_nodes: nodes with GPUs or pods of it whose agent is silent.
        troubles: everything else that is wrong.
        evidence: over the attainment window.
    """

    policy: Policy
    switch: Switch
    targets: PolicyTargets
    entries: Sequence[Gpu]
    budgeting: Budgeting | None
    pending: Sequence[Gpu]
    enforced_gpus: int
    dark_nodes: Sequence[str]
    troubles: Sequence[Trouble]
    evidence: Evidence


def release_command(node: str) -> str:
    """What a person runs to vouch that nothing of ours is in force on a node."""
    return f'kubectl annotate nodeenergyplan {node} {RELEASED_BY_HAND}="<why>"'


def listed(items: Iterable[str]) -> str:
    """`a, b, c and 4 more`."""
    names = list(items)
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def counted(number: int, noun: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def findings(report: Report) -> tuple[Finding, ...]:
    """All conditions of one policy, in the order in which a person reads them."""
    degraded = _degraded(report)
    found = [
        _ready(report, degraded),
        _accepted(report),
        _enforced(report),
        _budget_respected(report),
        _slo_met(report.policy.spec, report.evidence),
        degraded,
        _released(report),
    ]
    return tuple(
        Finding(entry.type, entry.status, entry.reason, entry.message[:MESSAGE_CHARACTERS])
        for entry in found
        if entry is not None
    )


def _accepted(report: Report) -> Finding:
    policy = report.policy
    if policy.refusal:
        force = "the last accepted spec stays in force" if policy.spec else "what was granted stays as it is"
        return Finding("Accepted", "False", "NotActedOn", f"{policy.refusal}; until then {force}")
    if report.targets.lost:
        winners = sorted({winner for _, winner in report.targets.lost})
        return Finding(
            "Accepted",
            "True",
            "Overlapped",
            f"{counted(len(report.targets.lost), 'pod')} selected here but governed by {listed(winners)} "
            f"(higher priority, then older, then name): {listed(pod for pod, _ in report.targets.lost)}",
        )
    return Finding("Accepted", "True", "Accepted", f"generation {policy.generation} is acted on")


def _ready(report: Report, degraded: Finding) -> Finding:
    """The one verdict: the first thing that is in the way, else that all is well."""
    enforced = _enforced(report)
    in_the_way = (
        _not_governing(report),
        degraded if degraded.status == "True" else None,
        _nothing_to_do(report),
        enforced if enforced.status != "True" and not _observes(report) else None,
        _in_flight(report) if _observes(report) else None,
        _short_of_watts(report),
    )
    first = next((finding for finding in in_the_way if finding is not None), None)
    if first is not None:
        return Finding("Ready", "False", first.reason, first.message)
    what = f"{counted(len(report.targets.gpus), 'GPU')} of {counted(len(report.targets.pods), 'pod')}"
    if _observes(report):
        return Finding("Ready", "True", "Observing", f"{what} observed; nothing is written")
    return Finding("Ready", "True", "Enforced", f"{what} enforced and read back")


def _observes(report: Report) -> bool:
    return report.policy.spec is not None and report.policy.spec.mode == "Observe"


def _not_governing(report: Report) -> Finding | None:
    if report.policy.deleting:
        return Finding("Ready", "False", "Deleting", _releasing_text(report.entries))
    if report.switch is not Switch.ENABLED:
        return _switched_off(report.switch)
    if report.policy.refusal:
        return Finding("Ready", "False", "NotAccepted", report.policy.refusal)
    if not report.targets.pods:
        return Finding("Ready", "False", "NoPods", "no running pod is governed: check spec.selector and other policies")
    return None


def _nothing_to_do(report: Report) -> Finding | None:
    if report.targets.gpus:
        return None
    return Finding("Enforced", "False", "NoGpus", f"none of {counted(len(report.targets.pods), 'pod')} holds a GPU")


def _in_flight(report: Report) -> Finding | None:
    if not report.pending:
        return None
    places = listed(f"{gpu.node}/{gpu.uuid}" for gpu in report.pending)
    total = counted(len(report.targets.gpus), "GPU")
    text = f"{len(report.pending)} of {total} not yet read back: {places}"
    return Finding("Enforced", "False", "InFlight", text)


def _short_of_watts(report: Report) -> Finding | None:
    if report.budgeting is None or not report.budgeting.ledger.deficit_watts:
        return None
    return _budget_respected(report)


def _switched_off(switch: Switch) -> Finding:
    if switch is Switch.STOPPED:
        return Finding(
            "Enforced",
            "Unknown",
            "WritesStopped",
            f"ConfigMap {SWITCH_CONFIG_MAP} stops all writing; set {SWITCH_KEY} to enabled to go on",
        )
    return Finding(
        "Enforced", "False", "ReleasingAll", f"ConfigMap {SWITCH_CONFIG_MAP} asks for the release of every GPU"
    )


def _enforced(report: Report) -> Finding:
    in_the_way = (
        None if report.switch is Switch.ENABLED else _switched_off(report.switch),
        _not_enforcing(report.policy),
        _nothing_to_do(report),
        _in_flight(report),
    )
    first = next((finding for finding in in_the_way if finding is not None), None)
    if first is not None:
        return first
    return Finding("Enforced", "True", "ReadBack", f"{counted(report.enforced_gpus, 'GPU')} enforced and read back")


def _not_enforcing(policy: Policy) -> Finding | None:
    if policy.deleting:
        return Finding("Enforced", "False", "Deleting", "the policy is being deleted")
    if policy.spec is None:
        return Finding("Enforced", "Unknown", "NotAccepted", "no accepted spec is known; grants stay as they are")
    if policy.spec.mode == "Observe":
        return Finding("Enforced", "False", "Observing", "mode is Observe: nothing is written")
    return None


def _budget_respected(report: Report) -> Finding:
    spec, budgeting = report.policy.spec, report.budgeting
    if spec is None or spec.power_budget is None:
        return Finding("BudgetRespected", "Unknown", "NoBudget", "no spec.powerBudget: no power cap is touched")
    if budgeting is None:
        return Finding("BudgetRespected", "Unknown", "NotEnforced", "no watts are granted, so none are accounted for")
    ledger = budgeting.ledger
    if budgeting.floor_watts > ledger.budget_watts:
        return Finding(
            "BudgetRespected",
            "False",
            "BudgetBelowFloors",
            f"the budget of {ledger.budget_watts} W is below the {budgeting.floor_watts} W that the lowest caps of "
            f"{counted(len(report.targets.gpus), 'GPU')} sum to: give at least {budgeting.floor_watts} W, "
            f"or lower limits.capWatts.min",
        )
    if ledger.deficit_watts:
        return Finding(
            "BudgetRespected",
            "False",
            "Deficit",
            f"caps that may be in force exceed the budget of {ledger.budget_watts} W by {ledger.deficit_watts} W; "
            f"nothing is raised until cuts are read back",
        )
    text = f"caps that may be in force are within {ledger.budget_watts} W"
    if budgeting.reset_watts > budgeting.reserve_watts:
        text += (
            f"; a reset of the largest node would add {budgeting.reset_watts} W, "
            f"of which the reserve of {budgeting.reserve_watts} W covers a part"
        )
    return Finding("BudgetRespected", "True", "WithinBudget", text)


def _slo_met(spec: EnergyPolicySpec | None, evidence: Evidence) -> Finding:
    slo = spec.slo if spec is not None else None
    if slo is None:
        return Finding("SLOMet", "Unknown", "NoSlo", "no spec.slo: none is judged")
    # Only an slo of nothing but inter-token latency has no count of requests; its observations stand in for them.
    per_request = slo.time_to_first_token is not None or slo.end_to_end is not None
    counted_by = (evidence.latencies[0], evidence.latencies[2]) if per_request else (evidence.latencies[1],)
    needed = slo.attainment.minimum_requests
    if max(total for total, _ in counted_by) < needed:
        return Finding(
            "SLOMet",
            "Unknown",
            "TooFewRequests",
            f"fewer than {needed} requests in the last {slo.attainment.window_seconds} s",
        )
    missed = _missed(slo, evidence)
    if missed:
        return Finding("SLOMet", "False", "Missed", "; ".join(missed))
    return Finding("SLOMet", "True", "Met", "every latency is within its threshold at its percentile")


def _missed(slo: Slo, evidence: Evidence) -> list[str]:
    asked = (slo.time_to_first_token, slo.inter_token_latency, slo.end_to_end)
    return [
        f"{metric} was within {target.threshold_milliseconds} ms for {100 * within / total:.1f} % of observations, "
        f"and {target.percentile:g} % are asked"
        for metric, target, (total, within) in zip(METRICS, asked, evidence.latencies, strict=True)
        if target is not None and total >= 1 and 100 * within < target.percentile * total
    ]


def _degraded(report: Report) -> Finding:
    if report.dark_nodes:
        return Finding(
            "Degraded",
            "True",
            "NodeUnreachable",
            f"no sign of life from the agent of {listed(report.dark_nodes)}: its GPUs keep their last grant "
            f"and are charged in full",
        )
    if report.troubles:
        texts = list(dict.fromkeys(trouble.message for trouble in report.troubles))
        return Finding("Degraded", "True", report.troubles[0].reason, "; ".join(texts[:NAMED]))
    return Finding("Degraded", "False", "AsExpected", "nothing is wrong")


def _released(report: Report) -> Finding | None:
    """Only said of a policy that gives its GPUs up, wholly or in part."""
    leaving = [gpu for gpu in report.entries if gpu.entry is not None and gpu.entry.action == "Release"]
    giving_up = report.policy.deleting or report.switch is Switch.RELEASE
    left = [gpu for gpu in report.entries if gpu.entry is not None and gpu.entry.action != "Observe"]
    if not leaving and not (giving_up and left):
        if giving_up or (report.policy.spec is not None and report.policy.spec.mode == "Observe"):
            return Finding("Released", "True", "Restored", "no GPU holds anything of this policy")
        return None
    held = left if giving_up else leaving
    dark = sorted({gpu.node for gpu in held if gpu.liveness is Liveness.UNKNOWN})
    if dark:
        commands = "; ".join(release_command(node) for node in dark[:NAMED])
        return Finding(
            "Released",
            "False",
            "NodeUnreachable",
            f"{listed(dark)} cannot answer, so it is not proved that its GPUs are restored. They are once its agent "
            f"is back; if it never will be, release by hand: {commands}",
        )
    failing = [gpu for gpu in held if gpu.unrestorable]
    if failing:
        faults = listed(f"{gpu.node}/{gpu.uuid}: {gpu.unrestorable}" for gpu in failing)
        commands = "; ".join(release_command(node) for node in sorted({gpu.node for gpu in failing})[:NAMED])
        text = f"{_releasing_text(held)}; {faults}; if that cannot be mended, release by hand: {commands}"
        return Finding("Released", "False", "GpuFault", text)
    if report.switch is Switch.STOPPED:
        text = f"ConfigMap {SWITCH_CONFIG_MAP} stops all writing, so {_releasing_text(held)}"
        return Finding("Released", "False", "WritesStopped", text)
    return Finding("Released", "False", "Releasing", _releasing_text(held))


def _releasing_text(gpus: Sequence[Gpu]) -> str:
    left = [gpu for gpu in gpus if gpu.entry is not None and gpu.entry.action != "Observe"]
    if not left:
        return "every GPU is restored"
    return (
        f"{counted(len(left), 'GPU')} not yet read back as restored: {listed(f'{gpu.node}/{gpu.uuid}' for gpu in left)}"
    )


def _complaints(gpus: Sequence[Gpu]) -> Iterable[Trouble]:
    """What controllers say keeps them from controlling well: each sentence once, however many GPUs it is about."""
    said: dict[str, list[str]] = {}
    for gpu in gpus:
        for fault in gpu.status.faults if gpu.status is not None else ():
            if fault.code in CONTROLLER_FAULTS:
                said.setdefault(fault.message or fault.code, []).append(f"{gpu.node}/{gpu.uuid}")
    return [Trouble("ControllerDegraded", f"{sentence} ({listed(places)})") for sentence, places in said.items()]


def troubles_of(
    gpus: Sequence[Gpu], targets: PolicyTargets, stale_engines: Sequence[str], narrow: Sequence[str]
) -> tuple[Trouble, ...]:
    """What is wrong with a policy's pods and GPUs, the worst first.

    Args:
        gpus: the policy's.
        targets: what it governs.
        stale_engines: nodes on which engines of it have stale or missing metrics.
        narrow: bounds that its cards cannot keep.
    """
    found: list[Trouble] = []
    if targets.refused:
        codes = ", ".join(sorted({code for _, code in targets.refused}))
        names = listed(pod for pod, _ in targets.refused)
        found.append(
            Trouble("PodsRefused", f"GPUs that are split or shared ({codes}) cannot be driven yet: {names} left alone")
        )
    for gpu in gpus:
        faults = gpu.status.faults if gpu.status is not None else ()
        found += [
            Trouble("GpuFault", f"{gpu.node}/{gpu.uuid}: {fault.code}: {fault.message}")
            for fault in faults
            if fault.code not in CONTROLLER_FAULTS
        ]
    found += _complaints(gpus)
    if targets.unallocated:
        names = listed(pod.key for pod in targets.unallocated)
        found.append(
            Trouble("AllocationUnknown", f"no agent has yet told which {GPU_RESOURCE} these pods hold: {names}")
        )
    if stale_engines:
        found.append(Trouble("EnginesStale", f"engine metrics are missing or stale on {listed(stale_engines)}"))
    found += [Trouble("LimitsOutOfRange", sentence) for sentence in narrow]
    return tuple(found)
