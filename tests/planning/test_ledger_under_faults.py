"""Whatever is late, lost, restarted or repeated: the caps in force never exceed an acknowledged budget."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from planning_world import CAP_MAX, Agent, World, policy_of

from flyball_operator.planning import ApplyPlan, plan
from flyball_operator.state import Memory

NODES = ["n0", "n1", "n2"]
nodes = st.sampled_from(NODES)
budgets = st.sampled_from([600, 1300, 1800, 2400, 3600, 4200])
some_nodes = st.sampled_from([frozenset(), frozenset({"n0"}), frozenset({"n1", "n2"}), frozenset(NODES)])
fates = st.lists(st.sampled_from(["done", "lost", "late"]), max_size=3)
"""What becomes of the writes of one plan, in their order; those not named are done."""


class FaultyCluster(RuleBasedStateMachine):
    """Three nodes with two GPUs each. Specs reach agents late, reports reach the operator late, writes get lost."""

    def __init__(self):
        super().__init__()
        self.world = World(nodes=3, gpus=2)
        for card in self.world.nodes["n0"].cards:
            card.pod = "pod-0-0"  # a tensor-parallel pair
        del self.world.pods["default/pod-0-1"]
        self.world.report("n0")
        self.generation = 1
        self.in_the_air: dict[str, ApplyPlan] = {}
        self.uncertain: dict[str, ApplyPlan] = {}
        self.reset: dict[str, int] = {}
        self.limit: int | None = None

    @initialize(watts=budgets, reserve=st.none() | st.integers(0, 400))
    def policy(self, watts, reserve):
        self.set_budget(watts, reserve)

    def set_budget(self, watts, reserve):
        power = {"watts": watts} if reserve is None else {"watts": watts, "reserveWatts": min(reserve, watts - 1)}
        old = self.world.policies.get("p")
        new = policy_of(powerBudget=power, generation=self.generation)
        self.world.add(replace(new, status=old.status) if old else new)

    @rule(watts=budgets, reserve=st.none() | st.integers(0, 400))
    def the_budget_changes(self, watts, reserve):
        self.generation += 1
        self.set_budget(watts, reserve)

    @rule(seconds=st.sampled_from([0.1, 2.0, 12.0]), fates=fates)
    def the_operator_plans(self, seconds, fates):
        world = self.world
        world.seconds += seconds
        self.settle_unanswered()
        state = replace(world.state(), uncertain_plans=frozenset(self.uncertain))
        actions = plan(state, world.now)
        world.memory = actions.memory
        ledger = actions.ledgers["p"]
        if ledger.deficit_watts:
            self.nothing_is_raised(actions.plans)
        for index, write in enumerate(actions.plans):
            fate = fates[index] if index < len(fates) else "done"
            if fate == "late":
                self.in_the_air[write.name] = write
                self.uncertain[write.name] = write
            elif fate == "done" and self.land(write):
                self.uncertain.pop(write.name, None)
        world.write(replace(actions, plans=()))
        self.learn(ledger)

    @rule()
    def for_a_while_nothing_goes_wrong(self):
        for _ in range(3):
            for node in NODES:
                self.a_spec_reaches_an_agent(node)
                self.an_agent_carries_out_what_it_has_seen(node)
                self.an_agent_reports(node)
            self.the_operator_plans(seconds=0.5, fates=[])

    @rule(
        busy=nodes,
        idle=nodes,
        turns=st.lists(st.tuples(fates, some_nodes, some_nodes), min_size=2, max_size=5),
    )
    def load_moves_while_some_act_and_some_report(self, busy, idle, turns):
        for node, draw, limited in ((idle, 80, False), (busy, 690, True)):
            for card in self.world.nodes[node].cards:
                card.draw, card.cap_limited = min(draw, card.cap), limited
            self.an_agent_reports(node)
        self.some_act_and_some_report(turns, seconds=16.0)

    @rule(
        watts=budgets,
        turns=st.lists(st.tuples(fates, some_nodes, some_nodes), min_size=1, max_size=4),
    )
    def the_budget_moves_while_some_act_and_some_report(self, watts, turns):
        self.the_budget_changes(watts, 0)
        self.some_act_and_some_report(turns, seconds=0.5)

    def some_act_and_some_report(self, turns, seconds):
        for fate, acting, reporting in turns:
            for node in NODES:
                self.world.beat(node)
            self.the_operator_plans(seconds, fate)
            for node in acting:
                self.a_spec_reaches_an_agent(node)
                self.an_agent_carries_out_what_it_has_seen(node)
            for node in reporting:
                self.an_agent_reports(node)

    def nothing_is_raised(self, writes):
        before = self.world.entries()
        for entry in (entry for write in writes for entry in write.spec.gpus if entry.uuid in before):
            assert entry.cap_watts <= before[entry.uuid].ceiling_watts

    def settle_unanswered(self):
        for name, write in list(self.uncertain.items()):
            if self.world.plans[name].spec == write.spec:
                del self.uncertain[name]

    def land(self, write):
        """The API server's view of a write: the version must be the one it was decided on."""
        old = self.world.plans[write.name]
        if write.resource_version != old.resource_version or write.spec.leader_epoch < old.spec.leader_epoch:
            return False
        self.world.versions += 1
        self.world.plans[write.name] = replace(old, resource_version=str(self.world.versions), spec=write.spec)
        return True

    def learn(self, ledger):
        """What a status with this ledger promises."""
        if ledger.deficit_watts == 0:
            self.limit = ledger.budget_watts

    @precondition(lambda self: self.in_the_air)
    @rule(data=st.data())
    def a_late_write_lands(self, data):
        name = data.draw(st.sampled_from(sorted(self.in_the_air)))
        self.land(self.in_the_air.pop(name))

    @precondition(lambda self: self.uncertain)
    @rule()
    def an_unanswered_write_expires(self):
        for name in list(self.uncertain):
            self.in_the_air.pop(name, None)
            del self.uncertain[name]

    @rule(node=nodes)
    def a_spec_reaches_an_agent(self, node):
        self.world.nodes[node].seen = self.world.plans[node].spec

    @rule(node=nodes)
    def an_agent_carries_out_what_it_has_seen(self, node):
        self.world.nodes[node].carry_out()
        if self.world.nodes[node].seen is not None:
            granted = {entry.uuid for entry in self.world.nodes[node].seen.gpus}
            for uuid in granted:
                self.reset.pop(uuid, None)

    @rule(node=nodes)
    def an_agent_reports(self, node):
        self.world.report(node)
        self.world.beat(node)

    @rule(node=nodes)
    def an_agent_restarts(self, node):
        self.world.start_agent(node)
        self.world.nodes[node].seen = None

    @rule(node=nodes)
    def a_node_reboots(self, node):
        for card in self.world.nodes[node].cards:
            self.reset.setdefault(card.uuid, card.cap)
            card.cap = CAP_MAX
        self.an_agent_restarts(node)

    @rule(seconds=st.sampled_from([5.0, 31.0]), alive=st.sets(nodes))
    def time_passes_and_some_agents_beat(self, seconds, alive):
        self.world.seconds += seconds
        for node in alive:
            self.world.beat(node)

    @rule(data=st.data(), draw=st.integers(60, 690), limited=st.booleans())
    def a_load_changes(self, data, draw, limited):
        card = data.draw(st.sampled_from(self.world.cards()))
        card.draw, card.cap_limited = min(draw, card.cap), limited

    @rule()
    def the_operator_restarts(self):
        world = self.world
        world.epoch += 1
        world.memory = Memory()
        self.uncertain = {}
        world.agents = {
            name: Agent(agent.session, first_seen_seconds=world.seconds) for name, agent in world.agents.items()
        }

    def in_force(self):
        """The sum of caps in force; a card that was reset counts with what it had, for no software can forbid that."""
        return sum(self.reset.get(card.uuid, card.cap) for card in self.world.cards())

    @invariant()
    def caps_in_force_stay_within_what_was_acknowledged(self):
        # After a cut the earlier budget stays the promise until the ledger says that the deficit is gone.
        if self.limit is not None:
            assert self.in_force() <= self.limit

    @invariant()
    def a_tensor_parallel_group_is_granted_one_cap(self):
        caps = {entry.cap_watts for entry in self.world.plans["n0"].spec.gpus}
        assert len(caps) <= 1


FaultyCluster.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestLedgerUnderFaults = FaultyCluster.TestCase
