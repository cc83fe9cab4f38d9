"""What a run replays: a trace by name, cut to length, sped up and thinned to what the engines can serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flyball_sim.load.generators import open_trace
from flyball_sim.load.traces import TraceRequest, scale, segment, thin, thin_to_rate

GENERATED = "generated"


@dataclass(frozen=True, slots=True)
class Workload:
    """Which requests to replay.

    `trace` is what `open_trace` takes: `generated`, another generator, or the path of a CSV; `data` is the directory of
    the measured data. `speed` divides the times of arrival, so `duration_seconds`
    of the run take `speed` times as much of the trace, from `start_seconds` of it. `keep` thins to a share;
    `max_requests_per_second` thins further, to a mean rate of arrivals as replayed.
    """

    trace: str = GENERATED
    start_seconds: float = 0.0
    duration_seconds: float = 90.0
    speed: float = 1.0
    keep: float = 1.0
    max_requests_per_second: float | None = None
    seed: int = 1
    data: str | None = None

    def requests(self) -> tuple[TraceRequest, ...]:
        """The requests, by arrival; the same workload gives the same ones.

        Raises:
            TraceError: the trace file cannot be read.
            ValueError: a number out of bounds, or nothing is left to replay.
        """
        for name, value in (("duration", self.duration_seconds), ("speed", self.speed)):
            if not 0 < value < float("inf"):
                raise ValueError(f"the {name} is {value}: give a number above 0")
        if self.start_seconds < 0:
            raise ValueError(f"the start is {self.start_seconds} s: give 0 or more")
        span = self.duration_seconds * self.speed
        data = None if self.data is None else Path(self.data)
        trace = open_trace(self.trace, seconds=self.start_seconds + span, seed=self.seed, data=data)
        chosen = scale(segment(trace, start_seconds=self.start_seconds, duration_seconds=span), self.speed)
        chosen = thin(chosen, self.keep, seed=self.seed)
        if self.max_requests_per_second is not None:
            chosen = thin_to_rate(chosen, self.max_requests_per_second, self.duration_seconds, seed=self.seed + 1)
        if not chosen:
            raise ValueError("thinning left no request to replay: keep more of the trace or run longer")
        return chosen
