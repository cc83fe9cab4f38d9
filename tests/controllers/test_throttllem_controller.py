"""throttLL'eM as a controller: on its board, on standard metrics, and when it lacks what it needs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache

import pytest

from flyball_agent.controllers.base import (
    UNLOCKED,
    Board,
    ControlLimits,
    Observation,
    RequestView,
    Setup,
    Targets,
)
from flyball_agent.controllers.registry import make_controller
from flyball_agent.controllers.throttllem.controller import ThrottLlem
from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.controllers.throttllem import ThrottLlemController
from flyball_api.controllers.union import Controller
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.load.conversation import generate
from flyball_sim.profiling import profile_engine
from flyball_sim.world.direct import control_limits, run_engine, setup_of

MODEL = step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1)
ENGINE = EngineLimits(32_768)
TARGETS = Targets(ttft_seconds=1.0, tpot_seconds=0.03)
BOUNDS = replace(control_limits(MODEL), targets=TARGETS)


@cache
def profile() -> Profile:
    return profile_engine(MODEL, ENGINE, fits=("ThrottLLeM",), caps=(700,))


def controller(setup: Setup | None = None, **parameters: object) -> ThrottLlem:
    return ThrottLlem(ThrottLlemController(**parameters), setup or setup_of(MODEL, profile=profile()))


def view(name: str = "r", **more: object) -> RequestView:
    fields = {
        "age_seconds": 1.0, "prompt_tokens": 500, "generated_tokens": 20, "running": True, "output_tokens": 200,
        "computed_tokens": 500,
    }  # fmt: skip
    return RequestView(name, **{**fields, **more})


def seen(*views: RequestView, **more: object) -> Observation:
    board = Board(10, views, 16, MODEL.kv_blocks, 256, 256)
    return Observation("unified", (), board=board, **more)


def page(**values: float) -> EngineSample:
    shown = {
        "requests_running": 0.0, "requests_waiting": 0.0, "kv_cache_usage": 0.0, "prompt_tokens": 0.0,
        "generation_tokens": 0.0,
    }  # fmt: skip
    firsts, ends = values.pop("firsts", 0.0), values.pop("ends", 0.0)
    counted = {
        name: Histogram((float("inf"),), (count,), 0.0)
        for name, count in (("time_to_first_token", firsts), ("end_to_end", ends))
    }
    return EngineSample({**shown, **values}, counted)


def standard(sample: EngineSample | None, age: float | None = 0.0) -> Observation:
    return Observation("unified", (), sample, age)


def test_it_is_made_by_its_name_and_asks_for_the_board_and_for_both_events():
    made = make_controller(Controller(type="ThrottLLeM"), observe=False, setup=setup_of(MODEL, profile=profile()))
    assert made.wants_board
    assert made.events == {"arrival", "completion"}


def test_an_idle_engine_gets_the_lowest_profiled_clock_and_a_closed_gate():
    decision = controller().decide(seen(), BOUNDS, 0.0)
    low = min(point.sm_mhz for point in profile().decode)
    assert (decision.setpoint.sm_mhz, decision.setpoint.admit) == ((low, low), 0)


def test_a_busy_engine_gets_one_clock_that_meets_the_deadlines_and_says_why():
    relaxed = controller(length_error_percent=0).decide(seen(view()), BOUNDS, 0.0)
    tight = controller(length_error_percent=0).decide(seen(view(age_seconds=6.1, generated_tokens=100)), BOUNDS, 0.0)
    low, high = relaxed.setpoint.sm_mhz
    assert low == high < tight.setpoint.sm_mhz[0]
    assert relaxed.because.startswith(f"{low} MHz, the least at which all 1 are in time: ")


def test_a_request_that_is_too_late_gets_the_highest_clock_the_policy_allows():
    bounds = replace(BOUNDS, sm_max_mhz=1500)
    decision = controller(length_error_percent=0).decide(seen(view(age_seconds=30.0)), bounds, 0.0)
    assert decision.setpoint.sm_mhz == (1500, 1500)
    assert "cannot be in time" in decision.because


def test_those_who_wait_are_let_in_while_all_stay_in_time():
    waiting = [view(f"w{number}", running=False, generated_tokens=0, computed_tokens=0) for number in range(3)]
    assert controller().decide(seen(view(), *waiting), BOUNDS, 0.0).setpoint.admit == 3
    assert controller(admission=False).decide(seen(view(), *waiting), BOUNDS, 0.0).setpoint.admit is None


def test_end_to_end_holds_requests_to_the_papers_deadline():
    bounds = replace(BOUNDS, targets=Targets(e2e_seconds=3.0))
    early = controller(length_error_percent=0).decide(seen(view(age_seconds=0.1)), bounds, 0.0)
    late = controller(length_error_percent=0).decide(seen(view(age_seconds=1.4)), bounds, 0.0)
    both = Targets(ttft_seconds=1.0, tpot_seconds=0.03, e2e_seconds=3.0)
    paper = controller(length_error_percent=0, slo="EndToEnd")
    assert early.setpoint.sm_mhz < late.setpoint.sm_mhz
    assert paper.decide(seen(view(age_seconds=1.4)), replace(BOUNDS, targets=both), 0.0).setpoint == late.setpoint


def test_without_objectives_only_the_time_between_tokens_is_held():
    decision = controller().decide(seen(view(age_seconds=500.0)), replace(BOUNDS, targets=Targets()), 0.0)
    assert decision.setpoint.sm_mhz[0] == min(point.sm_mhz for point in profile().decode)


def test_predictions_are_off_by_the_error_longer_on_the_whole_and_the_same_every_time():
    requests = [view(f"r{number}", output_tokens=1000, generated_tokens=0) for number in range(400)]
    made, again = (controller(length_error_percent=30) for _ in range(2))
    lengths = [made._length(request) for request in requests]
    assert lengths == [again._length(request) for request in requests]
    assert sum(length >= 1000 for length in lengths) > 0.9 * len(lengths)
    assert sum(length <= 1000 * 1.3 * 1.3 for length in lengths) >= 0.95 * len(lengths)
    oracle = controller(length_error_percent=0)
    assert {oracle._length(request) for request in requests} == {1000}


def test_who_outlives_his_prediction_gets_the_longest_answer_and_then_twice_that():
    made = controller(length_error_percent=0, max_output_tokens=1500)
    assert made._length(view(output_tokens=1000, generated_tokens=999)) == 1000
    assert made._length(view(output_tokens=1000, generated_tokens=1000)) == 1500
    assert made._length(view(output_tokens=1000, generated_tokens=1500)) == 3000


def test_a_real_engines_answers_are_predicted_from_those_before():
    made = controller()
    for number in range(40):
        made.decide(seen(view(f"r{number}", output_tokens=None, generated_tokens=10 + number)), BOUNDS, float(number))
    unknown = view("new", output_tokens=None, generated_tokens=0)
    assert 40 <= made._length(unknown) <= 49
    assert controller()._length(unknown) == ThrottLlemController().max_output_tokens


def test_a_lower_clock_waits_for_the_dwell_and_a_higher_one_does_not():
    made = controller(length_error_percent=0, dwell_milliseconds=2000)
    hurried = seen(view(age_seconds=6.1, generated_tokens=100))
    high = made.decide(hurried, BOUNDS, 0.0).setpoint.sm_mhz
    assert made.decide(seen(view()), BOUNDS, 1.0).setpoint.sm_mhz == high
    low = made.decide(seen(view()), BOUNDS, 2.5).setpoint.sm_mhz
    assert low < high
    assert made.decide(hurried, BOUNDS, 2.6).setpoint.sm_mhz == high


# -- what it lacks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setup", "sentence"),
    [
        (Setup(), "has no profile"),
        (Setup(profile_trouble="profile p is of an A100: make one"), "profile p is of an A100: make one"),
        (Setup(profile=Profile("p", "H100", "m", 1, "v", "now")), "profile p cannot be used.*no fit for ThrottLLeM"),
        (
            Setup(profile=Profile("p", "H100", "m", 1, "v", "now", fits={"ThrottLLeM": {"version": 7}})),
            "version is 7, this agent reads 1",
        ),
    ],
)
def test_without_a_profile_it_unlocks_and_says_what_is_wrong(setup, sentence):
    decision = controller(setup).decide(seen(view()), BOUNDS, 0.0)
    assert decision.setpoint == UNLOCKED
    assert len(decision.degraded) == 1
    assert re.search(sentence, decision.degraded[0])


def test_where_no_profiled_clock_is_allowed_it_unlocks():
    decision = controller().decide(seen(view()), ControlLimits(1, 2), 0.0)
    assert decision.setpoint == UNLOCKED
    assert "has no clock from 1 to 2 MHz" in decision.degraded[0]


def test_without_a_board_a_missing_metric_is_named_and_clocks_are_unlocked():
    lacking = replace(page(), values={"requests_running": 3.0})
    decision = controller().decide(standard(lacking), BOUNDS, 0.0)
    assert decision.setpoint == UNLOCKED
    assert "metric vllm:num_requests_waiting is not on the engine's page" in decision.degraded[0]


@pytest.mark.parametrize("name", ["requests_running", "kv_cache_usage", "generation_tokens"])
def test_without_a_board_a_metric_that_is_no_number_is_named_and_forgotten(name):
    made = controller()
    decision = made.decide(standard(page(**{name: float("nan")})), BOUNDS, 0.0)
    assert decision.setpoint == UNLOCKED
    assert "is nan on the engine's page" in decision.degraded[0]
    assert made.state() == controller().state()


@pytest.mark.parametrize(("sample", "age"), [(None, None), (page(), 60.0)])
def test_without_a_board_a_page_that_is_missing_or_old_unlocks(sample, age):
    decision = controller().decide(standard(sample, age), BOUNDS, 0.0)
    assert decision.setpoint == UNLOCKED
    assert "no page of it is newer than 5 s" in decision.degraded[0]


def test_without_a_board_it_approximates_from_standard_metrics_and_says_so():
    made = controller()
    first = made.decide(standard(page()), BOUNDS, 0.0)
    assert "too few requests ended" in first.degraded[0]
    busy = page(
        requests_running=20.0, requests_waiting=1.0, kv_cache_usage=0.05, prompt_tokens=100_000.0,
        generation_tokens=20_000.0, firsts=100.0, ends=90.0,
    )  # fmt: skip
    decision = made.decide(standard(busy), BOUNDS, 20.0)
    assert decision.setpoint.sm_mhz is not None
    assert decision.setpoint.admit is None
    assert decision.degraded == (
        "the engine has no /flyball/board: its requests are approximated from its metrics, and none is held back",
    )


def test_an_engine_that_began_anew_teaches_nothing_by_its_counters_going_back():
    made = controller()
    made.decide(standard(page(prompt_tokens=1e6, generation_tokens=1e6, firsts=500.0, ends=500.0)), BOUNDS, 0.0)
    made.decide(standard(page(prompt_tokens=10.0, generation_tokens=1.0, firsts=1.0)), BOUNDS, 1.0)
    assert not made._approximation.knows


# -- memory ------------------------------------------------------------------------------------------------


def test_its_state_survives_json_and_a_restart():
    made = controller()
    for number in range(30):
        made.decide(seen(view(f"r{number}", output_tokens=None, age_seconds=99.0)), BOUNDS, float(number))
    state = json.loads(json.dumps(made.state()))
    other = controller()
    other.restore(state)
    assert other.state() == state
    assert state["lost"] == ["r29"]
    assert len(state["lengths"]) == 29


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"lengths": "x"}, {"lengths": [0]}, {"lost": [1]}, {"means": None}, {"means": {"seconds": "x"}}],
)
def test_a_state_it_cannot_read_is_refused_and_leaves_it_fresh(change):
    made = controller()
    fresh = made.state()
    with pytest.raises(ValueError, match="state"):
        made.restore({**fresh, **change})
    assert made.state() == fresh


# -- in a run ----------------------------------------------------------------------------------------------


def run(made: ThrottLlem):
    machine = Machine(MODEL, ENGINE, seed=1)
    trace = generate(60.0, seed=5, requests_per_second=4.0)
    return run_engine(machine, trace, made, model=MODEL, limits=BOUNDS, native=True)


def test_with_prompts_counted_and_a_margin_it_holds_the_slo_at_less_than_half_the_energy():
    ran = run(controller(count_prefill=True, margin_percent=60, ttft_share_percent=20))
    outcomes = ran.outcomes
    kept = (outcomes.ttft_seconds <= 1.0) & (outcomes.tpot_seconds <= 0.03)
    assert kept.mean() >= 0.99
    unlocked = run_engine(
        Machine(MODEL, ENGINE, seed=1),
        generate(60.0, seed=5, requests_per_second=4.0),
        controller(Setup()),  # without a profile it leaves clocks alone
        model=MODEL,
        limits=BOUNDS,
        native=True,
    )
    assert ran.energy_joules < 0.5 * unlocked.energy_joules


def test_the_same_seed_gives_the_same_run():
    one, other = run(controller()), run(controller())
    assert (one.energy_joules, one.decisions) == (other.energy_joules, other.decisions)
