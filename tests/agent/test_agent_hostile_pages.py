"""Pages that are made to hurt: the scanner's time, memory and words stay bounded."""

import time

import pytest

from flyball_agent.scanner import PageScanner

MIB = 1 << 20
SERIES = b"vllm:num_requests_running{model_name="
ENOUGH_SECONDS = 5.0
"""Of CPU time; as it was, each of these took minutes."""


@pytest.mark.parametrize(
    "line",
    [
        b"vllm:num_requests_running{\n",
        b"vllm:num_requests_running{a\n",
        b'vllm:num_requests_running{a="\n',
        b'vllm:num_requests_running{a="b"\n',
        b"vllm:num_requests_running \n",
    ],
)
def test_lines_that_never_end_cost_no_more_than_others(line):
    page = line * (MIB // len(line))
    began = time.process_time()
    PageScanner().scan(page)
    assert time.process_time() - began < ENOUGH_SECONDS


@pytest.mark.parametrize("filler", [b'"', b'\\"', b'a="b",', b" ", b"{", b"\\"])
def test_a_line_as_long_as_the_page_costs_no_more_than_others(filler):
    page = b"vllm:num_requests_running{" + filler * (MIB // len(filler)) + b"\nvllm:num_requests_waiting 2\n"
    began = time.process_time()
    sample = PageScanner().scan(page)
    assert time.process_time() - began < ENOUGH_SECONDS
    assert sample.values["requests_waiting"] == 2.0


def test_labels_that_are_long_and_others_each_time_are_read_and_not_kept():
    scanner = PageScanner()
    for number in range(50):
        page = SERIES + b'"m",x="' + str(number).encode() * 20_000 + b'"} 3\n'
        assert scanner.scan(page).values["requests_running"] == 3.0
    assert sum(len(series) for series in scanner._series) < 100_000  # what it keeps cannot be seen else


def test_a_series_with_long_labels_is_added_to_the_others():
    page = SERIES + b'"m"} 1\n' + SERIES + b'"m",x="' + b"y" * 10_000 + b'"} 2\n'
    assert PageScanner().scan(page).values["requests_running"] == 3.0


@pytest.mark.parametrize("number", [b"x" * MIB, b"-" + b"9" * MIB])
def test_what_is_wrong_with_a_page_is_said_briefly(number):
    with pytest.raises(ValueError, match="num_requests_running") as raised:
        PageScanner().scan(SERIES + b'"' + b"m" * MIB + b'"} ' + number + b"\n")
    assert len(str(raised.value)) < 500
