"""PALS as the agent runs it: knobs, budgets, noise, what is missing, and what it says."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_agent.controllers.base import (
    UNLOCKED,
    Board,
    ControlLimits,
    GpuReading,
    GroupSetpoint,
    Observation,
    Setup,
)
from flyball_agent.controllers.pals.controller import Pals
from flyball_agent.controllers.registry import make_controller
from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.controllers.pals import PalsController
from flyball_api.controllers.union import Controller
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import step_model
from flyball_sim.load.traces import TraceRequest
from flyball_sim.profiling.virtual import profile_engine
from flyball_sim.world.direct import control_limits, run_engine, setup_of

CAPS = list(range(150, 401, 10))
BATCHES = [1, 8, 64]
ANSWER = 100.0


def tokens(cap, batch):
    """Output of the made-up engine; above 300 W no cap binds."""
    return batch**0.8 * 40.0 * min(1.0, cap / 300.0) ** 0.5


def watts(cap, batch):
    return min(cap, 240.0 + batch * 60.0 / 64.0)


def profile_with(**changes):
    fit = {
        "version": 1,
        "gpus": 4,
        "caps_watts": CAPS,
        "batch_limits": BATCHES,
        "tokens_per_second": [[tokens(cap, batch) for batch in BATCHES] for cap in CAPS],
        "power_watts": [[watts(cap, batch) for batch in BATCHES] for cap in CAPS],
        "throughput_error_percent": 3.0,
        "power_error_percent": 1.0,
        "accepted": True,
    }
    return Profile("chat", "A100", "m", 4, "1", "2026", fits={"PALS": {**fit, **changes}})


def pals(profile=None, **parameters):
    setup = Setup("A100", 4, (210, 1410), 100.0, 400.0, profile=profile or profile_with())
    return Pals(PalsController(**parameters), setup)


class Engine:
    """Pages of an engine that gives `rate` requests/s their answers, all of one length, and its cards' readings."""

    def __init__(self, controller, limits, *, board=True):
        self.controller, self.limits, self.board = controller, limits, board
        self.now = self.done = 0.0
        self.waiting = 0.0
        self.power = 140.0

    def tick(self, rate=10.0, *, noise=0.0, seconds=0.5, **changes):
        self.now += seconds
        self.done += rate * seconds * (1.0 + noise)
        histogram = Histogram((1.0, float("inf")), (0.0, self.done), self.done)
        values = {
            "requests_running": 5.0,
            "requests_waiting": self.waiting,
            "generation_tokens": self.done * ANSWER,
        }
        observation = Observation(
            role="unified",
            gpus=(GpuReading(power_watts=self.power),) * 4,
            engine=changes.get("engine", EngineSample(values, {"end_to_end": histogram}, changes.get("missing", ()))),
            engine_age_seconds=changes.get("age", 0.0),
            missing=changes.get("missing", ()),
            board=Board(0, (), 16, 1000, 256, 256) if self.board else None,
        )
        return self.controller.decide(observation, changes.get("limits", self.limits), self.now)

    def ticks(self, count, **options):
        return [self.tick(**options) for _ in range(count)]


GRANTED = ControlLimits(210, 1410, cap_watts=400)


def test_it_takes_the_least_watts_per_token_that_reach_the_target():
    decision = Engine(pals(), GRANTED).ticks(40, rate=8.0)[-1]
    # 800 tokens/s are offered, so 920 are the target.
    assert tokens(200, 64) < 920.0 < tokens(210, 64)
    assert decision.setpoint == GroupSetpoint(cap_watts=210, batch_limit=64)
    assert decision.degraded == ()
    assert decision.next_wake_seconds == 0.5


def test_light_load_gets_the_lowest_cap():
    decision = Engine(pals(), GRANTED).ticks(40, rate=2.0)[-1]
    assert decision.setpoint == GroupSetpoint(cap_watts=150, batch_limit=64)
    assert "cap 150 W, batch 64" in decision.because
    assert "target 230 tokens/s" in decision.because


def test_before_the_output_of_requests_is_known_it_runs_as_fast_as_it_may():
    decision = Engine(pals(), GRANTED).tick()
    assert decision.setpoint.cap_watts is None or decision.setpoint.cap_watts >= 300
    assert "no target yet" in decision.because


def test_a_set_target_is_never_driven_beyond_what_is_offered():
    assert Engine(pals(target_tokens_per_second=1000), GRANTED).ticks(40, rate=1.0)[-1].setpoint.cap_watts == 150


def test_a_target_out_of_reach_gets_the_fastest_within_the_budget():
    engine = Engine(pals(), ControlLimits(210, 1410, cap_watts=200))
    engine.waiting = 50.0
    decision = engine.ticks(40, rate=50.0)[-1]
    assert decision.setpoint == GroupSetpoint(cap_watts=None, batch_limit=64)
    assert "out of reach, the fastest within the budget" in decision.because


def test_a_budget_drop_acts_at_the_very_next_decision():
    engine = Engine(pals(), GRANTED)
    before = engine.ticks(40, rate=8.0)[-1].setpoint
    after = engine.tick(rate=8.0, limits=ControlLimits(210, 1410, cap_watts=160))
    assert (before.cap_watts or 400) > 160
    assert (after.setpoint.cap_watts or 160) <= 160


def test_the_parameters_budget_bounds_the_cards_sum():
    decision = Engine(pals(budget_watts=800), GRANTED).ticks(40)[-1]
    assert decision.setpoint.cap_watts <= 200


def test_a_raised_budget_raises_the_cap_before_the_batch():
    # Under 600 W the small batch is all that the model allows: only it draws less than its cap.
    fit = {"power_watts": [[min(cap, 100.0 + batch * 4.0) for batch in BATCHES] for cap in CAPS]}
    engine = Engine(pals(profile_with(**fit)), GRANTED)
    low = engine.ticks(10, limits=ControlLimits(210, 1410, cap_watts=140))[-1].setpoint
    first, second = engine.ticks(2, limits=GRANTED)
    assert low.batch_limit == 8
    assert (first.setpoint.cap_watts or 400) > 150
    assert first.setpoint.batch_limit == 8
    assert second.setpoint.batch_limit == 64


def test_the_batch_falls_before_the_cap_does():
    # A large batch is no gain here: once the target falls, small and low is the most efficient.
    fit = {
        "tokens_per_second": [[cap**0.8 * batch**0.5 for batch in BATCHES] for cap in CAPS],
        "power_watts": [[cap * batch**0.6 / 12.5 for batch in BATCHES] for cap in CAPS],
    }
    engine = Engine(pals(profile_with(**fit)), GRANTED)
    engine.ticks(40, rate=20.0)
    shown = [decision.setpoint for decision in engine.ticks(160, rate=1.0)]
    falls = [(before, after) for before, after in pairwise(shown) if after.batch_limit < before.batch_limit]
    assert falls
    assert all((after.cap_watts or 400) >= (before.cap_watts or 400) for before, after in falls)
    assert shown[-1] == GroupSetpoint(cap_watts=150, batch_limit=8)


def test_more_watts_than_the_budget_for_two_samples_lower_the_caps_by_the_difference():
    engine = Engine(pals(budget_watts=1000), GRANTED)
    cap = engine.ticks(40)[-1].setpoint.cap_watts
    engine.power = 270.0
    first, second = engine.ticks(2)
    assert first.setpoint.cap_watts == cap
    assert second.setpoint.cap_watts == cap - 20
    assert "trimmed" in second.because


def test_a_trimmed_cap_rises_again_after_ten_seconds_below_the_budget():
    engine = Engine(pals(budget_watts=1000), GRANTED)
    cap = engine.ticks(40)[-1].setpoint.cap_watts
    engine.power = 270.0
    engine.ticks(2)
    engine.power = 200.0
    assert engine.ticks(19)[-1].setpoint.cap_watts == cap - 20
    assert engine.ticks(3)[-1].setpoint.cap_watts == cap


def test_a_budget_that_nothing_keeps_is_said_and_gets_the_least_of_everything():
    engine = Engine(pals(), ControlLimits(210, 1410, cap_watts=120))
    engine.power = 118.0
    decision = engine.ticks(3)[-1]
    assert decision.setpoint == GroupSetpoint(sm_mhz=(210, 210), cap_watts=None, batch_limit=1)
    assert decision.degraded[0].startswith("BUDGET_INFEASIBLE: the cards may draw 480 W together")


def test_the_floor_clock_can_be_left_out():
    decision = Engine(pals(floor_clock=False), ControlLimits(210, 1410, cap_watts=120)).ticks(3)[-1]
    assert decision.setpoint.sm_mhz is None


def test_without_a_granted_cap_no_cap_is_touched_and_it_says_so():
    decision = Engine(pals(), ControlLimits(210, 1410)).ticks(40)[-1]
    assert decision.setpoint.cap_watts is None
    assert "no power cap is granted" in decision.degraded[0]


def test_an_engine_without_a_batch_knob_runs_power_only_and_it_says_so():
    decision = Engine(pals(), GRANTED, board=False).ticks(40, rate=2.0)[-1]
    assert decision.setpoint == GroupSetpoint(cap_watts=150)
    assert "PALS sets the power cap only" in decision.degraded[0]
    assert "batch as it is" in decision.because


def test_power_only_by_choice_is_no_trouble():
    controller = pals(batch_knob=False)
    assert not controller.wants_board
    assert Engine(controller, GRANTED).ticks(10)[-1].degraded == ()


def test_without_a_profile_nothing_is_touched_and_the_trouble_is_said():
    controller = Pals(PalsController(), Setup(profile_trouble="profile chat is of H100 cards and these are A100"))
    decision = Engine(controller, GRANTED).tick()
    assert decision.setpoint == UNLOCKED
    assert decision.degraded == ("profile chat is of H100 cards and these are A100",)


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        (None, "no profile is given"),
        (Profile("chat", "A100", "m", 4, "1", "2026"), "holds no model for PALS"),
        (profile_with(gpus=8), "of 8 GPUs and the engine has 4"),
    ],
)
def test_a_profile_it_cannot_use_is_named(profile, sentence):
    decision = Engine(Pals(PalsController(), Setup(gpus=4, profile=profile)), GRANTED).tick()
    assert decision.setpoint == UNLOCKED
    assert sentence in decision.degraded[0]


def test_a_model_worse_than_the_papers_is_used_and_said():
    decision = Engine(pals(profile_with(throughput_error_percent=30.0, accepted=False)), GRANTED).tick()
    assert "errs by 30.0 % in output" in decision.degraded[0]


def test_a_missing_metric_is_named_and_clocks_and_caps_are_let_go():
    decision = Engine(pals(), GRANTED).tick(missing=("end_to_end",))
    assert decision.setpoint == UNLOCKED
    assert decision.degraded == ("the engine's page lacks vllm:e2e_request_latency_seconds",)


def test_with_a_set_target_the_end_to_end_histogram_is_not_needed():
    assert "end_to_end" not in pals(target_tokens_per_second=500).requires
    assert "end_to_end" in pals().requires


def test_a_stale_page_lets_go_and_a_fresh_one_takes_up_again():
    engine = Engine(pals(), GRANTED)
    before = engine.ticks(40, rate=2.0)[-1].setpoint
    assert engine.tick(age=9.0).setpoint == UNLOCKED
    assert engine.tick(rate=2.0).setpoint == before


def test_before_the_first_page_nothing_is_wrong():
    decision = Engine(pals(), GRANTED).tick(engine=None, age=None)
    assert (decision.setpoint, decision.degraded) == (UNLOCKED, ())


@given(seed=st.integers(0, 2**32), rate=st.floats(1.0, 9.0))
@settings(max_examples=15, deadline=None)
def test_noise_below_the_deviation_switches_nothing_once_it_has_settled(seed, rate):
    draw = random.Random(seed)
    engine = Engine(pals(), GRANTED)
    engine.ticks(80, rate=rate)
    shown = {engine.tick(rate, noise=draw.uniform(-0.02, 0.02)).setpoint for _ in range(120)}
    assert len(shown) == 1


@given(seed=st.integers(0, 2**32), spread=st.floats(0.0, 1.0))
@settings(max_examples=15, deadline=None)
def test_whatever_the_noise_caps_rise_no_more_often_than_the_dwell_time_allows(seed, spread):
    draw = random.Random(seed)
    engine = Engine(pals(dwell_up_milliseconds=4000), GRANTED)
    engine.ticks(20)
    caps = [engine.tick(noise=draw.uniform(-spread, spread)).setpoint.cap_watts or 400 for _ in range(160)]
    rises = sum(after > before for before, after in pairwise(caps))
    assert rises <= 160 * 0.5 / 4.0 + 1


def test_it_goes_on_from_its_state_where_it_was():
    engine = Engine(pals(), GRANTED)
    before = engine.ticks(60, rate=6.0)[-1].setpoint
    again = Engine(pals(), GRANTED)
    again.controller.restore(json.loads(json.dumps(engine.controller.state(), allow_nan=False)))
    again.now, again.done = 1000.0, engine.done
    assert again.tick(rate=6.0).setpoint.cap_watts == pytest.approx(before.cap_watts, abs=20)


@pytest.mark.parametrize(
    "damage",
    [{"version": 9}, {"telemetry": None}, {"feedback": {"sum": "x"}}, {"correction": 7.0}, {"chosen": [1]}],
)
def test_a_state_it_cannot_read_leaves_it_fresh(damage):
    engine = Engine(pals(), GRANTED)
    engine.ticks(20)
    fresh = pals()
    with pytest.raises(ValueError, match=r"."):
        fresh.restore({**engine.controller.state(), **damage})
    assert fresh.state() == pals().state()


def test_a_policy_that_asks_for_pals_gets_it():
    controller = make_controller(Controller(type="PALS"), observe=False, setup=Setup(gpus=4, profile=profile_with()))
    assert isinstance(controller, Pals)
    assert (controller.period_seconds, controller.wants_board) == (0.5, True)


def test_on_an_engine_it_serves_everything_with_less_energy_than_unlocked():
    model, limits = step_model(gpu_type("A100-SXM4-80GB"), "llama-3.1-8b", 1), EngineLimits(8192, max_num_seqs=64)
    profile = profile_engine(model, limits, fits=("PALS",))
    trace = [TraceRequest(0.4 * number, 300, 150) for number in range(300)]

    def joules(cap):
        controller = Pals(PalsController(), setup_of(model, profile=profile))
        return run_engine(
            Machine(model, limits), trace, controller, model=model, limits=control_limits(model, cap), native=True
        )

    unlocked, driven = joules(None), joules(400)
    assert driven.outcomes.count("finished") == 300
    assert driven.energy_joules < 0.85 * unlocked.energy_joules
    assert driven.changes < 40
