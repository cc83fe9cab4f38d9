"""throttLL'eM on pages and profiles that say what cannot be."""

from __future__ import annotations

import math

import pytest

from flyball_agent.controllers.base import UNLOCKED, ControlLimits, Decision, Observation, Setup, Targets
from flyball_agent.controllers.throttllem.controller import ThrottLlem
from flyball_agent.controllers.throttllem.performance import Performance
from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.controllers.throttllem import ThrottLlemController

LIMITS = ControlLimits(345, 1980, 700, Targets(ttft_seconds=1.0, tpot_seconds=0.05))


FIT = {
    "version": 1,
    "clocks": [990, 1485, 1980],
    "base": math.log(100.0),
    "trees": [[[3, 1200, 1, 2], [-0.7], [0.0]], [[1, 8, 1, 2], [0.0], [-0.2]], [[2, 5000, 1, 2], [0.0], [-0.1]]],
    "prefill_seconds_per_token": [0.0002, 0.00015, 0.0001],
}
"""10 ms a step, at the lowest clock twice that, and somewhat more for large batches."""


def profile(**damage: object) -> Profile:
    fits = {"ThrottLLeM": {**FIT, **damage}}
    return Profile("p", "GPU", "model", 1, "1", "2026-11-01", kv_blocks=20_000, fits=fits)


def controller(made: Profile | None = None) -> ThrottLlem:
    return ThrottLlem(ThrottLlemController(), Setup("GPU", 1, (990, 1485, 1980), profile=made or profile()))


def page(running: float, waiting: float, prompts: float, tokens: float, ended: float) -> Observation:
    values = {"requests_running": running, "requests_waiting": waiting, "kv_cache_usage": 0.2}
    values |= {"prompt_tokens": prompts, "generation_tokens": tokens}
    counted = {name: Histogram((math.inf,), (ended,), 0.0) for name in ("time_to_first_token", "end_to_end")}
    return Observation("unified", (), EngineSample(values, counted), 0.0)


@pytest.mark.parametrize(("running", "waiting"), [(2.0**63, 0.0), (1.0, 2.0**63), (1e9, 1e9)])
def test_a_page_with_more_requests_than_any_engine_has_costs_no_more_than_a_full_one(running, waiting):
    made = controller()
    made.decide(page(4.0, 0.0, 0.0, 0.0, 0.0), LIMITS, 0.0)
    decision = made.decide(page(running, waiting, 4000.0, 4000.0, 10.0), LIMITS, 10.0)
    assert decision.setpoint.sm_mhz is not None
    assert decision.setpoint.admit is None


def last(made: ThrottLlem, answers: list[int]) -> Decision:
    """Its decision after so many windows of 600 s in which ten answers of that length came."""
    tokens = ended = 0.0
    decision = made.decide(page(8.0, 0.0, 0.0, 0.0, 0.0), LIMITS, 0.0)
    for number, length in enumerate(answers, start=1):
        tokens, ended = tokens + 10.0 * length, ended + 10.0
        decision = made.decide(page(8.0, 0.0, 100.0 * ended, tokens, ended), LIMITS, 600.0 * number)
    return decision


def test_what_was_made_up_of_one_page_is_not_taken_for_the_same_requests_on_the_next():
    assert last(controller(), [20, 400]).because == last(controller(), [400]).because


@pytest.mark.parametrize(
    "damage",
    [
        {"base": math.inf},
        {"base": -1e6},
        {"base": math.nan},
        {"prefill_seconds_per_token": [-1.0, 0.1, 0.1]},
        {"prefill_seconds_per_token": [math.nan] * 3},
        {"trees": [[[1e308]], [[1e308]]]},
        {"trees": [[[math.nan]]]},
        {"trees": [[]]},
        {"trees": [[[1, math.nan, 1, 2], [0.1], [0.2]]]},
        {"trees": [[[1, 5.0, 0.5, 2], [0.1], [0.2]]]},
        {"trees": [[[1, 5.0, 1, 3], [0.1], [0.2]]]},
        {"clocks": [-990, 1485, 1980]},
        {"clocks": [990, 1485, math.inf]},
    ],
)
def test_a_profile_whose_model_is_damaged_is_refused_with_a_sentence(damage):
    decision = controller(profile(**damage)).decide(page(1.0, 0.0, 0.0, 0.0, 0.0), LIMITS, 0.0)
    assert decision.setpoint == UNLOCKED
    assert "profile p cannot be used" in decision.degraded[0]


def test_a_sound_model_is_read():
    assert Performance(FIT, 1).seconds(2, 8, 5000.0) == pytest.approx(0.01)


def test_a_tree_whose_branches_meet_again_is_worked_through_once():
    braid = [[1, 5.0, number + 1, number + 1] for number in range(60)] + [[0.0]]
    assert Performance({**FIT, "trees": [*FIT["trees"], braid]}, 1).seconds(2, 8, 5000.0) == pytest.approx(0.01)
