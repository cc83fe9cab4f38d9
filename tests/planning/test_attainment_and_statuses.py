"""SLO evidence, statuses, when they are worth a write, and the Events they are worth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_world import World, policy_of

from flyball_api.energypolicy import Slo
from flyball_api.nodeenergyplan import PolicyCounters
from flyball_operator import attainment
from flyball_operator.state import Switch
from flyball_operator.statuses import events_of, is_material, is_urgent

SLO = {
    "timeToFirstToken": {"thresholdMilliseconds": 500, "percentile": 95},
    "attainment": {"windowSeconds": 100, "minimumRequests": 20},
}


def counters_of(total=0.0, within=0.0, *, energy=0.0, tokens=0.0, since="a", seconds=1000.0):
    latency = {"total": total, "within": within}
    return PolicyCounters.model_validate(
        {
            "name": "p",
            "uid": "uid-p",
            "since": since,
            "seconds": seconds,
            "energyJoules": energy,
            "generatedTokens": tokens,
            "timeToFirstToken": latency,
        }
    )


def series_of(*steps):
    samples = ()
    for at, counters in steps:
        samples = attainment.remember(samples, counters, 100, at)
    return samples


def first_tokens(samples, now):
    return attainment.evaluate([samples], 100, now).latencies[0]


def test_attainment_is_what_was_counted_within_the_window():
    samples = series_of((0, counters_of(100, 90)), (60, counters_of(150, 130)), (120, counters_of(200, 180)))
    assert first_tokens(samples, 120) == (100, 90)
    samples = attainment.remember(samples, counters_of(300, 280), 100, 170)
    assert first_tokens(samples, 170) == (150, 150)


def test_counters_that_began_anew_are_added_not_subtracted():
    samples = series_of((0, counters_of(100, 90)), (50, counters_of(30, 30, since="b")))
    assert first_tokens(samples, 50) == (30, 30)
    samples = attainment.remember(samples, counters_of(10, 5, since="b"), 100, 60)
    assert first_tokens(samples, 60) == (40, 35)


def test_young_counters_are_evidence_even_of_the_time_before_this_process():
    samples = series_of((500, counters_of(40, 39, seconds=60)))
    evidence = attainment.evaluate([samples], 100, 500)
    assert evidence.latencies[0] == (40, 39)
    assert evidence.seconds == 60


def test_old_counters_seen_for_the_first_time_are_no_evidence_of_the_window():
    assert first_tokens(series_of((500, counters_of(4000, 39, seconds=6000))), 500) == (0, 0)


def test_evidence_stands_while_nothing_new_comes_and_expires_with_the_window():
    samples = series_of((0, counters_of(0, 0)), (50, counters_of(40, 40)))
    assert first_tokens(samples, 149) == (40, 40)
    assert first_tokens(samples, 151) == (0, 0)


def test_energy_per_token_is_summed_over_nodes():
    one = series_of((0, counters_of()), (50, counters_of(energy=1000, tokens=100)))
    two = series_of((0, counters_of()), (50, counters_of(energy=3000, tokens=300)))
    assert attainment.evaluate([one, two], 100, 50).joules_per_token() == 10.0
    assert attainment.evaluate([series_of((0, counters_of()))], 100, 0).joules_per_token() is None


def test_the_attainment_of_a_policy_is_that_of_its_worst_latency():
    slo = Slo.model_validate(SLO | {"endToEnd": {"thresholdMilliseconds": 900}})
    evidence = attainment.Evidence(100.0, latencies=((100, 97), (0, 0), (50, 40)))
    status = attainment.slo_status(slo, evidence)
    assert status.attainment_percent == 80.0
    assert [metric.metric for metric in status.metrics] == ["timeToFirstToken", "endToEnd"]


def test_samples_do_not_grow_without_bound():
    samples = series_of(*((float(second), counters_of(second, second)) for second in range(2000)))
    assert len(samples) <= attainment.MAX_SAMPLES
    assert first_tokens(samples, 1999)[0] == pytest.approx(100, abs=2)


@pytest.fixture
def world():
    return World(nodes=1, gpus=1)


def with_counters(world, counters):
    plan = world.plans["n0"]
    world.plans["n0"] = replace(plan, status=plan.status.model_copy(update={"policies": (counters,)}))


@pytest.mark.parametrize(
    ("total", "within", "expected"),
    [(100, 96, ("True", "Met")), (100, 90, ("False", "Missed")), (10, 10, ("Unknown", "TooFewRequests"))],
)
def test_the_slo_is_met_missed_or_not_known(world, total, within, expected):
    world.add(policy_of(slo=SLO))
    world.settle()
    with_counters(world, counters_of(total, within, seconds=50))
    world.tick(6.0)
    said = world.condition("p", "SLOMet")
    assert (said.status, said.reason) == expected


def test_a_policy_without_pods_says_what_to_check(world):
    world.add(policy_of(selector={"matchLabels": {"app": "other"}}))
    world.tick()
    said = world.condition("p", "Ready")
    assert (said.status, said.reason) == ("False", "NoPods")
    assert "spec.selector" in said.message


def test_a_condition_keeps_its_time_until_its_status_changes(world):
    world.add(policy_of())
    world.settle()
    first = world.condition("p", "Enforced")
    world.add(replace(policy_of(failSafe={"metricsStaleSeconds": 9}), generation=2, status=world.policies["p"].status))
    world.tick(5.0)
    second = world.condition("p", "Enforced")
    assert (first.status, second.status) == ("True", "False")
    assert second.last_transition_time > first.last_transition_time
    assert world.condition("p", "Accepted").last_transition_time < second.last_transition_time


def test_numbers_wait_five_seconds_and_conditions_do_not(world):
    world.add(policy_of())
    world.settle(rounds=4, seconds=2.0)
    world.tick(6.0)
    world.nodes["n0"].cards[0].draw = 400
    world.report("n0")
    assert world.tick(6.0).statuses
    world.nodes["n0"].cards[0].draw = 600
    world.report("n0")
    assert not world.tick(2.0).statuses
    world.switch = Switch.STOPPED
    assert world.tick(0.1).statuses


def test_a_policy_stays_enforced_while_watts_move_unless_that_takes_long(world):
    world.add(policy_of(powerBudget={"watts": 500, "reserveWatts": 0}))
    world.settle()
    world.pods["default/pod-0-0"] = replace(world.pods["default/pod-0-0"], ip="10.9.9.9")
    world.tick(1.0)
    world.tick(1.0)
    assert world.condition("p", "Enforced").status == "True"
    world.tick(4.0)
    assert world.condition("p", "Enforced").reason == "InFlight"
    world.deliver("n0")
    world.tick(0.1)
    assert world.condition("p", "Enforced").status == "True"


def test_a_wandering_number_is_not_worth_a_write(world):
    world.add(policy_of())
    world.settle()
    status = world.policies["p"].status
    assert not is_material(status, status.model_copy(update={"draw_watts": (status.draw_watts or 0) + 4}))
    assert is_material(status, status.model_copy(update={"draw_watts": (status.draw_watts or 0) + 40}))
    assert is_urgent(status, status.model_copy(update={"observed_generation": 7}))


def test_events_tell_of_what_came_up_and_of_what_is_over(world):
    world.add(policy_of(powerBudget={"watts": 500, "reserveWatts": 0}))
    reasons = []
    for watts in (500, 300):
        world.add(
            replace(
                policy_of(powerBudget={"watts": watts, "reserveWatts": 0}, generation=watts),
                status=world.policies["p"].status,
            )
        )
        for _ in range(4):
            world.tick(70.0)
            reasons += [event.reason for event in world.last.events]
            world.deliver("n0")
    assert reasons.count("BudgetDeficit") == 2
    assert reasons.count("DeficitCleared") == 2
    assert "Enforced" in reasons


def test_what_a_controller_lacks_is_told_once_with_the_gpus_that_it_is_about():
    world = World(nodes=1, gpus=2)
    world.add(policy_of())
    world.settle()
    lacking = "the profile chat-h100 was made on another GPU: clocks stay unlocked"
    for card in world.nodes["n0"].cards:
        card.faults = ({"code": "Degraded", "message": lacking},)
    world.report("n0")
    world.tick(1.0)
    said = world.condition("p", "Degraded")
    assert (said.status, said.reason) == ("True", "ControllerDegraded")
    assert said.message.count(lacking) == 1
    assert "(n0/GPU-0-0, n0/GPU-0-1)" in said.message
    assert world.condition("p", "Ready").message == said.message


def test_a_card_that_does_not_obey_comes_before_a_controllers_complaint():
    world = World(nodes=1, gpus=2)
    world.add(policy_of())
    world.settle()
    world.nodes["n0"].cards[0].faults = ({"code": "Degraded", "message": "no metric"},)
    world.nodes["n0"].cards[1].faults = ({"code": "NvmlError", "message": "flapping"},)
    world.report("n0")
    world.tick(1.0)
    assert world.condition("p", "Degraded").reason == "GpuFault"
    assert "no metric (n0/GPU-0-0)" in world.condition("p", "Degraded").message


def test_the_same_event_is_not_sent_twice_within_a_minute(world):
    world.add(policy_of())
    world.settle()
    sent = []
    for _ in range(4):
        world.nodes["n0"].cards[0].faults = ({"code": "NvmlError", "message": "flapping"},)
        world.report("n0")
        sent += [event.reason for event in world.tick(1.0).events]
        world.nodes["n0"].cards[0].faults = ()
        world.report("n0")
        sent += [event.reason for event in world.tick(1.0).events]
    assert sorted(sent) == ["Degraded", "Recovered"]


def test_a_policy_that_never_held_anything_is_not_announced_as_released(world):
    world.add(policy_of(mode="Observe", has_finalizer=False))
    world.tick()
    status = world.policies["p"].status
    assert world.condition("p", "Released").status == "True"
    assert events_of("p", "uid", type(status)(), status) == ()
