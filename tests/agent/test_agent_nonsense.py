"""Answers of controllers that cannot be, and groups that change: one group's fault, never the node's."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from flyball_agent.controllers.base import NEVER_SECONDS, UNLOCKED, ControlLimits, Decision, GroupSetpoint
from flyball_agent.driving import checked
from flyball_agent.facts import Engine, EngineState
from flyball_agent.node import NodeControl
from flyball_agent.profiles import DecodePoint, Profile
from flyball_agent.scanner import EngineSample
from flyball_agent.setups import setup_of
from flyball_agent.status import DrawMeter, build_status
from flyball_api.nodeenergyplan import NodeEnergyPlan

ENGINE = Engine("10.0.0.1", 8000, "/metrics")
PRODUCT = "NVIDIA H100 80GB HBM3"
LIMITS = ControlLimits(345, 1980, 400)


class Scripted:
    """A controller that answers what a test says."""

    requires, events, wants_board, period_seconds = frozenset(), frozenset(), False, 0.5

    def __init__(self, answer):
        self.answer = answer

    def decide(self, _observation, _limits, _now):
        return self.answer

    def state(self):
        return {}

    def restore(self, _state):
        pass


def entry(uuid="GPU-1", grant=1, **more):
    made = {"uuid": uuid, "grant": grant, "action": "Enforce", "policy": "chat", "podIp": "10.0.0.1", **more}
    return {"capWatts": 400, "ceilingWatts": 700} | made


def plan(*gpus):
    policy = {"name": "chat", "uid": "u1", "controller": {"type": "Fixed", "fixed": {}}}
    spec = {"leaderEpoch": 1, "policies": [policy], "gpus": list(gpus)}
    return NodeEnergyPlan.model_validate({"metadata": {"name": "n"}, "spec": spec})


def card(uuid, product=PRODUCT):
    made = {"uuid": uuid, "index": 0, "product": product, "cap_min_watts": 200.0, "cap_max_watts": 700.0}
    made |= {"cap_default_watts": 700.0, "sm_min_mhz": 345, "sm_max_mhz": 1980, "sm_mhz": [345, 900, 1980]}
    return made | {"mig_enabled": False}


@pytest.fixture
def node(clock):
    def make(answer):
        control = NodeControl("session", lambda _spec, **_told: Scripted(answer), clock)
        control.take_switch(None)
        control.take_actuator("life", "boot")
        control.take_cards({"driver_version": "580", "error": "", "gpus": [card("GPU-1"), card("GPU-2")]})
        return control

    return make


@pytest.fixture
def engines(clock):
    state = EngineState(clock.now)
    state.take(EngineSample({"requests_running": 1.0, "generation_tokens": 5.0}), clock.now)
    return {ENGINE: state}


@pytest.mark.parametrize(
    "bad",
    [
        Decision(GroupSetpoint((900, 900)), because=None),
        Decision(GroupSetpoint((900, 900)), because=b"900 MHz"),
        Decision(GroupSetpoint((900, 900)), degraded=(None,)),
        Decision(GroupSetpoint((900, 900)), degraded=None),
        Decision(GroupSetpoint((900, 900)), degraded="all is lost"),
    ],
)
def test_words_that_are_none_are_a_failure_of_that_controller(node, engines, bad):
    control = node(bad)
    control.take_plan(plan(entry()))
    (command,) = control.commands(engines)
    assert (command.sm_mhz, command.cap_watts) == (None, 400)
    assert set(control.faults(control.gpus["GPU-1"])) == {"ControllerFailed"}


def test_half_a_character_in_a_controllers_words_does_not_keep_the_status_from_being_written(node, engines, clock):
    control = node(Decision(UNLOCKED, degraded=("profile \ud800 is of other cards",), because="\udfff" * 300))
    control.take_plan(plan(entry()))
    control.commands(engines)
    now = datetime(2026, 11, 21, tzinfo=UTC)
    status = build_status(control, engines, DrawMeter(), now=clock.now, wall_time=now, version="1", earlier=None)
    (gpu,) = [gpu for gpu in status.gpus if gpu.uuid == "GPU-1"]
    assert gpu.because == "?" * 256
    assert {fault.code: fault.message for fault in gpu.faults} == {"Degraded": "profile ? is of other cards"}


@pytest.mark.parametrize("wait", [1e300, math.inf])
def test_no_controller_sleeps_for_ever(wait):
    assert checked(Decision(UNLOCKED, next_wake_seconds=wait), LIMITS).next_wake_seconds == NEVER_SECONDS


@pytest.mark.parametrize("would", [None, GroupSetpoint(cap_watts=10**30)])
def test_a_cap_above_the_grant_is_the_grant(would):
    made = checked(Decision(GroupSetpoint((900, 900), 10**30), would=would), LIMITS)
    assert made.setpoint == GroupSetpoint((900, 900))
    assert made.would == (None if would is None else UNLOCKED)


def test_without_a_grant_no_cap_is_shown_either():
    ungranted = replace(LIMITS, cap_watts=None)
    assert checked(Decision(GroupSetpoint(cap_watts=300)), ungranted).setpoint == UNLOCKED


def test_a_cap_that_no_card_takes_is_the_lowest_that_it_takes(node, engines):
    control = node(Decision(GroupSetpoint(cap_watts=50)))
    control.take_plan(plan(entry()))
    (command,) = control.commands(engines)
    assert command.cap_watts == 200


def test_a_grant_below_what_the_card_takes_is_passed_on_as_it_is(node, engines):
    control = node(Decision(GroupSetpoint(cap_watts=50)))
    control.take_plan(plan(entry(capWatts=150)))
    (command,) = control.commands(engines)
    assert command.cap_watts == 150


def test_a_tensor_parallel_group_that_grows_and_shrinks_gets_one_setpoint_throughout(node, engines):
    control = node(Decision(GroupSetpoint((900, 900))))
    first, second = entry(group="pod"), entry("GPU-2", group="pod")
    for gpus in ([first], [first, second], [second], [second, first]):
        control.take_plan(plan(*gpus))
        control.commands(engines)
        assert {control.gpus[gpu["uuid"]].outcome.setpoint.sm_mhz for gpu in gpus} == {(900, 900)}


def test_no_profile_is_used_for_cards_of_two_kinds():
    point = DecodePoint(1980, 1, 10.0, 0.01, 300.0)
    profile = Profile("chat", PRODUCT, "llama", 2, "0.11", "2026-11-01", decode=(point,))
    cards = (card("GPU-1"), card("GPU-2", "NVIDIA H200"))
    setup = setup_of(cards, 1, profile="chat", shelf={"chat": profile}, model="llama")
    assert setup.profile is None
    assert "NVIDIA H200" in setup.profile_trouble
