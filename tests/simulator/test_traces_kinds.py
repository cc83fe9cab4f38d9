"""Generated traces of every kind: rates, shapes, lengths, determinism, and words for what cannot be had."""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_sim.load.generators import KINDS, make_trace, open_trace, scale
from flyball_sim.load.kinds import Option
from flyball_sim.load.lengths import LENGTHS, LONGEST_ANSWER_TOKENS, LONGEST_PROMPT_TOKENS
from flyball_sim.load.servegen import SERVEGEN_DAYS
from flyball_sim.load.traces import TraceError, TraceRequest
from flyball_sim.load.workload import Workload

DATA = Path(os.environ.get("FLYBALL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
BUILT_IN = [kind for kind in KINDS if kind != "servegen"]
BUILT_IN_LENGTHS = [name for name in LENGTHS if not name.endswith("-measured")]


def per_bin(trace, seconds, bins):
    """Return how many requests arrive in each of so many equal parts of the trace."""
    counts = Counter(min(bins - 1, int(request.arrival_seconds * bins / seconds)) for request in trace)
    return [counts[index] for index in range(bins)]


def gaps(trace):
    return [later.arrival_seconds - sooner.arrival_seconds for sooner, later in pairwise(trace)]


@pytest.mark.parametrize("kind", BUILT_IN)
@pytest.mark.parametrize("rate", [0.5, 8.0])
def test_the_mean_rate_is_the_one_asked_for_within_three_standard_errors(kind, rate):
    seconds, seeds = 3000, range(8)
    counts = [len(make_trace(kind, seconds=seconds, requests_per_second=rate, seed=seed)) for seed in seeds]
    # A renewal process of `cv` has cv^2 times the variance of a Poisson process.
    worst_cv = 2.2
    assert statistics.mean(counts) == pytest.approx(
        rate * seconds, abs=3 * worst_cv * math.sqrt(rate * seconds / len(seeds))
    )


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(BUILT_IN), seconds=st.floats(1, 5000), rate=st.floats(0.1, 3), seed=st.integers(0, 2**63))
def test_arrivals_are_in_order_and_inside_the_trace(kind, seconds, rate, seed):
    try:
        trace = make_trace(kind, seconds=seconds, requests_per_second=rate, seed=seed)
    except TraceError as error:
        assert "no request arrives" in str(error)  # noqa: PT017 - one of two right answers
        return
    assert all(0 <= request.arrival_seconds <= seconds for request in trace)
    assert all(gap >= 0 for gap in gaps(trace))
    assert all(1 <= request.prompt_tokens <= LONGEST_PROMPT_TOKENS for request in trace)
    assert all(1 <= request.output_tokens <= LONGEST_ANSWER_TOKENS for request in trace)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_the_same_seed_gives_the_same_trace_and_another_another(kind):
    assert make_trace(kind, seconds=300, seed=7) == make_trace(kind, seconds=300, seed=7)
    assert make_trace(kind, seconds=300, seed=7) != make_trace(kind, seconds=300, seed=8)


def test_a_trace_is_the_same_in_another_process():
    code = (
        "import zlib; from flyball_sim.load.generators import KINDS, make_trace\n"
        "for kind in KINDS:\n"
        "    if kind != 'servegen': print(kind, zlib.crc32(repr(make_trace(kind, seconds=100)).encode()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, check=True
        ).stdout
        for hash_seed in ("0", "1", "2")
    }
    assert len(said) == 1


@pytest.mark.parametrize("kind", BUILT_IN)
def test_other_lengths_leave_the_arrivals_as_they_are(kind):
    one = make_trace(kind, seconds=200, lengths="code")
    other = make_trace(kind, seconds=200, prompt=100, answer=10)
    assert [request.arrival_seconds for request in one] == [request.arrival_seconds for request in other]
    assert {(request.prompt_tokens, request.output_tokens) for request in other} == {(100, 10)}


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gaps_vary_as_asked(cv):
    found = gaps(make_trace("gamma", seconds=4000, requests_per_second=10, cv=cv))
    assert statistics.pstdev(found) / statistics.mean(found) == pytest.approx(cv, rel=0.06)


def test_a_bursty_trace_does_not_begin_with_a_burst_each_time():
    begun = [len(open_trace(f"gamma:cv=4,rate=5,seconds=20,seed={seed}")) for seed in range(200)]
    assert statistics.mean(begun) == pytest.approx(100, abs=3 * 4 * math.sqrt(100 / 200))


def test_a_diurnal_trace_rises_first_and_falls_to_its_trough():
    counts = per_bin(make_trace("diurnal", seconds=8000, requests_per_second=5, swing=0.8), 8000, 8)
    assert counts[2] > 1.3 * counts[0] > 2 * counts[5]


def test_a_diurnal_trace_has_as_many_days_as_fit():
    counts = per_bin(make_trace("diurnal", seconds=8000, requests_per_second=5, swing=0.8, period=4000), 8000, 8)
    assert min(counts[0], counts[1], counts[4], counts[5]) > 1.5 * max(counts[2], counts[3], counts[6], counts[7])


def test_a_step_multiplies_the_rate_from_its_moment_on():
    before, after = per_bin(make_trace("step", seconds=8000, requests_per_second=5, factor=4), 8000, 2)
    assert after / before == pytest.approx(4, rel=0.05)


def test_a_ramp_ends_at_its_factor():
    counts = per_bin(make_trace("ramp", seconds=10_000, requests_per_second=10, factor=3), 10_000, 10)
    # The tenths have their middles at 1.1 and 2.9 times the first rate.
    assert counts[-1] / counts[0] == pytest.approx(2.9 / 1.1, rel=0.08)


def test_a_flash_crowd_comes_at_once_and_fades():
    trace = make_trace("flash-crowd", seconds=3000, requests_per_second=20, factor=10, at=0.5, lasting=100)
    counts = per_bin(trace, 3000, 300)
    calm = statistics.mean(counts[:150])
    assert statistics.mean(counts[150:155]) / calm == pytest.approx(8, rel=0.2)
    assert statistics.mean(counts[160:170]) / calm == pytest.approx(1 + 9 * math.exp(-1.5), rel=0.2)
    assert statistics.mean(counts[240:]) / calm == pytest.approx(1, rel=0.1)


def test_a_crowd_at_the_end_is_cut_there():
    assert make_trace("flash-crowd", seconds=100, at=0.999, lasting=1000)[-1].arrival_seconds <= 100


def test_an_idle_heavy_trace_is_idle_most_of_the_time():
    trace = make_trace("idle-heavy", seconds=20_000, requests_per_second=2, busy=0.1, burst=30)
    quiet = sum(count == 0 for count in per_bin(trace, 20_000, 2000))
    assert 0.8 < quiet / 2000 < 0.95


@pytest.mark.parametrize("seed", range(20))
def test_a_short_idle_heavy_trace_still_has_its_requests_and_not_all_at_once(seed):
    trace = make_trace("idle-heavy", seconds=60, requests_per_second=5, busy=0.1, burst=60, seed=seed)
    assert len(trace) > 200
    assert trace[-1].arrival_seconds - trace[0].arrival_seconds > 0.5


def test_the_day_of_a_servegen_model_has_its_fitted_shape():
    day = SERVEGEN_DAYS["m-small"]
    days = [
        per_bin(open_trace(f"servegen-day:m-small,rate=4,day=1440,cv=1,seed={seed}"), 1440, 6) for seed in range(40)
    ]
    means = [statistics.mean(counts) for counts in zip(*days, strict=True)]
    expected = [statistics.mean(day.mean_rate((part + tenth / 10) / 6) for tenth in range(10)) for part in range(6)]
    assert statistics.correlation(means, expected) > 0.9


def test_a_load_factor_moves_arrivals_together():
    trace = make_trace("poisson", seconds=100)
    assert [request.arrival_seconds * 2 for request in scale(trace, 2)] == [r.arrival_seconds for r in trace]
    for factor in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="the load factor is"):
            scale(trace, factor)


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [("servegen-m-large", 919, 149), ("servegen-m-small", 125, 20), ("lmsys", 393, 262), ("code", 1960, 36)],
)
def test_lengths_have_the_means_of_what_they_were_fitted_to(name, prompt, answer):
    rng = random.Random(1)
    drawn = [LENGTHS[name](None)(rng) for _ in range(20_000)]
    assert statistics.mean(length for length, _ in drawn) == pytest.approx(prompt, rel=0.06)
    assert statistics.mean(length for _, length in drawn) == pytest.approx(answer, rel=0.06)


def test_code_has_long_prompts_and_short_answers():
    trace = open_trace("code:seconds=2000")
    assert statistics.median(request.prompt_tokens for request in trace) > 1200
    assert statistics.median(request.output_tokens for request in trace) < 25


@pytest.mark.skipif(not DATA.is_dir(), reason="the measured data is not here")
class TestMeasuredData:
    """What reads the data directory, against it."""

    @pytest.mark.parametrize("model", ["m-large", "m-small"])
    @pytest.mark.parametrize("which", [0, 1], ids=["prompts", "answers"])
    def test_fitted_lengths_are_distributed_as_the_measured_ones(self, model, which):
        fitted, measured = LENGTHS[f"servegen-{model}"](DATA), LENGTHS[f"servegen-{model}-measured"](DATA)
        self.agree([fitted(rng)[which] for rng in [random.Random(1)] for _ in range(20_000)],
                   [measured(rng)[which] for rng in [random.Random(2)] for _ in range(20_000)], model)  # fmt: skip

    def test_fitted_lmsys_lengths_are_distributed_as_the_measured_ones(self):
        fitted, measured = LENGTHS["lmsys"](DATA), LENGTHS["lmsys-measured"](DATA)
        one, other = random.Random(1), random.Random(2)
        self.agree([sum(fitted(one)) for _ in range(20_000)], [sum(measured(other)) for _ in range(20_000)], "lmsys")

    def agree(self, fitted, measured, name):
        # At the tables' own steps; below the first one neither is known.
        for step in (64, 128, 256, 512, 1024, 2048, 4096):
            shares = [sum(length <= step for length in lengths) / len(lengths) for lengths in (fitted, measured)]
            assert shares[0] == pytest.approx(shares[1], abs=0.02), (name, step)

    def test_measured_rates_are_followed(self):
        trace = open_trace("servegen:m-large,rate=5,day=8640,seconds=8640,cv=1", data=DATA)
        counts = per_bin(trace, 8640, 24)
        rates = [
            float(line.split(",")[1])
            for line in (DATA / "traces/servegen_m-large_rate_10min.csv").read_text().splitlines()[1:145]
        ]
        hours = [statistics.mean(rates[6 * hour : 6 * hour + 6]) for hour in range(24)]
        assert statistics.correlation(counts, hours) > 0.98
        assert len(trace) == pytest.approx(5 * 8640, rel=0.02)

    def test_measured_rates_begin_where_asked_and_begin_again_at_their_end(self):
        whole = open_trace("servegen:m-small,rate=1,day=144,seconds=2016,cv=0.1", data=DATA)
        later = open_trace("servegen:m-small,rate=1,day=144,seconds=2016,start=720,cv=0.1", data=DATA)
        first, second = per_bin(whole, 2016, 28), per_bin(later, 2016, 28)
        assert second == pytest.approx(first[10:] + first[:10], abs=6)

    def test_the_azure_trace_is_found_by_name(self):
        trace = open_trace("azure", data=DATA)
        assert (len(trace), round(trace[-1].arrival_seconds)) == (19_366, 3502)
        assert open_trace("azure", data=DATA, seconds=600) == tuple(r for r in trace if r.arrival_seconds < 600)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poison:rate=3", "nor such a generator: give a CSV file or one of poisson"),
        ("zzz", "or one of conversation, code, poisson, gamma, diurnal"),
        ("none.csv", "none.csv: No such file or directory: give a CSV file with TIMESTAMP,ContextTokens"),
        ("none/poisson", "none/poisson: No such file or directory: give a CSV file"),
        ("", "trace '': there is neither such a file"),
        (".", ".: Is a directory: give a CSV file"),
        ("x" * 5000, "there is neither such a file nor such a generator"),
        ("a\0b", "there is neither such a file nor such a generator"),
        ("poisson:rat=3", "'rat' is no option of poisson: give rate"),
        ("poisson:swing=1", "'swing' is no option of poisson: give"),
        ("poisson:rate=fast", "poisson: rate is 'fast': give a number"),
        ("poisson:rate=", "poisson: rate is '': give a number"),
        ("poisson:rate=-1", "poisson: rate is -1: give a number from 1e-06 to 1e+06 (mean requests per second"),
        ("poisson:rate=nan", "poisson: rate is nan: give a number from"),
        ("poisson:seconds=inf", "poisson: seconds is inf: give a number from"),
        ("poisson:seed=1.5", "poisson: seed is 1.5: give a whole number"),
        ("poisson:seed=inf", "poisson: seed is inf: give a whole number"),
        ("poisson:rate=1,rate=2", "poisson: rate is given twice: give it once"),
        ("poisson:prompt=5", "poisson: prompt alone or beside lengths: give prompt and answer, or lengths"),
        ("poisson:prompt=5,answer=5,lengths=code", "poisson: prompt and answer alone or beside lengths: give"),
        ("poisson:prompt=0,answer=5", "poisson: prompt is 0: give a number from 1 to 1e+07 (tokens of every prompt)"),
        ("poisson:lengths=codes", "'codes' is no kind of lengths: give code"),
        ("poisson:m-large", "poisson: it has no models, so leave 'm-large' out"),
        ("poisson:rate=1e6,seconds=1e6", "are 1e+12 requests: ask for at most 50000000"),
        ("poisson:rate=1e-6,seconds=1", "poisson: no request arrives in 1 s: ask for more seconds or a higher rate"),
        ("step:at=1", "step: at is 1: give a number from 0 to 0.999 (where in the trace it happens"),
        ("servegen-day:m-huge", "'m-huge' is no model of servegen-day: give m-large"),
        ("servegen:m-large", "is measured data, which is not part of the project: give its directory (--data)"),
        ("poisson:lengths=lmsys-measured", "traces/lmsys_length_cdf.json is measured data"),
        ("azure", "traces/azure2023_conv.csv is measured data"),
        ("azure:rate=3", "trace 'azure:rate=3': azure takes no options"),
        ("generated:rate=3", "trace 'generated:rate=3': generated takes no options"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_the_field_and_the_mend(text, message):
    with pytest.raises(TraceError) as refused:
        open_trace(text)
    assert message in str(refused.value)


@pytest.mark.parametrize("kind", ["poison", "Poisson", ""])
def test_an_unknown_kind_is_refused_with_the_nearest(kind):
    with pytest.raises(TraceError, match=r"is no kind of trace: give .*poisson"):
        make_trace(kind)


def test_a_missing_data_directory_is_refused_with_the_mend(tmp_path):
    with pytest.raises(TraceError, match=r"none is not a directory: give the directory of the measured data"):
        open_trace("azure", data=tmp_path / "none")
    with pytest.raises(TraceError, match=r"has no such file: give the directory of the measured data"):
        open_trace("azure", data=tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "trace", "message"),
    [
        ("servegen_m-large_rate_10min.csv", "t_s,rate,rate_weighted_cv\n0,1,1\n", "servegen", "has 1 windows"),
        ("servegen_m-large_rate_10min.csv", "t_s,rate\n0,1\n1,2\n", "servegen", "line 2: 'rate_weighted_cv': give"),
        ("servegen_m-large_rate_10min.csv", "t_s,rate,rate_weighted_cv\n0,x,1\n", "servegen", "line 2: could not"),
        ("lmsys_length_cdf.json", "[[1, 2], 3]", "poisson:lengths=lmsys-measured", "give a list of [tokens, share]"),
        ("lmsys_length_cdf.json", "[[1,", "poisson:lengths=lmsys-measured", "give a list of [tokens, share] pairs"),
    ],
)
def test_measured_data_of_another_form_is_refused_by_file_and_line(name, text, trace, message, tmp_path):
    (tmp_path / "traces").mkdir()
    lengths = "le_tokens,input_cdf,output_cdf\n10,0.5,0.5\n20,1,1\ninf,1,1\n"
    (tmp_path / "traces" / "servegen_m-large_length_cdf.csv").write_text(lengths)
    (tmp_path / "traces" / name).write_text(text)
    with pytest.raises(TraceError) as refused:
        open_trace(trace, data=tmp_path)
    assert message in str(refused.value)
    assert name in str(refused.value)


def test_text_and_call_give_the_same_trace():
    called = make_trace("diurnal", seconds=500, requests_per_second=3, seed=9, swing=0.5, lengths="lmsys")
    assert open_trace(" diurnal:rate=3, seed=9 , swing=0.5,seconds=500,lengths=lmsys".strip()) == called
    assert open_trace("diurnal:rate=3,swing=0.5,lengths=lmsys", seconds=500, seed=9) == called


def test_a_file_is_opened_by_its_path_even_when_it_is_named_as_a_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("poisson").write_text("arrival_seconds,prompt_tokens,output_tokens\n1,2,3\n9,2,3\n")
    assert open_trace("./poisson", seconds=5) == (TraceRequest(1.0, 2, 3),)
    assert len(open_trace("poisson")) > 1000


def test_a_workload_takes_generators_and_their_own_seconds():
    requests = Workload(trace="step:rate=2,factor=3", duration_seconds=50, speed=2).requests()
    assert 120 < len(requests) < 280
    assert max(request.arrival_seconds for request in requests) <= 50


def test_every_kind_and_option_says_what_it_is():
    for kind in KINDS.values():
        assert kind.about
        for option in kind.options.values():
            assert isinstance(option, Option)
            assert option.about
            assert option.default is None or option.low <= option.default <= option.high
