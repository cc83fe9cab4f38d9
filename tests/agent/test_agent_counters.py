"""Cumulative counters per policy."""

import math

from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.counters import PolicyAccount, increase, thresholds
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.energypolicy import LatencyTarget, Slo

BOUNDS = (0.25, 0.5, math.inf)


def account(**bounds):
    return PolicyAccount("chat", "uid", "life", 0.0, bounds)


def page(generated=0.0, prompt=0.0, ttft=(0, 0, 0)):
    histogram = Histogram(BOUNDS, tuple(map(float, ttft)), 1.0)
    values = {"generation_tokens": generated, "prompt_tokens": prompt}
    return EngineSample(values, {"time_to_first_token": histogram})


@given(steps=st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=30))
def test_a_counter_that_restarts_loses_nothing_of_what_was_seen(steps):
    made, counter, expected = account(), 0.0, 0.0
    made.page("e", page(generated=0.0))
    for grown, restarts in steps:
        before = counter
        counter = float(grown) if restarts else counter + grown
        made.page("e", page(generated=counter))
        expected += counter if counter < before else counter - before
    assert made.counters(1.0, 1, 0).generated_tokens == expected


def test_what_was_there_before_the_first_look_is_not_counted():
    made = account()
    made.page("e", page(generated=5000))
    made.energy({"GPU-1": 9000.0})
    counters = made.counters(1.0, 1, 0)
    assert (counters.generated_tokens, counters.energy_joules) == (0, 0)


def test_engines_and_cards_add_up():
    made = account()
    for engine in ("a", "b"):
        made.page(engine, page())
        made.page(engine, page(generated=100, prompt=10))
    made.energy({"GPU-1": 10.0, "GPU-2": 20.0})
    made.energy({"GPU-1": 15.0, "GPU-2": 30.0})
    counters = made.counters(1.0, 2, 0)
    assert (counters.generated_tokens, counters.prompt_tokens, counters.energy_joules) == (200, 20, 15)


def test_a_reloaded_driver_counts_from_zero():
    made = account()
    made.energy({"GPU-1": 100.0})
    made.energy({"GPU-1": 7.0})
    assert made.counters(1.0, 0, 0).energy_joules == 7


def test_what_a_card_used_while_it_was_elsewhere_is_not_the_policys():
    made = account()
    made.energy({"GPU-1": 100.0})
    made.energy({})
    made.energy({"GPU-1": 500.0})
    made.energy({"GPU-1": 510.0})
    assert made.counters(1.0, 0, 0).energy_joules == 10


def test_latencies_are_counted_with_those_within_and_whether_that_is_exact():
    made = account(time_to_first_token=0.25)
    made.page("e", page(ttft=(10, 20, 30)))
    made.page("e", page(ttft=(15, 30, 40)))
    latency = made.counters(1.0, 1, 0).time_to_first_token
    assert (latency.total, latency.within, latency.interpolated) == (10, 5, False)
    between = account(time_to_first_token=0.375)
    between.page("e", page(ttft=(0, 0, 0)))
    between.page("e", page(ttft=(10, 30, 40)))
    latency = between.counters(1.0, 1, 0).time_to_first_token
    assert (latency.total, latency.within, latency.interpolated) == (40, 20, True)


def test_the_time_between_tokens_is_each_requests_mean_and_only_without_that_single_gaps():
    gaps, means = (Histogram(BOUNDS, counts, 1.0) for counts in ((0.0, 90.0, 100.0), (10.0, 10.0, 10.0)))
    nothing = Histogram(BOUNDS, (0.0, 0.0, 0.0), 0.0)
    counted = []
    for families in ({"inter_token_latency": gaps, "time_per_output_token": means}, {"inter_token_latency": gaps}):
        made = account(inter_token_latency=0.25)
        made.page("e", EngineSample({}, dict.fromkeys(families, nothing)))
        made.page("e", EngineSample({}, families))
        latency = made.counters(1.0, 1, 0).inter_token_latency
        counted.append((latency.total, latency.within))
    assert counted == [(10, 10), (100, 0)]


def test_a_restarted_engines_latencies_are_all_new():
    made = account(time_to_first_token=0.25)
    made.page("e", page(ttft=(10, 20, 30)))
    made.page("e", page(ttft=(3, 4, 5)))
    latency = made.counters(1.0, 1, 0).time_to_first_token
    assert (latency.total, latency.within) == (5, 3)


def test_latencies_without_an_objective_are_left_out():
    made = account()
    made.page("e", page())
    assert made.counters(1.0, 1, 0).time_to_first_token is None


def test_an_engine_that_left_starts_anew():
    made = account()
    made.page("e", page(generated=100))
    made.keep([])
    made.page("e", page(generated=900))
    assert made.counters(1.0, 1, 0).generated_tokens == 0


def test_thresholds_are_seconds():
    assert thresholds(Slo(end_to_end=LatencyTarget(threshold_milliseconds=1500))) == {"end_to_end": 1.5}
    assert thresholds(None) == {}


def test_a_first_reading_is_no_increase():
    assert (increase(None, 5.0), increase(3.0, 5.0), increase(5.0, 3.0)) == (0, 2, 3)
