"""The choice among caps and batches, the feedback, and what is read off an engine's counters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.controllers.pals.feedback import Feedback, Gains
from flyball_agent.controllers.pals.table import Bounds, Candidate, NodePower, choose, read_table
from flyball_agent.controllers.pals.telemetry import Counts, Telemetry

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        cap_watts=st.integers(100, 700),
        batch_limit=st.integers(1, 256),
        tokens_per_second=st.floats(1.0, 1e5),
        power_watts=st.floats(30.0, 900.0),
    ),
    min_size=1,
    max_size=30,
)
BOUNDS = st.builds(
    Bounds,
    budget_watts=st.floats(50.0, 6000.0),
    needed_tokens_per_second=st.none() | st.floats(0.0, 1e5),
    margin=st.floats(0.0, 0.2),
    gpus=st.integers(1, 8),
    node=st.builds(NodePower, st.floats(0.0, 2000.0), st.floats(1.0, 1.5)),
)
FIT = {
    "version": 1,
    "gpus": 4,
    "caps_watts": [150, 400],
    "batch_limits": [1, 64],
    "tokens_per_second": [[50.0, 1800.0], [70.0, 3000.0]],
    "power_watts": [[147.0, 147.0], [285.0, 329.0]],
    "throughput_error_percent": 3.0,
    "power_error_percent": 1.0,
    "accepted": True,
}


@given(CANDIDATES, BOUNDS)
def test_nothing_over_the_budget_is_chosen_while_something_is_within(candidates, bounds):
    choice = choose(candidates, bounds)
    assert choice.within == any(bounds.within(one) for one in candidates)
    assert bounds.within(choice.candidate) == choice.within


@given(CANDIDATES, BOUNDS)
def test_the_most_efficient_that_reaches_the_target_is_chosen_else_the_fastest(candidates, bounds):
    choice = choose(candidates, bounds)
    within = [one for one in candidates if bounds.within(one)]
    meeting = [one for one in within if bounds.meets(one)]
    if meeting:
        assert choice.meets
        assert bounds.efficiency(choice.candidate) == max(map(bounds.efficiency, meeting))
    elif within:
        assert choice.candidate.tokens_per_second == max(one.tokens_per_second for one in within)


def test_with_nothing_within_the_budget_the_lowest_cap_and_smallest_batch_are_chosen():
    table = read_table(FIT, 4)
    choice = choose(table.candidates, Bounds(400.0, 1000.0, 0.05, 4))
    assert not choice.within
    assert (choice.candidate.cap_watts, choice.candidate.batch_limit) == (150, 1)


def test_a_budget_of_exactly_the_lowest_caps_is_enough_for_them():
    choice = choose(read_table(FIT, 4).candidates, Bounds(600.0, None, 0.05, 4))
    assert choice.within
    assert (choice.candidate.cap_watts, choice.candidate.batch_limit) == (150, 64)


def test_the_nodes_own_watts_make_a_higher_cap_worth_its_price():
    candidates = read_table(FIT, 4).candidates
    cards_alone = Bounds(9999.0, 1000.0, 0.05, 4)
    whole_node = Bounds(9999.0, 1000.0, 0.05, 4, NodePower(900.0, 1.1))
    assert choose(candidates, cards_alone).candidate.cap_watts == 150
    assert choose(candidates, whole_node).candidate.cap_watts == 400


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 2}, "version 2"),
        ({"gpus": 1}, "1 GPUs and the engine has 4"),
        ({"caps_watts": [400, 150]}, "not ascending"),
        ({"tokens_per_second": [[50.0, 1800.0]]}, "damaged"),
        ({"caps_watts": [150, float("inf")]}, "damaged"),
        ({"power_watts": [[147.0, math.nan], [285.0, 329.0]]}, "nan"),
        ({"power_error_percent": -1}, "error in percent"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_table({**FIT, **change}, 4)


def test_the_feedback_acts_on_a_deviation_that_was_there_for_two_periods_only():
    feedback = Feedback(Gains())
    feedback.see(0.2, 0.5, frozen=False)
    assert not feedback.persists
    feedback.see(0.01, 0.5, frozen=False)
    feedback.see(0.2, 0.5, frozen=False)
    assert not feedback.persists
    feedback.see(0.2, 0.5, frozen=False)
    assert feedback.persists


def test_the_feedback_is_the_papers_pid_within_its_bound():
    feedback = Feedback(Gains())
    assert feedback.see(0.1, 0.5, frozen=False) == pytest.approx(0.5 * 0.1 + 0.1 * 0.05)
    assert feedback.see(0.2, 0.5, frozen=False) == pytest.approx(0.5 * 0.2 + 0.1 * 0.15 + 0.05 * 0.2)
    assert feedback.see(5.0, 0.5, frozen=False) == 0.25


@given(st.lists(st.floats(-5.0, 1.0), max_size=60))
def test_a_frozen_integrator_keeps_its_sum_and_none_winds_up(errors):
    feedback = Feedback(Gains())
    for error in errors:
        feedback.see(error, 0.5, frozen=True)
    assert feedback.to_json() == {"sum": 0.0}
    for error in errors:
        assert abs(feedback.see(error, 0.5, frozen=False)) <= 0.25
    assert abs(feedback.to_json()["sum"]) <= 2.5


def test_offered_output_is_arrivals_times_the_mean_answer():
    telemetry = Telemetry(1.5, 10.0)
    for tick in range(200):
        now = tick * 0.5
        # 10 requests/s of 120 tokens each; from 50 s on only 6 of them are served and the rest wait.
        served = 10.0 * now if now <= 50.0 else 500.0 + 6.0 * (now - 50.0)
        telemetry.see(Counts(120.0 * served, served, 20.0, 10.0 * now - served), now)
    assert telemetry.offered_tokens_per_second == pytest.approx(1200.0, rel=0.01)
    assert telemetry.tokens_per_second == pytest.approx(720.0, rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e6), st.floats(0, 500), st.floats(0, 500)), max_size=30))
def test_no_page_makes_output_negative_or_none_of_a_number(pages):
    telemetry = Telemetry(1.5, 10.0)
    for tick, page in enumerate(pages):
        telemetry.see(Counts(*page), tick * 0.5)
        for value in (telemetry.tokens_per_second, telemetry.offered_tokens_per_second):
            assert value is None or 0.0 <= value < math.inf


def test_an_engine_that_starts_again_loses_only_the_page_between():
    telemetry = Telemetry(1.5, 10.0)
    for tick in range(100):
        telemetry.see(Counts(60.0 * tick, 0.5 * tick, 3.0, 0.0), 0.5 * tick)
    before = telemetry.tokens_per_second
    assert not telemetry.see(Counts(10.0, 0.0, 0.0, 0.0), 50.0)
    assert telemetry.tokens_per_second == before
    assert telemetry.see(Counts(70.0, 0.5, 3.0, 0.0), 50.5)
    assert telemetry.tokens_per_second == pytest.approx(120.0)
