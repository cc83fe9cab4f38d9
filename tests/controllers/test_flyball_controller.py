"""Flyball on a modelled engine: it learns, holds the objectives, saves, explains itself and gives way when unsure."""

import json
from dataclasses import replace

import numpy as np
import pytest

from flyball_agent.controllers.base import UNLOCKED, ControlLimits, Decision, GpuReading, Observation, Setup, Targets
from flyball_agent.controllers.flyball.cards import PRIOR_NAMES
from flyball_agent.controllers.flyball.controller import Flyball
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.controllers.flyball import FlyballController
from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import step_model
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.load.generators import open_trace
from flyball_sim.world.direct import control_limits, run_engine, setup_of
from flyball_sim.world.slo import Slo, met_all

MODEL = step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1)
TARGETS = Targets(1.0, 0.05)
CARDS = control_limits(MODEL)
LIMITS = ControlLimits(CARDS.sm_min_mhz, CARDS.sm_max_mhz, None, TARGETS)


class Recorded:
    """Asks a controller, and lets a test change what it sees."""

    def __init__(self, inner, change=lambda observation, _: observation):
        self.inner, self.change = inner, change
        self.events, self.wants_board, self.period_seconds = inner.events, inner.wants_board, inner.period_seconds
        self.requires = inner.requires
        self.decisions = []

    def decide(self, observation, limits, now_seconds):
        decision = self.inner.decide(self.change(observation, now_seconds), limits, now_seconds)
        self.decisions.append((now_seconds, decision))
        return decision

    def state(self):
        return self.inner.state()

    def restore(self, state):
        self.inner.restore(state)


def controller(**options):
    return Flyball(FlyballController(), setup_of(MODEL, seed=1), **options)


def play(trace, held, *, limits=LIMITS, role="unified"):
    machine = Machine(MODEL, EngineLimits(32_768), seed=1)
    end = trace[-1].arrival_seconds + 30.0
    return run_engine(machine, trace, held, model=MODEL, end_seconds=end, limits=limits, role=role)


def attained(run):
    return float(np.mean(met_all(run.outcomes, Slo(1.0, 0.05))))


class Open:
    """Leaves everything as it is."""

    requires, events, wants_board, period_seconds = frozenset(), frozenset(), False, 0.5

    def decide(self, observation, limits, now_seconds):  # noqa: ARG002
        return Decision(UNLOCKED, next_wake_seconds=0.5)


STEADY = open_trace("poisson:rate=6,seconds=240", seed=11)


@pytest.fixture(scope="module")
def steady():
    held = Recorded(controller())
    return held, play(STEADY, held)


def test_it_starts_open_and_then_holds_the_objectives_at_less_energy(steady):
    held, run = steady
    assert held.decisions[0][1].setpoint == UNLOCKED
    assert attained(run) >= 0.99
    assert run.energy_joules < 0.65 * play(STEADY, Open()).energy_joules


def test_it_explains_every_decision_in_one_line(steady):
    held, _ = steady
    lines = [decision.because for _, decision in held.decisions]
    assert all(line and "\n" not in line for line in lines)
    assert any(
        "MHz hold the objectives, below it" in line and " W, " in line and "ms per token" in line for line in lines
    )


def test_it_is_deterministic(steady):
    held, _ = steady
    again = Recorded(controller())
    play(STEADY, again)
    assert again.decisions == held.decisions


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_prior_that_is_a_third_off_costs_no_objective(factor):
    run = play(STEADY, controller(prior_factors=dict.fromkeys(PRIOR_NAMES, factor)))
    assert attained(run) >= 0.985


def test_it_goes_on_from_its_state(steady):
    held, _ = steady
    again = controller()
    again.restore(json.loads(json.dumps(held.state())))
    assert again.state() == held.state()
    warm = Recorded(again)
    play(STEADY[:200], warm)
    locked = [now for now, decision in warm.decisions if decision.setpoint.sm_mhz is not None]
    assert locked[0] <= 1.0


def damaged(state, name):
    changes = {
        "version": {"version": 99},
        "product": {"product": "another card"},
        "margins": {"margins": {"ttft": 0.0}},
        "latency": {"latency": {"logs": [0.0], "covariance": []}},
        "numbers": {"load": {**state["load"], "prompt_tokens": float("nan")}},
        "ready": {"ready": "yes"},
    }
    return {**state, **changes[name]}


@pytest.mark.parametrize("name", ["version", "product", "margins", "latency", "numbers", "ready"])
def test_a_state_it_cannot_read_is_refused_and_leaves_it_fresh(steady, name):
    fresh = controller()
    before = fresh.state()
    with pytest.raises(ValueError, match="state: "):
        fresh.restore(damaged(steady[0].state(), name))
    assert fresh.state() == before


# -- what it must not trust ------------------------------------------------------------------------------------

BOUNDS = (0.025, 0.05, float("inf"))


def sample(missing=()):
    names = ("time_to_first_token", "inter_token_latency", "time_per_output_token", "end_to_end")
    values = dict.fromkeys(
        ("requests_running", "requests_waiting", "kv_cache_usage", "prompt_tokens", "generation_tokens"), 0.0
    )
    histograms = {name: Histogram(BOUNDS, (0.0, 0.0, 0.0), 0.0) for name in names}
    return EngineSample(values, {name: value for name, value in histograms.items() if name not in missing}, missing)


def seen(role="unified", missing=(), age=0.0):
    return Observation(role, (GpuReading(100.0, 1980, 0, energy_joules=0.0),), sample(missing), age, missing)


@pytest.mark.parametrize(
    ("role", "family", "metric"),
    [
        ("unified", "time_per_output_token", "vllm:request_time_per_output_token_seconds"),
        ("unified", "time_to_first_token", "vllm:time_to_first_token_seconds"),
        ("prefill", "time_to_first_token", "vllm:time_to_first_token_seconds"),
        ("decode", "kv_cache_usage", "vllm:kv_cache_usage_perc"),
    ],
)
def test_a_metric_it_needs_and_lacks_is_named_and_the_clocks_are_unlocked(role, family, metric):
    decision = controller().decide(seen(role, (family,)), LIMITS, 0.0)
    assert decision.setpoint == UNLOCKED
    assert metric in decision.degraded[0]


def test_each_role_needs_the_latencies_that_it_has_only():
    assert not controller().decide(seen("prefill", ("time_per_output_token",)), LIMITS, 0.0).degraded
    assert not controller().decide(seen("decode", ("time_to_first_token",)), LIMITS, 0.0).degraded


def test_without_an_objective_or_with_a_stale_page_the_clocks_are_unlocked():
    free = replace(LIMITS, targets=Targets())
    assert "no latency objective" in controller().decide(seen(), free, 0.0).degraded[0]
    assert "stale" in controller().decide(seen(age=5.0), LIMITS, 5.0).because


def test_an_engine_that_restarts_is_unlocked_at_once_and_learnt_again():
    offset = {}

    def restart(observation, now):
        if now < 120.0:
            return observation
        values = dict(observation.engine.values)
        for name in ("prompt_tokens", "generation_tokens"):
            offset.setdefault(name, values[name])
            values[name] -= offset[name]
        return replace(observation, engine=replace(observation.engine, values=values))

    held = Recorded(controller(), restart)
    run = play(STEADY, held)
    after = [decision for now, decision in held.decisions if 120.0 <= now < 122.0]
    assert all(decision.setpoint == UNLOCKED for decision in after)
    assert "restarted" in after[0].because
    assert held.decisions[-100][1].setpoint != UNLOCKED
    assert attained(run) >= 0.985


def test_a_lock_that_the_cards_do_not_reach_is_said_and_not_relied_on():
    held = Recorded(
        controller(),
        lambda observation, _: replace(
            observation, gpus=tuple(replace(gpu, sm_mhz=min(gpu.sm_mhz, 450)) for gpu in observation.gpus)
        ),
    )
    play(STEADY, held)
    assert any("where a lock of" in sentence for _, decision in held.decisions for sentence in decision.degraded)


def test_an_idle_engine_is_parked_and_its_next_burst_is_in_time():
    burst = open_trace("idle-heavy:rate=1,seconds=900", seed=6)
    held = Recorded(controller())
    run = play(burst, held)
    assert any("parked" in decision.because for _, decision in held.decisions)
    assert attained(run) >= 0.985


def test_the_cap_is_a_knob_only_where_the_grant_binds():
    wide, narrow = replace(LIMITS, cap_watts=700), replace(LIMITS, cap_watts=380)
    for limits, capped in ((wide, False), (narrow, True)):
        held = Recorded(controller())
        play(STEADY[:600], held, limits=limits)
        caps = [decision.setpoint.cap_watts for _, decision in held.decisions]
        assert any(cap is not None for cap in caps) == capped
        assert all(cap is None or 200 <= cap <= limits.cap_watts for cap in caps)


def test_without_setup_it_still_answers():
    assert Flyball(FlyballController(), Setup()).decide(seen(), LIMITS, 0.0).setpoint == UNLOCKED
