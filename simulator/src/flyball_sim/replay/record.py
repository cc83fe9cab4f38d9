"""What one simulated run gave, in arrays: the requests, the series over time, what the operator said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FINISHED, REJECTED, LOST, UNFINISHED = range(4)
OUTCOMES = ("finished", "rejected", "lost", "unfinished")


@dataclass(frozen=True, slots=True)
class Requests:
    """Every request of a run, by arrival; arrays of one length.

    Times are seconds from the start of the run; NaN where there is none. `judge` is the index of the objective
    it is judged by, -1 where no policy governs the engine that served it. `outcome` is an index into `OUTCOMES`.
    """

    arrival_seconds: Floats
    ttft_seconds: Floats
    tpot_seconds: Floats
    finished_seconds: Floats
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    outcome: NDArray[np.int8]
    judge: NDArray[np.int16]

    def __len__(self) -> int:
        """How many requests were offered."""
        return len(self.arrival_seconds)


@dataclass(frozen=True, slots=True)
class Statement:
    """A condition of a policy's status as it became at some second of the run."""

    seconds: float
    policy: str
    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Breach:
    """A time during which the caps of a policy's GPUs added up to more than its acknowledged budget."""

    policy: str
    seconds: float
    duration_seconds: float
    excess_watts: float


@dataclass(frozen=True, slots=True)
class Record:
    """One run.

    Attributes:
        end_seconds: how long it lasted; energy is over exactly that.
        requests: every request that was offered.
        energy_joules: of all GPUs, idle included, from 0 to the end (modelled).
        peak_watts: the highest mean draw of all GPUs over one sample.
        gpus: GPUs in the cluster.
        series: arrays by name, one value per sample; `seconds` is the end of each sample. See `docs/replay.md`.
        statements: conditions of the policies' statuses when their verdict or words changed.
        breaches: of budgets, by software; must be none.
        overshoot_seconds: GPU-seconds in which a card drew more than its cap (physics, not software).
        overshoot_joules: energy above the caps in those.
        controller_seconds: CPU time of agents and operator on the machine that ran this; not part of the result.
    """

    end_seconds: float
    requests: Requests
    energy_joules: float
    peak_watts: float
    gpus: int
    series: Mapping[str, Floats]
    statements: Sequence[Statement] = ()
    breaches: Sequence[Breach] = ()
    overshoot_seconds: float = 0.0
    overshoot_joules: float = 0.0
    controller_seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
