"""How a comparison with a published number is judged and printed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.validation import table
from flyball_sim.validation.rows import Row, Subject, at_most, difference, not_run, relative, within

PLAIN = Subject("6", "power of a card", "W", "a paper", "not fitted")
GATED = Subject("9", "throughput under a cap", "", "a log", "fitted", gated=True)
values = st.floats(1e-3, 1e6)


def test_an_error_is_in_percent_of_the_published_value_and_carries_its_sign() -> None:
    row = relative(PLAIN, 459.0, 486.0, tolerance_percent=10.0)
    assert row.error == pytest.approx(-5.56, abs=0.01)
    assert row.verdict == "pass"
    assert relative(PLAIN, 400.0, 486.0, tolerance_percent=10.0).verdict == "miss"


@given(ours=values, low=values, width=values)
def test_inside_a_published_range_there_is_no_error_and_outside_it_is_the_distance(
    ours: float, low: float, width: float
) -> None:
    high = low + width
    row = within(PLAIN, ours, (low, high))
    assert (row.verdict == "pass") == (low <= ours <= high)
    assert row.error == pytest.approx(ours - low if ours < low else max(ours - high, 0.0))


def test_only_a_gated_row_that_misses_fails_the_command() -> None:
    assert difference(GATED, 0.90, 0.80, tolerance=0.03).fails
    assert not difference(GATED, 0.82, 0.80, tolerance=0.03).fails
    assert not relative(PLAIN, 1.0, 486.0, tolerance_percent=10.0).fails
    assert not not_run(GATED, "the log is not at hand").fails


@pytest.mark.parametrize(
    "row",
    [
        relative(GATED, math.nan, 1.0, tolerance_percent=10.0),
        difference(GATED, math.nan, 1.0, tolerance=10.0),
        within(GATED, math.nan, (0.0, 1.0)),
        at_most(GATED, math.nan, bound=1.0),
    ],
)
def test_a_value_that_is_not_a_number_never_passes(row: Row) -> None:
    assert row.verdict == "miss"


def rows() -> list[Row]:
    return [
        relative(PLAIN, 459.0, 486.0, tolerance_percent=10.0, note="at 1980 MHz"),
        difference(GATED, 0.90, 0.80, tolerance=0.03),
        at_most(Subject("6", "mean absolute error", "%", "a paper", "not fitted", gated=True), 7.0, bound=7.5),
        not_run(Subject("15", "AGFT saves energy", "%", "another paper", "not fitted"), "not built yet"),
    ]


def test_the_table_says_for_each_row_whether_the_model_was_fitted_to_it_and_never_that_it_was_blind() -> None:
    text = table.markdown(rows())
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "blind" not in text
    assert "| fitted " in lines[3]
    assert "not fitted" in lines[2]
    assert "+0.1" in lines[3]
    assert "0.03 (gate)" in lines[3]
    assert "not run: not built yet" in lines[5]


def test_a_source_is_named_once_with_the_rows_it_serves() -> None:
    assert table.sources(rows()).splitlines() == ["- 6: a paper", "- 9: a log", "- 15: another paper"]


def test_the_last_line_counts_and_names_the_gates_that_are_missed() -> None:
    assert table.summary(rows()) == "2 pass, 1 miss, 1 not run; a gate is missed: throughput under a cap"
    assert table.summary(rows()[:1]) == "1 pass, 0 miss, 0 not run; every gate that was run holds"


def test_as_json_every_row_is_one_object_on_its_own_line() -> None:
    objects = [json.loads(line) for line in table.json_lines(rows()).splitlines()]
    assert [found["number"] for found in objects] == ["6", "9", "6", "15"]
    assert objects[0]["standing"] == "not fitted"
    assert objects[1]["gated"] is True
    assert objects[3]["ours"] is None
