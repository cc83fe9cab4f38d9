import math
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.load.traces import (
    MOST_TOKENS,
    TraceError,
    TraceRequest,
    read_trace,
    scale,
    segment,
    stream_trace,
    thin,
    thin_to_rate,
)
from flyball_sim.load.workload import Workload

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PLAIN = "arrival_seconds,prompt_tokens,output_tokens\n"
NOON = "2023-11-16 12:00:00"
GOOD = HEADER + (
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:16:00.0000001,4085,1\n"
)


@pytest.fixture
def write(tmp_path: Path):
    def save(text: str | bytes) -> Path:
        path = tmp_path / "trace.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return save


def every_second(count: int) -> tuple[TraceRequest, ...]:
    return tuple(TraceRequest(float(second), 100 + second, 10) for second in range(count))


def test_arrivals_count_from_the_first_line_to_the_last_digit(write):
    requests = read_trace(write(GOOD))
    assert requests[0] == TraceRequest(0.0, 374, 44)
    assert requests[1].arrival_seconds == pytest.approx(4.314579, abs=1e-6)
    assert requests[2].arrival_seconds == pytest.approx(13.3194101, abs=1e-6)
    assert (requests[2].prompt_tokens, requests[2].output_tokens) == (4085, 1)


def test_a_byte_order_mark_windows_line_ends_and_a_last_empty_line_do_no_harm(write):
    assert len(read_trace(write(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() + b"\r\n"))) == 3


def test_a_plain_trace_counts_from_zero_and_not_from_its_first_request(write):
    requests = read_trace(write(PLAIN + "2.5,10,1\n2.5,20,2\n1e1,30,3\n"))
    assert requests == (TraceRequest(2.5, 10, 1), TraceRequest(2.5, 20, 2), TraceRequest(10.0, 30, 3))


def test_spaces_quotes_and_empty_lines_do_no_harm(write):
    text = ' "TIMESTAMP" , ContextTokens,GeneratedTokens\n\n"2023-11-16T18:15:46", 5 ,"6"\n   \n'
    assert read_trace(write(text)) == (TraceRequest(0.0, 5, 6),)


REFUSALS = {
    "an empty file": (
        "",
        "line 1: the columns are missing: make the first line TIMESTAMP,ContextTokens,GeneratedTokens",
    ),
    "another header": ("a,b\n1,2\n", "line 1: the columns are 'a,b': make the first line TIMESTAMP,"),
    "no header": (f"{NOON},1,1\n", "line 1: the columns are '2023-11-16 12:00:00,1,1': make the first line"),
    "columns in another order": ("TIMESTAMP,GeneratedTokens,ContextTokens\n", "line 1: the columns are 'TIMESTAMP,Gen"),
    "a header alone": (HEADER, "has no requests: add lines below the header"),
    "a header and empty lines": (PLAIN + "\n\n", "has no requests: add lines below the header"),
    "a word for a time": (HEADER + "yesterday,1,1\n", "line 2: TIMESTAMP is 'yesterday': write it as 2023-11-16 18:15"),
    "a date without a time": (HEADER + "2023-11-16,1,1\n", "line 2: TIMESTAMP is '2023-11-16': write it as"),
    "a day that is not": (HEADER + "2023-02-30 00:00:00,1,1\n", "line 2: TIMESTAMP is '2023-02-30 00:00:00': write"),
    "a time without seconds": (HEADER + "2023-11-16 18:15,1,1\n", "line 2: TIMESTAMP is '2023-11-16 18:15'"),
    "a broken fraction": (HEADER + f"{NOON}.x,1,1\n", f"line 2: TIMESTAMP is '{NOON}.x'"),
    "digits of another script": (HEADER + f"{NOON}.\u0661,1,1\n", "line 2: TIMESTAMP is"),
    "no time": (HEADER + ",1,1\n", "line 2: TIMESTAMP is missing: write it as"),
    "a word for tokens": (HEADER + f"{NOON},many,1\n", "line 2: ContextTokens is 'many': write a whole number"),
    "no prompt": (HEADER + f"{NOON},,1\n", "line 2: ContextTokens is missing: write a whole number"),
    "no answer": (HEADER + f"{NOON},1,\n", "line 2: GeneratedTokens is missing: write a whole number"),
    "tokens with a point": (HEADER + f"{NOON},1.5,1\n", "line 2: ContextTokens is '1.5': write a whole number"),
    "NaN for tokens": (HEADER + f"{NOON},NaN,1\n", "line 2: ContextTokens is 'NaN': write a whole number"),
    "infinite tokens": (HEADER + f"{NOON},1,inf\n", "line 2: GeneratedTokens is 'inf': write a whole number"),
    "tokens with an underscore": (HEADER + f"{NOON},1_0,1\n", "line 2: ContextTokens is '1_0': write a whole number"),
    "no tokens": (HEADER + f"{NOON},1,0\n", "line 2: GeneratedTokens is '0': a request has at least 1, drop the line"),
    "negative tokens": (HEADER + f"{NOON},-3,1\n", "line 2: ContextTokens is '-3': a request has at least 1"),
    "very negative tokens": (HEADER + f"{NOON},-{'9' * 99},1\n", "': a request has at least 1, drop the line"),
    "too many tokens": (HEADER + f"{NOON},{MOST_TOKENS + 1},1\n", f"'10000001': give at most {MOST_TOKENS}"),
    "far too many tokens": (HEADER + f"{NOON},{'9' * 4000},1\n", f"9...': give at most {MOST_TOKENS}"),
    "too few values": (
        HEADER + f"{NOON},1\n",
        "line 2: 2 values, not 3: write TIMESTAMP,ContextTokens,GeneratedTokens",
    ),
    "too many values": (PLAIN + "1,2,3,4\n", "line 2: 4 values, not 3: write arrival_seconds,prompt_tokens,output_tok"),
    "out of order": (GOOD + f"{NOON}.5,1,1\n", f"line 5: TIMESTAMP {NOON}.5 is before the line above: sort the file"),
    "seconds out of order": (PLAIN + "2,1,1\n1,1,1\n", "line 3: arrival_seconds 1 is before the line above: sort"),
    "negative seconds": (PLAIN + "-1,1,1\n", "line 2: arrival_seconds is '-1': count from the trace's start"),
    "NaN seconds": (PLAIN + "nan,1,1\n", "line 2: arrival_seconds is 'nan': write a finite number of seconds"),
    "infinite seconds": (PLAIN + "Infinity,1,1\n", "line 2: arrival_seconds is 'Infinity': write a finite number"),
    "seconds that overflow": (PLAIN + "1e999,1,1\n", "line 2: arrival_seconds is '1e999': write a finite number"),
    "no seconds": (PLAIN + ",1,1\n", "line 2: arrival_seconds is missing: write a finite number"),
    "UTF-16": (GOOD.encode("utf-16"), "is not a CSV file in UTF-8"),
    "Latin-1": (HEADER.encode() + b"\xe9\n", "is not a CSV file in UTF-8"),
    "zeros": (b"\0" * 50, "line 1: the columns are"),
    "a line without end": (HEADER + "1" * 5000, "line 2: over 4096 characters: give one request a line"),
}


@pytest.mark.parametrize(("text", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_file_of_another_form_is_refused_with_line_and_mend(text, message, write):
    with pytest.raises(TraceError) as refused:
        read_trace(write(text))
    assert message in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_folder_is_refused_by_name(tmp_path):
    with pytest.raises(TraceError, match="Is a directory: give a CSV file"):
        read_trace(tmp_path)


@given(data=st.binary(max_size=200))
def test_whatever_bytes_a_file_holds_they_are_requests_or_a_refusal(data, tmp_path_factory):
    check_bytes(data, tmp_path_factory)


FIELD = st.sampled_from(
    ["0", "1", "1.5", "-1", "1e3", "nan", "", " 7 ", '"8"', NOON, f"{NOON}.25", "x", "\u0661", "9" * 30]
)
ROW = st.lists(FIELD, min_size=2, max_size=4).map(",".join)


@given(
    header=st.sampled_from([HEADER, PLAIN, "\ufeff" + HEADER]), rows=st.lists(ROW | st.text(max_size=20), max_size=6)
)
def test_whatever_lines_a_file_holds_they_are_requests_or_a_refusal(header, rows, tmp_path_factory):
    check_bytes((header + "\n".join(rows)).encode(), tmp_path_factory)


def check_bytes(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(data)
    try:
        requests = read_trace(path)
    except TraceError:
        return
    assert requests
    assert all(sooner.arrival_seconds <= later.arrival_seconds for sooner, later in pairwise(requests))
    for request in requests:
        assert 0 <= request.arrival_seconds < math.inf
        assert 1 <= request.prompt_tokens <= MOST_TOKENS
        assert 1 <= request.output_tokens <= MOST_TOKENS


@given(
    gaps=st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    tokens=st.lists(st.tuples(st.integers(1, MOST_TOKENS), st.integers(1, MOST_TOKENS)), min_size=20, max_size=20),
)
def test_a_plain_trace_that_is_written_reads_back_the_same(gaps, tokens, tmp_path_factory):
    moments = [sum(gaps[:count]) for count in range(len(gaps))]
    written = tuple(TraceRequest(moment, *lengths) for moment, lengths in zip(moments, tokens, strict=False))
    path = tmp_path_factory.getbasetemp() / "plain.csv"
    lines = (f"{request.arrival_seconds!r},{request.prompt_tokens},{request.output_tokens}\n" for request in written)
    path.write_text(PLAIN + "".join(lines))
    assert read_trace(path) == written


def test_a_long_trace_is_streamed_in_the_memory_of_a_line(write):
    path = write(PLAIN + "".join(f"{second},1000,100\n" for second in range(50_000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in stream_trace(path)) == 50_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 500_000


def test_lines_behind_the_segment_are_not_read(write):
    path = write(PLAIN + "".join(f"{second},1,1\n" for second in range(100)) + "broken")
    assert len(read_trace(path, start_seconds=10, duration_seconds=20)) == 20
    with pytest.raises(TraceError, match=r"line 102: 1 values"):
        read_trace(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(TraceError, match=r"none.csv: No such file"):
        read_trace(tmp_path / "none.csv")


def test_a_segment_counts_from_its_own_start():
    chosen = segment(every_second(100), start_seconds=20.5, duration_seconds=3)
    assert [request.arrival_seconds for request in chosen] == [0.5, 1.5, 2.5]
    assert [request.prompt_tokens for request in chosen] == [121, 122, 123]


def test_a_segment_without_requests_is_refused_with_where_the_trace_ends():
    with pytest.raises(ValueError, match=r"no request arrives from 200 s .* the last before that at 99\.0 s"):
        segment(every_second(100), start_seconds=200, duration_seconds=3)


def test_a_load_factor_moves_arrivals_together_and_leaves_lengths():
    fast = scale(every_second(10), 4)
    assert [request.arrival_seconds for request in fast] == [second / 4 for second in range(10)]
    assert [request.prompt_tokens for request in fast] == [request.prompt_tokens for request in every_second(10)]
    with pytest.raises(ValueError, match="the load factor is 0"):
        scale(every_second(10), 0)


def test_thinning_to_a_rate_meets_it_about_and_never_adds():
    trace = every_second(5000)
    thinned = thin_to_rate(trace, 0.2, 5000, seed=3)
    assert 0.17 < len(thinned) / 5000 < 0.23
    assert thin_to_rate(trace, 7.0, 5000, seed=3) == trace


@given(low=st.floats(0.01, 1), high=st.floats(0.01, 1), seed=st.integers())
def test_a_lower_share_keeps_a_part_of_what_a_higher_share_keeps(low, high, seed):
    low, high = sorted((low, high))
    trace = every_second(60)
    few, many = thin(trace, low, seed=seed), thin(trace, high, seed=seed)
    assert set(few) <= set(many) <= set(trace)
    assert thin(trace, low, seed=seed) == few


@pytest.mark.parametrize("share", [0, -1, 1.01])
def test_a_share_out_of_bounds_is_refused(share):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        thin(every_second(3), share, seed=1)


def test_a_workload_takes_as_much_trace_as_its_speed_needs(write):
    rows = "".join(f"2023-11-16 18:{s // 60:02}:{s % 60:02}.0,{100 + s},5\n" for s in range(600))
    requests = Workload(trace=str(write(HEADER + rows)), start_seconds=100, duration_seconds=10, speed=5).requests()
    assert len(requests) == 50
    assert requests[0].prompt_tokens == 200
    assert max(request.arrival_seconds for request in requests) < 10


def test_a_workload_is_the_same_for_the_same_seed_and_thinned_to_its_rate():
    workload = Workload(duration_seconds=200, speed=3, max_requests_per_second=4, seed=5)
    requests = workload.requests()
    assert requests == workload.requests()
    assert 3.2 < len(requests) / 200 < 4.8


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (Workload(duration_seconds=0), "the duration is 0"),
        (Workload(speed=-1), "the speed is -1"),
        (Workload(speed=math.inf), "the speed is inf"),
        (Workload(start_seconds=-5), "the start is -5"),
        (Workload(keep=2), "the share to keep is 2"),
        (Workload(max_requests_per_second=0), "the rate is 0"),
    ],
)
def test_a_workload_out_of_bounds_is_refused(workload, message):
    with pytest.raises(ValueError, match=message):
        workload.requests()
