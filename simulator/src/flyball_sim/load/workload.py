"""What a run replays: a trace by name, cut to length, sped up and thinned to what the engines can serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flyball_sim.load.conversation import generate
from flyball_sim.load.traces import TraceRequest, read_azure_csv, segment, speed_up, thin, thin_to_rate

GENERATED = "generated"


@dataclass(frozen=True, slots=True)
class Workload:
    """Which requests to replay.

    `trace` is `generated` or the path of an Azure CSV. `speed` divides the times of arrival, so `duration_seconds`
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

    def requests(self) -> tuple[TraceRequest, ...]:
        """The requests, by arrival; the same workload gives the same ones.

        Raises:
            TraceError: the trace file cannot be read.
            ValueError: a number out of bounds, or nothing is left to replay.
        """
        for name, value in (("duration", self.duration_seconds), ("speed", self.speed)):
            if value <= 0:
                raise ValueError(f"the {name} is {value}: give a number above 0")
        if self.start_seconds < 0:
            raise ValueError(f"the start is {self.start_seconds} s: give 0 or more")
        span = self.duration_seconds * self.speed
        if self.trace == GENERATED:
            trace = generate(self.start_seconds + span, seed=self.seed)
        else:
            trace = read_azure_csv(Path(self.trace))
        chosen = speed_up(segment(trace, start_seconds=self.start_seconds, duration_seconds=span), self.speed)
        chosen = thin(chosen, self.keep, seed=self.seed)
        if self.max_requests_per_second is not None:
            chosen = thin_to_rate(chosen, self.max_requests_per_second, self.duration_seconds, seed=self.seed + 1)
        if not chosen:
            raise ValueError("thinning left no request to replay: keep more of the trace or run longer")
        return chosen
