"""What the operator writes into plans, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_world import CAP_MAX, World, pod_of, policy_of

from flyball_api.nodeenergyplan import NodeEnergyPlanSpec
from flyball_operator.planning import plan
from flyball_operator.state import Switch


@pytest.fixture
def world():
    return World(nodes=2, gpus=2)


def test_nothing_is_decided_before_the_picture_is_whole_or_without_leadership(world):
    world.add(policy_of())
    assert plan(replace(world.state(), synced=False), world.now).writes == 0
    assert plan(replace(world.state(), leader_epoch=0), world.now).writes == 0


def test_a_node_with_gpus_gets_a_plan_and_one_without_does_not(world):
    del world.plans["n0"]
    world.nodes["n1"].cards.clear()
    del world.plans["n1"]
    world.tick()
    assert set(world.plans) == {"n0"}


def test_the_finalizer_is_on_the_policy_before_anything_is_granted(world):
    world.add(policy_of(has_finalizer=False, powerBudget={"watts": 1600, "reserveWatts": 0}))
    first = world.tick()
    assert first.finalizers
    assert not first.plans
    assert world.tick().plans


def test_an_observing_policy_needs_no_finalizer_and_is_told_the_caps_that_enforce_would_come_to(world):
    world.add(policy_of(has_finalizer=False, mode="Observe", powerBudget={"watts": 1600, "reserveWatts": 0}))
    actions = world.tick()
    assert not actions.finalizers
    assert {entry.action for entry in world.entries().values()} == {"Observe"}
    assert {(entry.cap_watts, entry.ceiling_watts) for entry in world.entries().values()} == {(400, None)}
    assert world.policies["p"].status.ledger is None
    world.settle()
    assert {card.cap for card in world.cards()} == {CAP_MAX}


def test_a_new_agent_that_has_not_reported_yet_alarms_nobody(world):
    world.add(policy_of())
    world.settle()
    world.start_agent("n0")
    assert not world.tick(1.0).events
    assert world.condition("p", "Degraded").status == "False"
    for _ in range(4):
        world.tick(10.0)
    assert world.condition("p", "Degraded").reason == "NodeUnreachable"


def test_every_gpu_of_a_governed_pod_is_granted_what_the_node_needs_to_act(world):
    world.add(policy_of())
    world.tick()
    entry = world.entries()["GPU-0-0"]
    assert (entry.action, entry.policy, entry.group, entry.role) == ("Enforce", "p", "uid-pod-0-0", "unified")
    assert entry.pod_ip == "10.0.0.1"
    assert entry.cap_watts is None
    assert world.plans["n0"].spec.policies[0].controller.type == "Fixed"


def test_a_tensor_parallel_group_gets_one_cap(world):
    for card in world.nodes["n0"].cards:
        card.pod = "pod-0-0"
    world.nodes["n0"].cards[0].draw = 650
    world.report("n0")
    world.add(policy_of(powerBudget={"watts": 1801, "reserveWatts": 0}))
    world.settle()
    assert world.caps()["GPU-0-0"] == world.caps()["GPU-0-1"]


def test_a_changed_entry_is_a_new_grant_and_an_unchanged_one_keeps_its_number(world):
    world.add(policy_of())
    world.settle()
    before = world.entries()
    pod = world.pods["default/pod-0-0"]
    world.pods[pod.key] = replace(pod, ip="10.0.0.9")
    world.tick()
    after = world.entries()
    assert after["GPU-0-0"].grant > max(before[uuid].grant for uuid in ("GPU-0-0", "GPU-0-1"))
    assert after["GPU-0-1"].grant == before["GPU-0-1"].grant


def test_a_grant_number_is_never_used_twice_even_when_its_entry_is_gone(world):
    world.add(policy_of())
    world.settle()
    used = world.entries()["GPU-0-0"].grant
    pod = world.pods.pop("default/pod-0-0")
    world.nodes["n0"].cards[0].pod = None
    world.settle()
    assert "GPU-0-0" not in world.entries()
    world.nodes["n0"].acknowledged.clear()
    world.report("n0")
    world.pods[pod.key] = pod
    world.nodes["n0"].cards[0].pod = pod.name
    world.report("n0")
    world.tick()
    assert world.entries()["GPU-0-0"].grant > used + 1


def test_a_changed_parameter_of_the_policy_is_a_new_grant_everywhere(world):
    world.add(policy_of())
    world.settle()
    before = {uuid: entry.grant for uuid, entry in world.entries().items()}
    world.add(replace(policy_of(failSafe={"metricsStaleSeconds": 9}), generation=2, status=world.policies["p"].status))
    world.tick()
    assert all(world.entries()[uuid].grant > grant for uuid, grant in before.items())


def test_a_pod_that_is_gone_has_its_gpu_released_and_then_dropped(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    del world.pods["default/pod-0-0"]
    world.nodes["n0"].cards[0].pod = None
    world.report("n0")
    world.tick()
    assert world.entries()["GPU-0-0"].action == "Release"
    world.tick()
    assert world.entries()["GPU-0-0"].action == "Release"
    world.deliver("n0")
    world.tick()
    assert "GPU-0-0" not in world.entries()
    assert world.nodes["n0"].cards[0].cap == CAP_MAX


def test_a_terminating_pod_keeps_its_grant_until_it_is_gone(world):
    world.add(policy_of())
    world.settle()
    assert world.entries()["GPU-0-0"].action == "Enforce"
    world.pods["default/pod-0-0"] = replace(world.pods["default/pod-0-0"], running=False)
    world.tick()
    assert world.entries()["GPU-0-0"].action == "Release"


def test_an_agent_that_has_not_read_the_allocation_again_does_not_lose_its_pods_grants(world):
    world.add(policy_of())
    world.settle()
    world.start_agent("n0")
    for card in world.nodes["n0"].cards:
        card.pod = None
    world.report("n0")
    assert not world.tick().plans
    world.plans["n0"] = replace(world.plans["n0"], status=world.plans["n0"].status.model_copy(update={"gpus": ()}))
    assert not world.tick().plans


def test_from_enforce_to_observe_passes_through_a_release_that_is_read_back(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    world.add(replace(policy_of(mode="Observe"), generation=2))
    world.tick()
    assert {entry.action for entry in world.entries().values()} == {"Release"}
    world.settle()
    assert {entry.action for entry in world.entries().values()} == {"Observe"}
    assert {card.cap for card in world.cards()} == {CAP_MAX}
    assert not world.policies["p"].has_finalizer


def test_a_budget_taken_away_restores_the_caps_before_the_clocks_are_granted_again(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    world.add(replace(policy_of(), generation=2))
    world.tick()
    assert {entry.action for entry in world.entries().values()} == {"Release"}
    world.settle()
    assert {(entry.action, entry.cap_watts) for entry in world.entries().values()} == {("Enforce", None)}
    assert {card.cap for card in world.cards()} == {CAP_MAX}


def test_a_pod_won_by_another_enforcing_policy_changes_hands_without_a_release(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    world.add(policy_of("winner", priority=5, powerBudget={"watts": 1200, "reserveWatts": 0}))
    world.tick()
    entries = world.entries().values()
    assert {(entry.action, entry.policy) for entry in entries} == {("Enforce", "winner")}
    assert {entry.ceiling_watts for entry in entries} == {400}


def test_a_deleted_policy_goes_only_when_every_gpu_is_read_back_as_restored(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    world.policies["p"] = replace(world.policies["p"], deleting=True)
    world.tick()
    world.deliver("n0")
    world.settle(rounds=0)
    world.tick()
    assert "p" in world.policies
    world.deliver("n1")
    world.tick()
    world.tick()
    assert "p" not in world.policies
    assert {card.cap for card in world.cards()} == {CAP_MAX}


def test_a_silent_node_holds_a_deleted_policy_and_a_person_can_free_it(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    world.policies["p"] = replace(world.policies["p"], deleting=True)
    for _ in range(5):
        world.tick(20, beat=False)
        world.beat("n0")
        world.deliver("n0")
    said = world.condition("p", "Released")
    assert (said.status, said.reason) == ("False", "NodeUnreachable")
    assert 'kubectl annotate nodeenergyplan n1 flyball.dev/released-by-hand="<why>"' in said.message
    world.plans["n1"] = replace(world.plans["n1"], released_by_hand="scrapped")
    world.beat("n0")
    world.tick(1, beat=False)
    world.beat("n0")
    world.tick(1, beat=False)
    assert "p" not in world.policies
    assert world.plans["n1"].spec.gpus == ()


def test_a_gpu_that_is_split_or_shared_is_left_alone_and_said_so(world):
    world.nodes["n0"].cards[0].faults = ({"code": "MigEnabled", "message": "MIG is on"},)
    world.report("n0")
    world.add(policy_of())
    world.settle()
    assert "GPU-0-0" not in world.entries()
    said = world.condition("p", "Degraded")
    assert (said.status, said.reason) == ("True", "PodsRefused")
    assert "default/pod-0-0" in said.message


def test_pods_whose_gpus_nobody_has_told_of_are_named(world):
    world.nodes["n0"].cards[0].pod = None
    world.report("n0")
    world.add(policy_of())
    world.tick()
    said = world.condition("p", "Degraded")
    assert said.reason == "AllocationUnknown"
    assert "default/pod-0-0" in said.message


SLO = {"timeToFirstToken": {"thresholdMilliseconds": 500}}


def test_another_controller_takes_over_under_new_grants_without_a_release_or_another_cap(world):
    budget = {"watts": 1600, "reserveWatts": 0}
    world.add(policy_of(powerBudget=budget, slo=SLO))
    world.settle()
    before = world.entries()
    world.add(policy_of(powerBudget=budget, slo=SLO, controller={"type": "Flyball"}, generation=2))
    actions = world.tick(1.0)
    assert [(entry.name, entry.why) for entry in actions.plans] == [("n0", "grant"), ("n1", "grant")]
    assert world.plans["n0"].spec.policies[0].controller.type == "Flyball"
    after = world.entries()
    assert after.keys() == before.keys()
    for uuid, entry in after.items():
        assert entry.grant > before[uuid].grant
        assert entry.action == "Enforce"
        assert (entry.cap_watts, entry.ceiling_watts) == (before[uuid].cap_watts, before[uuid].cap_watts)
    assert world.condition("p", "Enforced").reason == "InFlight"
    world.settle()
    assert world.condition("p", "Enforced").status == "True"


def test_the_same_controller_with_other_parameters_is_a_new_grant(world):
    slow, fast = ([{"role": "unified", "minMegahertz": mhz, "maxMegahertz": mhz}] for mhz in (600, 1500))
    world.add(policy_of(controller={"type": "Fixed", "fixed": {"clocks": slow}}))
    world.settle()
    before = world.entries()
    world.add(policy_of(controller={"type": "Fixed", "fixed": {"clocks": fast}}, generation=2))
    world.tick(1.0)
    assert all(entry.grant > before[uuid].grant for uuid, entry in world.entries().items())


def test_a_policy_that_is_no_longer_to_cap_releases_its_caps_before_the_next_controller_drives(world):
    capped = {"type": "PALS", "pals": {"profile": "chat-h100"}}
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}, controller=capped))
    world.settle()
    world.add(policy_of(slo=SLO, controller={"type": "Flyball"}, generation=2))
    world.tick(1.0)
    assert {entry.action for entry in world.entries().values()} == {"Release"}
    world.settle()
    assert {(entry.action, entry.cap_watts) for entry in world.entries().values()} == {("Enforce", None)}
    assert {card.cap for card in world.cards()} == {CAP_MAX}


def test_a_new_leader_marks_every_plan_before_it_raises_anything(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    world.epoch = 2
    world.add(replace(policy_of(powerBudget={"watts": 2400, "reserveWatts": 0}), generation=2))
    first = world.tick()
    assert {write.spec.leader_epoch for write in first.plans} == {2}
    assert set(world.caps().values()) == {400}
    world.tick()
    assert set(world.caps().values()) == {600}


def test_a_plan_of_a_newer_leader_deposes_this_one(world):
    world.plans["n0"] = replace(world.plans["n0"], spec=NodeEnergyPlanSpec(leader_epoch=7))
    assert world.tick().deposed_by == 7


def test_an_unanswered_write_blocks_raises_until_it_is_settled(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    world.add(replace(policy_of(powerBudget={"watts": 2400, "reserveWatts": 0}), generation=2))
    assert not plan(replace(world.state(), uncertain_plans=frozenset({"n1"})), world.now).plans
    assert plan(world.state(), world.now).plans


def test_the_switch_stops_all_writing_of_plans_and_says_so(world):
    world.switch = Switch.STOPPED
    world.add(policy_of(has_finalizer=False))
    actions = world.tick()
    assert not actions.plans
    assert not actions.finalizers
    assert not actions.creates
    assert world.condition("p", "Ready").reason == "WritesStopped"


def test_the_switch_releases_everything_and_then_takes_the_finalizers_off(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    world.switch = Switch.RELEASE
    world.settle()
    assert world.entries() == {}
    assert not world.policies["p"].has_finalizer
    assert {card.cap for card in world.cards()} == {CAP_MAX}


def test_a_spec_that_was_never_accepted_since_the_restart_leaves_grants_as_they_are(world):
    world.add(policy_of(powerBudget={"watts": 1600, "reserveWatts": 0}))
    world.settle()
    before = world.entries()
    world.add(replace(world.policies["p"], spec=None, refusal="spec.controller.type: unknown"))
    world.tick()
    assert world.entries() == before
    assert world.condition("p", "Accepted").status == "False"


def test_an_idle_cluster_is_not_written_to(world):
    world.add(policy_of(powerBudget={"watts": 2000}))
    world.settle(rounds=12)
    wobble = [0, 3, -4, 5, -2, 1]
    for round_ in range(120):
        for node in world.nodes.values():
            for card in node.cards:
                card.draw = 80 + wobble[round_ % len(wobble)]
        for name in world.nodes:
            world.report(name)
        assert world.tick(2.0).writes == 0 or round_ < 2


def test_a_pod_outside_every_policy_is_left_alone(world):
    world.pods["default/pod-0-0"] = pod_of("pod-0-0", labels={})
    world.add(policy_of())
    world.tick()
    assert "GPU-0-0" not in world.entries()
