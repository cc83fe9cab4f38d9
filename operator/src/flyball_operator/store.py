"""The one picture of the cluster: what reflectors, kopf and our own writes say, put together.

Everything here runs in the event loop's thread and never blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from flyball_api.nodeenergyplan import NodeEnergyPlanSpec
from flyball_operator.accepting import accept
from flyball_operator.grants import same_spec
from flyball_operator.projections import LeaseView, plan_of, switch_of
from flyball_operator.state import Agent, ClusterState, Memory, Node, Plan, Pod, Policy

WRITTEN_SECONDS: Final = 10.0
"""How long what the API server answered to a write stands beside what the reflector shows. Normally it shows the same
within milliseconds; after a restore of etcd it never does."""

UNCERTAIN_SECONDS: Final = 65.0
"""An unanswered write cannot be carried out later than this: the API server's own request timeout is 60 s."""


class Followed(Protocol):
    """What the store needs of a reflector besides its content."""

    @property
    def synced(self) -> bool:
        """One whole list has been read."""
        ...

    @property
    def stale(self) -> bool:
        """The content may be behind."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Live, read-only views of what the reflectors hold, and the reflectors themselves.

    Attributes:
        nodes: by name.
        pods: by namespace/name.
        plans: by name.
        leases: by namespace/name.
        switch: by namespace/name; at most one.
        followed: all of them.
        leases_followed: the one of `leases`.
    """

    nodes: Mapping[str, Node]
    pods: Mapping[str, Pod]
    plans: Mapping[str, Plan]
    leases: Mapping[str, LeaseView]
    switch: Mapping[str, str]
    followed: tuple[Followed, ...]
    leases_followed: Followed


class ClusterStore:
    """Holds what is known, and tells when it changed.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sources: Sources | None = None
        self._dirty = asyncio.Event()
        self._policies: dict[str, Policy] = {}
        self._policy_versions: dict[str, int] = {}
        self._gone_versions: dict[str, int] = {}
        self._policies_listed = asyncio.Event()
        self._agents: dict[str, Agent] = {}
        self._written: dict[str, tuple[Plan, float]] = {}
        self._uncertain: dict[str, tuple[NodeEnergyPlanSpec, float]] = {}
        self._log = structlog.get_logger("flyball.store")

    def connect(self, sources: Sources) -> None:
        """Read from these from now on; reflectors call back into the store, so they are made after it."""
        self._sources = sources

    @property
    def dirty(self) -> asyncio.Event:
        """Set when something changed that a plan may rest on; the loop clears it."""
        return self._dirty

    @property
    def synced(self) -> bool:
        """Every kind has been listed to its end, and nothing is known to be behind."""
        sources = self._sources
        if sources is None or not self._policies_listed.is_set():
            return False
        return all(entry.synced and not entry.stale for entry in sources.followed)

    async def wait_policies_listed(self) -> None:
        """Returns once all policies have been listed."""
        await self._policies_listed.wait()

    def wake(self) -> None:
        """There is reason to plan now."""
        self._dirty.set()

    def changed(self, key: str, old: object, new: object) -> None:
        """`on_change` of the reflectors whose objects a plan may rest on at once."""
        del key, old, new
        self._dirty.set()

    def lease_changed(self, key: str, old: LeaseView | None, new: LeaseView | None) -> None:
        """`on_change` of the agents' Leases. A beat alone wakes nobody; a new session or a gone Lease does."""
        del key
        now = self._clock()
        if new is None:
            if old is not None:
                self._agents.pop(old.node, None)
            self._dirty.set()
            return
        behind = self._sources is None or self._sources.leases_followed.stale
        known = self._agents.get(new.node)
        same = known is not None and known.session == new.session and not behind
        first = known.first_seen_seconds if known is not None and same else now
        # A change that a list shows happened at any time while nobody watched: it proves no life.
        self._agents[new.node] = Agent(new.session, first, None if behind else now)
        if old is None or old.session != new.session:
            self._dirty.set()

    def policy_seen(self, raw: Mapping[str, Any]) -> None:
        """An EnergyPolicy as it is now, from kopf, a list, or the answer to a write of ours."""
        metadata = raw["metadata"]
        name, version = metadata["name"], int(metadata["resourceVersion"])
        if version <= max(self._policy_versions.get(name, 0), self._gone_versions.get(metadata["uid"], 0)):
            return
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            # The answer to taking the last finalizer off shows the object once more; it is gone.
            self._forget_policy(name, metadata["uid"], version)
            return
        self._policies[name] = accept(raw, self._policies.get(name))
        self._policy_versions[name] = version
        self._dirty.set()

    def policy_gone(self, raw: Mapping[str, Any]) -> None:
        """An EnergyPolicy was deleted."""
        metadata = raw["metadata"]
        self._forget_policy(metadata["name"], metadata["uid"], int(metadata["resourceVersion"]))

    def policies_listed(self, items: Iterable[Mapping[str, Any]], version: str) -> None:
        """All EnergyPolicies there are. kopf never notices a deletion that happened while its watch was down."""
        present = set()
        for raw in items:
            present.add(raw["metadata"]["name"])
            self.policy_seen(raw)
        for name in [name for name in self._policies if name not in present]:
            if self._policy_versions[name] <= int(version):
                self._forget_policy(name, self._policies[name].uid, int(version))
        self._gone_versions = {uid: at for uid, at in self._gone_versions.items() if at > int(version)}
        if not self._policies_listed.is_set():
            self._policies_listed.set()
            self._dirty.set()

    def _forget_policy(self, name: str, uid: str, version: int) -> None:
        self._gone_versions[uid] = version
        known = self._policies.get(name)
        if known is not None and known.uid == uid:
            del self._policies[name]
            self._policy_versions.pop(name, None)
            self._dirty.set()

    def plan_written(self, raw: Mapping[str, Any]) -> None:
        """The API server's answer to a write of ours: known before the watch shows it."""
        plan = plan_of(raw)
        self._written[plan.name] = (plan, self._clock())
        self._uncertain.pop(plan.name, None)
        self._dirty.set()

    def plan_unanswered(self, name: str, spec: NodeEnergyPlanSpec) -> None:
        """A write of ours got no answer: it may be carried out yet."""
        self._uncertain[name] = (spec, self._clock())

    def highest_epoch(self) -> int:
        """The highest leader epoch that any plan carries."""
        return max((plan.spec.leader_epoch for plan in self._plans().values()), default=0)

    def snapshot(self, leader_epoch: int, memory: Memory) -> ClusterState:
        """The picture as of now, for one plan."""
        sources = self._sources
        if sources is None:
            return ClusterState(synced=False, leader_epoch=leader_epoch, memory=memory)
        plans = self._plans()
        self._settle(plans)
        if sources.leases_followed.stale:
            # Nobody can be heard now, so nobody's silence counts; and everybody has to prove life afterwards.
            now = self._clock()
            self._agents = {name: Agent(agent.session, now) for name, agent in self._agents.items()}
        return ClusterState(
            synced=self.synced,
            leader_epoch=leader_epoch,
            switch=switch_of(next(iter(sources.switch.values()), None)),
            policies=dict(self._policies),
            pods=dict(sources.pods),
            nodes=dict(sources.nodes),
            plans=plans,
            agents=dict(self._agents),
            uncertain_plans=frozenset(self._uncertain),
            memory=memory,
        )

    def _plans(self) -> dict[str, Plan]:
        plans = dict(self._sources.plans) if self._sources is not None else {}
        now = self._clock()
        for name, (written, at) in list(self._written.items()):
            shown = plans.get(name)
            caught_up = shown is not None and int(shown.resource_version) >= int(written.resource_version)
            if caught_up or now - at > WRITTEN_SECONDS:
                del self._written[name]
            else:
                plans[name] = written
        return plans

    def _settle(self, plans: Mapping[str, Plan]) -> None:
        now = self._clock()
        for name, (spec, at) in list(self._uncertain.items()):
            plan = plans.get(name)
            if now - at > UNCERTAIN_SECONDS or (plan is not None and same_spec(plan.spec, spec)):
                del self._uncertain[name]
