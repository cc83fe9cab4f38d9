"""Traffic before the scored one, for rows of controllers that have had time to learn: the same kind, other seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard.cells import AZURE, at_multiplier, base_trace

WARM_SECONDS = 1800.0
"""The controller runs for so long before anything counts."""
_QUIET_SECONDS = 30.0
"""The last requests come so long before the scored ones, so that what counts begins with an idle engine as in all
other rows."""
_SEEDS = 1000
"""The warm-up's seeds are the board's and so many more."""


def warm_up(trace: str, multiplier: float, *, seed: int, data: Path | None) -> tuple[TraceRequest, ...]:
    """Requests of half an hour, by arrival from 0, at the cell's rate.

    The measured hour has no other like it: its warm-up is the generator fitted to it, at its rate.

    Args:
        trace: a name of `TRACES`.
        multiplier: of the cell.
        seed: of the board.
        data: directory of the measured data.
    """
    kind, rate = trace, multiplier
    if trace == AZURE:
        kind = "conversation"
        rate = multiplier * _rate(base_trace(trace, data, seed)) / _rate(base_trace(kind, data, seed))
    requests: list[TraceRequest] = []
    start, until, number = 0.0, WARM_SECONDS - _QUIET_SECONDS, 0
    while start < until:
        number += 1
        part = at_multiplier(base_trace(kind, data, seed + _SEEDS * number), rate)
        requests += (replace(request, arrival_seconds=start + request.arrival_seconds) for request in part)
        start = requests[-1].arrival_seconds
    return tuple(request for request in requests if request.arrival_seconds < until)


def _rate(trace: tuple[TraceRequest, ...]) -> float:
    return len(trace) / trace[-1].arrival_seconds
