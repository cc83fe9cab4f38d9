"""Cases in which a budget could be broken, or something stranded, without any single part failing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_world import CAP_MAX, World, policy_of

from flyball_api.nodeenergyplan import LatencyCounter, PolicyCounters
from flyball_operator.planning import plan

BUDGET = {"watts": 1600, "reserveWatts": 0}


@pytest.fixture
def world():
    found = World(nodes=2, gpus=2)
    found.add(policy_of(powerBudget=BUDGET))
    found.settle()
    return found


def vouch(world, name):
    world.plans[name] = replace(world.plans[name], released_by_hand="was scrapped last month")


def withdrawn(world):
    return [entry.name for entry in world.last.withdrawals]


def test_a_release_by_hand_ends_when_the_node_speaks_again(world):
    vouch(world, "n1")
    world.tick()
    assert withdrawn(world) == ["n1"]


def test_a_word_left_on_a_plan_does_not_stand_in_for_a_node_that_speaks(world):
    vouch(world, "n1")
    world.policies["p"] = replace(world.policies["p"], deleting=True)
    world.tick()
    world.deliver("n0")
    world.tick()
    assert "p" in world.policies, "n1 has not read its release back"
    world.settle()
    assert "p" not in world.policies
    assert {card.cap for card in world.cards()} == {CAP_MAX}


def test_a_word_counts_for_the_card_that_a_speaking_node_cannot_restore_and_is_then_withdrawn(world):
    broken, sound = world.nodes["n1"].cards
    world.policies["p"] = replace(world.policies["p"], deleting=True)
    world.tick()
    world.deliver("n0")
    broken.faults = ({"code": "GpuLost"},)
    world.report("n1")
    world.tick()
    vouch(world, "n1")
    world.tick()
    assert broken.uuid not in world.entries()
    assert sound.uuid in world.entries(), "it can answer for itself"
    world.tick()
    assert withdrawn(world) == ["n1"]


def test_a_card_that_only_tells_of_something_still_has_to_prove_its_release(world):
    card = world.nodes["n1"].cards[0]
    world.policies["p"] = replace(world.policies["p"], deleting=True)
    world.tick()
    card.faults = ({"code": "DriverReloaded"},)
    world.report("n1")
    vouch(world, "n1")
    world.tick()
    assert card.uuid in world.entries()


def test_after_a_restart_a_node_not_yet_heard_of_is_not_forgotten_for_an_old_word(world):
    vouch(world, "n1")
    granted = world.caps()
    world.epoch += 1
    world.agents = {name: replace(agent, changed_seconds=None) for name, agent in world.agents.items()}
    world.tick(beat=False)
    assert world.caps() == granted


def test_no_budget_is_acknowledged_while_a_write_without_an_answer_may_still_land(world):
    world.policies["p"] = replace(
        world.policies["p"], generation=2, spec=policy_of(powerBudget={"watts": 1400, "reserveWatts": 0}).spec
    )
    world.seconds += 10
    assert plan(world.state(), world.now).statuses
    uncertain = replace(world.state(), uncertain_plans=frozenset({"n0"}))
    assert not plan(uncertain, world.now).statuses


def test_no_budget_is_acknowledged_before_an_older_leader_is_fenced_everywhere(world):
    world.epoch += 1
    world.policies["p"] = replace(world.policies["p"], generation=2)
    first = world.tick()
    assert {write.why for write in first.plans} == {"fence"}
    assert not first.statuses
    assert world.tick().statuses


def test_a_pod_that_came_back_on_another_card_leaves_none_behind(world):
    pod = world.pods["default/pod-0-0"]
    card, spare = world.nodes["n0"].cards
    del world.pods["default/pod-0-1"]
    spare.pod = None
    world.settle()
    world.pods[pod.key] = replace(pod, uid="uid-second-life")
    world.tick()
    card.pod, spare.pod = None, pod.name
    world.settle(rounds=12)
    entries = world.entries()
    assert card.uuid not in entries
    assert entries[spare.uuid].action == "Enforce"
    assert card.cap == CAP_MAX


def test_what_a_namesake_left_is_released_though_its_successor_selects_nothing(world):
    orphan = policy_of(powerBudget=BUDGET, selector={"matchLabels": {"app": "typo"}}, uid="uid-other")
    world.policies["p"] = replace(orphan, has_finalizer=False)
    world.settle()
    assert world.entries() == {}
    assert {card.cap for card in world.cards()} == {CAP_MAX}


def test_watts_that_cannot_be_cut_on_one_card_are_cut_on_the_others():
    world = World(nodes=2, gpus=2)
    stuck = world.nodes["n0"].cards[0]
    stuck.faults = ({"code": "NoPermission"},)
    world.report("n0")
    world.add(policy_of(powerBudget=BUDGET))
    world.settle(rounds=12)
    assert stuck.cap == CAP_MAX
    assert sum(card.cap for card in world.cards()) <= BUDGET["watts"]
    assert world.condition("p", "BudgetRespected").status == "True"


def test_an_agent_that_has_not_read_its_cards_moves_nobody_elses_watts(world):
    granted = world.caps()
    world.start_agent("n0")
    status = world.nodes["n0"].status()
    blank = tuple(gpu.model_copy(update={"cap_min_watts": 0, "cap_max_watts": 0}) for gpu in status.gpus)
    world.plans["n0"] = replace(world.plans["n0"], status=status.model_copy(update={"gpus": blank}))
    world.tick()
    assert world.caps() == granted


def test_an_slo_of_nothing_but_inter_token_latency_is_judged(world):
    slo = {"interTokenLatency": {"thresholdMilliseconds": 50, "percentile": 99}}
    world.policies["p"] = replace(world.policies["p"], generation=2, spec=policy_of(powerBudget=BUDGET, slo=slo).spec)
    counters = PolicyCounters(
        name="p", uid="uid-p", since="a", seconds=60, inter_token_latency=LatencyCounter(total=1000, within=500)
    )
    old = world.plans["n0"]
    world.plans["n0"] = replace(old, status=old.status.model_copy(update={"policies": (counters,)}))
    world.tick(10.0)
    assert world.condition("p", "SLOMet").reason == "Missed"
