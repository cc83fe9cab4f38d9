import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.load.results import LoadResult, RequestResult, Slo, percentile, summarise, to_json


def request(
    ttft: float | None = 0.1, itl: float | None = 0.02, error: str | None = None, tokens: int = 10
) -> RequestResult:
    return RequestResult(
        arrival_seconds=0.0,
        late_seconds=0.001,
        endpoint="http://a",
        prompt_tokens=100,
        asked_tokens=10,
        tokens=tokens,
        ttft_seconds=ttft,
        itl_mean_seconds=itl,
        e2e_seconds=None if ttft is None else ttft + 9 * (itl or 0),
        error=error,
    )


def result(*requests: RequestResult) -> LoadResult:
    return LoadResult(requests, 1_700_000_000.0, 5.0)


SLO = Slo(ttft_seconds=0.2, itl_seconds=0.03)


def test_a_request_holds_the_slo_only_if_both_bounds_hold():
    summary = summarise(result(request(), request(ttft=0.3), request(itl=0.04), request(ttft=0.3, itl=0.04)), SLO)
    assert summary.ttft_attainment == 0.5
    assert summary.itl_attainment == 0.5
    assert summary.slo_attainment == 0.25


def test_a_failed_request_misses_whatever_it_had_seen():
    summary = summarise(
        result(request(), request(error="connection: reset"), request(ttft=None, error="HTTP 503: x")), SLO
    )
    assert summary.slo_attainment == pytest.approx(1 / 3)
    assert summary.succeeded == 1
    assert summary.errors == {"connection": 1, "HTTP 503": 1}


def test_a_failed_request_is_no_part_of_the_latencies():
    summary = summarise(result(request(ttft=0.1), request(ttft=9.0, error="timeout: no answer")), SLO)
    assert summary.ttft is not None
    assert summary.ttft.highest == 0.1


def test_an_answer_of_one_token_has_no_time_per_output_token_to_miss():
    summary = summarise(result(request(itl=None, tokens=1)), SLO)
    assert summary.slo_attainment == 1
    assert summary.itl is None


def test_without_bounds_every_answer_counts():
    assert summarise(result(request(ttft=99), request(error="x")), Slo()).slo_attainment == 0.5


def test_throughput_counts_every_token_that_came():
    summary = summarise(result(request(), request(error="connection: reset", tokens=5)), SLO)
    assert summary.output_tokens == 15
    assert summary.output_tokens_per_second == 3


def test_nothing_sent_is_summed_up_as_nothing():
    summary = summarise(LoadResult((), 0.0, 0.0), SLO)
    assert (summary.requests, summary.slo_attainment, summary.ttft) == (0, 0.0, None)


def test_the_result_file_is_json_with_every_request():
    text = json.dumps(to_json(result(request(), request(ttft=None, error="x")), SLO, {"trace": "generated"}))
    read = json.loads(text)
    assert read["summary"]["ttft"]["percentiles"]["99"] == 0.1
    assert [one["error"] for one in read["requests"]] == [None, "x"]
    assert read["workload"] == {"trace": "generated"}


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_percentiles_agree_with_the_standard_library(values):
    ordered = sorted(values)
    cuts = statistics.quantiles(ordered, n=100, method="inclusive")
    for percent in (1, 50, 90, 99):
        assert percentile(ordered, percent) == pytest.approx(cuts[percent - 1], abs=1e-6)
    assert percentile(ordered, 100) == ordered[-1]


def test_a_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no value"):
        percentile([], 50)
