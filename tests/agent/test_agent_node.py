"""What the agent wants of each GPU and what it acknowledges, with news passed in by hand."""

from dataclasses import dataclass, field

import pytest

from flyball_agent.controllers.base import UNLOCKED, Decision, GroupSetpoint
from flyball_agent.controllers.registry import make_controller
from flyball_agent.facts import Allocation, Engine, EngineState, Holder
from flyball_agent.node import NodeControl
from flyball_agent.scanner import EngineSample
from flyball_api.nodeenergyplan import NodeEnergyPlan

ENGINE = Engine("10.0.0.1", 8000, "/metrics")
GOOD = EngineSample({"requests_running": 1.0, "generation_tokens": 5.0}, {}, ())


def plan(*gpus, epoch=1, metrics_stale=5, slo=None, uid="u1", clocks=(1000, 1200)):
    policy = {
        "name": "chat",
        "uid": uid,
        "controller": {
            "type": "Fixed",
            "fixed": {"clocks": [{"role": "unified", "minMegahertz": clocks[0], "maxMegahertz": clocks[1]}]},
        },
        "failSafe": {"metricsStaleSeconds": metrics_stale},
    }
    if slo:
        policy["slo"] = slo
    spec = {"leaderEpoch": epoch, "policies": [policy], "gpus": list(gpus)}
    return NodeEnergyPlan.model_validate({"metadata": {"name": "n"}, "spec": spec})


def entry(uuid="GPU-1", grant=1, action="Enforce", cap=400, **more):
    made = {"uuid": uuid, "grant": grant, "action": action, "policy": "chat", "podIp": "10.0.0.1", **more}
    return made if cap is None else made | {"capWatts": cap, "ceilingWatts": 700}


def card(uuid, index=0, *, low=345, high=1980, mig=False):
    return {
        "uuid": uuid,
        "index": index,
        "product": "NVIDIA H100 80GB HBM3",
        "cap_min_watts": 200.0,
        "cap_max_watts": 700.0,
        "cap_default_watts": 700.0,
        "sm_min_mhz": low,
        "sm_max_mhz": high,
        "mig_enabled": mig,
    }


def report(uuid="GPU-1", *, lock=None, cap=None, enforced=700.0, in_force=True, reloads=0, energy=1.0, armed=True):
    sample = {
        "power_average_watts": 300.0,
        "power_instant_watts": 300.0,
        "energy_joules": energy,
        "sm_mhz": 1100,
        "utilisation_percent": 90,
    }
    return {
        "uuid": uuid,
        "lock_mhz": lock,
        "lock_verified": "Unknown",
        "cap_watts": cap,
        "enforced_cap_watts": enforced,
        "cap_in_force": in_force,
        "cap_limited": False,
        "reloads": reloads,
        "armed": armed,
        "faults": [],
        "writes": {"cap": 0, "lock": 0, "reset": 0},
        "sample": sample,
    }


@dataclass
class Node:
    control: NodeControl
    engines: dict = field(default_factory=dict)

    def commands(self):
        return self.control.commands(self.engines)

    def only(self):
        (command,) = self.commands()
        return command

    def carry_out(self):
        """Answer every command as a card that does what it is told."""
        for command in self.commands():
            lock = None if command.sm_mhz is None else list(command.sm_mhz)
            enforced = 700.0 if command.cap_watts is None else float(command.cap_watts)
            answer = report(command.uuid, lock=lock, cap=command.cap_watts, enforced=enforced)
            self.control.answered(command, answer)

    def gpu(self, uuid="GPU-1"):
        return self.control.gpus[uuid]

    def acknowledged(self, uuid="GPU-1"):
        made = self.gpu(uuid).acknowledged
        return None if made is None else (made.leader_epoch, made.grant)


class Scripted:
    """A controller that answers what a test's function says."""

    events = frozenset()
    wants_board = False
    period_seconds = 0.5

    def __init__(self, answer, requires=()):
        self.answer = answer
        self.requires = frozenset(requires)

    def decide(self, observation, _limits, now):
        return self.answer(observation, now)


def fresh(clock, controller=None):
    control = NodeControl("session", make_controller if controller is None else lambda *_, **__: controller, clock)
    control.take_switch(None)
    control.take_actuator("life", "boot")
    cards = [card("GPU-1"), card("GPU-2", 1)]
    control.take_cards({"driver_version": "580", "error": "", "gpus": cards})
    control.take_reports([report("GPU-1"), report("GPU-2")])
    return Node(control, {ENGINE: EngineState(clock.now, GOOD, clock.now)})


@pytest.fixture
def node(clock):
    return fresh(clock)


def test_a_grant_becomes_one_command_and_is_acknowledged_by_its_answer(node):
    node.control.take_plan(plan(entry()))
    command = node.only()
    assert (command.sm_mhz, command.cap_watts, command.ceiling_watts) == ((1000, 1200), 400, 400)
    assert node.acknowledged() is None
    node.control.answered(command, report(lock=[1000, 1200], cap=400, enforced=400.0))
    assert node.acknowledged() == (1, 1)
    assert node.commands() == []


def test_nothing_is_acknowledged_while_the_card_enforces_more_than_granted(node, clock):
    node.control.take_plan(plan(entry()))
    node.control.answered(node.only(), report(lock=[1000, 1200], cap=400, enforced=700.0, in_force=False))
    assert node.acknowledged() is None
    assert node.commands() == []
    clock.step(1)
    assert node.only().cap_watts == 400


def test_an_answer_to_an_older_grant_does_not_acknowledge_the_newer_one(node):
    node.control.take_plan(plan(entry(grant=1)))
    first = node.only()
    node.control.take_plan(plan(entry(grant=2, cap=300)))
    assert node.commands() == []  # one in flight
    node.control.answered(first, report(lock=[1000, 1200], cap=400, enforced=400.0))
    assert node.acknowledged() == (1, 1)
    assert node.only().acknowledges.grant == 2


def test_the_same_content_under_a_new_grant_is_carried_out_and_acknowledged_again(node):
    node.control.take_plan(plan(entry(grant=1)))
    node.carry_out()
    node.control.take_plan(plan(entry(grant=2)))
    node.carry_out()
    assert node.acknowledged() == (1, 2)


def test_a_plan_of_an_older_epoch_is_ignored(node):
    assert node.control.take_plan(plan(entry(), epoch=3))
    assert not node.control.take_plan(plan(entry(cap=600), epoch=2))
    assert node.only().cap_watts == 400


def test_a_deleted_plan_unlocks_and_does_not_forget_the_epoch(node):
    node.control.take_plan(plan(entry(), epoch=3))
    node.carry_out()
    node.control.take_plan(None)
    command = node.only()
    assert (command.operation, command.sm_mhz, command.cap_watts) == ("set", None, None)
    assert not node.control.take_plan(plan(entry(), epoch=2))


def test_a_refused_command_is_a_fault_and_tried_again_ever_more_slowly(node, clock):
    node.control.take_plan(plan(entry()))
    waits = []
    for _ in range(6):
        node.control.failed(node.only(), "NvmlError", "no")
        assert node.control.faults(node.gpu()) == {"NvmlError": "no"}
        began = clock.now
        while not (again := node.commands()):
            clock.step(0.5)
            node.engines[ENGINE].at = clock.now
        waits.append(clock.now - began)
        node.control.abandoned(again[0])
    assert waits == [1, 2, 4, 8, 10, 10]


def test_a_new_grant_is_tried_at_once_whatever_failed_before(node):
    node.control.take_plan(plan(entry()))
    node.control.failed(node.only(), "NvmlError", "no")
    node.control.take_plan(plan(entry(grant=2)))
    assert node.only().acknowledges.grant == 2


def test_a_lock_that_is_gone_is_written_again(node):
    node.control.take_plan(plan(entry()))
    node.carry_out()
    node.control.take_reports([report(lock=None, cap=400, enforced=400.0)])
    assert node.only().sm_mhz == (1000, 1200)


def test_a_driver_reload_takes_the_acknowledgement_back_until_it_is_enforced_again(node):
    node.control.take_plan(plan(entry()))
    node.carry_out()
    node.control.take_reports([report(lock=None, enforced=700.0, reloads=1)])
    assert node.acknowledged() is None
    node.carry_out()
    assert node.acknowledged() == (1, 1)


def test_a_new_actuator_is_told_everything_again(node):
    node.control.take_plan(plan(entry()))
    node.carry_out()
    node.control.lose_actuator("gone")
    assert node.commands() == []
    assert "ActuatorLost" in node.control.faults(node.gpu())
    node.control.take_actuator("life-2", "boot")
    node.control.take_cards({"driver_version": "580", "error": "", "gpus": [card("GPU-1")]})
    assert node.only().sm_mhz == (1000, 1200)
    assert node.control.faults(node.gpu()) == {}


def test_an_answer_from_before_the_actuator_was_lost_acknowledges_nothing(node):
    node.control.take_plan(plan(entry()))
    command = node.only()
    node.control.lose_actuator("gone")
    node.control.answered(command, report(lock=[1000, 1200], enforced=400.0))
    assert node.acknowledged() is None


def test_release_is_asked_for_once_and_acknowledged(node):
    node.control.take_plan(plan(entry(action="Release", cap=None)))
    command = node.only()
    assert command.operation == "release"
    node.control.answered(command, report())
    assert node.acknowledged() == (1, 1)
    assert node.commands() == []


def test_observe_writes_nothing_acknowledges_and_says_what_it_would(node):
    node.control.take_plan(plan(entry(action="Observe")))
    assert node.commands() == []
    assert node.acknowledged() == (1, 1)
    assert node.gpu().outcome.would.sm_mhz == (1000, 1200)


def test_a_lock_of_ours_under_observe_is_taken_away(node):
    node.control.take_plan(plan(entry()))
    node.carry_out()
    node.control.take_plan(plan(entry(action="Observe", grant=2)))
    command = node.only()
    assert (command.sm_mhz, command.cap_watts) == (None, None)


def test_stale_metrics_unlock_and_keep_the_cap_acknowledged(node, clock):
    node.control.take_plan(plan(entry()))
    node.carry_out()
    clock.step(5.1)
    command = node.only()
    assert (command.sm_mhz, command.cap_watts) == (None, 400)
    assert "MetricsStale" in node.control.faults(node.gpu())
    node.control.answered(command, report(cap=400, enforced=400.0))
    assert node.acknowledged() == (1, 1)
    node.engines[ENGINE].at = clock.now
    assert node.only().sm_mhz == (1000, 1200)
    assert node.control.faults(node.gpu()) == {}


def test_an_engine_that_never_answered_counts_from_when_it_was_first_wanted(node, clock):
    node.engines[ENGINE] = EngineState(clock.now)
    node.control.take_plan(plan(entry()))
    assert node.only().sm_mhz == (1000, 1200)
    clock.step(5.1)
    node.control.abandoned(node.gpu().in_flight)
    assert node.only().sm_mhz is None


def test_a_metric_that_an_objective_needs_is_named_when_it_is_missing(node):
    node.engines[ENGINE].sample = EngineSample(GOOD.values, {}, ("time_to_first_token", "prompt_tokens"))
    node.control.take_plan(plan(entry()))
    assert node.only().sm_mhz == (1000, 1200)
    node.control.abandoned(node.gpu().in_flight)
    node.control.take_plan(plan(entry(grant=2), slo={"timeToFirstToken": {"thresholdMilliseconds": 500}}))
    assert node.only().sm_mhz is None
    assert "vllm:time_to_first_token_seconds" in node.control.faults(node.gpu())["MetricMissing"]


def test_what_a_controller_requires_must_be_there(clock):
    node = fresh(clock, Scripted(lambda *_: Decision(GroupSetpoint((900, 900))), ["kv_cache_usage"]))
    node.engines[ENGINE].sample = EngineSample(GOOD.values, {}, ("kv_cache_usage",))
    node.control.take_plan(plan(entry()))
    assert node.only().sm_mhz is None
    assert "vllm:kv_cache_usage_perc" in node.control.faults(node.gpu())["MetricMissing"]


def test_a_controller_is_asked_when_it_wants_to_be_and_keeps_its_state(clock):
    asked = []

    def answer(observation, now):
        asked.append((now, observation.engine_age_seconds, observation.gpus[0].power_watts))
        return Decision(UNLOCKED, next_wake_seconds=1.0)

    node = fresh(clock, Scripted(answer))
    node.control.take_plan(plan(entry()))
    for _ in range(5):
        node.commands()
        clock.step(0.5)
    assert asked == [(1000.0, 0.0, 300.0), (1001.0, 1.0, 300.0), (1002.0, 2.0, 300.0)]
    assert node.control.next_wake() == 1003.0


def test_a_setpoint_may_lower_the_cap_and_never_raise_it_above_the_grant(clock):
    caps = iter((300, 650))
    node = fresh(clock, Scripted(lambda *_: Decision(GroupSetpoint(None, next(caps)), next_wake_seconds=0.0)))
    node.control.take_plan(plan(entry()))
    command = node.only()
    assert (command.cap_watts, command.ceiling_watts) == (300, 400)
    node.control.abandoned(command)
    assert node.only().cap_watts == 400


def test_cards_of_a_group_get_one_setpoint_that_all_of_them_can_hold(node):
    cards = [card("GPU-1"), card("GPU-2", 1, high=1110)]
    node.control.take_cards({"driver_version": "580", "error": "", "gpus": cards})
    node.control.take_plan(plan(entry(group="pod"), entry("GPU-2", group="pod", cap=300)))
    assert {(command.sm_mhz, command.cap_watts) for command in node.commands()} == {
        ((1000, 1110), 400),
        ((1000, 1110), 300),
    }


def test_a_group_with_a_card_that_is_not_there_has_its_caps_held_and_its_clocks_left(node):
    node.control.take_plan(plan(entry(group="pod"), entry("GPU-x", group="pod")))
    command = node.only()
    assert (command.uuid, command.sm_mhz, command.cap_watts) == ("GPU-1", None, 400)


def test_clocks_given_up_by_the_actuator_do_not_keep_the_cap_from_being_acknowledged(node):
    node.control.take_plan(plan(entry()))
    node.control.take_reports([report(armed=False)])
    command = node.only()
    assert (command.sm_mhz, command.cap_watts) == (None, 400)
    node.control.answered(command, report(cap=400, enforced=400.0, armed=False))
    assert node.acknowledged() == (1, 1)


@pytest.mark.parametrize("value", ["stopped", "anything", ""])
def test_nothing_is_asked_while_the_switch_does_not_say_enabled(node, value):
    node.control.take_switch(value)
    node.control.take_plan(plan(entry()))
    assert node.commands() == []
    node.control.take_switch("release")
    assert node.only().cap_watts == 400


def test_nothing_is_asked_before_the_switch_was_read(clock):
    control = NodeControl("session", make_controller, clock)
    assert not control.writes


def test_a_shared_gpu_is_not_driven(node):
    node.control.take_allocation(Allocation({"GPU-1": Holder("n", "p", "c")}, frozenset({"GPU-1"})))
    node.control.take_plan(plan(entry()))
    assert node.commands() == []
    assert node.acknowledged() is None
    assert "Shared" in node.control.faults(node.gpu())


def test_a_card_with_mig_is_not_driven(node):
    node.control.take_cards({"driver_version": "580", "error": "", "gpus": [card("GPU-1", mig=True)]})
    node.control.take_plan(plan(entry()))
    assert node.commands() == []
    assert "MigEnabled" in node.control.faults(node.gpu())


def test_a_gpu_that_only_the_plan_knows_is_a_fault_until_the_plan_forgets_it(node):
    node.control.take_plan(plan(entry("GPU-x")))
    assert node.commands() == []
    assert "UnknownGpu" in node.control.faults(node.gpu("GPU-x"))
    node.control.take_plan(plan(entry()))
    assert "GPU-x" not in node.control.gpus


def test_counters_begin_anew_for_a_namesake_and_for_other_objectives(node):
    lives = []
    for made in (
        plan(entry()),
        plan(entry(grant=2)),
        plan(entry(), uid="u2"),
        plan(entry(), uid="u2", slo={"endToEnd": {"thresholdMilliseconds": 500}}),
    ):
        node.control.take_plan(made)
        lives.append(node.control.counters(node.engines)[0].since)
    assert lives[0] == lives[1]
    assert len(set(lives)) == 3
    assert all(life.startswith("session/") for life in lives)


def test_energy_is_counted_for_cards_that_work_for_the_policy(node):
    node.control.take_plan(plan(entry(), entry("GPU-2", action="Release", cap=None)))
    node.control.take_reports([report(energy=100.0), report("GPU-2", energy=100.0)])
    node.control.take_reports([report(energy=150.0), report("GPU-2", energy=900.0)])
    (counters,) = node.control.counters(node.engines)
    assert (counters.energy_joules, counters.engines, counters.engines_stale) == (50, 1, 0)
