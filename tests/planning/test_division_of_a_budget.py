"""Dividing watts: floors, then need, then evenly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flyball_operator.division import (
    Group,
    default_reserve,
    divide,
    floor_sum,
    next_need,
    reset_watts,
)


def group_of(key="a", node="n0", need=None):
    return Group(key, node, 1, 200, 700, 700, need)


groups_strategy = st.lists(
    st.builds(
        lambda node, size, floor, span, need: (f"n{node}", size, floor, floor + span, need),
        st.integers(0, 3),
        st.integers(1, 8),
        st.integers(100, 300),
        st.integers(0, 400),
        st.none() | st.integers(0, 900),
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: [Group(f"g{i:02}", n, s, lo, hi, 700, need) for i, (n, s, lo, hi, need) in enumerate(rows)])


def total(caps, groups):
    return sum(group.size * caps[group.key] for group in groups)


def test_equal_groups_with_unknown_needs_share_evenly():
    groups = [group_of("a"), group_of("b"), group_of("c")]
    assert divide(1200, groups) == {"a": 400, "b": 400, "c": 400}


def test_a_group_that_needs_little_leaves_its_watts_to_one_that_needs_much():
    caps = divide(1000, [group_of("busy", need=700), group_of("idle", need=250)])
    assert caps == {"busy": 700, "idle": 300}


def test_what_nobody_needs_is_shared_evenly_up_to_the_ceiling():
    caps = divide(1000, [group_of("a", need=200), group_of("b", need=300)])
    assert caps == {"a": 450, "b": 550}


def test_two_that_need_more_than_there_is_get_the_same():
    assert divide(900, [group_of("a", need=700), group_of("b", need=600)]) == {"a": 450, "b": 450}


def test_single_watts_are_handed_out_in_the_order_of_keys():
    assert divide(1001, [group_of("b"), group_of("a")]) == {"a": 501, "b": 500}


def test_a_budget_below_the_floors_gives_everybody_the_floor():
    assert divide(100, [group_of("a"), group_of("b")]) == {"a": 200, "b": 200}


@given(groups_strategy, st.integers(0, 30_000))
def test_a_division_keeps_every_bound_and_the_sum(groups, available):
    caps = divide(available, groups)
    assert all(group.floor_watts <= caps[group.key] <= group.ceiling_watts for group in groups)
    assert total(caps, groups) <= max(available, floor_sum(groups))


@given(groups_strategy, st.integers(0, 30_000))
def test_no_watt_is_left_that_a_group_could_take(groups, available):
    caps = divide(available, groups)
    left = available - total(caps, groups)
    unsated = [group.size for group in groups if caps[group.key] < group.ceiling_watts]
    assert left < 0 or not unsated or left < sum(unsated)


@given(groups_strategy, st.integers(0, 30_000), st.randoms(use_true_random=False))
def test_a_division_does_not_depend_on_the_order_of_groups(groups, available, random):
    shuffled = list(groups)
    random.shuffle(shuffled)
    assert divide(available, groups) == divide(available, shuffled)


def test_the_default_reserve_covers_a_reset_of_the_largest_node():
    groups = [group_of(f"{node}-{gpu}", node=f"n{node}") for node in range(3) for gpu in range(8)]
    reserve = default_reserve(12_000, groups)
    caps = divide(12_000 - reserve, groups)
    assert reserve == 2400
    assert reset_watts(caps, groups) <= reserve


def test_the_default_reserve_never_starves_a_policy_on_one_node():
    groups = [group_of(str(gpu)) for gpu in range(8)]
    assert default_reserve(4000, groups) == (4000 - 8 * 200) // 2


@given(groups_strategy, st.integers(0, 30_000), st.integers(0, 2_000))
def test_more_budget_never_gives_less_after_the_default_reserve(groups, watts, more):
    less_left = watts - default_reserve(watts, groups)
    more_left = watts + more - default_reserve(watts + more, groups)
    assert more_left >= less_left


def test_a_need_rises_at_once_and_falls_only_after_it_has_been_low_for_a_while():
    need = next_need(None, 300, False, 500, 0)
    assert need.watts == 345
    need = next_need(need, 400, False, 500, 1)
    assert need.watts == 455
    for second in range(2, 31):
        need = next_need(need, 200, False, 500, second)
        assert need.watts == 455
    assert next_need(need, 200, False, 500, 32).watts == 235


def test_a_need_that_wanders_does_not_move():
    need = next_need(None, 300, False, 500, 0)
    assert {next_need(need, 300 + wobble, False, 500, 99).watts for wobble in (-15, -5, 5, 15)} == {need.watts}


def test_a_gpu_slowed_by_its_cap_needs_more_than_its_cap():
    assert next_need(None, 390, True, 400, 0).watts > 400
