"""Flyball's parts: what it counts, learns, predicts and allows."""

import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_agent.controllers.base import GpuReading, Targets
from flyball_agent.controllers.flyball.anticipation import SLOTS, Anticipation
from flyball_agent.controllers.flyball.cards import PRIOR_NAMES, card_of, prior_of
from flyball_agent.controllers.flyball.choice import View, choose, parking, unknown_parking
from flyball_agent.controllers.flyball.drift import DriftWatch
from flyball_agent.controllers.flyball.feasibility import binding, forecast, misses_of
from flyball_agent.controllers.flyball.latency import HOST_SECONDS, LatencyModel
from flyball_agent.controllers.flyball.load import Load
from flyball_agent.controllers.flyball.margin import HIGHEST, LOWEST, Margin, TailCounter
from flyball_agent.controllers.flyball.power import PowerModel, switching
from flyball_agent.controllers.signals import Increase, Looker, Window, increase_of
from flyball_agent.scanner import EngineSample, Histogram

H100 = "NVIDIA H100 80GB HBM3"
INF = math.inf
CLOCKS = tuple(range(345, 1981, 15))


def load(**changed):
    numbers = {
        "batch": 20.0,
        "cache": 0.06,
        "waiting": 0.0,
        "prompt_rate": 6000.0,
        "output_rate": 1000.0,
        "arrival_rate": 5.0,
        "prompt_tokens": 1200.0,
        "answer_tokens": 200.0,
        "cache_per_sequence": 0.003,
        "queued_tokens": 0.0,
        "queued_seconds": 0.0,
        "rush_rate": 9000.0,
        "dispersion": 1.0,
    }
    return Load(**{**numbers, **changed})


def taught(seed=1):
    """A latency model that has seen an 8B engine."""
    model, rng = LatencyModel(prior_of(H100)), random.Random(seed)
    for _ in range(600):
        share = rng.choice((0.3, 0.5, 0.7, 1.0))
        batch, tokens = rng.uniform(1, 100), rng.uniform(0, 80)
        seconds = true_step(batch, 0.003 * batch, tokens, share) * rng.uniform(0.97, 1.03)
        model.learn_steps(seconds, batch=batch, cache=0.003 * batch, prompt_tokens=tokens, share=share, varied=True)
    return model


def true_step(batch, cache, tokens, share, *, a=0.0065, p=21e-6, knee=0.55):
    memory = max(1.0, knee / share)
    decode = 0.96 * memory + 0.04 / share
    prefill = 0.08 * memory + 0.92 / share
    return HOST_SECONDS + decode * (a + 11e-6 * batch + 0.019 * cache) + p * prefill * tokens


def view(targets, model=None, margin=None, miss_joules=0.0):
    power, margin = PowerModel(prior_of(H100), 1), margin or Margin(0.02, 0.008)
    return View(model or taught(), power, CLOCKS, 1980, targets, margin, miss_joules)


# -- signals ---------------------------------------------------------------------------------------------------


def histogram(*counts, bounds=(0.025, 0.05, INF), total=1.0):
    return Histogram(bounds, tuple(float(count) for count in counts), total)


def page(prompt=0.0, output=0.0, **histograms):
    values = {"requests_running": 1.0, "prompt_tokens": prompt, "generation_tokens": output}
    return EngineSample(values, histograms)


def test_a_look_is_what_grew_between_two_pages():
    looker = Looker(("time_per_output_token",))
    reading = (GpuReading(sm_mhz=1000, energy_joules=50.0),)
    assert looker.look(page(10, 5, time_per_output_token=histogram(1, 2, 2)), 0.0, reading, 0.0) is None
    later = (GpuReading(sm_mhz=900, energy_joules=250.0),)
    look = looker.look(page(110, 45, time_per_output_token=histogram(3, 5, 6)), 0.5, later, 0.5)
    assert (look.prompt_tokens, look.output_tokens, look.watts, look.sm_mhz) == (100.0, 40.0, 400.0, 900)
    assert look.increase("time_per_output_token").counts == (2.0, 3.0, 4.0)
    assert not look.restarted
    assert looker.look(page(110, 45), 0.5, later, 0.6) is None  # the same page again


def test_a_counter_that_went_back_is_a_restart_and_never_a_negative_increase():
    looker = Looker(("time_per_output_token",))
    looker.look(page(1000, 500, time_per_output_token=histogram(3, 5, 6)), 0.0, (), 0.0)
    look = looker.look(page(30, 20, time_per_output_token=histogram(0, 1, 1)), 0.5, (), 0.5)
    assert look.restarted
    assert (look.prompt_tokens, look.output_tokens) == (30.0, 20.0)
    assert look.increase("time_per_output_token").counts == (0.0, 1.0, 1.0)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=6), st.lists(st.integers(0, 1000), min_size=2, max_size=6))
def test_increases_are_never_negative(before, now):
    bounds = (*range(1, 3), INF)
    old, new = (Histogram(bounds, tuple(itertools.accumulate(map(float, part[:3]))), 1.0) for part in (before, now))
    if len(old.counts) != 3 or len(new.counts) != 3:
        return
    grown, _ = increase_of(old, new)
    assert all(count >= 0.0 for count in grown.counts)
    assert grown.total >= 0.0


def test_a_window_forgets_what_is_older():
    window = Window(3.0)
    for amount in (100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        window.add(amount, 0.5)
    assert window.rate == 0.0
    assert window.seconds == 3.0


# -- what it believes ------------------------------------------------------------------------------------------


def test_cards_are_known_by_their_product_names():
    assert card_of(H100).watts == 700.0
    assert card_of("NVIDIA H200").bandwidth == 4.8e12
    assert card_of("NVIDIA A100-SXM4-80GB").memory_bytes == 80e9
    assert card_of("NVIDIA A100-SXM4-40GB").memory_bytes == 40e9
    assert card_of("", 450.0).watts == 450.0


def test_a_prior_may_be_told_wrong_by_name_only():
    prior = prior_of(H100)
    assert prior.scaled({"step_seconds": 1.3}).step_seconds == pytest.approx(1.3 * prior.step_seconds)
    assert set(PRIOR_NAMES) == set(type(prior).__dataclass_fields__)
    with pytest.raises(ValueError, match="nonsense is 1"):
        prior.scaled({"nonsense": 1.1})


# -- what it learns --------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    st.floats(0.003, 0.03), st.floats(5e-6, 50e-6), st.floats(0.4, 0.7), st.integers(0, 1000),
)  # fmt: skip
def test_the_model_learns_the_steps_of_an_engine_it_did_not_know(a, p, knee, seed):
    model, rng = LatencyModel(prior_of(H100).scaled({"step_seconds": 0.7, "prefill_seconds": 1.3})), random.Random(seed)

    def draw():
        share = rng.choice((0.35, 0.5, 0.65, 0.8, 1.0))
        return rng.uniform(1, 120), rng.uniform(0, 60), share

    for _ in range(500):
        batch, tokens, share = draw()
        seconds = true_step(batch, 0.002 * batch, tokens, share, a=a, p=p, knee=knee) * rng.uniform(0.97, 1.03)
        model.learn_steps(seconds, batch=batch, cache=0.002 * batch, prompt_tokens=tokens, share=share, varied=True)
    errors = []
    for _ in range(100):
        batch, tokens, share = draw()
        wanted = true_step(batch, 0.002 * batch, tokens, share, a=a, p=p, knee=knee)
        seen = model.decode_seconds(batch, 0.002 * batch, share) + tokens * model.prompt_seconds(share)
        errors.append(abs(seen / wanted - 1.0))
    assert sum(errors) / len(errors) < 0.08


def test_what_the_clock_does_is_learnt_only_while_the_clock_varies():
    model = LatencyModel(prior_of(H100))
    before = model.gains.values[4:]
    for _ in range(200):
        model.learn_steps(0.02, batch=10.0, cache=0.03, prompt_tokens=0.0, share=0.4, varied=False)
    assert model.gains.values[4:] == pytest.approx(before)


def test_the_power_model_learns_watts_by_load_and_clock():
    model, rng = PowerModel(prior_of(H100).scaled(dict.fromkeys(PRIOR_NAMES[6:], 0.7)), 1), random.Random(3)

    def true(busy, prefill, share):
        scale = switching(share)
        return 98 + 26 * scale + 26 * busy + (130 + 190 * scale) * (busy - prefill) + 560 * scale * prefill

    for _ in range(600):
        share, busy = rng.choice((0.4, 0.6, 0.8, 1.0)), rng.choice((0.0, 1.0, 1.0))
        prefill = busy * rng.uniform(0.0, 0.6)
        model.learn(true(busy, prefill, share), busy=busy, prefill=prefill, bandwidth=1.0, share=share)
    for share, prefill in itertools.product((0.5, 0.75, 1.0), (0.1, 0.4)):
        seen = model.watts(busy=1.0, prefill=prefill, bandwidth=1.0, share=share)
        assert seen == pytest.approx(true(1.0, prefill, share), rel=0.06)


# -- what it predicts ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0, 200), st.floats(0, 30000), st.floats(0, 5000), st.floats(0, 12), st.sampled_from((0.2, 0.6, 1.0)),
)  # fmt: skip
def test_a_higher_clock_never_breaks_what_a_lower_one_holds(batch, prompt, output, waiting, margin):
    asked = load(
        batch=batch,
        cache=min(0.9, 0.003 * batch),
        prompt_rate=prompt,
        output_rate=output,
        waiting=waiting,
        queued_tokens=1200.0 * waiting,
        queued_seconds=0.05 * waiting,
    )
    model, targets = MODEL, Targets(0.5, 0.025)
    held = [
        not binding(forecast(model, asked, mhz / 1980), asked, targets, ttft_margin=margin, tpot_margin=margin)
        for mhz in CLOCKS
    ]
    assert held == sorted(held)


MODEL = taught()


def test_the_choice_is_the_least_power_and_not_the_least_clock():
    light = load(batch=1.0, cache=0.003, prompt_rate=300.0, output_rate=50.0, arrival_rate=0.25)
    power = PowerModel(prior_of(H100).scaled({"busy_watts": 8.0}), 1)
    loose = View(MODEL, power, CLOCKS, 1980, Targets(10.0, 1.0), Margin(0.02, 0.008))
    chosen = choose(loose, light, known=0, slack=1.25)
    assert chosen.lowest == 0
    assert CLOCKS[chosen.index] > 600
    watts = [loose.watts(loose.at(light, index)) for index in range(len(CLOCKS))]
    assert chosen.watts <= 1.01 * min(watts)


def test_no_clock_is_chosen_where_none_holds_the_objectives():
    chosen = choose(view(Targets(0.5, 0.002)), load(), known=0, slack=1.25)
    assert chosen.index is None
    assert chosen.binds == "time per output token"


def test_the_dearer_a_miss_is_the_higher_the_clock():
    chosen = [
        choose(view(Targets(1.0, 0.05), MODEL, miss_joules=joules), load(), known=0, slack=1.25).index
        for joules in (0.0, 1e2, 1e3, 1e4, 1e5, 1e6)
    ]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[3] < chosen[-1]


def test_those_that_stand_in_a_queue_raise_the_clock_although_no_objective_is_broken():
    alone, queue = load(), load(waiting=4.0, queued_tokens=4800.0, queued_seconds=0.2)
    priced = view(Targets(2.0, 0.05), MODEL, miss_joules=300.0)
    low = choose(priced, alone, known=0, slack=1.25)
    high = choose(view(Targets(2.0, 0.05), MODEL, miss_joules=300.0), queue, known=0, slack=1.25)
    assert high.index > low.index


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 200), st.floats(0, 30000), st.floats(0.01, 30), st.floats(0, 12), st.floats(1, 500))
def test_a_higher_clock_never_makes_more_misses(batch, prompt, arrivals, waiting, answer):
    asked = load(
        batch=batch,
        cache=min(0.9, 0.003 * batch),
        prompt_rate=prompt,
        arrival_rate=arrivals,
        output_rate=arrivals * answer,
        answer_tokens=answer,
        waiting=waiting,
    )
    missed = [misses_of(forecast(MODEL, asked, mhz / 1980), MODEL, asked, 0.05) for mhz in CLOCKS]
    assert all(low >= high - 1e-9 for low, high in itertools.pairwise(missed))
    assert missed[-1] >= 0.0


def test_clocks_that_were_never_seen_need_slack():
    sure = choose(view(Targets(1.0, 0.05), MODEL), load(), known=0, slack=1.25)
    unsure = choose(view(Targets(1.0, 0.05), MODEL), load(), known=len(CLOCKS) - 1, slack=1.25)
    assert unsure.lowest > sure.lowest


@pytest.mark.parametrize("ttft", [0.3, 0.5, 1.0, 2.0])
def test_an_idle_engine_is_parked_where_its_next_request_is_still_in_time(ttft):
    asked = load(batch=0.0, cache=0.0, prompt_rate=0.0, output_rate=0.0, arrival_rate=0.0, rush_rate=4000.0)
    margin = Margin(0.02, 0.008)
    margin.logs["ttft"] = 0.0
    seen = view(Targets(ttft, 0.05), MODEL, margin)
    wake = len(CLOCKS) - 1
    index = parking(seen, asked, wake=wake, look_seconds=0.5, slack=1.0)
    share = CLOCKS[index] / 1980
    tokens, late = 3.0 * asked.prompt_tokens + 0.6 * asked.rush_rate, 0.6
    slow, fast = MODEL.prompt_seconds(share), MODEL.prompt_seconds(1.0)
    first = tokens * slow if tokens * slow <= late else late + (tokens - late / slow) * fast
    assert first + MODEL.base(share) <= ttft or index == wake
    if ttft == 2.0:
        assert index < len(CLOCKS) // 3


def test_an_engine_that_never_worked_waits_at_a_clock_that_costs_its_first_request_little():
    index = unknown_parking(CLOCKS, 1980, 0.5, 0.5)
    assert (1.0 - CLOCKS[index] / 1980) * 0.6 <= 0.4 * 0.5
    assert unknown_parking(CLOCKS, 1980, 10.0, 0.5) < index


# -- what it allows --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.16, 1.2), min_size=1, max_size=30), st.integers(0, 2**32), st.sampled_from(("tpot", "ttft"))
)
def test_misses_stay_near_what_is_allowed_however_the_world_moves(thresholds, seed, binds):
    """An adversary moves the margin at which requests begin to miss; above it each misses with some chance."""
    allowed, gain, rng = 0.02, 0.05, random.Random(seed)
    margin, missed, requests = Margin(gain, allowed), 0, 3000
    for number in range(requests):
        threshold = thresholds[number * len(thresholds) // requests]
        miss = math.exp(margin.logs[binds]) > threshold and rng.random() < 0.5
        missed += miss
        margin.count(1.0, {"ttft": 0.0, "tpot": 0.0, binds: float(miss)}, binds)
    bound = allowed + math.log(HIGHEST / LOWEST) / (gain * requests) + allowed * 0.5
    assert missed / requests <= bound * 1.6


def test_a_margin_below_which_predictions_are_blind_lifts_the_lowest_clock():
    margin = Margin(0.02, 0.008)
    assert margin.floor(priced=False) == 0.0
    margin.logs["tpot"] = math.log(LOWEST)
    assert margin.floor(priced=False) == pytest.approx(1.0)
    assert margin.floor(priced=True) == 0.0
    assert margin.tpot > LOWEST


def test_a_miss_makes_the_next_one_dearer_and_goes_with_what_a_usual_request_costs():
    margin = Margin(0.02, 0.008)
    first = margin.miss_joules(400.0, 4.0)
    margin.count(1.0, {"ttft": 0.0, "tpot": 1.0}, "tpot")
    assert margin.miss_joules(400.0, 4.0) > first
    margin.count(3000.0, {"ttft": 0.0, "tpot": 0.0}, "tpot")
    assert margin.miss_joules(400.0, 4.0) < first
    usual = Margin(0.02, 0.008)
    usual.spent(800.0, 4.0)
    assert usual.miss_joules(1.0, 1.0) == pytest.approx(2.0 * first)


def test_misses_are_counted_exactly_on_an_edge_and_by_the_tail_between_edges():
    grown = Increase((0.025, 0.05, INF), (90.0, 98.0, 100.0), 2.0)
    assert TailCounter().count(grown, 0.05) == 2.0
    between = TailCounter().count(grown, 0.035)
    assert 2.0 < between < 2.0 + 8.0 * 0.6  # a straight line would say 6.8


def test_steady_slowness_is_drift_and_noise_is_not():
    watch, rng = DriftWatch(), random.Random(5)
    assert not any(watch.see(rng.gauss(0.0, 1.0)) for _ in range(400))
    assert "slower" in [watch.see(2.0) for _ in range(12)]
    assert "faster" in [watch.see(-2.0) for _ in range(12)]


# -- what it expects -------------------------------------------------------------------------------------------


def test_a_ramp_is_anticipated_and_a_steady_load_is_not():
    ahead, steady = Anticipation(), Anticipation()
    growths = [ahead.see(0.0, 2.0 + looks * 0.5, 0.5, 0.5 * looks) for looks in range(40)]
    assert growths[-1] > 1.05
    assert max(steady.see(0.0, 4.0, 0.5, 0.5 * looks) for looks in range(40)) == 1.0


def test_the_hour_that_was_busy_yesterday_is_expected_today():
    ahead = Anticipation()
    quarter = 900.0
    now = 0.0
    for _ in range(SLOTS):
        for _ in range(30):
            busy = (now // quarter) % SLOTS == 40
            ahead.see(30.0 * (3000.0 if busy else 1500.0), 0.0, 30.0, now)
            now += 30.0
    before = 86_400.0 + 40 * quarter - 20.0
    assert ahead.see(1500.0, 0.0, 0.5, before) == pytest.approx(1.5)
    assert json.loads(json.dumps(ahead.state()))["rates"][40] == pytest.approx(3000.0)
