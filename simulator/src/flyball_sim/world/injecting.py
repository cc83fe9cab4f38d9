"""Makes faults happen at their time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatchmethod
from typing import Any

from pydantic import ValidationError

from flyball_api.energypolicy import EnergyPolicySpec
from flyball_sim.world.actuator import VirtualActuator
from flyball_sim.world.agents import VirtualAgent
from flyball_sim.world.apiserver import ApiServer
from flyball_sim.world.cards import Card
from flyball_sim.world.events import EventQueue
from flyball_sim.world.faults import (
    AgentGone,
    ApiGone,
    BudgetCut,
    DelayedGrants,
    Fault,
    FaultError,
    GpuLost,
    OperatorGone,
    StaleMetrics,
    text_of,
)
from flyball_sim.world.layout import Layout
from flyball_sim.world.leader import Leader
from flyball_sim.world.serving import Serving

RENEW_DEADLINE_SECONDS = 10.0
"""`flyball_api.lease.LeaseTiming.renew_deadline_seconds`: a leader that hears nothing for so long ends itself."""


class Injector:
    """Schedules faults on the parts of one world.

    Args:
        layout: what there is.
        queue: time.
        api: the API server.
        agents: by node; none without policies.
        actuators: likewise.
        cards: by node.
        leader: the operator; None without policies.
        serving: the engines.
        silence: (engine, until): its page does not come.
        freeze: (engine, until): its page stays as it is.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        queue: EventQueue,
        api: ApiServer,
        agents: Mapping[str, VirtualAgent],
        actuators: Mapping[str, VirtualActuator],
        cards: Mapping[str, Sequence[Card]],
        leader: Leader | None,
        serving: Serving,
        silence: Callable[[str, float], None],
        freeze: Callable[[str, float], None],
    ) -> None:
        self._layout = layout
        self._queue = queue
        self._api = api
        self._agents = agents
        self._actuators = actuators
        self._cards = cards
        self._leader = leader
        self._serving = serving
        self._silence = silence
        self._freeze = freeze
        self._held_down: Counter[tuple[str, ...]] = Counter()
        self._slowed: dict[str, list[float]] = {}

    def schedule(self, faults: Sequence[Fault]) -> None:
        """Have them happen.

        Raises:
            FaultError: one names what is not there.
        """
        for fault in faults:
            self._schedule(fault)

    def _hold_down(
        self,
        what: tuple[str, ...],
        from_seconds: float,
        until_seconds: float,
        *,
        down: Callable[[], None],
        up: Callable[[], None],
    ) -> None:
        """Something is down between two times; where faults overlap, until the last of them ends."""
        self._queue.at(from_seconds, self._count_down, what, 1, down)
        self._queue.at(until_seconds, self._count_down, what, -1, up)

    def _count_down(self, what: tuple[str, ...], change: int, act: Callable[[], None]) -> None:
        before = self._held_down[what]
        self._held_down[what] = before + change
        if (before == 0) != (before + change == 0):
            act()

    def _stop_leader(self, from_seconds: float, until_seconds: float) -> None:
        if self._leader is not None:
            leader = self._leader
            self._hold_down(("operator",), from_seconds, until_seconds, down=leader.kill, up=leader.start)

    @singledispatchmethod
    def _schedule(self, fault: Any) -> None:
        raise FaultError(f"{fault!r} is no fault of a world")

    @_schedule.register
    def _(self, fault: AgentGone) -> None:
        self._check_node(fault, fault.node)
        agent = self._agents.get(fault.node)
        if agent is not None:
            begin, end = (agent.hang, agent.go_on) if fault.how == "hung" else (agent.kill, agent.start)
            until = fault.at_seconds + fault.for_seconds
            self._hold_down(("agent", fault.node, fault.how), fault.at_seconds, until, down=begin, up=end)

    @_schedule.register
    def _(self, fault: OperatorGone) -> None:
        self._stop_leader(fault.at_seconds, fault.at_seconds + fault.for_seconds)

    @_schedule.register
    def _(self, fault: ApiGone) -> None:
        end = fault.at_seconds + fault.for_seconds
        self._queue.at(fault.at_seconds, self._take_api_away, end)
        if fault.for_seconds > RENEW_DEADLINE_SECONDS:
            self._stop_leader(fault.at_seconds + RENEW_DEADLINE_SECONDS, end)

    def _take_api_away(self, until_seconds: float) -> None:
        self._api.gone_until = max(self._api.gone_until, until_seconds)

    @_schedule.register
    def _(self, fault: GpuLost) -> None:
        self._check_node(fault, fault.node)
        cards = self._cards[fault.node]
        if not 0 <= fault.gpu < len(cards):
            raise FaultError(f"{text_of(fault)}: {fault.node} has GPUs 0 to {len(cards) - 1}: give one of them")
        self._queue.at(fault.at_seconds, self._lose, fault, cards[fault.gpu])

    def _lose(self, fault: GpuLost, card: Card) -> None:
        card.lost = True
        actuator = self._actuators.get(fault.node)
        if actuator is not None:
            actuator.changed(card.identity.uuid)
        for unit in self._serving.units:
            if unit.group is card.group:
                self._serving.close(unit, retry=fault.requests == "retried")

    @_schedule.register
    def _(self, fault: StaleMetrics) -> None:
        names = [engine.name for engine in self._layout.engines]
        if fault.engine and fault.engine not in names:
            raise FaultError(f"{text_of(fault)}: there is no engine {fault.engine!r}: give one of {_some(names)}")
        act = self._silence if fault.how == "silent" else self._freeze
        for name in [fault.engine] if fault.engine else names:
            self._queue.at(fault.at_seconds, act, name, fault.at_seconds + fault.for_seconds)

    @_schedule.register
    def _(self, fault: DelayedGrants) -> None:
        if fault.node:
            self._check_node(fault, fault.node)
        for name in [fault.node] if fault.node else list(self._agents):
            if name in self._agents:
                self._queue.at(fault.at_seconds, self._slow, name, fault.delay_seconds, True)
                self._queue.at(fault.at_seconds + fault.for_seconds, self._slow, name, fault.delay_seconds, False)

    def _slow(self, node: str, delay_seconds: float, begins: bool) -> None:
        """The longest of the delays in force counts."""
        held = self._slowed.setdefault(node, [])
        (held.append if begins else held.remove)(delay_seconds)
        self._agents[node].delay_watch(max(held, default=0.0))

    @_schedule.register
    def _(self, fault: BudgetCut) -> None:
        names = list(self._api.policies)
        name = fault.policy or (names[0] if len(names) == 1 else "")
        if name not in names:
            raise FaultError(f"{text_of(fault)}: there is no policy {name!r}: give policy= one of {_some(names)}")
        spec = self._api.policies[name]["spec"]
        if "powerBudget" not in spec:
            raise FaultError(f"{text_of(fault)}: policy {name} has no powerBudget: give it one to be changed")
        try:
            EnergyPolicySpec.model_validate(_with_watts(spec, fault.watts))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise FaultError(f"{text_of(fault)}: {first['msg'].removeprefix('Value error, ')}") from None
        self._queue.at(fault.at_seconds, self._change_budget, name, fault.watts)

    def _change_budget(self, name: str, watts: int) -> None:
        raw = self._api.policies[name]
        self._api.put_policy({**raw, "spec": _with_watts(raw["spec"], watts)})

    def _check_node(self, fault: Fault, node: str) -> None:
        names = [place.name for place in self._layout.nodes]
        if node not in names:
            raise FaultError(f"{text_of(fault)}: there is no node {node!r}: give one of {_some(names)}")


def _with_watts(spec: Mapping[str, Any], watts: int) -> dict[str, Any]:
    return {**spec, "powerBudget": {**spec["powerBudget"], "watts": watts}}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "none"
