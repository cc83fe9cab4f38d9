"""Which clocks hold the objectives, and what each would cost: predictions for one share of the highest clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from flyball_agent.controllers.base import Targets
from flyball_agent.controllers.flyball.latency import LatencyModel
from flyball_agent.controllers.flyball.load import Load
from flyball_agent.controllers.flyball.power import PowerModel

MOST_PREFILL: Final = 0.8
SLOWEST: Final = 0.95
"""Of the time per output token, what steps may take on average: the rest is for prompts in between."""
ACTUATION_SECONDS: Final = 0.1
"""99th percentile from asking for a clock to having it."""
TPOT_TAIL: Final = 1.5
"""Standard deviations of a request's time per token beyond its mean."""
LONG_PROMPT: Final = 3.0
"""A long prompt over the mean one: the margin corrects it."""
LOOK_SECONDS: Final = 0.5
_LEAST_GAP: Final = 0.02
_MEETING: Final = 0.75
"""Half the mean square of a prompt's length over its squared mean."""
_QUEUEING: Final = 8.0
"""How much more a request of a queue counts: the queue is seen, what a steady load brings is not yet there."""
_NO_QUEUE: Final = 1.0
_LEAST_LEFT: Final = 0.02
_FAR_SECONDS: Final = 1e3


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one clock would do.

    Attributes:
        share: of the highest clock.
        prefill: share of time that goes to prompts.
        ttft_seconds: of a request with a long prompt.
        token_seconds: of a request that meets as many prompts as most.
        tpot_seconds: of one that meets more.
        drain_seconds: until the queue is empty.
        busy: share of time with a step under way.
    """

    share: float
    prefill: float
    ttft_seconds: float
    token_seconds: float
    tpot_seconds: float
    drain_seconds: float
    busy: float


def forecast(model: LatencyModel, load: Load, share: float) -> Forecast:
    """Predict latencies at the share of the highest clock."""
    prompt = model.prompt_seconds(share)
    prefill = prompt * load.prompt_rate
    left = max(1.0 - prefill, _LEAST_LEFT)
    now = model.decode_seconds(load.batch, load.cache, share) / left
    base, slope = model.base(share), model.slope(share, load.cache_per_sequence)
    room = 1.0 - prefill - load.output_rate * slope
    steady = base / room if room > _LEAST_LEFT else _FAR_SECONDS
    mean = max(now, steady)
    one = prompt * load.prompt_tokens
    # Prompts that come while a request is answered: a compound Poisson sum, its mean in `mean` already.
    spread = math.sqrt((1.0 + load.dispersion) * prefill * one * mean / max(load.answer_tokens, 1.0)) / left
    batch = load.output_rate * min(steady, 1.0)
    return Forecast(
        share=share,
        prefill=prefill,
        ttft_seconds=model.base(share)
        + one * (LONG_PROMPT + 2.5 * (load.dispersion - 1.0) + 1.5 * prefill * (1.0 + load.dispersion) / left),
        token_seconds=mean,
        tpot_seconds=mean + TPOT_TAIL * spread,
        drain_seconds=_drain(load, prompt, mean),
        busy=1.0 - math.exp(-batch - load.arrival_rate * one / left),
    )


def _drain(load: Load, prompt_seconds: float, step_seconds: float) -> float:
    """Seconds until a queue is empty; requests that came during the step under way are none."""
    if load.waiting <= _NO_QUEUE + 2.0 * load.arrival_rate * step_seconds:
        return 0.0
    return load.queued_tokens * prompt_seconds + step_seconds


def binding(
    seen: Forecast, load: Load, targets: Targets, *, ttft_margin: float, tpot_margin: float, slack: float = 1.0
) -> str:
    """Which objective a forecast breaks; empty: none.

    Args:
        seen: what would be.
        load: for which.
        targets: the objectives.
        ttft_margin: the share of the time to first token that a prediction may use up.
        tpot_margin: the same of the time to last token.
        slack: by how much every predicted latency is taken higher.
    """
    if seen.prefill * slack > MOST_PREFILL:
        return "prefill share"
    tpot, ttft = targets.tpot_seconds, targets.ttft_seconds
    if tpot is not None and seen.token_seconds * slack > SLOWEST * tpot:
        return "time per output token"
    if ttft is not None:
        if seen.ttft_seconds * slack > ttft_margin * ttft:
            return "time to first token"
        left = ttft - load.queued_seconds - ACTUATION_SECONDS
        if seen.drain_seconds > 0.0 and seen.drain_seconds * slack > left:
            return "queue"
    if targets.e2e_seconds is not None:
        whole = seen.ttft_seconds + 2.0 * load.answer_tokens * seen.tpot_seconds
        if whole * slack > tpot_margin * targets.e2e_seconds:
            return "time to last token"
    return ""


def misses_of(seen: Forecast, model: LatencyModel, load: Load, tpot_seconds: float, *, slack: float = 1.0) -> float:
    """Requests per second that would miss the time per output token, up to a factor.

    A short answer that meets a prompt misses. Answers of n tokens have room for prompts that take `n gap`, gap being
    what the steps leave of the objective. Few answers are shorter than a few tokens: one of mean N is shorter than n
    with chance n / N. So those that meet a prompt of a steady load go with `(prompt / gap)^2`, and those that stand in
    a queue, and meet what is behind them in it, with its length over the gap.

    Args:
        seen: what would be.
        model: of step times.
        load: for which.
        tpot_seconds: the objective.
        slack: by how much every predicted time is taken longer.
    """
    step = seen.token_seconds * slack
    gap = tpot_seconds - step
    if gap <= _LEAST_GAP * tpot_seconds:
        return load.arrival_rate + _QUEUEING * load.waiting / LOOK_SECONDS
    prompt = model.prompt_seconds(seen.share) * slack * load.prompt_tokens / gap
    answer = max(load.answer_tokens, 1.0)
    met = _MEETING * load.dispersion * load.arrival_rate * step / answer * prompt * prompt
    behind = (load.waiting + 1.0) * prompt / (2.0 * answer)
    return load.arrival_rate * min(met, 1.0) + _QUEUEING * load.waiting / LOOK_SECONDS * min(behind, 1.0)


def watts_of(power: PowerModel, model: LatencyModel, seen: Forecast) -> float:
    """Mean watts of the group at a forecast."""
    busy = max(seen.busy, min(1.0, seen.prefill))
    return power.watts(
        busy=busy, prefill=min(seen.prefill, busy), bandwidth=model.bandwidth(seen.share), share=seen.share
    )
