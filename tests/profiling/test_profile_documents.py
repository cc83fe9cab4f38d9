"""A profile as text: what was written is read, and what is damaged or of something else is refused in words."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.profiles import DecodePoint, LoadPoint, PrefillPoint, Profile, ProfileError

PROFILE = Profile(
    name="chat",
    product="NVIDIA H100 80GB HBM3",
    model="llama-3.1-8b",
    gpus=1,
    engine_version="0.33.0",
    created="2026-01-02T03:04:05+00:00",
    kv_blocks=27_000,
    decode=(DecodePoint(1410, 8, 4096.5, 0.0071, 321.5),),
    prefill=(PrefillPoint(1410, 512, 0.021, 412.0),),
    load=(LoadPoint(350, 16, 1, 1234.5, 340.0, 0.0123),),
    fits={"PALS": {"trees": [1, 2]}},
)


def changed(**fields):
    return json.dumps({**json.loads(PROFILE.to_json()), **fields})


def test_what_was_written_is_read():
    assert Profile.from_json(PROFILE.to_json()) == PROFILE


positive = st.floats(1e-6, 1e9)


@given(st.lists(st.builds(DecodePoint, st.integers(1, 3000), st.integers(1, 999), positive, positive, positive)))
def test_points_survive_to_seven_digits(points):
    read = Profile.from_json(replace(PROFILE, decode=tuple(points)).to_json()).decode
    for before, after in zip(points, read, strict=True):
        assert (before.sm_mhz, before.running) == (after.sm_mhz, after.running)
        assert after.tpot_seconds == pytest.approx(before.tpot_seconds, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"kind": NaN}', "NaN is no number"),
        ("[]", "kind is"),
        ('{"kind": "other"}', "kind is 'other'"),
        (changed(version=2), "version of the profile is 2"),
        (changed(product=""), "product of the profile"),
        (changed(gpus=0), "gpus of the profile is 0"),
        (changed(gpus=True), "gpus of the profile is True"),
        (changed(decode=None), "decode of the profile is no table"),
        (changed(decode={"columns": ["sm_mhz"], "rows": []}), "decode of the profile is no table"),
        (changed(fits={"PALS": 1}), "fits of the profile"),
    ],
)
def test_what_is_damaged_is_refused_by_name(text, named):
    with pytest.raises(ProfileError, match=named):
        Profile.from_json(text)


@pytest.mark.parametrize("value", [0, -1, "1", None, True, 1e13, 1.5])
def test_a_point_that_cannot_be_is_refused_with_its_row(value):
    body = json.loads(PROFILE.to_json())
    body["decode"]["rows"][0][0] = value
    with pytest.raises(ProfileError, match="decode row 0 of the profile: sm_mhz is"):
        Profile.from_json(json.dumps(body))


def test_so_many_points_that_reading_them_would_take_long_are_refused():
    body = json.loads(PROFILE.to_json())
    body["prefill"]["rows"] *= 30_000
    with pytest.raises(ProfileError, match="30000 rows: at most 20000"):
        Profile.from_json(json.dumps(body))


def test_a_profile_is_used_only_for_what_it_was_made_of():
    assert PROFILE.check("NVIDIA H100 80GB HBM3", 1, "llama-3.1-8b") == ""
    assert PROFILE.check("", 1) == ""
    assert "the cards are 'NVIDIA H200'" in PROFILE.check("NVIDIA H200", 1)
    assert "a group of 1 GPUs, but the engine has 4" in PROFILE.check("NVIDIA H100 80GB HBM3", 4)
    assert "the engine serves 'other'" in PROFILE.check("NVIDIA H100 80GB HBM3", 1, "other")
