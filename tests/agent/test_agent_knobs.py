"""Limits of an engine's batch and admission: when they are told, told again, and handed back."""

import pytest

from flyball_agent.controllers.base import Board
from flyball_agent.facts import Engine, EngineState
from flyball_agent.knobs import GATE_LEASE_SECONDS, LEASE_SECONDS, RENEW_SECONDS, EngineKnobs, Knobs
from flyball_agent.scanner import EngineSample

ENGINE = Engine("10.0.0.1", 8000, "/metrics")
OWN = 256


def board(limit=OWN, iteration=1):
    return Board(iteration, (), 16, 1000, limit, OWN)


def page(tokens=10.0):
    return EngineSample({"generation_tokens": tokens})


class Bench:
    """One engine's knobs at a time that the test sets."""

    def __init__(self):
        self.knobs = EngineKnobs()
        self.state = EngineState(0.0)
        self.state.take(page(), 0.0, board())
        self.now = 0.0

    def ask(self, *wanted):
        """What is told when so much is wanted; nothing: the engine is to be handed back."""
        by_engine = {ENGINE: Knobs(*wanted)} if wanted else {}
        return self.knobs.commands(by_engine, {ENGINE: self.state}, self.now)

    def take(self, *wanted):
        """The same, and the engine takes it; its board says so."""
        commands = self.ask(*wanted)
        for command in commands:
            self.knobs.answered(command, self.now)
            self.state.board = board(command.batch_limit or OWN)
        return [command.body() for command in commands]


@pytest.fixture
def bench():
    return Bench()


def told(batch_limit, admit=None):
    lease_seconds = LEASE_SECONDS if admit is None else GATE_LEASE_SECONDS
    return [{"batchLimit": batch_limit, "admit": admit, "seconds": lease_seconds}]


NOTHING_LIMITED = [{"batchLimit": None, "admit": None}]


def test_a_limit_is_told_once_and_again_when_it_changes(bench):
    assert bench.take(32) == told(32)
    assert bench.take(32) == []
    assert bench.take(48) == told(48)


def test_a_limit_is_renewed_well_before_its_lease_is_over(bench):
    bench.take(32)
    bench.now = RENEW_SECONDS
    assert bench.take(32) == told(32)
    assert 2 * RENEW_SECONDS < LEASE_SECONDS


def test_an_engine_that_never_showed_a_board_is_told_nothing(bench):
    bench.state = EngineState(0.0)
    bench.state.take(page(), 0.0)
    assert bench.ask(32) == []


def test_no_more_is_asked_than_the_engine_can_be_set_to(bench):
    assert bench.take(1000) == told(OWN)


def test_as_many_admissions_again_are_another_grant_when_another_decision_made_it(bench):
    assert bench.take(None, 2, 1) == told(None, 2)
    assert bench.take(None, 2, 1) == []
    assert bench.take(None, 2, 2) == told(None, 2)


def test_a_closed_gate_is_not_closed_again(bench):
    assert bench.take(None, 0, 1) == told(None, 0)
    assert bench.take(None, 0, 2) == []


def test_a_restarted_engine_is_told_again(bench):
    bench.take(32)
    bench.now = 0.5
    bench.state.take(page(tokens=0.0), bench.now)
    assert bench.take(32) == told(32)
    assert bench.take(32) == []


def test_an_engine_whose_board_shows_another_limit_is_told_again(bench):
    bench.take(32)
    bench.now = 2.0
    bench.state.take(page(), bench.now, board(OWN))
    assert bench.take(32) == told(32)


def test_an_engine_gets_its_own_limits_back_when_nobody_wants_any(bench):
    bench.take(32, 1)
    assert bench.take() == NOTHING_LIMITED
    assert bench.take() == []


def test_handing_back_is_tried_until_the_lease_is_over_anyway(bench):
    bench.take(32)
    tries = 0
    for second in range(2 * LEASE_SECONDS):
        bench.now = float(second)
        for command in bench.ask():
            tries += 1
            bench.knobs.failed(command, "refused", bench.now)
    assert 3 <= tries <= LEASE_SECONDS
    assert bench.knobs.hand_back() == []


def test_a_refusal_is_a_sentence_until_it_is_taken_and_tried_ever_more_slowly(bench):
    tries = []
    for second in range(40):
        bench.now = float(second)
        for command in bench.ask(32):
            tries.append(second)
            bench.knobs.failed(command, "HTTP 500", bench.now)
    assert tries == [0, 1, 3, 7, 15, 25, 35]
    assert "http://10.0.0.1:8000/flyball/limits" in bench.knobs.fault(ENGINE)
    assert "HTTP 500" in bench.knobs.fault(ENGINE)
    bench.now = 60.0
    bench.take(32)
    assert bench.knobs.fault(ENGINE) == ""


def test_nothing_is_told_while_an_answer_is_awaited(bench):
    (command,) = bench.ask(32)
    assert bench.ask(48) == []
    bench.knobs.answered(command, 0.0)
    assert bench.take(48) == told(48)


def test_what_is_in_force_is_renewed_and_not_changed_while_nothing_may_be(bench):
    bench.take(32)
    bench.now = RENEW_SECONDS
    (command,) = bench.knobs.renewals({ENGINE: bench.state}, bench.now)
    assert command.body() == told(32)[0]


def test_two_groups_on_one_engine_both_get_what_they_asked_for():
    assert Knobs(32, None, 1).merged(Knobs(16, 3, 2)) == Knobs(16, 3, 3)


def test_at_the_end_every_limited_engine_is_to_be_handed_back(bench):
    bench.take(32)
    assert [command.body() for command in bench.knobs.hand_back()] == NOTHING_LIMITED
