"""AGFT's parts by the published code's worked numbers: ridge, reward, exploration, context, pruning, refinement."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.controllers.agft.arms import Arms, coarse_grid, fine_grid
from flyball_agent.controllers.agft.bandit import Arm, Exploration, reward_of
from flyball_agent.controllers.agft.window import Polls, Welford, trouble
from flyball_agent.controllers.base import GpuReading, Observation
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.controllers.agft import AgftController

A6000 = tuple(range(210, 2101, 15))
X = (1.0, 0.5, -2.0, 0.0, 3.0, -0.25, 1.0)


def page(
    waiting=0.0, running=4.0, kv=0.25, *, tokens=(0.0, 0.0), steps=(0.0, 0.0), itl=(0.0, 0.0), ttft=(0.0, 0.0), hits=0.0
):
    return EngineSample(
        {
            "requests_waiting": waiting,
            "requests_running": running,
            "kv_cache_usage": kv,
            "prompt_tokens": tokens[0],
            "generation_tokens": tokens[1],
            "prefix_cache_queries": tokens[0],
            "prefix_cache_hits": hits,
        },
        {
            "iteration_tokens": Histogram((math.inf,), (steps[0],), steps[1]),
            "inter_token_latency": Histogram((math.inf,), (itl[0],), itl[1]),
            "time_to_first_token": Histogram((math.inf,), (ttft[0],), ttft[1]),
        },
    )


def look(sample, watts=200.0, joules=None, **fields):
    return Observation("unified", (GpuReading(watts, 1200, 90, False, joules),), sample, 0.0, **fields)


def test_the_ridge_is_5_and_not_the_1_of_the_settings():
    arm = Arm(7, float(AgftController().ridge))
    assert arm.width(X) ** 2 == pytest.approx(sum(value * value for value in X) / 5.0)
    arm.learn(X, 1.0, 3.0)
    squares = sum(value * value for value in X)
    assert arm.expected(X) == pytest.approx(squares / (5.0 + squares))


@given(st.lists(st.tuples(st.lists(st.floats(-3, 3), min_size=7, max_size=7), st.floats(-2, 2)), max_size=30))
def test_the_inverse_kept_by_updates_is_the_solution_of_the_ridge_regression(rounds):
    arm = Arm(7, 5.0)
    matrix = [[5.0 * (row == column) for column in range(7)] for row in range(7)]
    moments = [0.0] * 7
    for context, reward in rounds:
        arm.learn(context, reward, None)
        for row in range(7):
            moments[row] += reward * context[row]
            for column in range(7):
                matrix[row][column] += context[row] * context[column]
    theta = [arm.expected([float(row == column) for column in range(7)]) for row in range(7)]
    for row in range(7):
        assert sum(matrix[row][column] * theta[column] for column in range(7)) == pytest.approx(moments[row], abs=1e-6)


@pytest.mark.parametrize(
    ("edp", "reward"), [(0.0, 2.0), (1.5, 1.0), (3.0, 0.0), (6.0, -2.0), (60.0, -2.0), (None, 0.0)]
)
def test_the_reward_is_1_at_half_the_baseline_and_minus_2_from_its_double(edp, reward):
    assert reward_of(edp, 3.0) == reward


def test_the_weight_of_the_unknown_starts_at_10_and_is_at_its_floor_in_round_230():
    exploration = Exploration(10.0, 0.02, 0.1)
    assert exploration.alpha(0) == 10.0
    assert exploration.alpha(229) > 0.1
    assert exploration.alpha(231) == 0.1
    assert exploration.alpha(230) == pytest.approx(0.1, rel=0.01)


def test_the_context_is_the_papers_seven_numbers_in_its_order_and_units():
    polls = Polls(10.0, use_counter=False)
    assert polls.add(look(page(waiting=1.0, running=2.0, kv=0.1, tokens=(100.0, 50.0)), watts=100.0))
    assert polls.add(
        look(
            page(0.0, 4.0, 0.2, tokens=(400.0, 90.0), steps=(20.0, 340.0), itl=(40.0, 0.8), ttft=(2.0, 0.5), hits=75.0),
            watts=300.0,
        )
    )
    window = polls.close(10.8)
    has_queue, prefill, decode, packing, running, kv, hits = window.raw
    assert (has_queue, prefill, decode, packing) == (1.0, 300.0, 40.0, 17.0)
    assert running == pytest.approx(2.0 + 0.4 * 2.0)
    assert kv == pytest.approx(100.0 * (0.1 + 0.4 * 0.1))
    assert hits == pytest.approx(25.0)
    assert window.joules == pytest.approx(200.0 * 0.8)
    assert window.edp == pytest.approx(160.0 * 0.02)
    assert window.ttft_seconds == pytest.approx(0.25)


def test_a_window_without_tokens_has_no_product_and_features_above_zero():
    polls = Polls(0.0, use_counter=False)
    polls.add(look(page(running=0.0)))
    window = polls.close(0.8)
    assert window.edp is None
    assert window.raw[1:4] == (1e-3, 1e-3, 0.0)


def test_the_counter_gives_the_energy_where_it_is_asked_for_and_told():
    polls = Polls(0.0, use_counter=True)
    polls.add(look(page(), joules=1000.0))
    polls.add(look(page(), joules=1175.0))
    assert polls.close(0.8).joules == 175.0
    silent = Polls(0.0, use_counter=True)
    silent.add(look(page()))
    assert silent.close(0.8).joules == pytest.approx(160.0)


def test_an_engine_that_was_restarted_voids_the_window():
    polls = Polls(0.0, use_counter=False)
    assert polls.add(look(page(tokens=(10.0, 10.0))))
    assert not polls.add(look(page(tokens=(2.0, 2.0))))


@pytest.mark.parametrize(
    ("observation", "named"),
    [
        (Observation("unified", (), None), "no page"),
        (Observation("unified", (GpuReading(1.0),), page(), 3.0), "3.0 s old"),
        (look(page(), missing=("iteration_tokens",)), "vllm:iteration_tokens_total"),
        (look(page(), watts=None), "does not tell its power"),
        (look(page(running=math.nan)), "vllm:num_requests_running as nan"),
        (look(page(itl=(1.0, math.inf))), "vllm:inter_token_latency_seconds"),
    ],
)
def test_what_is_missing_stale_or_no_number_is_named(observation, named):
    assert named in trouble(observation)


# Whole numbers: their sum is exact, while equal fractions have a mean that is not quite themselves.
@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=40))
def test_contexts_are_normalised_by_the_running_mean_and_clipped_at_three(values):
    welford = Welford()
    for value in values:
        scores = welford.take((float(value),) * 7)
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    wanted = max(-3.0, min(3.0, (values[-1] - mean) / (deviation + 1e-8)))
    assert scores[0] == pytest.approx(wanted, abs=1e-3)
    assert Welford.of(json.loads(json.dumps(welford.state()))).take((1.0,) * 7) == welford.take((1.0,) * 7)


def test_the_coarse_grid_of_the_papers_card_has_22_clocks_from_the_top_down():
    grid = coarse_grid(A6000, 90)
    assert len(grid) == 22
    assert (grid[:3], grid[-1]) == ((2100, 2010, 1920), 210)


def test_the_fine_grid_is_every_15_mhz_within_150_of_the_anchor():
    assert fine_grid(A6000, 1245, 150) == tuple(range(1395, 1094, -15))
    assert len(fine_grid(A6000, 2100, 150)) == 11


def made(step=90):
    return Arms(A6000, step, width=7, ridge=5.0)


def play(arms, mhz, reward=0.0, edps=(3.0,)):
    for edp in edps:
        arms.arm(mhz).learn(X, reward, edp)


def test_a_clock_is_given_up_after_three_rounds_of_minus_1_2_only_in_the_first_sixty():
    arms = made()
    play(arms, 1110, -1.2, [9.0, 9.0])
    assert not arms.prune_extreme(1110, 10, -1.2)
    play(arms, 1110, -1.2)
    assert not arms.prune_extreme(1110, 61, -1.2)
    assert arms.prune_extreme(1110, 60, -1.2)
    assert 1110 not in arms.available(210, 2100)
    assert {1200, 210} <= set(arms.available(210, 2100))


def test_below_half_of_the_highest_clock_everything_slower_goes_with_it():
    arms = made()
    play(arms, 660, -2.0, [9.0] * 3)
    assert arms.prune_extreme(660, 20, -1.2)
    assert min(arms.available(210, 2100)) == 750


def test_history_gives_up_what_is_worse_than_four_times_the_spread():
    arms = made()
    for mhz in (1920, 1830, 1740, 1650, 1560, 1470, 1380, 1290, 1200, 1110, 1020, 930, 840, 750, 660, 570, 480, 390):
        play(arms, mhz, edps=[3.0] * 6)
    play(arms, 2100, edps=[30.0] * 6)
    play(arms, 2010, edps=[30.0] * 5)
    assert arms.prune_historical(29, 4.0) == []
    assert arms.prune_historical(40, 4.0) == []
    assert arms.prune_historical(50, 4.0) == [2100]
    assert 2010 in arms.available(210, 2100)


def test_a_spread_below_a_twentieth_joule_second_gives_nothing_up():
    arms = made()
    play(arms, 2100, edps=[0.199] * 6)
    play(arms, 1200, edps=[0.001] * 6)
    assert arms.prune_historical(30, 4.0) == []


def test_the_last_two_clocks_and_the_best_one_stay():
    arms = Arms((1000, 1500, 2000), 500, width=7, ridge=5.0)
    for mhz, edp in ((1000, 50.0), (1500, 1.0), (2000, 60.0)):
        play(arms, mhz, edps=[edp] * 6)
    gone = arms.prune_historical(30, 0.1)
    assert gone == [2000]
    assert set(arms.available(0, 3000)) == {1000, 1500}


def test_an_immature_anchor_is_the_best_clock_in_the_load_of_the_moment():
    arms = made()
    play(arms, 1200, edps=[1.0, 1.0, 1.1, 5.0, 9.0, 9.0])
    play(arms, 1500, edps=[2.0, 2.0, 2.1, 5.0, 7.0, 7.0])
    assert arms.anchor(80, (1200, 1.0), lambda _: 0.0) == 1200
    assert arms.anchor(80, (1200, 9.0), lambda _: 0.0) == 1500


def test_without_a_class_the_anchor_is_the_least_mean_of_four_samples():
    arms = made()
    play(arms, 1200, edps=[2.0] * 4)
    play(arms, 1500, edps=[1.0] * 3)
    play(arms, 1800, edps=[3.0] * 5)
    assert arms.anchor(80, (1200, 2.0), lambda _: 0.0) == 1200


@pytest.mark.parametrize(("scores", "anchor"), [((1.0, 0.9, 0.5), 1500), ((-0.1, -0.5, -0.3), 1800)])
def test_a_mature_anchor_is_the_best_of_those_near_the_highest_bound(scores, anchor):
    arms = made()
    for mhz, edp in ((1200, 5.0), (1500, 3.0), (1800, 1.0)):
        play(arms, mhz, edps=[edp] * 4)
    bounds = {id(arms.arm(mhz)): score for mhz, score in zip((1200, 1500, 1800), scores, strict=True)}
    assert arms.anchor(100, (1200, 5.0), lambda arm: bounds[id(arm)]) == anchor


def test_refinement_leaves_out_what_was_given_up():
    arms = made()
    arms.give_up([1245])
    arms.failed.add(1260)
    arms.boundary_mhz = 1110
    assert arms.refine(1245, 150)
    left = arms.available(210, 2100)
    assert (max(left), min(left)) == (1395, 1125)
    assert not {1245, 1260} & set(left)
    arms.boundary_mhz = 2100
    assert not arms.refine(600, 150)
    assert arms.listed[0] == 1395


def test_what_is_known_of_the_clocks_survives_as_json():
    arms = made()
    play(arms, 1200, 0.5, [2.0, 3.0])
    arms.give_up([300])
    again = made()
    again.take(json.loads(json.dumps(arms.state())))
    assert again.state() == arms.state()
    assert again.arm(1200).expected(X) == pytest.approx(arms.arm(1200).expected(X))
    with pytest.raises(ValueError, match="none of these cards"):
        Arms((100, 200), 100, width=7, ridge=5.0).take(arms.state())
