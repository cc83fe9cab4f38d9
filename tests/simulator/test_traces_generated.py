"""The generated conversation against the quantiles of the public trace it was fitted to (the trace is not needed)."""

import statistics
from collections import Counter
from itertools import pairwise

import pytest

from flyball_sim.load.conversation import (
    GAP_SECONDS_QUANTILES,
    LENGTHS,
    LONGEST_OUTPUT_TOKENS,
    LONGEST_PROMPT_TOKENS,
    MEAN_OUTPUT_TOKENS,
    MEAN_PROMPT_TOKENS,
    OUTPUT_TOKEN_QUANTILES,
    PROMPT_TOKEN_QUANTILES,
    QUANTILES,
    REQUESTS_PER_SECOND,
    generate,
)
from flyball_sim.load.results import percentile

HOURS = 3


@pytest.fixture(scope="module")
def trace():
    return generate(HOURS * 3600, seed=3)


@pytest.mark.parametrize(
    ("what", "published", "tolerance"),
    [
        ("prompt_tokens", PROMPT_TOKEN_QUANTILES, 0.08),
        ("output_tokens", OUTPUT_TOKEN_QUANTILES, 0.08),
        ("gaps", GAP_SECONDS_QUANTILES, 0.10),
    ],
)
def test_quantiles_are_those_of_the_public_trace(what, published, tolerance, trace):
    if what == "gaps":
        values = sorted(later.arrival_seconds - sooner.arrival_seconds for sooner, later in pairwise(trace))
    else:
        values = sorted(getattr(request, what) for request in trace)
    for quantile, expected in zip(QUANTILES, published, strict=True):
        assert percentile(values, 100 * quantile) == pytest.approx(expected, rel=tolerance), quantile


def test_means_and_rate_are_those_of_the_public_trace(trace):
    assert statistics.mean(request.prompt_tokens for request in trace) == pytest.approx(MEAN_PROMPT_TOKENS, rel=0.03)
    assert statistics.mean(request.output_tokens for request in trace) == pytest.approx(MEAN_OUTPUT_TOKENS, rel=0.03)
    assert len(trace) / (HOURS * 3600) == pytest.approx(REQUESTS_PER_SECOND, rel=0.06)


def test_the_rate_drifts_from_minute_to_minute_as_the_public_traces_does(trace):
    per_minute = Counter(int(request.arrival_seconds // 60) for request in trace)
    counts = [per_minute[minute] for minute in range(HOURS * 60)]
    spread = statistics.pstdev(counts) / statistics.mean(counts)
    assert 0.15 < spread < 0.30  # 0.22 in the public trace; a Poisson process would have 0.05
    assert statistics.correlation(counts[:-1], counts[1:]) > 0.6  # 0.85


def test_weights_add_up():
    assert sum(weight for weight, *_ in LENGTHS) == pytest.approx(1, abs=1e-3)


def test_the_same_seed_gives_the_same_trace_and_another_another():
    assert generate(60, seed=1) == generate(60, seed=1)
    assert generate(60, seed=1) != generate(60, seed=2)


def test_a_longer_trace_begins_as_a_shorter_one():
    short, long = generate(100, seed=4), generate(300, seed=4)
    assert long[: len(short)] == short


def test_lengths_stay_within_the_public_traces_extremes(trace):
    assert all(1 <= request.prompt_tokens <= LONGEST_PROMPT_TOKENS for request in trace)
    assert all(1 <= request.output_tokens <= LONGEST_OUTPUT_TOKENS for request in trace)


def test_another_rate_keeps_the_lengths():
    dense = generate(600, seed=1, requests_per_second=50)
    assert len(dense) / 600 == pytest.approx(50, rel=0.25)


@pytest.mark.parametrize(("duration", "rate"), [(0, 1), (float("inf"), 1), (10, -1), (10, float("nan"))])
def test_a_length_or_rate_that_is_not_positive_is_refused(duration, rate):
    with pytest.raises(ValueError, match="give a positive number"):
        generate(duration, seed=1, requests_per_second=rate)
