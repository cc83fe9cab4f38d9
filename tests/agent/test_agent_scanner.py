"""The metrics scanner, held to prometheus_client's own parser on pages made by it and on pages made up."""

import contextlib
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flyball_agent.scanner import FAMILIES, METRIC_NAMES, PageScanner, within
from flyball_agent.scanner import Histogram as Buckets

LABELS = ["engine", "model_name"]
MODEL = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=12)
RANKS = st.lists(st.tuples(st.sampled_from("0123"), MODEL), min_size=1, max_size=3, unique=True)


def page(ranks, values, latencies, *, prefix="vllm:"):
    """A vLLM page as prometheus_client writes it, with families that are not wanted in between."""
    registry = CollectorRegistry()
    made = {
        "running": Gauge(f"{prefix}num_requests_running", "Running.", LABELS, registry=registry),
        "waiting": Gauge(f"{prefix}num_requests_waiting", "Waiting.", LABELS, registry=registry),
        "reason": Gauge(f"{prefix}num_requests_waiting_by_reason", "Why.", [*LABELS, "reason"], registry=registry),
        "kv": Gauge(f"{prefix}kv_cache_usage_perc", "Share.", LABELS, registry=registry),
        "prompt": Counter(f"{prefix}prompt_tokens", "Tokens.", LABELS, registry=registry),
        "cached": Counter(f"{prefix}prompt_tokens_cached", "Tokens.", LABELS, registry=registry),
        "generated": Counter(f"{prefix}generation_tokens", "Tokens.", LABELS, registry=registry),
        "queries": Counter(f"{prefix}prefix_cache_queries", "Tokens.", LABELS, registry=registry),
        "hits": Counter(f"{prefix}prefix_cache_hits", "Tokens.", LABELS, registry=registry),
        "preempted": Counter(f"{prefix}num_preemptions", "Preemptions.", LABELS, registry=registry),
        "iteration": Histogram(f"{prefix}iteration_tokens_total", "Tokens.", LABELS, registry=registry),
        "ttft": Histogram(f"{prefix}time_to_first_token_seconds", "TTFT.", LABELS, registry=registry),
        "itl": Histogram(f"{prefix}inter_token_latency_seconds", "ITL.", LABELS, registry=registry),
        "tpot": Histogram(f"{prefix}request_time_per_output_token_seconds", "TPOT.", LABELS, registry=registry),
        "e2e": Histogram(f"{prefix}e2e_request_latency_seconds", "E2E.", LABELS, registry=registry),
    }
    for engine, model in ranks:
        for name in ("running", "waiting", "kv"):
            made[name].labels(engine, model).set(values[0])
        made["reason"].labels(engine, model, "capacity").set(99)
        for name in ("prompt", "cached", "generated", "queries", "hits", "preempted"):
            made[name].labels(engine, model).inc(values[1])
        for name in ("iteration", "ttft", "itl", "tpot", "e2e"):
            series = made[name].labels(engine, model)
            for seconds in latencies:
                series.observe(seconds)
    return generate_latest(registry)


def parsed(raw):
    """What prometheus_client's parser makes of a page: sums by sample name, and buckets by bound."""
    sums, buckets = {}, {}
    for family in text_string_to_metric_families(raw.decode()):
        for sample in family.samples:
            name = sample.name.replace("vllm_", "vllm:", 1)
            if name.endswith("_bucket"):
                by_bound = buckets.setdefault(name.removesuffix("_bucket"), {})
                bound = float(sample.labels["le"])
                by_bound[bound] = by_bound.get(bound, 0.0) + sample.value
            sums[name] = sums.get(name, 0.0) + sample.value
    return sums, buckets


@given(
    ranks=RANKS,
    values=st.tuples(st.floats(0, 1e6), st.floats(0, 1e12)),
    latencies=st.lists(st.floats(0, 3000), max_size=20),
    prefix=st.sampled_from(["vllm:", "vllm_"]),
)
@settings(deadline=None)
def test_it_reads_what_prometheus_clients_parser_reads(ranks, values, latencies, prefix):
    raw = page(ranks, values, latencies, prefix=prefix)
    sample = PageScanner().scan(raw)
    sums, buckets = parsed(raw)
    assert sample.missing == ()
    assert sample.values.keys() | sample.histograms.keys() == FAMILIES.keys()
    for name in sample.values.keys() - {"kv_cache_usage"}:
        assert math.isclose(sample.values[name], sums[METRIC_NAMES[name]])
    assert math.isclose(sample.values["kv_cache_usage"], values[0])
    for name in sample.histograms:
        histogram = sample.histograms[name]
        assert dict(zip(histogram.bounds, histogram.counts, strict=True)) == buckets[METRIC_NAMES[name]]
        assert histogram.count == len(latencies) * len(ranks)
        assert math.isclose(histogram.total, sums[METRIC_NAMES[name] + "_sum"], abs_tol=1e-9)


def test_a_second_page_is_read_by_what_was_learnt_from_the_first():
    scanner = PageScanner()
    first = scanner.scan(page([("0", "m")], (1, 10), [0.1]))
    second = scanner.scan(page([("0", "m"), ("1", "m")], (2, 20), [0.1, 0.2]))
    assert (first.values["generation_tokens"], second.values["generation_tokens"]) == (10, 40)


@pytest.mark.parametrize(
    ("old", "name"),
    [
        (b'vllm:gpu_cache_usage_perc{engine="0"} 0.5\n', "kv_cache_usage"),
        (b'vllm:time_per_output_token_seconds_bucket{le="+Inf"} 3\n', "inter_token_latency"),
        (b'vllm:gpu_prefix_cache_hits_total{engine="0"} 5\n', "prefix_cache_hits"),
    ],
)
def test_older_names_stand_for_the_same(old, name):
    assert name not in PageScanner().scan(old).missing


def test_the_present_name_wins_over_the_old_one():
    raw = b"vllm:kv_cache_usage_perc 0.25\nvllm:gpu_cache_usage_perc 0.75\n"
    assert PageScanner().scan(raw).values["kv_cache_usage"] == 0.25


def test_what_a_page_does_not_have_is_missing_and_not_zero():
    sample = PageScanner().scan(b"# nothing here\nsglang:num_running_reqs 3\n")
    assert set(sample.missing) == FAMILIES.keys()
    assert sample.values == {}


def test_a_comment_another_metric_or_a_longer_name_is_not_taken_for_a_value():
    raw = (
        b"# HELP vllm:num_requests_running vllm:num_requests_running 7\n"
        b"vllm:num_requests_running_more 8\n"
        b'other{text="\\nvllm:num_requests_running 9"} 1\n'
        b'vllm:time_to_first_token_seconds_created{engine="0"} 1.7e9\n'
    )
    assert set(PageScanner().scan(raw).missing) == FAMILIES.keys()


def test_labels_may_hold_braces_quotes_and_spaces_and_values_a_timestamp():
    raw = b'vllm:num_requests_running{model_name="a } \\" b",engine="0"} 5 1700000000000\n'
    assert PageScanner().scan(raw).values["requests_running"] == 5


def test_a_value_that_is_no_number_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"num_requests_running.*has the value b'many'"):
        PageScanner().scan(b"vllm:num_requests_running many\n")


@pytest.mark.parametrize("number", [b"NaN", b"+Inf", b"-Inf", b"-1", b"1e19"])
@pytest.mark.parametrize(
    "series", [b"vllm:generation_tokens_total", b'vllm:e2e_request_latency_seconds_bucket{le="1.0"}']
)
def test_a_number_that_would_spoil_every_later_sum_is_refused(series, number):
    with pytest.raises(ValueError, match=r"has the value .*give one from 0 to 2\^63"):
        PageScanner().scan(series + b" " + number + b"\n")


@pytest.mark.parametrize("bound", [b"NaN", b"-Inf", b"-1.0"])
def test_a_bucket_that_no_latency_falls_into_is_left_out(bound):
    raw = b'vllm:e2e_request_latency_seconds_bucket{le="%s"} 3\n' % bound
    raw += b'vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 4\n'
    assert PageScanner().scan(raw).histograms["end_to_end"].bounds == (math.inf,)


@given(raw=st.binary(max_size=300))
def test_no_page_is_more_than_refused(raw):
    with contextlib.suppress(ValueError):
        PageScanner().scan(b"vllm:num_requests_running " + raw)


BOUNDS = (0.1, 0.25, 0.5, math.inf)


def test_the_share_within_a_threshold_is_exact_on_an_edge():
    assert within(Buckets(BOUNDS, (10.0, 20.0, 40.0, 50.0), 1.0), 0.25) == (20.0, False)


def test_between_edges_it_is_interpolated_and_says_so():
    assert within(Buckets(BOUNDS, (10.0, 20.0, 40.0, 50.0), 1.0), 0.375) == (30.0, True)
    assert within(Buckets(BOUNDS, (10.0, 20.0, 40.0, 50.0), 1.0), 0.05) == (5.0, True)


def test_beyond_the_last_edge_nothing_more_is_known_to_be_within():
    assert within(Buckets(BOUNDS, (10.0, 20.0, 40.0, 50.0), 1.0), 3.0) == (40.0, True)


@given(
    counts=st.lists(st.integers(0, 1000), min_size=4, max_size=4).map(sorted),
    one=st.floats(0.001, 2),
    other=st.floats(0.001, 2),
)
def test_more_time_never_holds_fewer_observations(counts, one, other):
    assume(one <= other)
    histogram = Buckets(BOUNDS, tuple(map(float, counts)), 1.0)
    assert within(histogram, one)[0] <= within(histogram, other)[0] + 1e-9 <= counts[-1] + 1e-6
