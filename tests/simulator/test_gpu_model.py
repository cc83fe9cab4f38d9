"""GPU physics: what caps, locks and loads do to clock, power and energy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flyball_sim.gpu.model import (
    NO_LOAD,
    REASON_IDLE,
    REASON_SW_POWER_CAP,
    GpuLoad,
    GpuSettings,
    GpuState,
    booted,
    clock_under,
    power_at,
    step,
)
from flyball_sim.gpu.types import GPU_TYPES, GpuType, UnknownGpuTypeError, gpu_type

H100 = GPU_TYPES["H100-SXM5"]
H200 = GPU_TYPES["H200-SXM"]
A100 = GPU_TYPES["A100-SXM4-80GB"]
BUSY = GpuLoad(memory_use=0.5, compute_use=0.3, busy=1.0)
FREE = GpuSettings(cap_watts=700.0)

kinds = st.sampled_from(list(GPU_TYPES.values()))
shares = st.floats(0.0, 1.0)
loads = st.builds(GpuLoad, shares, shares, shares)

unhurried = hypothesis_settings(deadline=None)  # a busy machine is not a slow model


@st.composite
def settings_of(draw: st.DrawFn, kind: GpuType) -> GpuSettings:
    cap = draw(st.floats(kind.cap_min_watts, kind.cap_max_watts))
    clocks = list(kind.supported_sm_mhz())
    ends = sorted((draw(st.sampled_from(clocks)), draw(st.sampled_from(clocks))))
    return GpuSettings(cap, draw(st.sampled_from([None, (ends[0], ends[1])])))


@st.composite
def cards(draw: st.DrawFn) -> tuple[GpuType, GpuState, GpuLoad, GpuSettings]:
    """A card somewhere in the middle of its life."""
    kind = draw(kinds)
    state = booted(kind, draw(st.integers(0, 2**64 - 1)))
    for _ in range(draw(st.integers(0, 3))):
        seconds = draw(st.floats(0.0, 0.5))
        state = step(kind, state, draw(loads), draw(settings_of(kind)), seconds)
    return kind, state, draw(loads), draw(settings_of(kind))


def settled(kind: GpuType, load: GpuLoad, settings: GpuSettings) -> GpuState:
    return step(kind, booted(kind, 1), load, settings, 10.0)


def test_an_unknown_type_is_answered_with_the_nearest_one():
    with pytest.raises(UnknownGpuTypeError, match="'H100-SMX5' is unknown: did you mean 'H100-SXM5'"):
        gpu_type("H100-SMX5")
    assert gpu_type("H200-SXM") is H200


@pytest.mark.parametrize("kind", GPU_TYPES.values(), ids=lambda kind: kind.name)
def test_a_type_fits_together(kind):
    assert (kind.sm_max_mhz - kind.sm_min_mhz) % kind.sm_step_mhz == 0
    assert (kind.lock_ceiling_mhz - kind.sm_min_mhz) % kind.sm_step_mhz == 0
    assert kind.idle_watts + kind.context_watts <= kind.power.static_watts
    assert kind.cap_min_watts < kind.cap_default_watts <= kind.cap_max_watts
    assert kind.power.static_watts < kind.cap_max_watts


def test_an_empty_card_idles_and_a_context_keeps_its_clock_up():
    empty = settled(H100, NO_LOAD, FREE)
    assert (empty.sm_mhz, empty.power_watts, empty.event_reasons) == (345, 72.0, REASON_IDLE)
    waiting = settled(H100, GpuLoad(0.0, 0.0, 0.0), FREE)
    assert (waiting.sm_mhz, waiting.power_watts, waiting.event_reasons) == (1980, 124.0, REASON_IDLE)


def test_a_busy_card_boosts_to_its_highest_clock():
    state = settled(H100, BUSY, FREE)
    assert (state.sm_mhz, state.event_reasons) == (1980, 0)
    assert state.power_watts == pytest.approx(150 + (165 + 238.7) * 0.5 + 812.8 * 0.3)


# ML.ENERGY, Llama-3.1-8B on one H100: batch, watts, median inter-token ms, output tokens/s. Prompts of 700 tokens
# and outputs of 400 are what the fit of the step times asks for; the type's fit is 5 % off on models it has not
# seen and leaves a bias of about -6 % on this one.
@pytest.mark.parametrize(
    ("batch", "watts", "step_ms", "tokens_per_second"),
    [(8, 486, 7.3, 1070), (64, 610, 11.5, 5147), (256, 691, 26.1, 9010)],
)
def test_decode_power_lands_near_the_published_points(batch, watts, step_ms, tokens_per_second):
    weights_bytes, kv_bytes_per_token, parameters = 16.06e9, 131072, 8.03e9
    read_bytes = weights_bytes + batch * 700 * kv_bytes_per_token
    memory_use = read_bytes / (step_ms * 1e-3) / H100.memory_bandwidth_bytes_per_second
    prompt_and_output = tokens_per_second * (700 + 400) / 400
    compute_use = 2 * parameters * prompt_and_output / H100.dense_bf16_flops
    state = settled(H100, GpuLoad(memory_use, compute_use, 1.0), FREE)
    assert state.power_watts == pytest.approx(watts, rel=0.13)


def test_sustained_prefill_sits_at_the_cap():
    prefill = GpuLoad(memory_use=0.25, compute_use=0.75, busy=1.0)
    for kind in (H100, H200):
        state = settled(kind, prefill, FREE)
        assert 670.0 < state.power_watts <= 700.0
        assert state.event_reasons == REASON_SW_POWER_CAP
        assert 0.85 * 1980 < state.sm_mhz < 1980


@unhurried
@given(kinds, loads, st.data())
def test_a_settled_card_keeps_its_cap_or_stands_at_its_lowest_clock_and_says_so(kind, load, data):
    settings = data.draw(settings_of(kind))
    state = settled(kind, load, settings)
    assert state.sm_mhz in kind.supported_sm_mhz()
    if state.power_watts > settings.cap_watts + 1e-6:
        assert state.sm_mhz == kind.sm_min_mhz
        assert state.event_reasons & REASON_SW_POWER_CAP


def test_a_card_at_its_lowest_clock_overshoots_a_cap_it_cannot_keep():
    load = GpuLoad(memory_use=1.0, compute_use=1.0, busy=1.0)
    state = settled(H100, load, GpuSettings(200.0))
    assert state.sm_mhz == 345
    assert state.power_watts > 200.0
    assert state.event_reasons == REASON_SW_POWER_CAP


@unhurried
@given(kinds, loads, st.data())
def test_no_clock_one_step_higher_would_have_kept_the_cap(kind, load, data):
    settings = data.draw(settings_of(kind))
    sm_mhz, reasons = clock_under(kind, load, settings.cap_watts, settings.lock_sm_mhz)
    if reasons & REASON_SW_POWER_CAP:
        assert power_at(kind, load, sm_mhz + kind.sm_step_mhz) > kind.cap_held_share * settings.cap_watts - 1e-6


@unhurried
@given(kinds, loads, st.data())
def test_a_lock_bounds_the_clock_from_above_and_never_lifts_a_cap(kind, load, data):
    settings = data.draw(settings_of(kind))
    locked, reasons = clock_under(kind, load, settings.cap_watts, settings.lock_sm_mhz)
    free, _ = clock_under(kind, load, settings.cap_watts, None)
    assert locked <= free
    if settings.lock_sm_mhz is not None:
        assert locked <= settings.lock_sm_mhz[1]
        if not reasons & REASON_SW_POWER_CAP:
            assert locked == min(settings.lock_sm_mhz[1], kind.lock_ceiling_mhz)


def test_a_lock_above_what_an_h200_can_hold_ends_at_its_ceiling():
    assert settled(H200, BUSY, GpuSettings(700.0, (1980, 1980))).sm_mhz == 1830
    assert settled(H200, BUSY, FREE).sm_mhz == 1980


@unhurried
@given(kinds, loads, loads, st.data())
def test_more_load_never_takes_less_power_at_one_clock(kind, one, other, data):
    sm_mhz = data.draw(st.sampled_from(list(kind.supported_sm_mhz())))
    more = GpuLoad(
        max(one.memory_use, other.memory_use),
        max(one.compute_use, other.compute_use),
        max(one.busy, other.busy),
    )
    assert power_at(kind, more, sm_mhz) >= power_at(kind, one, sm_mhz)
    assert power_at(kind, one, sm_mhz) >= kind.idle_watts


@unhurried
@given(cards(), st.floats(0.0, 0.4), st.floats(0.0, 0.4))
def test_two_steps_do_what_one_as_long_does(card, first, second):
    kind, state, load, settings = card
    whole = step(kind, state, load, settings, first + second)
    split = step(kind, step(kind, state, load, settings, first), load, settings, second)
    spent = whole.energy_joules - state.energy_joules
    assert split.energy_joules - state.energy_joules == pytest.approx(spent, rel=0.01, abs=0.5)
    assert split.cap_lagged_watts == pytest.approx(whole.cap_lagged_watts, abs=0.6)
    assert split.lock_in_force == whole.lock_in_force
    assert split.random_state == whole.random_state
    if settings.cap_watts == split.cap_lagged_watts == whole.cap_lagged_watts:
        assert split.sm_mhz == whole.sm_mhz


@unhurried
@given(cards(), st.floats(0.0, 5.0))
def test_a_step_depends_on_nothing_but_its_arguments(card, seconds):
    kind, state, load, settings = card
    assert step(kind, state, load, settings, seconds) == step(kind, state, load, settings, seconds)


@unhurried
@given(cards(), st.floats(0.0, 5.0))
def test_energy_is_the_integral_of_power_and_no_less_than_idle(card, seconds):
    kind, state, load, settings = card
    later = step(kind, state, load, settings, seconds)
    begins = [state.time_seconds, *(end for end, _ in later.pieces)]
    joules = sum(watts * (end - begin) for begin, (end, watts) in zip(begins, later.pieces, strict=False))
    assert later.energy_joules - state.energy_joules == pytest.approx(joules, abs=1e-6)
    assert begins[-1] == pytest.approx(later.time_seconds)
    assert joules >= kind.idle_watts * seconds * (1 - 1e-9) - 1e-9


def test_time_does_not_run_backwards():
    with pytest.raises(ValueError, match=r"dt_seconds is -0\.1: a card cannot run backwards"):
        step(H100, booted(H100, 1), NO_LOAD, FREE, -0.1)


def test_a_lock_takes_effect_after_its_delay_and_asking_again_changes_nothing():
    busy = settled(H100, BUSY, FREE)
    locked = replace(FREE, lock_sm_mhz=(900, 900))
    asked = step(H100, busy, BUSY, locked, 0.0)
    assert asked.sm_mhz == 1980
    delay = asked.lock_effect_seconds - busy.time_seconds
    assert step(H100, asked, BUSY, locked, delay * 0.99).sm_mhz == 1980
    after = step(H100, asked, BUSY, locked, delay * 1.01)
    assert (after.sm_mhz, after.lock_effect_seconds) == (900, math.inf)
    assert step(H100, after, BUSY, locked, 0.001).random_state == after.random_state
    released = step(H100, after, BUSY, FREE, 1.0)
    assert (released.sm_mhz, released.lock_in_force) == (1980, None)


def test_lock_delays_have_the_median_and_the_tail_they_should():
    state, delays = booted(H100, 42), []
    for turn in range(4000):
        lock = (900, 900) if turn % 2 else None
        asked = step(H100, replace(state, lock_target=(1, 1)), BUSY, GpuSettings(700.0, lock), 0.0)
        delays.append(asked.lock_effect_seconds - state.time_seconds)
        state = asked
    delays.sort()
    assert delays[2000] == pytest.approx(0.020, rel=0.1)
    assert 0.08 < delays[3960] < 0.25
    assert delays[0] > 0.0
    assert sum(delay >= 0.2 for delay in delays) > 5


def test_a_cap_bites_faster_than_it_lets_go():
    load = GpuLoad(memory_use=0.6, compute_use=0.4, busy=1.0)
    free = settled(H100, load, FREE)
    down = step(H100, free, load, GpuSettings(400.0), 0.1)
    assert 400.0 < down.cap_lagged_watts < 400.0 + 300.0 * math.exp(-2.0) + 1.0
    low = settled(H100, load, GpuSettings(400.0))
    up = step(H100, low, load, FREE, 0.1)
    assert 500.0 < up.cap_lagged_watts < 540.0
    assert step(H100, free, load, GpuSettings(400.0), 1.0).power_watts <= 400.0


def test_an_a6000_lingers_above_idle_with_its_clock_up_for_some_seconds_after_load():
    kind = GPU_TYPES["RTX-A6000"]
    free = GpuSettings(kind.cap_max_watts)
    busy = settled(kind, BUSY, free)
    soon = step(kind, busy, NO_LOAD, free, 2.0)
    assert 89.0 <= soon.power_watts <= 97.0
    assert soon.sm_mhz == kind.sm_max_mhz
    late = step(kind, soon, NO_LOAD, free, 14.1)
    assert (late.power_watts, late.sm_mhz) == (kind.idle_watts, kind.sm_min_mhz)
    assert late.energy_joules - busy.energy_joules == pytest.approx(16.0 * 91.0 + 0.1 * 33.0, rel=1e-6)


def test_a_context_costs_less_where_a_lock_holds_its_clock_down():
    waiting = GpuLoad(0.0, 0.0, 0.0)
    free, locked = settled(H100, waiting, FREE), settled(H100, waiting, GpuSettings(700.0, (345, 345)))
    assert H100.idle_watts < locked.power_watts < free.power_watts == H100.idle_watts + H100.context_watts


def test_no_type_draws_less_at_a_higher_clock():
    for kind in GPU_TYPES.values():
        for load in (BUSY, GpuLoad(0.0, 0.0, 0.0), GpuLoad(1.0, 1.0, 1.0)):
            watts = [power_at(kind, load, mhz) for mhz in kind.supported_sm_mhz()]
            assert watts == sorted(watts)


def test_time_under_the_power_cap_is_counted():
    load = GpuLoad(memory_use=0.6, compute_use=0.4, busy=1.0)
    state = settled(H100, load, GpuSettings(400.0))
    later = step(H100, state, load, GpuSettings(400.0), 2.5)
    assert later.power_capped_seconds - state.power_capped_seconds == pytest.approx(2.5)
    assert step(H100, later, NO_LOAD, FREE, 1.0).power_capped_seconds == later.power_capped_seconds
