"""EcoPred: what the fit makes of a profile, and what the tables predict between its points."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.controllers.voltanallm.ecopred import FALLBACK_MS, EcoPred
from flyball_agent.controllers.voltanallm.fit import batch_bins, fit
from flyball_agent.profiles import DecodePoint, PrefillPoint, Profile
from flyball_agent.profiling.fits import with_fits

CLOCKS = (1005, 1410)
PROFILE = Profile("p", "NVIDIA A100", "m", 1, "v", "2026-01-01", kv_blocks=1000)


def itl_ms(mhz, running, kv_tokens):
    return (8.0 + 0.05 * running + 4e-5 * kv_tokens) * (0.3 + 0.7 * 1410 / mhz)


def ttft_ms(mhz, tokens):
    return (5.0 + 0.06 * tokens) * 1410 / mhz


def made(batches=(1, 4, 5, 8, 9, 16, 121, 128), held=(100, 1000, 3000), prompts=(2048, 4096, 8192), clocks=CLOCKS):
    return replace(
        PROFILE,
        decode=tuple(
            DecodePoint(mhz, batch, batch * tokens, itl_ms(mhz, batch, batch * tokens) / 1e3, 200.0)
            for mhz in clocks
            for batch in batches
            for tokens in held
        ),
        prefill=tuple(
            PrefillPoint(mhz, tokens, ttft_ms(mhz, tokens) / 1e3, 300.0) for mhz in clocks for tokens in prompts
        ),
    )


def tables(**parts):
    return EcoPred.from_fit(fit(made(**parts)))


def test_bins_are_fours_then_eights_up_to_128_then_tiles_of_128():
    bins = batch_bins()
    assert bins[:4] == ((1, 4), (5, 8), (9, 16), (17, 24))
    assert (121, 128) in bins
    assert bins[bins.index((121, 128)) + 1] == (129, 256)
    assert bins[-1] == (1921, 2048)
    assert all(last + 1 == first for (_, last), (first, _) in pairwise(bins))


@pytest.mark.parametrize("mhz", CLOCKS)
@pytest.mark.parametrize(("running", "kv_tokens"), [(1, 500), (4, 4000), (7, 3000), (12, 20_000), (125, 100_000)])
def test_planes_give_back_what_was_measured(mhz, running, kv_tokens):
    assert 1e3 * tables().decode_seconds(mhz, running, kv_tokens) == pytest.approx(itl_ms(mhz, running, kv_tokens))


def test_a_gap_between_bins_is_bridged_and_beyond_the_last_nothing_is_predicted():
    pred = tables()
    between = 1e3 * pred.decode_seconds(1410, 60, 30_000)
    assert between == pytest.approx(itl_ms(1410, 60, 30_000), rel=0.02)
    assert pred.decode_seconds(1410, 129, 30_000) is None
    assert pred.decode_seconds(1410, 0, 0) == 0.0


@given(st.floats(1005, 1410), st.integers(1, 128), st.floats(0, 1e5))
def test_between_two_clocks_it_is_linear(mhz, running, kv_tokens):
    pred = PRED
    low, high = (pred.decode_seconds(clock, running, kv_tokens) for clock in CLOCKS)
    share = (mhz - 1005) / 405
    assert pred.decode_seconds(mhz, running, kv_tokens) == pytest.approx(low + share * (high - low))


PRED = tables()


@pytest.mark.parametrize("mhz", [1004, 1411])
def test_outside_the_profiled_clocks_nothing_is_predicted(mhz):
    assert PRED.decode_seconds(mhz, 4, 100) is None
    assert PRED.prefill_seconds(mhz, 3000) is None
    assert PRED.prompt_seconds_per_token(mhz) is None


def test_the_line_of_prompts_is_found_and_its_slope_falls_with_the_clock():
    assert 1e3 * PRED.prefill_seconds(1005, 3000) == pytest.approx(ttft_ms(1005, 3000))
    assert PRED.prompt_seconds_per_token(1005) == pytest.approx(0.06e-3 * 1410 / 1005)
    assert PRED.prefill_seconds(1005, 0) == 0.0


def test_one_wrong_point_does_not_bend_a_line():
    profile = made(prompts=(2048, 3000, 4096, 5000, 6000, 7000, 8192))
    spoiled = tuple(
        replace(point, seconds=5 * point.seconds) if point.prompt_tokens == 5000 else point for point in profile.prefill
    )
    pred = EcoPred.from_fit(fit(replace(profile, prefill=spoiled)))
    assert 1e3 * pred.prefill_seconds(1410, 4000) == pytest.approx(ttft_ms(1410, 4000), rel=1e-6)


def test_slopes_are_never_negative():
    shrinking = replace(
        made(),
        prefill=tuple(
            PrefillPoint(mhz, tokens, 1.0 - tokens / 1e4, 300.0) for mhz in CLOCKS for tokens in (2100, 4000, 8000)
        ),
    )
    fitted = fit(shrinking)
    assert all(row[1] >= 0 for row in fitted["prefill"]["rows"])
    assert all(row[3] >= 0 and row[4] >= 0 for row in fitted["decode"]["rows"])


def test_times_outside_3_to_300_ms_are_left_out_of_planes():
    profile = made()
    odd = (DecodePoint(1410, 4, 400, 0.002, 200.0), DecodePoint(1410, 4, 800, 0.4, 200.0))
    assert fit(replace(profile, decode=profile.decode + odd)) == fit(profile)


def test_with_few_long_prompts_shorter_ones_are_taken_in():
    pred = tables(prompts=(128, 512, 1024, 2048, 4096))
    assert 1e3 * pred.prefill_seconds(1410, 3000) == pytest.approx(ttft_ms(1410, 3000))


def test_the_same_profile_gives_the_same_fit_and_it_is_json():
    assert json.loads(json.dumps(fit(made()))) == fit(made())
    assert with_fits(made(), ("VoltanaLLM",)).profile.fits["VoltanaLLM"] == fit(made())


def test_a_profile_without_points_is_refused_with_the_mend():
    with pytest.raises(ValueError, match="0 prefill lines and 0 decode planes: measure at least 3"):
        fit(PROFILE)


def test_a_prediction_of_nothing_is_20_ms_as_in_the_code():
    fitted = fit(made())
    fitted["prefill"]["rows"] = [[1410, 0.01, -100.0, 1.0]]
    assert EcoPred.from_fit(fitted).prefill_seconds(1410, 5) == FALLBACK_MS / 1e3


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"version": 2}, "version of the fit is 2"),
        ({"prefill": {"columns": [], "rows": [[1]]}}, "prefill of the fit is no table"),
        ({"decode": None}, "decode of the fit is no table"),
        (
            {"prefill": {"columns": ["freq", "coef_tokens", "coef_intercept", "r_2"], "rows": [[1, 2, "x", 4]]}},
            "not 4 numbers",
        ),
    ],
)
def test_a_damaged_fit_is_refused(damage, sentence):
    with pytest.raises(ValueError, match=sentence):
        EcoPred.from_fit({**fit(made()), **damage})


def test_the_agent_reads_the_tables_without_the_library_that_fits_them():
    code = (
        "import sys, flyball_agent.controllers.voltanallm.controller;"
        "print([name for name in ('sklearn', 'numpy', 'scipy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
