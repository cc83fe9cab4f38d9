"""What an engine says of its scheduler, whatever it says."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.boards import MAX_BOARD_BYTES, MAX_REQUESTS, parse_board
from flyball_agent.controllers.base import Board, RequestView

REQUEST = {
    "id": "a",
    "ageSeconds": 1.5,
    "promptTokens": 100,
    "generatedTokens": 7,
    "running": True,
    "scheduledAgeSeconds": 1.0,
    "computedTokens": 100,
    "outputTokens": 20,
}
BOARD = {
    "iteration": 12,
    "blockTokens": 16,
    "kvBlocks": 1000,
    "batchLimit": 64,
    "maxBatchLimit": 256,
    "requests": [REQUEST],
}


def parse(body):
    return parse_board(json.dumps(body).encode())


def test_a_board_is_read_as_it_is():
    request = RequestView("a", 1.5, 100, 7, True, 20, 1.0, 100)
    assert parse(BOARD) == Board(12, (request,), 16, 1000, 64, 256)


def test_what_a_real_engine_cannot_know_may_be_left_out():
    bare = {key: REQUEST[key] for key in ("id", "ageSeconds", "promptTokens", "generatedTokens", "running")}
    (request,) = parse({**BOARD, "requests": [bare]}).requests
    assert (request.output_tokens, request.scheduled_age_seconds, request.computed_tokens) == (None, None, 0)


def test_of_a_long_queue_the_first_are_kept():
    assert len(parse({**BOARD, "requests": [REQUEST] * (MAX_REQUESTS + 5)}).requests) == MAX_REQUESTS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iteration", -1),
        ("iteration", 1.5),
        ("iteration", True),
        ("iteration", 2**60),
        ("blockTokens", 0),
        ("kvBlocks", None),
        ("batchLimit", "64"),
        ("maxBatchLimit", 0),
        ("requests", {}),
        ("requests", [1]),
    ],
)
def test_a_value_that_cannot_be_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field}|request"):
        parse({**BOARD, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 5),
        ("id", "x" * 129),
        ("running", 1),
        ("ageSeconds", -0.1),
        ("ageSeconds", float("nan")),
        ("ageSeconds", float("inf")),
        ("ageSeconds", True),
        ("promptTokens", -3),
        ("generatedTokens", 1e3),
        ("computedTokens", None),
        ("outputTokens", "many"),
        ("scheduledAgeSeconds", []),
    ],
)
def test_a_request_that_cannot_be_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} of"):
        parse({**BOARD, "requests": [{**REQUEST, field: value}]})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b" " * (MAX_BOARD_BYTES + 1), b"\xff"])
def test_what_is_no_board_is_refused(body):
    with pytest.raises(ValueError, match="board"):
        parse_board(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*BOARD, *REQUEST]), inner, max_size=6),
    max_leaves=12,
)


@given(JSON, st.sampled_from(sorted(BOARD)))
def test_nothing_but_a_value_error_comes_of_any_json(said, field):
    for body in (said, {**BOARD, field: said}, {**BOARD, "requests": [said]}):
        with suppress(ValueError):
            assert isinstance(parse(body), Board)
