"""What the actuator understands, and how it says what it does not."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.actuator.messages import MessageError, parse


def line(**fields):
    return json.dumps({"id": 1, **fields}).encode()


def test_a_set_is_understood():
    request = parse(line(op="set", gpu="GPU-1", sm_mhz=[900, 1200], cap_watts=400, ceiling_watts=500, lease_seconds=3))
    assert (request.sm_mhz, request.cap_watts, request.ceiling_watts, request.lease_seconds) == (
        (900, 1200),
        400,
        500,
        3,
    )


def test_a_set_without_clocks_unlocks_and_without_a_cap_leaves_it_alone():
    request = parse(line(op="set", gpu="GPU-1", lease_seconds=3))
    assert (request.sm_mhz, request.cap_watts) == (None, None)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"hello", "is not JSON"),
        (b"[1]", "is not an object"),
        (line(op="overclock"), "op is 'overclock': use one of hello, "),
        (line(op="set", gpu=7, lease_seconds=3), "gpu is 7: give a text"),
        (line(op="set", gpu="G", lease_seconds=0), "lease_seconds is 0: give a number from 1 to 60"),
        (line(op="set", gpu="G", lease_seconds=3600), "lease_seconds is 3600"),
        (line(op="set", gpu="G", lease_seconds=True), "lease_seconds is True"),
        (line(op="set", gpu="G", lease_seconds=3, cap_watts=-5), "cap_watts is -5: give a number from 1 to"),
        (line(op="set", gpu="G", lease_seconds=3, cap_watts=float("nan")), "cap_watts is nan"),
        (line(op="set", gpu="G", lease_seconds=3, sm_mhz=[1200, 900]), r"sm_mhz is \[1200, 900\]"),
        (line(op="set", gpu="G", lease_seconds=3, sm_mhz=900), "sm_mhz is 900"),
        (line(op="set", gpu="G", lease_seconds=3, sm_mhz=[True, 900]), "sm_mhz is"),
        (line(op="renew", writes="no"), "writes is 'no': use true or false"),
        (line(op="hello", session=""), "session is ''"),
        (b'{"op":"read"}', "id is None"),
        (b"[" * 4000, "is not JSON"),
    ],
)
def test_what_is_not_understood_names_field_value_and_mend(raw, words):
    with pytest.raises(MessageError, match=words):
        parse(raw)


@given(
    raw=st.binary(max_size=300)
    | st.dictionaries(st.text(), st.integers() | st.text()).map(lambda d: json.dumps(d).encode())
)
def test_no_line_is_more_than_refused(raw):
    with contextlib.suppress(MessageError):
        parse(raw)
