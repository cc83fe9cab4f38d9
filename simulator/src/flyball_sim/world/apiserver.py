"""The API server as operator and agents see it: versions, conditional writes, watches that lag behind.

It keeps EnergyPolicies as JSON, as kopf hands them on, and NodeEnergyPlans as the models that both sides parse them
into; the spec of every plan the operator writes goes through JSON and back, where the CRD's rules are checked.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flyball_api.names import FINALIZER
from flyball_api.nodeenergyplan import NodeEnergyPlanSpec, NodeEnergyPlanStatus
from flyball_operator.projections import LeaseView
from flyball_operator.state import Plan
from flyball_sim.world.delays import Delays, InOrder, Link
from flyball_sim.world.events import EventQueue

Raw = dict[str, Any]


class ConflictError(Exception):
    """The object is not any more what the write was decided on."""


@dataclass(slots=True)
class Watch:
    """One watcher: its events arrive in order, each after a delay of its own.

    Attributes:
        delays: ranges.
        link: draws.
        order: of arrival.
        news: (what takes it, an object), the oldest first: none overtakes another, however late it gets.
        open: False once the watcher is gone.
        extra_seconds: on top of every delay from now on (a slow watch).
    """

    delays: Delays
    link: Link
    order: InOrder = field(default_factory=InOrder)
    news: deque[tuple[Callable[[Any], None], Any]] = field(default_factory=deque)
    open: bool = True
    extra_seconds: float = 0.0


class ApiServer:
    """Keeps objects and tells watchers.

    Args:
        queue: time.
        delays: of writes and watches.
        seed: of their draws.
    """

    def __init__(self, queue: EventQueue, delays: Delays, seed: int) -> None:
        self._queue = queue
        self._delays = delays
        self._seed = seed
        self._version = 0
        self.gone_until = float("-inf")
        """Nothing is answered and no event sent before this time."""
        self.policies: dict[str, Raw] = {}
        self.plans: dict[str, Plan] = {}
        self.leases: dict[str, LeaseView] = {}
        self._policy_watches: list[tuple[Watch, Callable[[Raw], None]]] = []
        self._plan_watches: dict[str, list[tuple[Watch, Callable[[Plan], None]]]] = {}
        self._lease_watches: list[tuple[Watch, Callable[[LeaseView], None]]] = []
        self.on_policy: list[Callable[[Raw], None]] = []
        """Called at once with every policy written: for what judges a run, not for what takes part in it."""

    @property
    def answers(self) -> bool:
        """Whether it can be reached now."""
        return self._queue.now >= self.gone_until

    def _next(self) -> int:
        self._version += 1
        return self._version

    # -- watches -------------------------------------------------------------------------------------------

    def watch(self, name: str) -> Watch:
        """A watcher of this name; several kinds may come over one."""
        return Watch(self._delays, Link(self._seed, f"watch/{name}"))

    def follow_policies(self, watch: Watch, deliver: Callable[[Raw], None]) -> None:
        """Every policy from now on as it changes."""
        self._policy_watches = [entry for entry in self._policy_watches if entry[0].open] + [(watch, deliver)]

    def follow_plans(self, watch: Watch, deliver: Callable[[Plan], None], name: str = "") -> None:
        """Plans as they change: the one of this name, or with an empty name all."""
        others = [entry for entry in self._plan_watches.get(name, []) if entry[0].open]
        self._plan_watches[name] = [*others, (watch, deliver)]

    def follow_leases(self, watch: Watch, deliver: Callable[[LeaseView], None]) -> None:
        """Agents' Leases as they change."""
        self._lease_watches = [entry for entry in self._lease_watches if entry[0].open] + [(watch, deliver)]

    def _tell(self, watchers: Iterable[tuple[Watch, Callable[[Any], None]]], news: Any) -> None:
        for watch, deliver in watchers:
            if watch.open:
                seconds = watch.link.draw(watch.delays.watch) + watch.extra_seconds
                watch.news.append((deliver, news))
                self._queue.at(watch.order.arrive(self._queue.now + seconds), self._deliver, watch)

    def _deliver(self, watch: Watch) -> None:
        """Hand out the oldest news of a watch."""
        if not watch.open:
            return
        if not self.answers:
            self._queue.at(self.gone_until, self._deliver, watch)
            return
        deliver, news = watch.news.popleft()
        deliver(news)

    # -- policies ------------------------------------------------------------------------------------------

    def put_policy(self, raw: Mapping[str, Any]) -> None:
        """A person applies a policy: a new object, or a new spec of the one of this name."""
        name = raw["metadata"]["name"]
        old = self.policies.get(name)
        new = copy.deepcopy(dict(raw)) if old is None else {**old, "spec": copy.deepcopy(raw["spec"])}
        generation = 1 if old is None else old["metadata"]["generation"] + 1
        new["metadata"] = {**new["metadata"], "generation": generation}
        self._store_policy(new)

    def set_finalizer(self, name: str, *, present: bool) -> Raw:
        """The operator puts its finalizer on, or takes it off."""
        old = self.policies[name]
        return self._store_policy(
            {**old, "metadata": {**old["metadata"], "finalizers": [FINALIZER] if present else []}}
        )

    def put_policy_status(self, name: str, status: Raw) -> Raw:
        """The operator writes a policy's status."""
        return self._store_policy({**self.policies[name], "status": status})

    def _store_policy(self, new: Raw) -> Raw:
        new["metadata"] = {**new["metadata"], "resourceVersion": str(self._next())}
        self.policies[new["metadata"]["name"]] = new
        self._tell(self._policy_watches, new)
        for hear in self.on_policy:
            hear(new)
        return new

    # -- plans ---------------------------------------------------------------------------------------------

    def create_plan(self, name: str, spec: NodeEnergyPlanSpec) -> Plan:
        """The operator creates a plan.

        Raises:
            ConflictError: there is one.
        """
        if name in self.plans:
            raise ConflictError(f"plan {name} exists")
        return self._store_plan(Plan(name, "0", checked(spec)))

    def apply_plan(self, name: str, resource_version: str, spec: NodeEnergyPlanSpec) -> Plan:
        """The operator writes a plan's spec.

        Raises:
            ConflictError: the plan has another version, or a newer leader's epoch.
        """
        old = self.plans[name]
        if old.resource_version != resource_version or spec.leader_epoch < old.spec.leader_epoch:
            raise ConflictError(f"plan {name} has version {old.resource_version}, not {resource_version}")
        return self._store_plan(replace(old, spec=checked(spec)))

    def put_plan_status(self, name: str, status: NodeEnergyPlanStatus) -> None:
        """The agent writes its plan's status."""
        self._store_plan(replace(self.plans[name], status=status))

    def _store_plan(self, new: Plan) -> Plan:
        old = self.plans.get(new.name)
        new = replace(new, resource_version=str(self._next()))
        self.plans[new.name] = new
        self._tell(self._plan_watches.get("", ()), new)
        if old is None or old.spec is not new.spec:
            # The agent's own view leaves its status out, so that its writes are no news to it.
            self._tell(self._plan_watches.get(new.name, ()), new)
        return new

    # -- leases --------------------------------------------------------------------------------------------

    def put_lease(self, node: str, session: str) -> None:
        """An agent renews its Lease."""
        lease = self.leases[node] = LeaseView(node, session, str(self._next()))
        self._tell(self._lease_watches, lease)


def checked(spec: NodeEnergyPlanSpec) -> NodeEnergyPlanSpec:
    """The spec as the API server gives it back.

    Raises:
        pydantic.ValidationError: the CRD refuses it; a fault of the operator.
    """
    return NodeEnergyPlanSpec.model_validate(spec.to_json())


def plan_json(plan: Plan) -> Raw:
    """A plan as the API server answers a write with it."""
    return {
        "metadata": {"name": plan.name, "resourceVersion": plan.resource_version},
        "spec": plan.spec.to_json(),
        "status": plan.status.to_json(),
    }
