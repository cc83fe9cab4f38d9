"""What faults do to what a controller sees and sets, and that Flyball holds under them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.controllers.base import ControlLimits, Decision, GroupSetpoint, Observation
from flyball_agent.scanner import EngineSample, Histogram
from flyball_sim import cli
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.requests import EngineRequest
from flyball_sim.robustness.faults import FAULTS, CounterResets, Fault, lacking
from flyball_sim.robustness.guarded import Guarded
from flyball_sim.robustness.machine import FaultyMachine
from flyball_sim.robustness.table import markdown, misses, verdict
from flyball_sim.robustness.trials import KINDS, LIMITS, Trial, engine, trials

LOCKED = GroupSetpoint(sm_mhz=(600, 600))
BOUNDS = ControlLimits(345, 1980)


class Scripted:
    """A controller that locks, notes what it was shown, and fails when told to."""

    requires = frozenset({"generation_tokens"})
    events = frozenset()
    wants_board = False
    period_seconds = 0.5

    def __init__(self, wake: float = 0.5) -> None:
        self.seen: list[tuple[float, Observation]] = []
        self.broken = False
        self.wake = wake

    def decide(self, observation, limits, now_seconds):  # noqa: ARG002
        if self.broken:
            raise RuntimeError("broken")
        self.seen.append((now_seconds, observation))
        return Decision(LOCKED, next_wake_seconds=self.wake)

    def state(self):
        return {}

    def restore(self, state):
        pass


def page(tokens=0.0, missing=()):
    latencies = Histogram((1.0, math.inf), (tokens, tokens), tokens)
    return EngineSample(
        {"generation_tokens": tokens, "requests_running": 2.0},
        {"time_to_first_token": latencies, "inter_token_latency": latencies},
        missing,
    )


def shown(guarded, now, sample=None):
    sample = page(now) if sample is None else sample
    return guarded.decide(Observation("unified", (), sample, 0.0, sample.missing), BOUNDS, now)


def machine(**wrong):
    return FaultyMachine(Machine(engine(), LIMITS), Fault("x", "x", **wrong))


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=50))
def test_counters_that_begin_again_are_never_negative_and_gauges_stay(growth):
    resets, total = CounterResets(45.0), 0.0
    for tick, more in enumerate(growth):
        total += more
        sample = resets.shown(page(total), tick * 10.0)
        assert 0.0 <= sample.values["generation_tokens"] <= total
        assert sample.values["requests_running"] == 2.0
        assert sample.histograms["inter_token_latency"].count >= 0.0


def test_counters_begin_again_as_often_as_said():
    resets = CounterResets(45.0)
    values = [resets.shown(page(10.0 * now), float(now)).values["generation_tokens"] for now in range(100)]
    assert [now for now in range(1, 100) if values[now] < values[now - 1]] == [45, 90]


def test_a_family_that_is_left_out_is_named_as_missing():
    sample = lacking(page(5.0), ("time_to_first_token", "end_to_end"))
    assert set(sample.histograms) == {"inter_token_latency"}
    assert sample.missing == ("end_to_end", "time_to_first_token")


def test_a_lock_above_the_clamp_is_lowered_without_a_word_and_unlocked_is_not():
    cards = machine(clamp_share=0.6)
    cards.submit(EngineRequest("1", 100, 4000), 0.0)
    cards.set_lock(0.0, (1980, 1980))
    cards.advance(2.0)
    assert cards.sm_mhz == pytest.approx(0.6 * 1980, abs=15)
    cards.set_lock(2.0, None)
    cards.advance(4.0)
    assert cards.sm_mhz > 1900


def test_late_actuation_takes_effect_later_and_once():
    cards, prompt = machine(delay_factor=200.0), machine()
    for each in (cards, prompt):
        each.submit(EngineRequest("1", 100, 4000), 0.0)
        each.set_lock(0.0, (600, 600))
        each.advance(0.5)
    assert prompt.sm_mhz == 600
    assert cards.sm_mhz > 1900
    cards.advance(60.0)
    assert cards.sm_mhz == 600


def test_noise_moves_power_both_ways_and_energy_never_back():
    cards = machine(power_noise=0.2)
    cards.submit(EngineRequest("1", 100, 4000), 0.0)
    energy, ratios = [], []
    for tick in range(1, 60):
        cards.advance(tick * 0.5)
        (reading,) = cards.readings()
        energy.append(reading.energy_joules)
        ratios.append(reading.power_watts)
    assert energy == sorted(energy)
    assert max(ratios) > 1.15 * min(ratios)


def test_while_pages_are_refused_the_last_one_grows_old_and_then_clocks_are_let_go():
    inner = Scripted()
    guarded = Guarded(inner, FAULTS["pages refused"], 300.0)
    locks = {now: shown(guarded, float(now)).setpoint.sm_mhz for now in range(61)}
    ages = {now: seen.engine_age_seconds for now, seen in inner.seen}
    assert ages[47.0] == 0.0
    assert ages[55.0] == 8.0
    assert locks[52] == (600, 600)
    assert locks[55] is None
    assert locks[60] == (600, 600)


def test_a_page_that_lacks_an_objectives_histogram_lets_clocks_go():
    guarded = Guarded(Scripted(), FAULTS["none"], 300.0)
    assert shown(guarded, 0.0, page(1.0, ("inter_token_latency",))).setpoint.sm_mhz is None
    assert shown(guarded, 0.5, page(2.0)).setpoint == LOCKED


def test_a_controller_that_raises_leaves_clocks_unlocked_and_is_asked_again():
    inner = Scripted()
    guarded = Guarded(inner, FAULTS["none"], 300.0)
    inner.broken = True
    assert shown(guarded, 0.0).setpoint.sm_mhz is None
    inner.broken = False
    assert shown(guarded, 0.5).setpoint == LOCKED
    assert guarded.failures == 1


def test_a_lost_tick_leaves_what_was_set_and_is_one():
    inner = Scripted()
    guarded = Guarded(inner, FAULTS["a lost tick"], 100.0)
    decisions = [shown(guarded, tick * 0.5).setpoint for tick in range(100)]
    asked = {now for now, _ in inner.seen}
    assert {tick * 0.5 for tick in range(100)} - asked == {40.0}
    assert set(decisions) == {LOCKED}


def test_the_agents_looks_between_do_not_ask_a_controller_that_wants_to_sleep():
    inner = Scripted(wake=3.0)
    guarded = Guarded(inner, FAULTS["none"], 300.0)
    for tick in range(20):
        assert shown(guarded, tick * 0.5).next_wake_seconds <= 0.5
    assert [now for now, _ in inner.seen] == [0.0, 3.0, 6.0, 9.0]


def trial(**changes):
    return Trial(
        **{
            "fault": "none",
            "controller": "Flyball",
            "seed": 1,
            "attainment": 0.9896,
            "unlocked_attainment": 1.0,
            "energy": 0.5,
            "failures": 0,
            "degraded": (),
            **changes,
        }
    )


def test_a_miss_is_bold_never_rounded_away_and_named():
    played = [trial(), trial(attainment=0.995), trial(controller="AGFT", attainment=1.0)]
    assert "**98.9** / 0.50" in markdown(played)
    assert verdict(played) == "Flyball misses 99% in 1 of 2 runs: none (seed 1): 98.9 %."
    assert len(misses(played)) == 1


def test_where_unlocked_clocks_do_not_hold_nobody_misses():
    assert not misses([trial(unlocked_attainment=0.8)])


def test_flyball_holds_under_faults_of_a_short_run():
    faults = ("none", "counter resets", "pages refused", "noisy power")
    played = list(trials(("Flyball",), faults, seconds=150.0))
    assert [one.fault for one in played] == list(faults)
    assert all(one.holds for one in played)
    assert all(one.energy < 0.95 for one in played)


def test_no_controller_fails_when_histograms_are_missing_or_counters_begin_again():
    played = list(trials(tuple(KINDS), ("no histograms", "counter resets"), seconds=50.0))
    assert len(played) == 2 * len(KINDS)
    assert {one.failures for one in played} == {0}


def test_the_command_refuses_what_there_is_not(capsys):
    assert cli.main(["robustness", "--fault", "rain"]) == 2
    assert "there is no such fault; give one of none, counter resets" in capsys.readouterr().err


def test_the_command_prints_runs_as_json(capsys):
    assert cli.main(["robustness", "--controller", "Fixed", "--fault", "none", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["controller"] == "Fixed"
