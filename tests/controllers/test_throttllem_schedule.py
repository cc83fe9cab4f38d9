"""throttLL'eM's decisions: least feasible clock, admission, lost requests."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_agent.controllers.throttllem.performance import Performance
from flyball_agent.controllers.throttllem.projection import Entry, project, segments_of
from flyball_agent.controllers.throttllem.schedule import Engine, check, decide, least_clock, lost_of, with_clocks

FAR = float("inf")
CLOCKS = tuple(range(300, 1500, 100))


def performance(per_batch: float = 0.001) -> Performance:
    """A made-up engine: an iteration takes 6000/MHz + 5 ms, and a millisecond more for each of 8 sequences."""
    # One stump per clock step and per batch step: logarithms add up.
    base = -math.log(6.0 / CLOCKS[0] + 0.005)
    gains = [((low + high) / 2, math.log((6.0 / low + 0.005) / (6.0 / high + 0.005))) for low, high in pairwise(CLOCKS)]
    trees = [[[3, mhz, 1, 2], [0.0], [gain]] for mhz, gain in gains]
    trees += [[[1, batch + 0.5, 1, 2], [0.0], [-40 * per_batch]] for batch in range(1, 64, 8)]
    return Performance(
        {
            "version": 1,
            "clocks": list(CLOCKS),
            "base": base,
            "trees": trees,
            "prefill_seconds_per_token": [0.3 / mhz for mhz in CLOCKS],
        },
        1,
    )


ENGINE = Engine(performance(), tuple(range(len(CLOCKS))), block_tokens=16, kv_blocks=200, tbt_seconds=0.2)


def entry(name: str = "r", *, held: int = 100, left: int = 50, due: float = FAR, lost: bool = False) -> Entry:
    return Entry(name, held, left, due, lost)


boards = st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 200), st.floats(0.05, 12.0)), min_size=1, max_size=20
).map(lambda rows: [entry(str(index), held=h, left=n, due=due) for index, (h, n, due) in enumerate(rows)])


@given(
    board=boards,
    tbt=st.floats(0.004, 0.06),
    reading=st.sampled_from(["Average", "Strict"]),
    prompts=st.integers(0, 3000),
    counted=st.booleans(),
)
@settings(deadline=None)
def test_binary_search_finds_what_linear_search_finds(board, tbt, reading, prompts, counted):
    engine = replace(ENGINE, tbt_seconds=tbt, tbt_reading=reading, count_prefill=counted)
    pieces = engine.performance.pieces(segments_of(board))
    found = least_clock(engine, lambda clock: check(engine, pieces, clock, prompts).ok)
    linear = [clock for clock in engine.clocks if check(engine, pieces, clock, prompts).ok]
    assert found == min(linear, default=None)
    choice = decide(engine, board, [], running_prompts=prompts)
    if linear:
        assert (choice.clock, choice.feasible, choice.lost) == (linear[0], True, frozenset())
    else:
        assert not choice.feasible
        assert choice.clock in {None, engine.clocks[-1]}


@given(board=boards, waiting=boards, room=st.integers(5, 120))
@settings(deadline=None)
def test_nobody_is_let_in_whom_the_cache_could_not_hold_to_the_end(board, waiting, room):
    engine = replace(ENGINE, kv_blocks=room)
    queue = [each._replace(name=f"w{each.name}") for each in waiting]
    choice = decide(engine, board, queue)
    if choice.admit:
        together = [*board, *queue[: choice.admit]]
        assert max(project(together, 16)[1]) <= room


def test_without_deadlines_and_with_time_per_token_to_spare_the_lowest_clock_does():
    choice = decide(ENGINE, [entry()], [])
    assert (choice.clock, choice.admit) == (0, 0)
    assert choice.check.late_seconds == -FAR


def test_strict_and_average_time_per_token_differ_where_one_stretch_is_slow():
    board = [entry(str(number), left=10) for number in range(20)] + [entry("long", left=400)]
    pieces = ENGINE.performance.pieces(segments_of(board))
    strict = check(replace(ENGINE, tbt_reading="Strict"), pieces, 0)
    assert strict.tbt_seconds == pytest.approx(ENGINE.performance.seconds(0, 21, 3000))
    later = [entry("long", left=400), *[entry(str(number), left=10) for number in range(1)]]
    steady = check(ENGINE, ENGINE.performance.pieces(segments_of(later)), 0)
    assert steady.tbt_seconds < strict.tbt_seconds


def test_who_would_make_another_late_waits_and_so_do_all_behind_him():
    at_top = ENGINE.performance.seconds(ENGINE.clocks[-1], 1, 100)
    board = [entry("runs", left=100, due=100 * at_top * 1.005)]
    crowd = [entry(f"w{number}", due=30.0) for number in range(12)]
    choice = decide(ENGINE, board, crowd)
    assert choice.admit < 12
    alone = decide(ENGINE, [entry("runs", left=100, due=30.0)], crowd)
    assert alone.admit == 12


def test_a_request_that_cannot_be_in_time_is_lost_runs_at_once_and_at_the_highest_clock():
    choice = decide(ENGINE, [entry("runs", due=30.0)], [entry("late", due=0.01), entry("next", due=30.0)])
    assert (choice.clock, choice.admit, choice.lost) == (None, 2, {"late"})
    again = decide(ENGINE, [entry("runs", due=30.0), entry("late", due=0.01, lost=True)], [])
    assert (again.clock, again.lost) == (None, {"late"})


def test_a_lost_request_holds_nobody_up():
    lost = lost_of(ENGINE, [entry("late", due=0.01), entry("fine", due=30.0)])
    assert lost == {"late"}


def test_an_empty_engine_takes_the_first_whatever_its_size():
    choice = decide(replace(ENGINE, kv_blocks=3), [], [entry("huge", held=4000)])
    assert choice.admit == 1


def test_prompts_to_be_computed_cost_time_only_where_they_are_counted():
    board = [entry(left=10, due=1.0)]
    assert decide(ENGINE, board, [], running_prompts=2000).clock == 0
    counted = decide(replace(ENGINE, count_prefill=True), board, [], running_prompts=2000)
    assert counted.clock is not None
    assert counted.clock > 0


def test_only_allowed_clocks_are_chosen():
    assert decide(with_clocks(ENGINE, (4, 5)), [entry()], []).clock == 4
