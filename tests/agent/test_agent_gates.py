"""Admission of an engine: never shut for longer than somebody decides whom to let in."""

import pytest

from flyball_agent.controllers.base import Board
from flyball_agent.facts import Engine, EngineState
from flyball_agent.knobs import LEASE_SECONDS, EngineKnobs, Knobs
from flyball_agent.scanner import EngineSample

ENGINE = Engine("10.0.0.1", 8000, "/metrics")
BEARABLE_SECONDS = 3
"""As long as a clock lock outlives a killed agent."""


class Gate:
    """One engine that takes what it is told, at a time that the test sets."""

    def __init__(self):
        self.knobs = EngineKnobs()
        self.state = EngineState(0.0)
        self.state.take(EngineSample({"generation_tokens": 1.0}), 0.0, Board(1, (), 16, 1000, 256, 256))
        self.now = 0.0

    def want(self, *wanted):
        return self.take(self.knobs.commands({ENGINE: Knobs(*wanted)}, {ENGINE: self.state}, self.now))

    def stopped(self):
        return self.take(self.knobs.renewals({ENGINE: self.state}, self.now))

    def take(self, commands):
        for command in commands:
            self.knobs.answered(command, self.now)
        return [command.body() for command in commands]


@pytest.fixture
def gate():
    return Gate()


@pytest.mark.parametrize("admit", [0, 3])
def test_an_engine_whose_agent_is_killed_is_open_after_seconds(gate, admit):
    (told,) = gate.want(32, admit, 1)
    assert told["seconds"] <= BEARABLE_SECONDS


def test_a_closed_engine_stays_closed_while_its_agent_lives(gate):
    gate.want(None, 0, 1)
    ends, renewals = float(BEARABLE_SECONDS), 0
    for tick in range(1, 41):
        gate.now = tick / 2
        for told in gate.want(None, 0, 1 + tick):
            renewals += 1
            ends = gate.now + told["seconds"]
        assert ends > gate.now + 0.5
    assert renewals <= 20


def test_the_stopped_switch_opens_a_closed_engine(gate):
    gate.want(None, 0, 1)
    assert gate.stopped() == [{"batchLimit": None, "admit": None}]
    assert gate.stopped() == []


def test_the_stopped_switch_opens_an_engine_and_keeps_its_batch_limit(gate):
    gate.want(32, 0, 1)
    kept = {"batchLimit": 32, "admit": None, "seconds": LEASE_SECONDS}
    assert gate.stopped() == [kept]
    assert gate.stopped() == []
    gate.now = 6.0
    assert gate.stopped() == [kept]


def test_an_engine_that_refused_just_before_the_stop_is_told_again_after_it(gate):
    (command,) = gate.knobs.commands({ENGINE: Knobs(32)}, {ENGINE: gate.state}, gate.now)
    gate.knobs.failed(command, "HTTP 500", gate.now)
    gate.now = 2.0
    gate.stopped()
    gate.now = 4.0
    assert gate.want(32) == [{"batchLimit": 32, "admit": None, "seconds": LEASE_SECONDS}]
