"""A step on a card: its length and watts by clock, and the clock a cap or a lock leaves it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flyball_sim.gpu.dies import NOMINAL_DIE, Die, apply, draw_dies
from flyball_sim.gpu.model import REASON_SW_POWER_CAP, GpuLoad, power_at
from flyball_sim.gpu.steps import settle, step_seconds, step_watts
from flyball_sim.gpu.sweeps import KernelCost
from flyball_sim.gpu.types import GPU_TYPES, GpuType

H100 = GPU_TYPES["H100-SXM5"]
H200 = GPU_TYPES["H200-SXM"]

unhurried = hypothesis_settings(deadline=None)  # a busy machine is not a slow model
kinds = st.sampled_from(list(GPU_TYPES.values()))


@st.composite
def costs(draw: st.DrawFn, kind: GpuType) -> KernelCost:
    """A step as engines make them: the host waits for less than half of it, and memory is read in between."""
    fixed, clocked = draw(st.floats(1e-4, 0.1)), draw(st.floats(1e-6, 0.1))
    on_card = fixed + clocked
    return KernelCost(
        host_seconds=draw(st.floats(0.0, 0.4)) * on_card,
        fixed_seconds=fixed,
        clocked_seconds=clocked,
        memory_bytes=draw(st.floats(0.3, 0.95)) * on_card * kind.memory_bandwidth_bytes_per_second,
        flops=draw(st.floats(0.0, 0.8)) * on_card * kind.dense_bf16_flops,
    )


@st.composite
def cards(draw: st.DrawFn) -> tuple[GpuType, KernelCost, float, tuple[int, int] | None]:
    kind = draw(kinds)
    cap = draw(st.floats(kind.cap_min_watts, kind.cap_max_watts))
    lock = draw(st.sampled_from([None, *((mhz, mhz) for mhz in kind.supported_sm_mhz())]))
    return kind, draw(costs(kind)), cap, lock


@unhurried
@given(cards())
def test_a_step_takes_more_watts_and_no_more_time_at_a_higher_clock(card):
    kind, cost, _, _ = card
    clocks = kind.supported_sm_mhz()
    watts = [step_watts(kind, cost, mhz, kind.sm_max_mhz) for mhz in clocks]
    seconds = [step_seconds(kind, cost, mhz, kind.sm_max_mhz) for mhz in clocks]
    assert all(above >= below - 1e-9 for below, above in itertools.pairwise(watts))
    assert all(above <= below + 1e-12 for below, above in itertools.pairwise(seconds))


@unhurried
@given(cards())
def test_a_settled_step_keeps_the_cap_or_stands_at_the_lowest_clock_and_says_so(card):
    kind, cost, cap, lock = card
    mhz, watts, reasons = settle(kind, cost, cap, lock)
    assert mhz in kind.supported_sm_mhz()
    assert watts == pytest.approx(step_watts(kind, cost, mhz, kind.sm_max_mhz))
    if watts > kind.cap_held_share * cap:
        assert mhz == kind.sm_min_mhz
        assert reasons == REASON_SW_POWER_CAP
    if lock is not None:
        assert mhz <= lock[1]
    if reasons:
        above = step_watts(kind, cost, mhz + kind.sm_step_mhz, kind.sm_max_mhz)
        assert above > kind.cap_held_share * cap - 1e-6


@unhurried
@given(cards())
def test_a_step_draws_what_its_mean_load_draws(card):
    kind, cost, _, _ = card
    for mhz in (kind.sm_min_mhz, kind.lock_ceiling_mhz, kind.sm_max_mhz):
        seconds = step_seconds(kind, cost, mhz, kind.sm_max_mhz)
        load = GpuLoad(
            cost.memory_bytes / seconds / kind.memory_bandwidth_bytes_per_second,
            cost.flops / seconds / kind.dense_bf16_flops * kind.sm_max_mhz / mhz,
            1.0 - cost.host_seconds / seconds,
        )
        assert step_watts(kind, cost, mhz, kind.sm_max_mhz) == pytest.approx(power_at(kind, load, mhz))


def test_a_step_with_nothing_in_it_waits():
    nothing = KernelCost(0.0, 0.0, 0.0, 0.0, 0.0)
    assert settle(H100, nothing, 700.0) == (1980, H100.waiting_watts(1980), 0)


def test_a_lock_above_what_an_h200_can_hold_ends_at_its_ceiling():
    cost = KernelCost(0.0, 5e-3, 0.0, 1e9, 0.0)
    assert settle(H200, cost, 700.0, (1980, 1980))[0] == 1830
    assert settle(H200, cost, 700.0)[0] == 1980


def test_memory_slows_below_its_knee_and_not_above():
    streaming = KernelCost(0.0, 10e-3, 0.0, 1e9, 0.0)
    knee = H100.memory_knee_mhz
    assert step_seconds(H100, streaming, knee, 1980.0) == step_seconds(H100, streaming, 1980.0, 1980.0)
    assert step_seconds(H100, streaming, knee / 2, 1980.0) == pytest.approx(20e-3)


def test_a_hungry_die_runs_slower_under_the_same_cap():
    cost = KernelCost(0.0, 1e-3, 9e-3, 5e9, 7e12)
    hungry, frugal = Die(1.05, 1.0, 1.0), Die(0.95, 1.0, 1.0)
    clocks = [settle(H100, cost, 500.0, None, die)[0] for die in (hungry, NOMINAL_DIE, frugal)]
    assert clocks == sorted(clocks)
    assert len(set(clocks)) == 3


@unhurried
@given(cards(), st.integers(0, 1000))
def test_a_die_scales_watts_while_waiting_and_those_above(card, seed):
    kind, cost, _, _ = card
    (die,) = draw_dies(seed, 1)
    own = apply(kind, die)
    for mhz in (kind.sm_min_mhz, kind.sm_max_mhz):
        waiting = kind.waiting_watts(mhz)
        above = step_watts(kind, cost, mhz, kind.sm_max_mhz) - waiting
        expected = waiting * die.idle_factor + above * die.power_factor
        assert own.waiting_watts(mhz) == pytest.approx(waiting * die.idle_factor)
        assert step_watts(own, cost, mhz, kind.sm_max_mhz) == pytest.approx(expected)


def test_dies_are_the_same_for_the_same_seed_however_many_are_drawn():
    assert draw_dies(5, 3) == draw_dies(5, 8)[:3]
    assert draw_dies(5, 3) != draw_dies(6, 3)
    factors = [die.power_factor for die in draw_dies(1, 4000)]
    assert sum(factors) / 4000 == pytest.approx(1.0, abs=2e-3)
    assert 0.95 <= min(factors) < 0.97
    assert 1.03 < max(factors) <= 1.05
    assert all(0.95 <= die.sensor_gain <= 1.05 for die in draw_dies(1, 4000))
