"""The operator in virtual time: the real store and the real `plan`, with the loop of `flyball_operator.loop`.

A turn looks, plans and writes; its writes go out sixteen at a time, and the next turn waits until all are answered. An
operator that dies leaves its Lease held; the next one starts with an empty memory and the next epoch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from flyball_operator.planning import Actions, plan
from flyball_operator.projections import LeaseView
from flyball_operator.state import Instant, Memory, Node, Plan, Pod
from flyball_operator.store import ClusterStore, Sources
from flyball_sim.world import delays as timing
from flyball_sim.world.agents import wall
from flyball_sim.world.apiserver import ApiServer, ConflictError, Raw, plan_json
from flyball_sim.world.cpu import CpuSeconds, Stopwatch
from flyball_sim.world.delays import Delays, Link
from flyball_sim.world.events import EventQueue

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(slots=True)
class _Followed:
    """What the store asks of a reflector."""

    synced: bool = False
    stale: bool = True


class DeposedError(RuntimeError):
    """A plan carries a newer epoch than the only operator of this world: a fault of the planner or of the world."""


class Leader:
    """The operator.

    Args:
        nodes: as its reflector shows them.
        pods: likewise, by namespace/name.
        queue: time.
        api: the API server.
        delays: ranges of its messages.
        seed: of their draws.
        cpu: where the time of real code is added.
        stopwatch: that measures it.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        pods: Mapping[str, Pod],
        *,
        queue: EventQueue,
        api: ApiServer,
        delays: Delays,
        seed: int,
        cpu: CpuSeconds,
        stopwatch: Stopwatch,
    ) -> None:
        self._nodes = dict(nodes)
        self._planning_seconds = timing.PLANNING_SECONDS_PER_GPU * sum(node.gpus for node in nodes.values())
        self.pods = dict(pods)
        self._queue = queue
        self._api = api
        self._delays = delays
        self._link = Link(seed, "operator")
        self._cpu = cpu
        self._stopwatch = stopwatch
        self._life = 0
        self._free_at = float("-inf")
        self.turns = 0
        """Plans made so far."""
        self._begin()

    def _begin(self) -> None:
        self._store = ClusterStore(self._queue.monotonic)
        self._plans: dict[str, Plan] = {}
        self._leases: dict[str, LeaseView] = {}
        self._followed = _Followed()
        self._memory = Memory()
        self._epoch = 0
        self._turn = 0
        self._turning = False
        self._gathering = False
        self._watch = self._api.watch(f"operator/{self._life}")

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The process starts: it lists everything, waits for the Lease, leads."""
        self._life += 1
        self._watch.open = False
        self._begin()
        self._store.connect(
            Sources(
                nodes=self._nodes,
                pods=self.pods,
                plans=self._plans,
                leases=self._leases,
                switch=_NONE,
                followed=(self._followed,),
                leases_followed=self._followed,
            )
        )
        self._later(self._link.draw(self._delays.list_all), self._list)

    def kill(self) -> None:
        """The process dies; its Lease stays held until it runs out."""
        self._life += 1
        self._watch.open = False
        self._free_at = self._queue.now + timing.OPERATOR_LEASE_SECONDS

    def _later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        self._queue.after(seconds, self._alive, self._life, act, arguments)

    def _alive(self, life: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life == self._life:
            act(*arguments)

    def _list(self) -> None:
        api = self._api
        if not api.answers:
            self._later(api.gone_until - self._queue.now, self._list)
            return
        self._plans.update(api.plans)
        for lease in api.leases.values():
            self._take_lease(lease)
        self._followed.synced, self._followed.stale = True, False
        self._store.policies_listed(list(api.policies.values()), str(10**9))
        api.follow_plans(self._watch, self._take_plan)
        api.follow_leases(self._watch, self._take_lease)
        api.follow_policies(self._watch, self._take_policy)
        held = max(0.0, self._free_at - self._queue.now)
        self._later(held + self._link.draw(self._delays.acquire), self._lead)

    def _lead(self) -> None:
        self._epoch = self._store.highest_epoch() + 1
        self._store.wake()
        self._look()

    # -- news ----------------------------------------------------------------------------------------------

    def _take_plan(self, new: Plan) -> None:
        old = self._plans.get(new.name)
        self._plans[new.name] = new
        self._store.changed(new.name, old, new)
        self._look()

    def _take_lease(self, new: LeaseView) -> None:
        old = self._leases.get(new.node)
        self._leases[new.node] = new
        self._store.lease_changed(new.node, old, new)
        self._look()

    def _take_policy(self, raw: Raw) -> None:
        self._store.policy_seen(raw)
        self._look()

    # -- the loop ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Something may have changed: turn soon, unless a turn is under way or about to begin."""
        if self._epoch and not self._turning and not self._gathering and self._store.dirty.is_set():
            self._gathering = True
            self._wait(timing.LOOP_GATHER_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._turn += 1
        self._later(seconds, self._plan, self._turn)

    def _plan(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._gathering, self._turning = False, True
        self._store.dirty.clear()
        began = self._stopwatch()
        state = self._store.snapshot(self._epoch, self._memory)
        actions = plan(state, Instant(self._queue.monotonic(), wall(self._queue.now)))
        self._cpu.planner += self._stopwatch() - began
        if actions.deposed_by is not None:
            raise DeposedError(f"a plan carries epoch {actions.deposed_by}, and this only operator has {self._epoch}")
        self._memory = actions.memory
        self.turns += 1
        self._later(self._planning_seconds, self._write, actions)

    def _write(self, actions: Actions) -> None:
        jobs: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        jobs += [(self._create, (entry.name, entry.spec)) for entry in actions.creates]
        jobs += [(self._apply, (entry.name, entry.resource_version, entry.spec)) for entry in actions.plans]
        jobs += [(self._finalize, (entry.policy, entry.present)) for entry in actions.finalizers]
        jobs += [(self._tell_status, (entry.policy, entry.status.to_json())) for entry in actions.statuses]
        slots = [self._queue.now] * timing.WRITES_AT_ONCE
        last = self._queue.now
        for act, arguments in jobs:
            lands = heapq.heappop(slots) + self._link.draw(self._delays.api_write)
            heapq.heappush(slots, lands)
            last = max(last, lands)
            self._queue.at(lands, self._alive, self._life, act, arguments)
        self._queue.at(last, self._alive, self._life, self._turned, ())

    def _turned(self) -> None:
        self._turning = False
        if self._store.dirty.is_set():
            self._look()
        else:
            self._wait(timing.LOOP_PERIOD_SECONDS)

    def _create(self, name: str, spec: Any) -> None:
        if self._api.answers and name not in self._api.plans:
            self._store.plan_written(plan_json(self._api.create_plan(name, spec)))

    def _apply(self, name: str, resource_version: str, spec: Any) -> None:
        if not self._api.answers:
            # Nobody says whether it was carried out; in this world it was not.
            self._store.plan_unanswered(name, spec)
            return
        try:
            written = self._api.apply_plan(name, resource_version, spec)
        except ConflictError:
            return
        self._store.plan_written(plan_json(written))

    def _finalize(self, name: str, present: bool) -> None:
        if self._api.answers:
            self._store.policy_seen(self._api.set_finalizer(name, present=present))

    def _tell_status(self, name: str, status: Raw) -> None:
        if self._api.answers:
            self._store.policy_seen(self._api.put_policy_status(name, status))
