"""What a card takes of what was asked, and what is made of what is found on it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.actuator.device import Identity, Sample
from flyball_agent.actuator.limits import choose_cap, clamp_cap, clamp_clocks, judge_lock, release_target

CLOCKS = tuple(range(345, 1981, 15))
CARD = Identity("GPU-1", 0, "x", 200.0, 700.0, 700.0, CLOCKS)
MHZ = st.integers(1, 3000)


def sample(sm_mhz, reasons=0, utilisation=90):
    return Sample(300.0, 300.0, 1.0, sm_mhz, reasons, 700.0, 700.0, utilisation)


@given(low=MHZ, high=MHZ)
def test_a_clamped_lock_is_supported_in_order_and_not_above_what_was_asked(low, high):
    low, high = sorted((low, high))
    lock = clamp_clocks(low, high, CLOCKS)
    assert lock[0] in CLOCKS
    assert lock[1] in CLOCKS
    assert lock[0] <= lock[1]
    assert lock[1] <= max(high, CLOCKS[0])
    if low in CLOCKS and high in CLOCKS:
        assert lock == (low, high)


@given(cap=st.floats(1, 3000), ceiling=st.none() | st.floats(1, 3000))
def test_a_clamped_cap_is_within_the_card_and_within_the_grant_where_the_card_can(cap, ceiling):
    held = clamp_cap(cap, ceiling, CARD)
    assert CARD.cap_min_watts <= held <= CARD.cap_max_watts
    assert held <= max(min(cap, cap if ceiling is None else ceiling), CARD.cap_min_watts)


@given(
    target=st.integers(200, 700),
    requested=st.integers(100, 700),
    ours=st.lists(st.integers(200, 700), max_size=2),
)
def test_what_is_found_above_the_target_is_always_put_to_the_target(target, requested, ours):
    choice = choose_cap(target, requested, requested, tuple(ours), 700)
    if requested > target:
        assert choice.write_watts == target
    else:
        # Below: either ours and replaced, or somebody else's and reported. Never silently too low.
        assert choice.write_watts == target or requested in (choice.foreign_watts, target)


def test_a_default_cap_never_touched_is_cut_to_the_target():
    assert choose_cap(400, 700, 700, (), 700).write_watts == 400


def test_a_cap_we_wrote_is_raised_to_the_target():
    assert choose_cap(500, 400, 400, (400,), 700).write_watts == 500


def test_a_cap_from_before_a_death_between_record_and_card_is_known_as_ours():
    assert choose_cap(600, 350, 350, (500, 350), 700).write_watts == 600


def test_a_lower_cap_of_somebody_else_is_kept():
    choice = choose_cap(400, 300, 300, (400,), 700)
    assert (choice.write_watts, choice.foreign_watts) == (None, 300)


def test_somebody_elses_cap_does_not_keep_ours_from_going_lower():
    assert choose_cap(250, 300, 300, (400,), 700).write_watts == 250


def test_a_limit_below_the_requested_one_is_somebody_elses_out_of_band():
    choice = choose_cap(400, 400, 350, (400,), 700)
    assert (choice.write_watts, choice.foreign_watts) == (None, 350)


@pytest.mark.parametrize(("before", "target"), [(None, 700), (700, 700), (500, 500), (900, 700)])
def test_release_goes_to_the_default_or_to_the_lower_limit_that_was_there_before_us(before, target):
    assert release_target(700, before) == target


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (sample(1000), "True"),
        (sample(1200), "True"),
        (sample(1015), "True"),
        (sample(1215), "True"),  # one step of rounding
        (sample(1500), "False"),
        (sample(800), "False"),
        (sample(800, reasons=0x4), "Unknown"),  # the cap slows it
        (sample(800, reasons=0x40), "Unknown"),  # heat
        (sample(1500, reasons=0x4), "False"),  # nothing excuses too high a clock
        (sample(345, reasons=0x1, utilisation=0), "Unknown"),
        (sample(345, utilisation=0), "Unknown"),
    ],
)
def test_a_lock_is_judged_by_the_clock_under_load(seen, verdict):
    assert judge_lock((1000, 1200), 15, seen) == verdict
