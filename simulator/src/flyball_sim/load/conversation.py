"""A generated conversation workload with the statistics of a public one.

Fitted to the conversation trace of the Azure LLM inference trace 2023 (19,366 requests in 3,502 s; Patel et al.,
"Splitwise", ISCA 2024; https://github.com/Azure/AzurePublicDataset, CC-BY-4.0). Only the coefficients below and
the quantiles a test holds them to come from it; no row of the trace is in this project.

* Lengths: a mixture of eight lognormals over (prompt, answer) tokens, fitted by expectation maximisation to the
  logarithms, so that prompts and answers keep what correlation they have.
* Arrivals: gamma distributed gaps (coefficient of variation 1.03 once the rate's drift is divided out) at a rate
  that drifts as a lognormal AR(1) from minute to minute.
"""

from __future__ import annotations

import math
import random
from itertools import accumulate

from flyball_sim.load.traces import TraceRequest

REQUESTS_PER_SECOND = 5.53
GAP_SHAPE = 0.94
"""Of the gamma distribution of gaps: 1 / 1.03^2."""
DRIFT_SECONDS = 60.0
DRIFT_SIGMA = 0.21
"""Standard deviation of the logarithm of a minute's rate."""
DRIFT_CORRELATION = 0.85
"""Between the logarithms of one minute's rate and the next's."""

# weight, mean and standard deviation of ln(prompt tokens), mean and standard deviation of ln(answer tokens)
LENGTHS: tuple[tuple[float, float, float, float, float], ...] = (
    (0.2776, 6.9775, 0.0686, 6.0040, 0.0500),
    (0.2444, 5.9893, 0.0418, 4.5361, 0.2537),
    (0.2054, 7.3524, 0.5268, 4.5690, 0.4993),
    (0.0980, 5.2933, 0.0882, 4.9625, 0.4244),
    (0.0748, 8.3160, 0.0100, 4.0150, 0.4611),
    (0.0533, 6.9860, 0.0662, 6.2594, 0.1819),
    (0.0261, 3.8606, 1.1594, 4.9391, 0.3311),
    (0.0204, 5.3268, 0.5007, 2.7437, 0.1983),
)
_CUMULATIVE = tuple(accumulate(weight for weight, *_ in LENGTHS))

QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
PROMPT_TOKEN_QUANTILES = (207, 396, 1020, 1189, 2734, 4083, 4142)
OUTPUT_TOKEN_QUANTILES = (54, 85, 129, 395, 424, 451, 601)
"""Of the public trace at `QUANTILES`."""
GAP_SECONDS_QUANTILES = (0.0161, 0.0483, 0.1184, 0.2467, 0.4207, 0.5652, 0.8897)
MEAN_PROMPT_TOKENS = 1154.7
MEAN_OUTPUT_TOKENS = 211.1
LONGEST_PROMPT_TOKENS = 14_050
LONGEST_OUTPUT_TOKENS = 1_000
"""The trace's extremes; the tails of the fit are cut there."""


def _tokens(log_mean: float, log_sigma: float, longest: int, rng: random.Random) -> int:
    return min(longest, max(1, round(rng.lognormvariate(log_mean, log_sigma))))


def draw_lengths(rng: random.Random) -> tuple[int, int]:
    """Prompt and answer length of one request, in tokens."""
    _, prompt_mean, prompt_sigma, output_mean, output_sigma = rng.choices(LENGTHS, cum_weights=_CUMULATIVE)[0]
    return (
        _tokens(prompt_mean, prompt_sigma, LONGEST_PROMPT_TOKENS, rng),
        _tokens(output_mean, output_sigma, LONGEST_OUTPUT_TOKENS, rng),
    )


def draw_output_tokens(rng: random.Random) -> int:
    """Answer length of one request, in tokens."""
    return draw_lengths(rng)[1]


def generate(
    duration_seconds: float, *, seed: int, requests_per_second: float = REQUESTS_PER_SECOND
) -> tuple[TraceRequest, ...]:
    """A conversation trace of this length; the same seed gives the same trace.

    Args:
        duration_seconds: arrivals lie in [0, duration_seconds).
        seed: of the only random source.
        requests_per_second: mean rate; the public trace's by default.

    Raises:
        ValueError: a length or rate that is not positive.
    """
    for name, value in (("duration_seconds", duration_seconds), ("requests_per_second", requests_per_second)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}: give a positive number")
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    drift = rng.gauss(0.0, DRIFT_SIGMA)
    drift_until = DRIFT_SECONDS
    innovation = DRIFT_SIGMA * math.sqrt(1 - DRIFT_CORRELATION**2)
    now = 0.0
    requests: list[TraceRequest] = []
    while True:
        # exp(drift) has the mean exp(sigma^2 / 2): taken out, or the trace would be denser than asked
        rate = requests_per_second * math.exp(drift - DRIFT_SIGMA**2 / 2)
        now += rng.gammavariate(GAP_SHAPE, 1 / (GAP_SHAPE * rate))
        if now >= duration_seconds:
            return tuple(requests)
        while now >= drift_until:
            drift = DRIFT_CORRELATION * drift + rng.gauss(0.0, innovation)
            drift_until += DRIFT_SECONDS
        requests.append(TraceRequest(now, *draw_lengths(rng)))
