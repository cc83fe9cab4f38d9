"""GPU groups: which cards share a setpoint, what their controller may choose, and when it must not control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.controllers.base import (
    UNLOCKED,
    ControlLimits,
    Decision,
    GpuReading,
    GroupController,
    GroupSetpoint,
    Observation,
)
from flyball_agent.counters import thresholds
from flyball_agent.facts import Engine, EngineState, Report
from flyball_agent.scanner import METRIC_NAMES
from flyball_api.controllers.union import Controller
from flyball_api.nodeenergyplan import PlanGpu, PlanPolicy

ALWAYS_NEEDED: Final = frozenset({"requests_running", "generation_tokens"})
"""Without these nobody can say whether an engine works at all, or what its energy is for."""

MakeController = Callable[..., GroupController]


@dataclass(frozen=True, slots=True)
class Group:
    """Cards that get one setpoint: those of one tensor-parallel group, or one card.

    Attributes:
        key: the same for as long as the controller may go on with what it has learnt.
        policy: theirs.
        entries: their grants, by UUID.
        engine: where their engine is scraped; None when the plan gives no address.
    """

    key: tuple[Any, ...]
    policy: PlanPolicy
    entries: tuple[PlanGpu, ...]
    engine: Engine | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows for a group.

    Attributes:
        setpoint: what to write, fail-safe included.
        would: what Enforce would write.
        faults: code -> sentence, for each card of the group.
    """

    setpoint: GroupSetpoint
    would: GroupSetpoint
    faults: Mapping[str, str]


def engine_of(policy: PlanPolicy, entry: PlanGpu) -> Engine | None:
    """Where the engine on this GPU is scraped."""
    if entry.pod_ip is None:
        return None
    return Engine(entry.pod_ip, policy.engine.port, policy.engine.metrics_path)


def groups_of(policies: Mapping[str, PlanPolicy], entries: Sequence[PlanGpu]) -> list[Group]:
    """The groups of the entries that are driven or watched; released ones are in none."""
    members: dict[tuple[Any, ...], list[PlanGpu]] = {}
    for entry in sorted(entries, key=lambda entry: entry.uuid):
        policy = policies.get(entry.policy)
        if policy is None or entry.action == "Release":
            continue
        key = (policy.uid, policy.name, entry.group or entry.uuid, entry.role, entry.action, _spec(policy.controller))
        members.setdefault(key, []).append(entry)
    groups = []
    for key, cards in members.items():
        policy = policies[cards[0].policy]
        engine = next((engine for card in cards if (engine := engine_of(policy, card)) is not None), None)
        groups.append(Group(key, policy, tuple(cards), engine))
    return groups


def _spec(controller: Controller) -> str:
    return controller.model_dump_json()


def limits_of(group: Group, cards: Mapping[str, Report]) -> ControlLimits | None:
    """What every card of the group takes and the policy allows; None while a card is not known."""
    known = [cards[entry.uuid] for entry in group.entries if entry.uuid in cards]
    if len(known) < len(group.entries):
        return None
    low = max(card["sm_min_mhz"] for card in known)
    high = min(card["sm_max_mhz"] for card in known)
    allowed = group.policy.sm_clock
    low = min(max(low, allowed.min or low), high)
    high = max(min(high, allowed.max or high), low)
    caps = [entry.cap_watts for entry in group.entries if entry.cap_watts is not None]
    return ControlLimits(low, high, min(caps, default=None))


def reading_of(report: Report | None) -> GpuReading:
    """A card's reading as controllers see it."""
    sample = None if report is None else report["sample"]
    if report is None or sample is None:
        return GpuReading()
    return GpuReading(
        power_watts=sample["power_average_watts"] or sample["power_instant_watts"],
        sm_mhz=sample["sm_mhz"],
        utilisation_percent=sample["utilisation_percent"],
        cap_limited=report["cap_limited"],
        energy_joules=sample["energy_joules"],
    )


class GroupDriver:
    """Runs the controllers of all groups.

    Args:
        make: makes a controller from a policy's `controller` and `observe`.
    """

    def __init__(self, make: MakeController) -> None:
        self._make = make
        self._controllers: dict[tuple[Any, ...], GroupController] = {}
        self._decisions: dict[tuple[Any, ...], tuple[ControlLimits, float, Decision]] = {}

    def keep(self, groups: Sequence[Group]) -> None:
        """Forget the controllers of groups that are gone."""
        keys = {group.key for group in groups}
        self._controllers = {key: value for key, value in self._controllers.items() if key in keys}
        self._decisions = {key: value for key, value in self._decisions.items() if key in keys}

    def next_wake(self) -> float | None:
        """When the first controller wants to be asked again, in monotonic seconds."""
        return min((wake for _, wake, _ in self._decisions.values()), default=None)

    def outcome(
        self,
        group: Group,
        limits: ControlLimits,
        reports: Mapping[str, Report],
        state: EngineState | None,
        now: float,
    ) -> Outcome:
        """What to do with a group now.

        Args:
            group: which.
            limits: of `limits_of`.
            reports: the actuator's newest, by UUID.
            state: of the group's engine; None when it is not scraped.
            now: monotonic seconds.
        """
        controller = self._controllers.get(group.key)
        if controller is None:
            observe = group.entries[0].action == "Observe"
            controller = self._make(group.policy.controller, observe=observe)
            self._controllers[group.key] = controller
        faults = _faults_of(group, controller.requires, state, now)
        earlier = self._decisions.get(group.key)
        if earlier is not None and earlier[0] == limits and now < earlier[1]:
            decision = earlier[2]
        else:
            decision = controller.decide(_observe(group, reports, state, now), limits, now)
            self._decisions[group.key] = (limits, now + decision.next_wake_seconds, decision)
        would = decision.setpoint if decision.would is None else decision.would
        if decision.degraded:
            faults["Degraded"] = "; ".join(decision.degraded)
        if "MetricsStale" in faults or "MetricMissing" in faults:
            # The safe state for the SLO is full clocks; the cap is the operator's grant and stays.
            return Outcome(UNLOCKED, UNLOCKED, faults)
        return Outcome(decision.setpoint, would, faults)


def _observe(group: Group, reports: Mapping[str, Report], state: EngineState | None, now: float) -> Observation:
    sample = None if state is None else state.sample
    return Observation(
        role=group.entries[0].role,
        gpus=tuple(reading_of(reports.get(entry.uuid)) for entry in group.entries),
        engine=sample,
        engine_age_seconds=None if state is None or state.at is None else state.age_seconds(now),
        missing=() if sample is None else sample.missing,
    )


def _faults_of(group: Group, requires: frozenset[str], state: EngineState | None, now: float) -> dict[str, str]:
    patience = group.policy.fail_safe.metrics_stale_seconds
    if group.engine is None:
        return {"MetricsStale": f"policy {group.policy.name} gives no address of the pod: clocks stay unlocked"}
    if state is None:
        return {}
    age = state.age_seconds(now)
    if age > patience:
        why = f" ({state.error})" if state.error else ""
        return {
            "MetricsStale": f"{group.engine.url} has given no metrics for more than {patience} s{why}: clocks are"
            " unlocked until it answers"
        }
    if state.sample is None:
        return {}
    needed = requires | ALWAYS_NEEDED | thresholds(group.policy.slo).keys()
    missing = sorted(METRIC_NAMES[name] for name in needed & set(state.sample.missing))
    if not missing:
        return {}
    return {
        "MetricMissing": f"{group.engine.url} lacks {', '.join(missing)}: clocks stay unlocked; serve the metric, or"
        " drop the objective that needs it"
    }
