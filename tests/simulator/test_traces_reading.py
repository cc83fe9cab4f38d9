from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.load.traces import (
    TraceError,
    TraceRequest,
    read_azure_csv,
    segment,
    speed_up,
    thin,
    thin_to_rate,
)
from flyball_sim.load.workload import Workload

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
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
    requests = read_azure_csv(write(GOOD))
    assert requests[0] == TraceRequest(0.0, 374, 44)
    assert requests[1].arrival_seconds == pytest.approx(4.314579, abs=1e-6)
    assert requests[2].arrival_seconds == pytest.approx(13.3194101, abs=1e-6)
    assert (requests[2].prompt_tokens, requests[2].output_tokens) == (4085, 1)


def test_a_byte_order_mark_windows_line_ends_and_a_last_empty_line_do_no_harm(write):
    assert len(read_azure_csv(write(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() + b"\r\n"))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the columns are '': make the first line TIMESTAMP,ContextTokens,GeneratedTokens"),
        ("a,b\n1,2\n", "line 1: the columns are 'a,b': make the first line"),
        (HEADER, "has no requests: add lines below the header"),
        (HEADER + "yesterday,1,1\n", "line 2: TIMESTAMP is 'yesterday': write it as 2023-11-16 18:15:46"),
        (HEADER + "2023-11-16 18:15:46.x,1,1\n", "line 2: TIMESTAMP is '2023-11-16 18:15:46.x'"),
        (HEADER + "2023-11-16 18:15:46.5,many,1\n", "line 2: ContextTokens is 'many': write a whole number"),
        (HEADER + "2023-11-16 18:15:46.5,1,0\n", "line 2: GeneratedTokens is 0: a request has at least 1"),
        (HEADER + "2023-11-16 18:15:46.5,1\n", "line 2: 2 values, not 3"),
        (
            GOOD + "2023-11-16 18:15:46.5,1,1\n",
            "line 5: TIMESTAMP 2023-11-16 18:15:46.5 is before the line above: sort",
        ),
        (b"\xff\xfe\x00", "is not a CSV file in UTF-8"),
    ],
)
def test_a_file_of_another_form_is_refused_with_line_and_mend(text, message, write):
    with pytest.raises(TraceError) as refused:
        read_azure_csv(write(text))
    assert message in str(refused.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(TraceError, match=r"none.csv: No such file"):
        read_azure_csv(tmp_path / "none.csv")


def test_a_segment_counts_from_its_own_start():
    chosen = segment(every_second(100), start_seconds=20.5, duration_seconds=3)
    assert [request.arrival_seconds for request in chosen] == [0.5, 1.5, 2.5]
    assert [request.prompt_tokens for request in chosen] == [121, 122, 123]


def test_a_segment_without_requests_is_refused_with_where_the_trace_ends():
    with pytest.raises(ValueError, match=r"no request arrives from 200 s .* whose last is at 99\.0 s"):
        segment(every_second(100), start_seconds=200, duration_seconds=3)


def test_speed_compresses_arrivals_and_leaves_lengths():
    fast = speed_up(every_second(10), 4)
    assert [request.arrival_seconds for request in fast] == [second / 4 for second in range(10)]
    assert [request.prompt_tokens for request in fast] == [request.prompt_tokens for request in every_second(10)]
    with pytest.raises(ValueError, match="the speed is 0"):
        speed_up(every_second(10), 0)


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
        (Workload(start_seconds=-5), "the start is -5"),
        (Workload(keep=2), "the share to keep is 2"),
        (Workload(max_requests_per_second=0), "the rate is 0"),
    ],
)
def test_a_workload_out_of_bounds_is_refused(workload, message):
    with pytest.raises(ValueError, match=message):
        workload.requests()
