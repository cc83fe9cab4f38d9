"""The cluster loop's decision: `plan(state, now) -> Actions`. Pure, so that the simulator runs it in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flyball_api.energypolicy import EnergyPolicyStatus, Ledger
from flyball_api.nodeenergyplan import NodeEnergyPlanSpec, PlanGpu
from flyball_operator import attainment, budgets, statuses
from flyball_operator.attainment import Evidence
from flyball_operator.budgets import Budgeting, Members
from flyball_operator.conditions import Report, troubles_of
from flyball_operator.fleet import Fleet, Gpu, Liveness, product_max_watts, view
from flyball_operator.grants import Decisions, must_release, next_spec, same_grants, same_spec, used_grants
from flyball_operator.state import ClusterState, DivisionMemory, Instant, Memory, Policy, Sample, Switch
from flyball_operator.statuses import PolicyEvent
from flyball_operator.targets import GpuKey, PolicyTargets, Target, Targets, find, is_alive, unknown_gpus_watts

TIGHTEN_SECONDS = 2.0
"""A plan in which only ceilings can come down is written when its grants have been quiet for this long."""


PENDING_SECONDS = 5.0
"""A policy that was enforced stays so while watts move between its GPUs, unless that takes longer than this."""


@dataclass(frozen=True, slots=True)
class CreatePlan:
    """A node with GPUs has no plan yet; its agent reports cards and allocation once it has."""

    name: str
    spec: NodeEnergyPlanSpec


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """Write the spec of a plan, if it is still what was decided on.

    Attributes:
        name: of the plan.
        resource_version: on which the decision rests; another one means: decide again.
        spec: the whole spec.
        why: one word for logs and metrics.
    """

    name: str
    resource_version: str
    spec: NodeEnergyPlanSpec
    why: str


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Put our finalizer on a policy, or take it off."""

    policy: str
    uid: str
    present: bool


@dataclass(frozen=True, slots=True)
class WithdrawRelease:
    """Take a person's word off a plan whose node speaks for itself: left there, it would count for a later silence."""

    name: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Write the status of a policy."""

    policy: str
    uid: str
    status: EnergyPolicyStatus


@dataclass(frozen=True, slots=True)
class Actions:
    """What is to be done now, and what the next plan is to remember.

    Attributes:
        creates: plans to create.
        plans: plan specs to write.
        finalizers: finalizers to set.
        withdrawals: plans whose release by hand is over.
        statuses: statuses to write.
        events: Events to post.
        memory: for the next state.
        deposed_by: epoch of a newer leader that a plan carries; this one must end. None: there is none.
        ledgers: of every policy with a budget, for metrics.
        draws: watts drawn by every policy's GPUs, for metrics.
    """

    creates: tuple[CreatePlan, ...] = ()
    plans: tuple[ApplyPlan, ...] = ()
    finalizers: tuple[SetFinalizer, ...] = ()
    withdrawals: tuple[WithdrawRelease, ...] = ()
    statuses: tuple[WriteStatus, ...] = ()
    events: tuple[PolicyEvent, ...] = ()
    memory: Memory = field(default_factory=Memory)
    deposed_by: int | None = None
    ledgers: Mapping[str, Ledger] = field(default_factory=dict)
    draws: Mapping[str, int] = field(default_factory=dict)

    @property
    def writes(self) -> int:
        """How many requests these are."""
        return sum(map(len, (self.creates, self.plans, self.finalizers, self.withdrawals, self.statuses, self.events)))


def plan(state: ClusterState, now: Instant) -> Actions:
    """Decide what to write. Nothing, before the picture is whole or while this process does not lead."""
    if not state.synced or state.leader_epoch <= 0:
        return Actions(memory=state.memory)
    newest = max((entry.spec.leader_epoch for entry in state.plans.values()), default=0)
    if newest > state.leader_epoch:
        return Actions(memory=state.memory, deposed_by=newest)
    return _Planning(state, now).actions()


class _Planning:
    """One run of `plan`: its steps share what they found."""

    def __init__(self, state: ClusterState, now: Instant) -> None:
        self._state = state
        self._now = now
        self._fleet: Fleet = view(state, now)
        self._targets: Targets = find(state, self._fleet)
        # Until every plan carries our epoch an older leader's write may still land; until a write of ours that got
        # no answer is settled it may too. Neither may meet a raise.
        self._fenced = not state.uncertain_plans and all(
            entry.spec.leader_epoch == state.leader_epoch for entry in state.plans.values()
        )
        self._entries: dict[str, list[Gpu]] = {}
        for gpu in self._fleet.gpus():
            if gpu.entry is not None and not self._fleet.nodes[gpu.node].forgotten:
                self._entries.setdefault(gpu.entry.policy, []).append(gpu)

    def actions(self) -> Actions:
        state, moment = self._state, self._now.monotonic_seconds
        held = self._held()
        decisions = Decisions(self._targets.by_gpu, state.policies, {}, held)
        budgetings = self._budgetings(decisions)
        enforcing = {name: entry for name, entry in budgetings.items() if not _observes(state.policies[name])}
        caps = {
            key: cap
            for name, entry in budgetings.items()
            for key, cap in (entry.caps if name in enforcing else entry.aims).items()
        }
        decisions = Decisions(self._targets.by_gpu, state.policies, caps, held)
        writing = state.switch is not Switch.STOPPED
        specs = self._specs(decisions)
        plans = self._plans(specs) if writing else ()
        wanted = {(name, entry.uuid): entry for name, spec in specs.items() for entry in spec.gpus}
        samples = self._samples()
        reports = {
            name: self._report(policy, enforcing.get(name), wanted, samples)
            for name, policy in sorted(state.policies.items())
        }
        writes, events = self._statuses(reports)
        memory = Memory(
            divisions={name: entry.memory for name, entry in budgetings.items()},
            samples=samples,
            status_seconds=self._kept(state.memory.status_seconds) | {write.policy: moment for write in writes},
            event_seconds={
                key: at for key, at in state.memory.event_seconds.items() if moment - at < statuses.EVENT_SECONDS
            }
            | {(event.uid, event.reason): moment for event in events},
            grants=self._grants(specs) if writing else state.memory.grants,
            pending_seconds={
                name: state.memory.pending_seconds.get(name, moment)
                for name in reports
                if self._pending_gpus(name, wanted)
            },
            plan_seconds={name: at for name, at in state.memory.plan_seconds.items() if name in state.plans}
            | {entry.name: moment for entry in plans},
        )
        return Actions(
            creates=self._creates() if state.switch is Switch.ENABLED else (),
            plans=plans,
            finalizers=self._finalizers() if writing else (),
            withdrawals=self._withdrawals() if writing else (),
            statuses=writes,
            events=events,
            memory=memory,
            ledgers={name: entry.ledger for name, entry in enforcing.items()},
            draws=_draws(reports),
        )

    def _kept(self, by_policy: Mapping[str, float]) -> dict[str, float]:
        return {name: at for name, at in by_policy.items() if name in self._state.policies}

    def _held(self) -> frozenset[str]:
        """Policies whose entries stay as they are for now; see `Decisions.held`."""
        return frozenset(
            name
            for name, policy in self._state.policies.items()
            if self._state.switch is not Switch.RELEASE
            and not policy.deleting
            and (policy.spec is None or (policy.spec.mode == "Enforce" and not policy.has_finalizer))
        )

    def _budgetings(self, decisions: Decisions) -> dict[str, Budgeting]:
        found: dict[str, Budgeting] = {}
        for name, policy in sorted(self._state.policies.items()):
            spec = policy.spec
            if spec is None or spec.power_budget is None or policy.deleting or self._state.switch is Switch.RELEASE:
                continue
            found[name] = budgets.budget(
                spec,
                spec.power_budget,
                self._members(name, decisions),
                self._state.memory.divisions.get(name),
                raises_allowed=self._fenced and name not in decisions.held,
                now_seconds=self._now.monotonic_seconds,
            )
        return found

    def _members(self, name: str, decisions: Decisions) -> Members:
        targets = self._targets.by_policy[name]
        groups: dict[str, list[Gpu]] = {}
        for gpu in targets.gpus:
            target = decisions.targets[gpu.key]
            if not must_release(gpu, target, decisions.policies):
                groups.setdefault(target.group, []).append(gpu)
        leaving = [gpu for gpu in self._entries.get(name, ()) if self._leaves(gpu, decisions)]
        watts = [self._pod_watts(pod.node, targets, index) for index, pod in enumerate(targets.unallocated)]
        return Members(
            groups=groups,
            leaving=leaving,
            pods=[budgets.pod_charge(entry) for entry in watts],
            unknown_product=None in watts,
        )

    def _pod_watts(self, node_name: str, targets: PolicyTargets, index: int) -> int | None:
        node = self._fleet.nodes.get(node_name)
        product = product_max_watts(self._state.nodes.get(node_name))
        return unknown_gpus_watts(targets.unallocated[index], node, product)

    def _leaves(self, gpu: Gpu, decisions: Decisions) -> bool:
        """It still holds a cap of this policy, and is not (or no more) one of its GPUs."""
        entry = gpu.entry
        if entry is None or gpu.released or (entry.cap_watts is None and entry.ceiling_watts is None):
            return False
        return must_release(gpu, decisions.settled_target(gpu), decisions.policies)

    def _creates(self) -> tuple[CreatePlan, ...]:
        state = self._state
        return tuple(
            CreatePlan(name, NodeEnergyPlanSpec(leader_epoch=state.leader_epoch))
            for name, node in sorted(state.nodes.items())
            if node.gpus > 0 and name not in state.plans
        )

    def _specs(self, decisions: Decisions) -> dict[str, NodeEnergyPlanSpec]:
        """What every plan should say."""
        remembered = self._state.memory.grants
        return {
            name: next_spec(node, decisions, self._state.leader_epoch, remembered.get(name, 0))
            for name, node in self._fleet.nodes.items()
        }

    def _grants(self, specs: Mapping[str, NodeEnergyPlanSpec]) -> dict[str, int]:
        """The highest grant number of every plan, those about to be written included."""
        remembered = self._state.memory.grants
        return {
            name: max([remembered.get(name, 0), used_grants(node), *(entry.grant for entry in specs[name].gpus)])
            for name, node in self._fleet.nodes.items()
        }

    def _plans(self, specs: Mapping[str, NodeEnergyPlanSpec]) -> tuple[ApplyPlan, ...]:
        state, moment = self._state, self._now.monotonic_seconds
        writes: list[ApplyPlan] = []
        for name, node in self._fleet.nodes.items():
            spec, old = specs[name], node.plan.spec
            if same_spec(old, spec):
                continue
            if same_grants(old, spec):
                quiet = moment - state.memory.plan_seconds.get(name, 0.0) >= TIGHTEN_SECONDS
                settled = all(gpu.entry is None or gpu.acknowledged for gpu in node.gpus.values())
                if not (quiet and settled):
                    continue
                why = "tighten"
            else:
                why = "grant" if old.leader_epoch == spec.leader_epoch else "fence"
            writes.append(ApplyPlan(name, node.plan.resource_version, spec, why))
        return tuple(writes)

    def _finalizers(self) -> tuple[SetFinalizer, ...]:
        found = []
        for name, policy in sorted(self._state.policies.items()):
            observes = _observes(policy)
            releasing = self._state.switch is Switch.RELEASE
            if policy.has_finalizer:
                held = any(
                    gpu.entry is not None and gpu.entry.action != "Observe" for gpu in self._entries.get(name, ())
                )
                if (policy.deleting or observes or releasing) and not held and self._fenced:
                    found.append(SetFinalizer(name, policy.uid, present=False))
                continue
            enforces = policy.spec is not None and not (policy.deleting or observes or releasing)
            # Also for what a namesake left behind: it is released only under a finalizer.
            if enforces and (self._targets.by_policy[name].gpus or self._entries.get(name)):
                found.append(SetFinalizer(name, policy.uid, present=True))
        return tuple(found)

    def _withdrawals(self) -> tuple[WithdrawRelease, ...]:
        return tuple(
            WithdrawRelease(name, node.plan.resource_version)
            for name, node in self._fleet.nodes.items()
            if node.plan.released_by_hand
            and node.liveness is Liveness.ALIVE
            and not any(gpu.released and not gpu.acknowledged for gpu in node.gpus.values())
        )

    def _samples(self) -> dict[tuple[str, str], tuple[Sample, ...]]:
        samples: dict[tuple[str, str], tuple[Sample, ...]] = {}
        uids = {policy.uid: policy for policy in self._state.policies.values()}
        for name, node in self._fleet.nodes.items():
            for counters in node.plan.status.policies:
                policy = uids.get(counters.uid)
                if policy is None:
                    continue
                key = (policy.uid, name)
                window = attainment.window_seconds(policy.spec.slo if policy.spec else None)
                samples[key] = attainment.remember(
                    self._state.memory.samples.get(key, ()), counters, window, self._now.monotonic_seconds
                )
        return samples

    def _report(
        self,
        policy: Policy,
        budgeting: Budgeting | None,
        wanted: Mapping[GpuKey, PlanGpu],
        samples: Mapping[tuple[str, str], tuple[Sample, ...]],
    ) -> Report:
        name = policy.name
        targets = self._targets.by_policy[name]
        entries = self._entries.get(name, [])
        return Report(
            policy=policy,
            switch=self._state.switch,
            targets=targets,
            entries=entries,
            budgeting=budgeting,
            pending=() if self._still_enforced(policy) else self._pending_gpus(name, wanted),
            enforced_gpus=sum(
                gpu.acknowledged and gpu.entry is not None and gpu.entry.action == "Enforce" for gpu in entries
            ),
            dark_nodes=self._dark_nodes(targets, entries),
            troubles=troubles_of(
                [gpu for gpu in targets.gpus if gpu.liveness is Liveness.ALIVE],
                targets,
                self._stale_engines(policy),
                () if budgeting is None else budgeting.narrow,
            ),
            evidence=self._evidence(policy, samples),
        )

    def _pending_gpus(self, name: str, wanted: Mapping[GpuKey, PlanGpu]) -> list[Gpu]:
        return [gpu for gpu in self._targets.by_policy[name].gpus if self._pending(gpu, wanted.get(gpu.key))]

    def _still_enforced(self, policy: Policy) -> bool:
        """This very generation was enforced, and what is in flight has not been so for long."""
        moment = self._now.monotonic_seconds
        since = self._state.memory.pending_seconds.get(policy.name, moment)
        enforced = any(entry.type == "Enforced" and entry.status == "True" for entry in policy.status.conditions)
        same = policy.status.observed_generation == policy.generation
        return same and enforced and moment - since < PENDING_SECONDS

    def _pending(self, gpu: Gpu, wanted: PlanGpu | None) -> bool:
        """Its entry is not yet what it should be, or is not yet read back."""
        target: Target = self._targets.by_gpu[gpu.key]
        entry = gpu.entry
        if entry is None or wanted is None or entry.grant != wanted.grant:
            return True
        if (entry.policy, entry.action) != (target.policy, target.action):
            return True
        return entry.action == "Enforce" and not gpu.acknowledged

    def _dark_nodes(self, targets: PolicyTargets, entries: Sequence[Gpu]) -> list[str]:
        pods = self._state.pods
        names = {gpu.node for gpu in entries} | {pods[key].node for key in targets.pods if pods[key].gpus}
        views = {name: self._fleet.nodes.get(name) for name in names}
        # A node that has no plan, or whose agent never spoke, is AllocationUnknown: it may just be starting.
        return sorted(
            name
            for name, node in views.items()
            if node is not None
            and not node.forgotten
            and node.liveness is Liveness.UNKNOWN
            and node.plan.status.agent_session
        )

    def _stale_engines(self, policy: Policy) -> list[str]:
        return [
            name
            for name, node in self._fleet.nodes.items()
            if is_alive(node)
            for counters in node.plan.status.policies
            if counters.uid == policy.uid and counters.engines_stale > 0
        ]

    def _evidence(self, policy: Policy, samples: Mapping[tuple[str, str], tuple[Sample, ...]]) -> Evidence:
        window = attainment.window_seconds(policy.spec.slo if policy.spec else None)
        series = [samples[policy.uid, name] for name in self._fleet.nodes if (policy.uid, name) in samples]
        return attainment.evaluate(series, window, self._now.monotonic_seconds)

    def _statuses(self, reports: Mapping[str, Report]) -> tuple[tuple[WriteStatus, ...], tuple[PolicyEvent, ...]]:
        memory, moment = self._state.memory, self._now.monotonic_seconds
        if self._state.uncertain_plans or (self._state.switch is not Switch.STOPPED and not self._fenced):
            # A write that got no answer, or an older leader's, may still land: no budget is acknowledged before that.
            return (), ()
        writes: list[WriteStatus] = []
        events: list[PolicyEvent] = []
        for name, report in reports.items():
            policy = report.policy
            old, new = policy.status, statuses.compose(report, self._now)
            if self._settling(report) and old.observed_generation == policy.generation:
                # After a start nobody's heartbeat has been watched for long enough; that is no news about the policy.
                continue
            urgent = statuses.is_urgent(old, new)
            due = moment - memory.status_seconds.get(name, float("-inf")) >= statuses.STATUS_SECONDS
            if not urgent and not (due and statuses.is_material(old, new)):
                continue
            writes.append(WriteStatus(name, policy.uid, new))
            events += [
                event
                for event in statuses.events_of(name, policy.uid, old, new)
                if (event.uid, event.reason) not in memory.event_seconds
                or moment - memory.event_seconds[event.uid, event.reason] >= statuses.EVENT_SECONDS
            ]
        return tuple(writes), tuple(events)

    def _settling(self, report: Report) -> bool:
        gpus = (*report.targets.gpus, *report.entries)
        return any(gpu.liveness is Liveness.SETTLING for gpu in gpus)


def _observes(policy: Policy) -> bool:
    return policy.spec is not None and policy.spec.mode == "Observe"


def _draws(reports: Mapping[str, Report]) -> dict[str, int]:
    return {
        name: sum(gpu.status.draw_watts or 0 for gpu in report.targets.gpus if gpu.status is not None)
        for name, report in reports.items()
    }


__all__ = ["Actions", "ApplyPlan", "CreatePlan", "DivisionMemory", "GpuKey", "SetFinalizer", "WriteStatus", "plan"]
