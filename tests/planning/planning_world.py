"""A small world for planner tests: builders of states, and a scripted cluster whose agents obey when told to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flyball_api.energypolicy import EnergyPolicySpec
from flyball_api.nodeenergyplan import (
    Acknowledgement,
    GpuStatus,
    NodeEnergyPlanSpec,
    NodeEnergyPlanStatus,
    PodReference,
)
from flyball_operator.planning import Actions, plan
from flyball_operator.state import Agent, ClusterState, Instant, Memory, Node, Plan, Pod, Policy, Switch

H100 = "NVIDIA H100 80GB HBM3"
CAP_MIN, CAP_MAX = 200, 700
START = datetime(2026, 11, 21, tzinfo=UTC)


def spec_of(**changes: Any) -> EnergyPolicySpec:
    """A policy spec in JSON terms: Enforce, `app: llm`, decode locked at 1200 MHz."""
    base: dict[str, Any] = {
        "mode": "Enforce",
        "selector": {"matchLabels": {"app": "llm"}},
        "controller": {
            "type": "Fixed",
            "fixed": {"clocks": [{"role": "unified", "minMegahertz": 1200, "maxMegahertz": 1200}]},
        },
    }
    return EnergyPolicySpec.model_validate(base | changes)


def policy_of(name: str = "p", **changes: Any) -> Policy:
    """A policy with our finalizer already on it."""
    fields = {"deleting", "has_finalizer", "generation", "created", "refusal", "uid", "status"}
    own = {key: changes.pop(key) for key in list(changes) if key in fields}
    return replace(Policy(name=name, uid=f"uid-{name}", spec=spec_of(**changes), has_finalizer=True), **own)


def pod_of(name: str, node: str = "n0", **changes: Any) -> Pod:
    base = Pod(
        uid=f"uid-{name}",
        namespace="default",
        name=name,
        node=node,
        ip="10.0.0.1",
        labels={"app": "llm"},
        running=True,
        gpus=1,
    )
    return replace(base, **changes)


@dataclass
class Card:
    """A GPU: what is in force on it is `cap`, whatever anyone believes."""

    uuid: str
    pod: str | None = None
    cap: int = CAP_MAX
    draw: int = 80
    cap_limited: bool = False
    faults: tuple[dict[str, str], ...] = ()
    action: str = "none"
    policy: str = ""


@dataclass
class SimNode:
    """A node with its agent. The agent acts on `seen`, the spec that reached it, and reports when told to."""

    name: str
    cards: list[Card]
    session: str = ""
    seen: NodeEnergyPlanSpec | None = None
    acknowledged: dict[str, tuple[int, int]] = field(default_factory=dict)

    def carry_out(self) -> None:
        """Apply what it has seen to its cards; acknowledgements are known to it, not yet to anyone else."""
        if self.seen is None:
            return
        entries = {entry.uuid: entry for entry in self.seen.gpus}
        for card in self.cards:
            entry = entries.get(card.uuid)
            if entry is None:
                continue
            if entry.action == "Enforce" and entry.cap_watts is not None:
                card.cap = min(max(entry.cap_watts, CAP_MIN), CAP_MAX)
            if entry.action == "Release":
                card.cap = CAP_MAX
            card.action, card.policy = entry.action, entry.policy
            self.acknowledged[card.uuid] = (self.seen.leader_epoch, entry.grant)

    def status(self) -> NodeEnergyPlanStatus:
        gpus = []
        for index, card in enumerate(self.cards):
            given = self.acknowledged.get(card.uuid)
            gpus.append(
                GpuStatus(
                    uuid=card.uuid,
                    index=index,
                    product=H100,
                    cap_min_watts=CAP_MIN,
                    cap_max_watts=CAP_MAX,
                    cap_default_watts=CAP_MAX,
                    pod=PodReference(namespace="default", name=card.pod, container="main") if card.pod else None,
                    acknowledged=None if given is None else Acknowledgement(leader_epoch=given[0], grant=given[1]),
                    enforced_cap_watts=card.cap,
                    draw_watts=card.draw,
                    cap_limited=card.cap_limited,
                    faults=card.faults,
                )
            )
        return NodeEnergyPlanStatus.model_validate({"agentSession": self.session, "gpus": gpus})


class World:
    """The API server as the operator sees it, and the nodes behind it."""

    def __init__(self, nodes: int = 2, gpus: int = 2, epoch: int = 1) -> None:
        self.seconds = 1000.0
        self.epoch = epoch
        self.switch = Switch.ENABLED
        self.memory = Memory()
        self.policies: dict[str, Policy] = {}
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, SimNode] = {}
        self.plans: dict[str, Plan] = {}
        self.agents: dict[str, Agent] = {}
        self.versions = 1
        self.last = Actions()
        for n in range(nodes):
            name = f"n{n}"
            cards = [Card(f"GPU-{n}-{g}", pod=f"pod-{n}-{g}") for g in range(gpus)]
            self.nodes[name] = SimNode(name, cards)
            for card in cards:
                pod = pod_of(str(card.pod), name)
                self.pods[pod.key] = pod
            self.start_agent(name)
            self.plans[name] = Plan(name, "1", NodeEnergyPlanSpec(leader_epoch=epoch))
            self.report(name)

    @property
    def now(self) -> Instant:
        return Instant(self.seconds, START + timedelta(seconds=self.seconds))

    def add(self, *policies: Policy) -> None:
        self.policies |= {policy.name: policy for policy in policies}

    def start_agent(self, name: str) -> None:
        node = self.nodes[name]
        self.versions += 1
        node.session = f"session-{self.versions}"
        node.acknowledged = {}
        self.beat(name)

    def beat(self, name: str) -> None:
        old = self.agents.get(name)
        same = old is not None and old.session == self.nodes[name].session
        first = old.first_seen_seconds if same else self.seconds
        self.agents[name] = Agent(self.nodes[name].session, first, self.seconds)

    def report(self, name: str) -> None:
        """The agent's status reaches the API server."""
        self.versions += 1
        old = self.plans[name]
        self.plans[name] = replace(old, resource_version=str(self.versions), status=self.nodes[name].status())

    def deliver(self, name: str) -> None:
        """The plan's spec reaches the agent, which carries it out and reports."""
        self.nodes[name].seen = self.plans[name].spec
        self.nodes[name].carry_out()
        self.report(name)

    def state(self) -> ClusterState:
        return ClusterState(
            synced=True,
            leader_epoch=self.epoch,
            switch=self.switch,
            policies=dict(self.policies),
            pods=dict(self.pods),
            nodes={name: Node(name, len(node.cards), "NVIDIA-H100-80GB-HBM3") for name, node in self.nodes.items()},
            plans=dict(self.plans),
            agents=dict(self.agents),
            memory=self.memory,
        )

    def tick(self, seconds: float = 0.1, *, beat: bool = True) -> Actions:
        """Time passes, live agents beat, the operator plans and every write succeeds."""
        self.seconds += seconds
        if beat:
            for name in self.nodes:
                self.beat(name)
        self.last = plan(self.state(), self.now)
        self.memory = self.last.memory
        self.write(self.last)
        return self.last

    def write(self, actions: Actions) -> None:
        for create in actions.creates:
            self.plans[create.name] = Plan(create.name, "1", create.spec)
        for write in actions.plans:
            old = self.plans[write.name]
            assert write.resource_version == old.resource_version, "a write rests on the version it was decided on"
            assert write.spec.leader_epoch >= old.spec.leader_epoch, "the API server refuses an older epoch"
            policies = {policy.name for policy in write.spec.policies}
            assert all(entry.policy in policies for entry in write.spec.gpus), "the API server refuses such a plan"
            self.versions += 1
            self.plans[write.name] = replace(old, resource_version=str(self.versions), spec=write.spec)
        for change in actions.finalizers:
            old_policy = self.policies[change.policy]
            if not change.present and old_policy.deleting:
                del self.policies[change.policy]
            else:
                self.policies[change.policy] = replace(old_policy, has_finalizer=change.present)
        for status in actions.statuses:
            if status.policy in self.policies:
                self.policies[status.policy] = replace(self.policies[status.policy], status=status.status)

    def settle(self, rounds: int = 8, seconds: float = 0.5) -> None:
        """Everybody does what they should for a while."""
        for _ in range(rounds):
            self.tick(seconds)
            for name in self.nodes:
                self.deliver(name)

    def caps(self) -> dict[str, int | None]:
        """Granted caps by GPU."""
        return {entry.uuid: entry.cap_watts for plan_ in self.plans.values() for entry in plan_.spec.gpus}

    def entries(self) -> dict[str, Any]:
        return {entry.uuid: entry for plan_ in self.plans.values() for entry in plan_.spec.gpus}

    def condition(self, policy: str, kind: str) -> Any:
        found = {condition.type: condition for condition in self.policies[policy].status.conditions}
        return found.get(kind)

    def cards(self) -> list[Card]:
        return [card for node in self.nodes.values() for card in node.cards]
