"""A run of a replay in numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.replay.bands import band
from flyball_sim.replay.measures import holds, keeps, measure, outside, windowed
from flyball_sim.replay.objectives import Objective
from flyball_sim.replay.record import FINISHED, LOST, REJECTED, UNFINISHED, Record, Requests

BOUNDS = Objective(ttft_seconds=1.0, tpot_seconds=0.05, window_seconds=10.0, minimum_requests=2)
NAN = math.nan


def requests(
    arrivals: list[float],
    ttft: list[float] | None = None,
    tpot: list[float] | None = None,
    outcome: list[int] | None = None,
    judge: list[int] | None = None,
) -> Requests:
    count = len(arrivals)
    ttft, tpot = ttft or [0.5] * count, tpot or [0.02] * count
    arrival = np.array(arrivals, dtype=np.float64)
    return Requests(
        arrival_seconds=arrival,
        ttft_seconds=np.array(ttft),
        tpot_seconds=np.array(tpot),
        finished_seconds=arrival + np.array(ttft) + 9 * np.nan_to_num(np.array(tpot)),
        prompt_tokens=np.full(count, 100),
        output_tokens=np.full(count, 10),
        outcome=np.array(outcome or [FINISHED] * count, dtype=np.int8),
        judge=np.array(judge or [0] * count, dtype=np.int16),
    )


def test_a_request_holds_when_every_bounded_latency_does() -> None:
    given_ = requests([0, 1, 2, 3], ttft=[1.0, 1.01, 0.5, 0.5], tpot=[0.05, 0.02, 0.051, NAN])
    assert holds(given_, [BOUNDS]).tolist() == [True, False, False, True]


def test_a_bound_on_the_whole_request_counts_from_its_arrival() -> None:
    whole = Objective(e2e_seconds=0.69)
    assert holds(requests([100.0, 200.0], ttft=[0.5, 0.6]), [whole]).tolist() == [True, False]


@pytest.mark.parametrize("outcome", [REJECTED, LOST, UNFINISHED])
def test_a_request_that_did_not_finish_misses(outcome: int) -> None:
    assert not holds(requests([0.0], outcome=[outcome]), [BOUNDS]).any()


def test_each_request_is_judged_by_the_policy_of_its_engine_and_by_the_first_where_none_governs() -> None:
    strict = Objective(ttft_seconds=0.1)
    given_ = requests([0, 1, 2], judge=[0, 1, -1])
    assert holds(given_, [BOUNDS, strict]).tolist() == [True, False, True]
    assert not keeps(given_, holds(given_, [BOUNDS, strict]), [BOUNDS, strict])


def test_a_window_holds_what_arrived_after_its_start_and_up_to_its_end() -> None:
    count, share = windowed(
        np.array([0.0, 5.0, 10.0]), np.array([True, False, True]), np.array([5.0, 15.0, 30.0]), 10.0
    )
    assert count.tolist() == [2, 1, 0]
    assert share[:2].tolist() == [0.5, 1.0]
    assert np.isnan(share[2])


def test_seconds_are_outside_while_a_late_request_is_in_the_window_and_only_where_enough_arrived() -> None:
    # The late one arrives at 4.5 s and leaves the window of 10 s at 14.5 s; before 1 s and after 11 s arrivals are few.
    given_ = requests([0.5, 1.0, 4.5, 14.0, 14.8], ttft=[0.5, 0.5, 2.0, 0.5, 0.5])
    assert outside(given_, holds(given_, [BOUNDS]), [BOUNDS]) == (7, 12)


def test_without_a_miss_no_second_is_outside() -> None:
    given_ = requests([float(second) for second in range(40)])
    assert outside(given_, holds(given_, [BOUNDS]), [BOUNDS]) == (0, 39)


def record(given_: Requests, joules: float = 1000.0) -> Record:
    return Record(100.0, given_, joules, 20.0, 1, {"seconds": np.array([100.0]), "sm_mhz_mean": np.array([1500.0])})


def test_joules_per_token_count_the_tokens_of_finished_requests_only() -> None:
    found = measure(record(requests([0, 1, 2], outcome=[FINISHED, REJECTED, UNFINISHED])), [BOUNDS])
    assert found.output_tokens == 10
    assert found.joules_per_token == pytest.approx(100.0)
    assert found.mean_watts == pytest.approx(10.0)
    assert found.outcomes == {"finished": 1, "rejected": 1, "lost": 0, "unfinished": 1}
    assert (found.missed, found.attainment) == (2, pytest.approx(1 / 3))


def test_a_run_that_finished_nothing_has_no_latencies_and_no_joules_per_token() -> None:
    found = measure(record(requests([0.0], ttft=[NAN], tpot=[NAN], outcome=[REJECTED])), [BOUNDS])
    assert found.ttft == found.tpot == found.e2e == {}
    assert math.isnan(found.joules_per_token)


@given(st.lists(st.floats(-1, 1), max_size=30), st.floats(-1, 1))
def test_a_band_contains_its_middle_and_lies_within_all_that_was_drawn(values: list[float], nominal: float) -> None:
    found = band(nominal, values)
    if not values:
        assert found.low is None
        assert found.high is None
        return
    assert found.low is not None
    assert found.high is not None
    assert min([*values, nominal]) <= found.low <= nominal <= found.high <= max([*values, nominal])


@given(
    st.lists(st.tuples(st.floats(0, 300), st.floats(0, 3), st.floats(0, 0.2)), min_size=1, max_size=60),
    st.floats(10, 100),
)
def test_seconds_outside_are_judged_ones_and_none_with_looser_bounds_than_any_latency(
    rows: list[tuple[float, float, float]], window: float
) -> None:
    rows.sort()
    given_ = requests([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    objective = Objective(1.0, 0.05, window_seconds=window, minimum_requests=3)
    out, judged = outside(given_, holds(given_, [objective]), [objective])
    assert 0 <= out <= judged
    loose = Objective(4.0, 1.0, window_seconds=window, minimum_requests=3)
    assert outside(given_, holds(given_, [loose]), [loose]) == (0, judged)
