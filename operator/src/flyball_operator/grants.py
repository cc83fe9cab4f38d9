"""The next spec of one node's plan: which entries stay, change, are released, or go.

An entry whose substance changes is a new grant; one that does not keeps its number, so that nothing is written again
for nothing. A capped GPU that is to be uncapped, observed or left alone passes through Release, whose read-back is
the proof that the default cap is back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from flyball_api.energypolicy import EnergyPolicySpec
from flyball_api.nodeenergyplan import NodeEnergyPlanSpec, PlanGpu, PlanPolicy
from flyball_operator.fleet import Gpu, NodeView
from flyball_operator.ledger import charge, granted_watts, has_cap
from flyball_operator.state import Policy
from flyball_operator.targets import GpuKey, Target

_UNNUMBERED = 1
"""Placeholder of a draft's grant; `next_spec` puts the number in."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What was decided for all nodes together.

    Attributes:
        targets: what each GPU should be under; a GPU that is missing should be under nothing.
        policies: by name.
        caps: the cap to grant (Observe: the cap that Enforce would come to), by GPU, for policies with a budget.
        held: policies whose entries stay as they are: no accepted spec is known since the restart, or the finalizer
            is not yet on the object.
    """

    targets: Mapping[GpuKey, Target]
    policies: Mapping[str, Policy]
    caps: Mapping[GpuKey, int]
    held: frozenset[str]

    def settled_target(self, gpu: Gpu) -> Target | None:
        """The GPU's target, if it may be acted on."""
        target = self.targets.get(gpu.key)
        return None if target is not None and target.policy in self.held else target

    def frozen(self, gpu: Gpu) -> bool:
        """The entry stays as it is, because it is, or is to be, a held policy's."""
        target = self.targets.get(gpu.key)
        own = gpu.entry is not None and gpu.entry.policy in self.held
        return own or (target is not None and target.policy in self.held)


def next_entry(gpu: Gpu, decisions: Decisions) -> PlanGpu | None:
    """What the entry of this GPU becomes: the same object when it stays, None when it goes.

    The grant number of a changed entry is a placeholder.
    """
    entry = gpu.entry
    if decisions.frozen(gpu):
        return entry
    target = decisions.settled_target(gpu)
    if entry is not None and must_release(gpu, target, decisions.policies):
        return entry if entry.action == "Release" else _release(gpu, entry)
    if target is None:
        return None
    cap = decisions.caps.get(gpu.key)
    return PlanGpu(
        uuid=gpu.uuid,
        grant=_UNNUMBERED,
        action=target.action,
        policy=target.policy,
        group=target.group,
        role=target.role,
        pod_ip=target.pod_ip,
        cap_watts=cap,
        ceiling_watts=max(cap, granted_watts(gpu)) if cap is not None and target.action == "Enforce" else None,
    )


def must_release(gpu: Gpu, target: Target | None, policies: Mapping[str, Policy]) -> bool:
    """Whether what is in force on this GPU has to be undone, and that proved, before the target can be granted."""
    entry = gpu.entry
    if entry is None or entry.action == "Observe" or gpu.released:
        return False
    if target is None or target.action == "Observe":
        return True
    # Enforce after Enforce is a clean take-over by itself, unless the cap would be left behind.
    return has_cap(gpu) and not _is_capped(policies[target.policy].spec)


def _is_capped(spec: EnergyPolicySpec | None) -> bool:
    return spec is not None and spec.power_budget is not None


def _release(gpu: Gpu, entry: PlanGpu) -> PlanGpu:
    return PlanGpu(
        uuid=gpu.uuid,
        grant=_UNNUMBERED,
        action="Release",
        policy=entry.policy,
        group=entry.group,
        role=entry.role,
        ceiling_watts=granted_watts(gpu) if has_cap(gpu) else None,
    )


def next_spec(node: NodeView, decisions: Decisions, epoch: int, highest_grant: int) -> NodeEnergyPlanSpec:
    """The spec that this node's plan should have; equal to the present one, entry by entry, where nothing changes.

    Args:
        node: the node as it is.
        decisions: what was decided.
        epoch: of this leadership.
        highest_grant: the highest grant number ever used in this plan, as far as this process remembers.
    """
    if node.forgotten:
        return NodeEnergyPlanSpec(leader_epoch=epoch)
    drafts = [(gpu, draft) for gpu in node.gpus.values() if (draft := next_entry(gpu, decisions)) is not None]
    policies = {draft.policy: _plan_policy(draft, node, decisions) for _, draft in drafts if draft.action != "Release"}
    for _, draft in drafts:
        if draft.policy not in policies:
            policies[draft.policy] = node.plan_policies[draft.policy]
    numbers = count(max(highest_grant, used_grants(node)) + 1)
    entries = []
    for gpu, draft in drafts:
        unchanged = (
            gpu.entry is not None
            and _substance(gpu.entry) == _substance(draft)
            and (draft.action == "Release" or node.plan_policies[draft.policy] == policies[draft.policy])
        )
        if unchanged and gpu.entry is not None:
            entries.append(_tightened(gpu, gpu.entry))
        else:
            entries.append(draft.model_copy(update={"grant": next(numbers)}))
    return NodeEnergyPlanSpec(leader_epoch=epoch, policies=tuple(policies.values()), gpus=tuple(entries))


def _plan_policy(draft: PlanGpu, node: NodeView, decisions: Decisions) -> PlanPolicy:
    policy = decisions.policies.get(draft.policy)
    if policy is None or policy.spec is None or draft.policy in decisions.held:
        return node.plan_policies[draft.policy]
    spec = policy.spec
    return PlanPolicy(
        name=policy.name,
        uid=policy.uid,
        engine=spec.engine,
        slo=spec.slo,
        controller=spec.controller,
        sm_clock=spec.limits.sm_clock,
        fail_safe=spec.fail_safe,
    )


def used_grants(node: NodeView) -> int:
    """The highest grant number in the plan, granted or acknowledged; 0 when there is none."""
    granted = [entry.grant for entry in node.plan.spec.gpus]
    acknowledged = [gpu.acknowledged.grant for gpu in node.plan.status.gpus if gpu.acknowledged is not None]
    return max([*granted, *acknowledged], default=0)


def _substance(entry: PlanGpu) -> tuple[object, ...]:
    return (entry.action, entry.policy, entry.group, entry.role, entry.pod_ip, entry.cap_watts)


def _tightened(gpu: Gpu, entry: PlanGpu) -> PlanGpu:
    """The same grant with the ceiling that its acknowledgement has proved."""
    if not gpu.acknowledged or entry.action != "Enforce" or entry.ceiling_watts is None:
        return entry
    proved = charge(gpu).watts
    return entry.model_copy(update={"ceiling_watts": proved}) if proved < entry.ceiling_watts else entry


def same_grants(left: NodeEnergyPlanSpec, right: NodeEnergyPlanSpec) -> bool:
    """Whether two specs grant the same, ceilings aside."""
    return _comparable(left, ceilings=False) == _comparable(right, ceilings=False)


def same_spec(left: NodeEnergyPlanSpec, right: NodeEnergyPlanSpec) -> bool:
    """Whether two specs are the same; the order of their lists does not count."""
    return _comparable(left, ceilings=True) == _comparable(right, ceilings=True)


def _comparable(spec: NodeEnergyPlanSpec, *, ceilings: bool) -> tuple[object, ...]:
    return (
        spec.leader_epoch,
        {policy.name: policy for policy in spec.policies},
        {entry.uuid: entry if ceilings else entry.model_copy(update={"ceiling_watts": None}) for entry in spec.gpus},
    )
