"""throttLL'eM's autoscaler: the pure rule, and engine sizes run by it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_agent.controllers.base import ControlLimits, Decision, GroupSetpoint, Targets
from flyball_agent.scaling.tensorparallel import START_SECONDS, TensorParallelScaler, Variant
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.variants import Size, run_variants

A100 = GPU_TYPES["A100-SXM4-80GB"]
VARIANTS = [Variant("tp4", 4, 8.0), Variant("tp1", 1, 1.0), Variant("tp2", 2, 4.0)]
SIZES = [Size(f"tp{gpus}", step_model(A100, "llama-2-13b", gpus), EngineLimits(4096)) for gpus in (1, 2, 4)]


def scaler(serving: str = "tp4", **more: float) -> TensorParallelScaler:
    return TensorParallelScaler(VARIANTS, serving, **{"smoothing": 1.0, **more})


# -- the rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rps", "wanted"), [(0.0, "tp1"), (1.0, "tp1"), (1.1, "tp2"), (4.0, "tp2"), (4.1, "tp4"), (99.0, "tp4")]
)
def test_the_smallest_engine_that_bears_the_load_is_wanted(rps, wanted):
    rule = scaler()
    plan = rule.decide(1000.0, rps)
    assert (plan.start or plan.serve) == wanted
    assert wanted in plan.because


def test_up_goes_at_once_and_the_old_engine_runs_unthrottled_until_the_new_one_is_ready():
    rule = scaler("tp1")
    plan = rule.decide(10.0, 3.0)
    assert (plan.serve, plan.start, plan.unthrottled) == ("tp1", "tp2", True)
    plan = rule.decide(20.0, 3.0)
    assert (plan.serve, plan.start, plan.unthrottled) == ("tp1", "tp2", True)
    plan = rule.ready(35.0, "tp2")
    assert (plan.serve, plan.start, plan.unthrottled) == ("tp2", None, False)


def test_a_still_larger_engine_takes_the_place_of_one_that_starts():
    rule = scaler("tp1")
    rule.decide(10.0, 3.0)
    assert rule.decide(20.0, 7.0).start == "tp4"
    assert rule.decide(30.0, 3.0).start == "tp4"


def test_down_goes_only_after_the_grace_and_without_unthrottling():
    rule = scaler("tp2", grace_seconds=60.0)
    rule.decide(10.0, 7.0)
    rule.ready(35.0, "tp4")
    assert rule.decide(40.0, 0.5).start is None
    assert rule.decide(90.0, 0.5).start is None
    plan = rule.decide(100.0, 0.5)
    assert (plan.serve, plan.start, plan.unthrottled) == ("tp4", "tp1", False)


def test_a_smaller_engine_that_starts_is_given_up_when_the_load_comes_back():
    rule = scaler("tp4")
    assert rule.decide(10.0, 0.5).start == "tp1"
    assert rule.decide(20.0, 6.0).start is None


def test_the_rate_is_a_moving_mean():
    rule = TensorParallelScaler(VARIANTS, "tp2", smoothing=0.25)
    rule.decide(10.0, 3.0)
    assert rule.decide(20.0, 5.0).start is None
    assert rule.decide(30.0, 9.0).start == "tp4"


@given(rates=st.lists(st.floats(0, 20), max_size=40))
@settings(deadline=None)
def test_it_never_serves_or_starts_what_there_is_none_of_and_never_shrinks_before_the_grace(rates):
    rule, now, changed = scaler(), 0.0, float("-inf")
    gpus = {variant.name: variant.gpus for variant in VARIANTS}
    for rps in rates:
        now += 10.0
        before = rule.serving
        plan = rule.decide(now, rps)
        assert plan.serve == before
        assert plan.start != plan.serve
        if plan.start and gpus[plan.start] < gpus[plan.serve]:
            assert now - changed >= 60.0
        if plan.start:
            now += START_SECONDS
            rule.ready(now, plan.start)
            changed = now


def test_its_memory_survives_json_and_a_restart_and_a_strange_one_is_refused():
    rule = scaler()
    rule.decide(10.0, 0.5)
    rule.ready(35.0, "tp1")
    state = json.loads(json.dumps(rule.state()))
    other = scaler()
    other.restore(state)
    assert (other.serving, other.state()) == ("tp1", state)
    for change in ({"version": 2}, {"serving": "tp8"}, {"meanRps": "x"}):
        with pytest.raises(ValueError, match="start anew"):
            scaler().restore({**state, **change})


@pytest.mark.parametrize(
    ("variants", "serving", "smoothing"), [([], "tp1", 0.3), (VARIANTS, "tp8", 0.3), (VARIANTS, "tp1", 0.0)]
)
def test_a_rule_that_cannot_be_is_refused(variants, serving, smoothing):
    with pytest.raises(ValueError, match="give"):
        TensorParallelScaler(variants, serving, smoothing=smoothing)


def test_what_was_not_to_start_cannot_be_ready():
    with pytest.raises(ValueError, match="variant tp1 is ready, None was to start"):
        scaler().ready(1.0, "tp1")


# -- executed ----------------------------------------------------------------------------------------------


def steady(rate: float, since: float, until: float) -> list[TraceRequest]:
    return [TraceRequest(since + number / rate, 400, 60) for number in range(int((until - since) * rate))]


def test_engines_are_started_in_the_shadow_of_the_old_one_switched_to_and_drained():
    trace = [*steady(0.5, 0.0, 100.0), *steady(3.0, 100.0, 200.0)]
    ran = run_variants(SIZES, trace, scaler=scaler("tp1"), end_seconds=260.0)
    assert [name for _, name in ran.changes[:2]] == ["tp1", "tp2"]
    switched = ran.changes[1][0]
    assert 100.0 + START_SECONDS < switched <= 120.0 + START_SECONDS
    outcomes = ran.outcomes
    assert np.isfinite(outcomes.finished_seconds).all()
    by_engine = np.array([outcomes.engines[index] for index in outcomes.engine])
    assert set(by_engine[outcomes.arrival_seconds < switched]) == {"tp1"}
    after = (outcomes.arrival_seconds > switched) & (outcomes.arrival_seconds < 200.0)
    assert set(by_engine[after]) == {"tp2"}
    assert sum(ran.serving_seconds.values()) == pytest.approx(260.0)


def test_energy_is_that_of_all_cards_of_the_node():
    trace = steady(0.5, 0.0, 60.0)
    one, eight = (run_variants(SIZES, trace, serving="tp2", cards=cards, end_seconds=100.0) for cards in (2, 8))
    assert one.empty_joules == 0.0
    assert eight.engine_joules == one.engine_joules
    idle_watts = A100.waiting_watts(float(A100.sm_min_mhz))
    assert eight.energy_joules - one.energy_joules == pytest.approx(6 * 100.0 * idle_watts)


def test_a_smaller_engine_at_little_load_saves_energy_on_the_cards_that_are_held():
    trace = steady(0.4, 0.0, 400.0)
    fixed = run_variants(SIZES, trace, serving="tp4", end_seconds=420.0)
    scaled = run_variants(SIZES, trace, scaler=scaler("tp4"), end_seconds=420.0)
    assert scaled.changes[-1][1] == "tp1"
    assert scaled.engine_joules < 0.6 * fixed.engine_joules


class Low:
    """Holds the lowest clock and notes when it was asked."""

    requires = frozenset()
    events = frozenset({"arrival"})
    wants_board = True
    period_seconds = 0.5

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.targets: set[Targets] = set()

    def decide(self, observation, limits, now_seconds):
        self.asked.append(now_seconds)
        self.targets.add(limits.targets)
        assert observation.board is not None
        return Decision(GroupSetpoint(sm_mhz=(limits.sm_min_mhz, limits.sm_min_mhz)), next_wake_seconds=1.0)

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_each_engine_has_its_controller_until_a_larger_one_starts():
    made: list[Low] = []

    def make(_model):
        made.append(Low())
        return made[-1]

    trace = [*steady(0.5, 0.0, 60.0), *steady(3.0, 60.0, 120.0)]
    limits = ControlLimits(0, 0, targets=Targets(e2e_seconds=9.0))
    ran = run_variants(SIZES, trace, scaler=scaler("tp1"), make=make, limits=limits, end_seconds=150.0)
    switched = ran.changes[1][0]
    first, second = made
    assert max(first.asked) <= switched - START_SECONDS
    assert max(second.asked) > switched
    assert first.targets == {Targets(e2e_seconds=9.0)}


def test_neither_a_rule_nor_an_engine_is_refused():
    with pytest.raises(ValueError, match="neither a scaler nor a serving variant"):
        run_variants(SIZES, [], end_seconds=1.0)
