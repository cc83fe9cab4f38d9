"""Whether a request met its service-level objective: both latencies hold, counted from arrival."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball_sim.world.outcomes import FINISHED, Outcome, Outcomes


@dataclass(frozen=True, slots=True)
class Slo:
    """The bounds of one request.

    Attributes:
        ttft_seconds: from arrival to the first output token.
        tpot_seconds: mean time per output token after the first.
    """

    ttft_seconds: float
    tpot_seconds: float


def met(outcome: Outcome, slo: Slo) -> bool:
    """Whether one request met its objective; rejected, lost and unfinished ones do not.

    A request with one output token has no time per output token: its first token alone is judged.
    """
    if outcome.state != "finished" or outcome.ttft_seconds is None:
        return False
    return outcome.ttft_seconds <= slo.ttft_seconds and (
        outcome.tpot_seconds is None or outcome.tpot_seconds <= slo.tpot_seconds
    )


def met_all(outcomes: Outcomes, slo: Slo) -> NDArray[np.bool_]:
    """`met` of every request."""
    tpot = outcomes.tpot_seconds
    within: NDArray[np.bool_] = outcomes.ttft_seconds <= slo.ttft_seconds
    good: NDArray[np.bool_] = (outcomes.state == FINISHED) & within & (np.isnan(tpot) | (tpot <= slo.tpot_seconds))
    return good


def attainment(outcomes: Outcomes, slo: Slo) -> float:
    """Share of all offered requests that met their objective; NaN where none was offered."""
    return float(np.mean(met_all(outcomes, slo))) if len(outcomes) else float("nan")


def attainment_so_far(outcomes: Outcomes, slo: Slo, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the requests decided by each time that met their objective; NaN before the first.

    A request is decided when it finished, was rejected or was lost; unfinished ones never are.
    """
    decided = ~np.isnan(outcomes.decided_seconds)
    order = np.argsort(outcomes.decided_seconds[decided], kind="stable")
    times = outcomes.decided_seconds[decided][order]
    good = np.concatenate([[0], np.cumsum(met_all(outcomes, slo)[decided][order])])
    upto = np.searchsorted(times, seconds, side="right")
    with np.errstate(invalid="ignore"):
        return np.where(upto > 0, good[upto] / np.maximum(upto, 1), np.nan)
