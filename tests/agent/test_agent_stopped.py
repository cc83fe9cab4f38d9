"""The stopped switch: what is not written is not learnt from."""

import pytest

from flyball_agent.controllers.base import Decision, GroupSetpoint
from flyball_agent.facts import Engine, EngineState
from flyball_agent.node import NodeControl
from flyball_agent.scanner import EngineSample
from flyball_api.nodeenergyplan import NodeEnergyPlan

ENGINE = Engine("10.0.0.1", 8000, "/metrics")


class Counting:
    """A controller that counts how often it was asked, and takes another clock each time."""

    requires, events, wants_board, period_seconds = frozenset(), frozenset(), False, 0.5

    def __init__(self):
        self.asked = 0

    def decide(self, _observation, _limits, _now):
        self.asked += 1
        return Decision(GroupSetpoint((900 + 15 * self.asked,) * 2), next_wake_seconds=0.5, because=str(self.asked))

    def state(self):
        return {"asked": self.asked}

    def restore(self, _state):
        pass


class Node:
    """A node with one GPU and one engine, whose control loop runs when a test says so."""

    def __init__(self, clock, action):
        self.clock, self.controller = clock, Counting()
        self.control = NodeControl("session", lambda _spec, **_told: self.controller, clock)
        self.control.take_switch(None)
        self.control.take_actuator("life", "boot")
        card = {"uuid": "GPU-1", "index": 0, "product": "H100", "cap_min_watts": 200.0, "cap_max_watts": 700.0}
        card |= {"cap_default_watts": 700.0, "sm_min_mhz": 345, "sm_max_mhz": 1980, "mig_enabled": False}
        self.control.take_cards({"driver_version": "580", "error": "", "gpus": [card]})
        policy = {"name": "chat", "uid": "u1", "controller": {"type": "Fixed", "fixed": {}}}
        gpu = {"uuid": "GPU-1", "grant": 1, "action": action, "policy": "chat", "podIp": "10.0.0.1"}
        spec = {"leaderEpoch": 1, "policies": [policy], "gpus": [gpu]}
        self.control.take_plan(NodeEnergyPlan.model_validate({"metadata": {"name": "n"}, "spec": spec}))
        self.state = EngineState(clock.now)

    def go(self, ticks):
        for _ in range(ticks):
            self.clock.step(0.5)
            self.state.take(EngineSample({"requests_running": 1.0, "generation_tokens": 5.0}), self.clock.now)
            self.control.commands({ENGINE: self.state})


@pytest.fixture
def make_node(clock):
    return lambda action: Node(clock, action)


def test_a_controller_is_not_asked_while_nothing_of_it_is_written(make_node):
    node = make_node("Enforce")
    node.go(3)
    node.control.take_switch("stopped")
    node.go(10)
    assert node.controller.asked == 3
    assert node.control.gpus["GPU-1"].outcome.because == "3"
    assert node.control.next_wake() is None
    node.control.take_switch("enabled")
    node.go(1)
    assert node.controller.asked == 4


def test_nothing_is_decided_before_the_switch_is_known(make_node):
    node = make_node("Enforce")
    node.control.switch = ""
    node.go(2)
    assert node.controller.asked == 0


def test_what_is_only_observed_goes_on_being_observed(make_node):
    node = make_node("Observe")
    node.control.take_switch("stopped")
    node.go(3)
    assert node.controller.asked == 3
