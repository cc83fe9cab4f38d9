"""GPU groups: which cards share a setpoint, what their controller may choose and sees, and when it must not control."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.controllers.base import ControlLimits, Event, GpuReading, Observation, Setup, Targets
from flyball_agent.counters import thresholds
from flyball_agent.facts import Engine, EngineState, Report
from flyball_agent.scanner import METRIC_NAMES, EngineSample
from flyball_agent.setups import Shelf, seed_of, setup_of, targets_of
from flyball_api.controllers.union import Controller
from flyball_api.nodeenergyplan import PlanGpu, PlanPolicy

ALWAYS_NEEDED: Final = frozenset({"requests_running", "generation_tokens"})
"""Without these nobody can say whether an engine works at all, or what its energy is for."""


@dataclass(frozen=True, slots=True)
class Group:
    """Cards that get one setpoint: those of one tensor-parallel group, or one card.

    Attributes:
        key: the same for as long as the controller may go on with what it has learnt.
        policy: theirs.
        entries: their grants, by UUID.
        engine: where their engine is scraped; None when the plan gives no address.
        targets: what the policy promises.
        needed: families that its objectives cannot be judged without.
        seed: of everything random in its controller.
        profile: name of the profile that the policy gives; None: none.
    """

    key: tuple[Any, ...]
    policy: PlanPolicy
    entries: tuple[PlanGpu, ...]
    engine: Engine | None
    targets: Targets
    needed: frozenset[str]
    seed: int
    profile: str | None

    @property
    def observed(self) -> bool:
        """Whether it is only said what would be done."""
        return self.entries[0].action == "Observe"


def lineage(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is the same of a group's key whether the group is driven or only watched."""
    policy_uid, policy, cards, role, _action, spec = key
    return policy_uid, policy, cards, role, spec


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
        groups.append(
            Group(
                key,
                policy,
                tuple(cards),
                engine,
                targets=targets_of(policy.slo),
                needed=ALWAYS_NEEDED | thresholds(policy.slo).keys(),
                seed=seed_of(policy.uid, (card.uuid for card in cards)),
                profile=getattr(policy.controller.parameters, "profile", None),
            )
        )
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
    return ControlLimits(low, high, min(caps, default=None), group.targets)


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


def observe(
    group: Group, reports: Mapping[str, Report], state: EngineState | None, now: float, event: Event | None = None
) -> Observation:
    """What the group's controller is shown."""
    sample = None if state is None else state.sample
    return Observation(
        role=group.entries[0].role,
        gpus=tuple(reading_of(reports.get(entry.uuid)) for entry in group.entries),
        engine=sample,
        engine_age_seconds=None if state is None or state.at is None else state.age_seconds(now),
        missing=() if sample is None else sample.missing,
        board=None if state is None else state.board,
        event=event,
    )


def metric_faults(group: Group, requires: frozenset[str], state: EngineState | None, now: float) -> dict[str, str]:
    """Why no controller may control by what is known of the engine: code -> sentence."""
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
    if state.sample is None or not state.sample.missing:
        return {}
    missing = sorted(METRIC_NAMES[name] for name in (requires | group.needed) & set(state.sample.missing))
    if not missing:
        return {}
    return {
        "MetricMissing": f"{group.engine.url} lacks {', '.join(missing)}: clocks stay unlocked; serve the metric, or"
        " drop the objective that needs it"
    }


class Setups:
    """What every group's controller is told; the same object for as long as nothing of it changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[tuple[Report, ...], Shelf, str, Setup]] = {}

    def keep(self, keys: Collection[tuple[Any, ...]]) -> None:
        """Forget the groups of other keys."""
        self._known = {key: known for key, known in self._known.items() if key in keys}

    def of(self, group: Group, cards: tuple[Report, ...], shelf: Shelf, page: EngineSample | None) -> Setup:
        """What the controller of a group is told.

        Args:
            group: which.
            cards: of the group, in the order of its entries.
            shelf: profiles that were read; the same object: the same profiles.
            page: newest of the group's engine; None: there is none yet.
        """
        known = self._known.get(group.key)
        # A page without a model name is no news of the model.
        model = (page.model if page is not None else "") or ("" if known is None else known[2])
        if known is not None and known[1] is shelf and known[2] == model and _are(cards, known[0]):
            return known[3]
        setup = setup_of(cards, group.seed, profile=group.profile, shelf=shelf, model=model)
        self._known[group.key] = (cards, shelf, model, setup)
        return setup


def _are(cards: tuple[Report, ...], before: tuple[Report, ...]) -> bool:
    # A group grows and shrinks: a card of it may still be on its way out of another policy.
    return len(cards) == len(before) and all(card is other for card, other in zip(cards, before, strict=True))
