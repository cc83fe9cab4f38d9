"""What a run gives: outcomes, energy, series over time, what the operator said, and what was promised and broken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyball_sim.world.cpu import CpuSeconds
from flyball_sim.world.outcomes import Floats, Outcomes
from flyball_sim.world.promise import Breach
from flyball_sim.world.serving import Totals

Smalls = NDArray[np.float32]

LEDGER_PARTS = ("enforced", "inFlight", "unknown", "reserved", "free", "deficit")


@dataclass(frozen=True, slots=True, eq=False)
class PolicySeries:
    """One policy over time; NaN where its status said nothing yet.

    Attributes:
        caps_watts: sum of the caps in force of its GPUs, its own or not, at the end of each sample.
        budget_watts: of the ledger in its status.
        ledger_watts: parts of that ledger, by the names of `LEDGER_PARTS`.
    """

    caps_watts: Floats
    budget_watts: Floats
    ledger_watts: Mapping[str, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The cluster over time; one value per sample.

    Attributes:
        seconds: the end of each sample, from the trace's start.
        watts: of all GPUs, mean over the sample: watts times its length add up to the energy.
        engine_watts: (samples, engines) of every engine's GPUs, mean over the sample.
        engine_sm_mhz: (samples, engines) SM clock at the end of the sample.
        engine_cap_watts: (samples, engines) lowest cap in force of one of its GPUs at the end of the sample.
        engine_running: (samples, engines) sequences in the batch at the end of the sample.
        engine_waiting: (samples, engines) sequences in the queue.
        engines: names of the columns.
        policies: by name.
    """

    seconds: Floats
    watts: Floats
    engine_watts: Smalls
    engine_sm_mhz: Smalls
    engine_cap_watts: Smalls
    engine_running: NDArray[np.int32]
    engine_waiting: NDArray[np.int32]
    engines: tuple[str, ...]
    policies: Mapping[str, PolicySeries]

    @property
    def lengths(self) -> Floats:
        """Seconds of each sample."""
        return np.diff(self.seconds, prepend=0.0)

    @property
    def running(self) -> NDArray[np.int64]:
        """Sequences in all batches."""
        total: NDArray[np.int64] = self.engine_running.sum(axis=1, dtype=np.int64)
        return total

    @property
    def waiting(self) -> NDArray[np.int64]:
        """Sequences in all queues."""
        total: NDArray[np.int64] = self.engine_waiting.sum(axis=1, dtype=np.int64)
        return total


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """A policy's status as written at some second, with other conditions than before.

    Attributes:
        seconds: from the trace's start; what was written in the warm-up comes before 0.
        policy: its name.
        status: as JSON.
    """

    seconds: float
    policy: str
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Overshoot:
    """Power above caps in force, which no software can forbid: of samples whose mean was above both ends' caps.

    Attributes:
        seconds: GPU-seconds of such samples.
        joules: energy above the caps in them.
    """

    seconds: float = 0.0
    joules: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """One run.

    Attributes:
        seed: of every draw.
        end_seconds: energy is of 0 to exactly this.
        gpus: in the cluster.
        outcomes: of every request.
        totals: of tokens.
        energy_joules: true energy of all GPUs, idle ones included.
        energy_by_engine_joules: of every engine's GPUs, after its death too.
        idle_joules: of GPUs without an engine.
        series: over time.
        statuses: of policies, whenever their conditions changed, and the last of each.
        breaches: of acknowledged budgets, by software; must be none.
        overshoot: of caps, by physics.
        turns: plans that the operator made.
        provenance: `measured` or `modelled` of every GPU type and model in use.
        cpu: time that controllers and planner took of the machine that ran this; no part of the result.
    """

    seed: int
    end_seconds: float
    gpus: int
    outcomes: Outcomes
    totals: Totals
    energy_joules: float
    energy_by_engine_joules: Mapping[str, float]
    idle_joules: float
    series: Series
    statuses: tuple[StatusSnapshot, ...]
    breaches: tuple[Breach, ...]
    overshoot: Overshoot
    turns: int
    provenance: Mapping[str, str]
    cpu: CpuSeconds

    @property
    def watts_peak(self) -> float:
        """The highest mean power of all GPUs over one sample."""
        return float(self.series.watts.max()) if len(self.series.watts) else 0.0

    @property
    def controller_cpu_seconds(self) -> float:
        """CPU time of all agents: controllers, governors and statuses."""
        return self.cpu.controllers + self.cpu.statuses

    @property
    def planner_cpu_seconds(self) -> float:
        """CPU time of the operator's plans."""
        return self.cpu.planner

    def digest(self) -> str:
        """SHA-256 over all of it but CPU time: equal for equal arguments, in whatever process."""
        sha = hashlib.sha256()
        for piece in _pieces(self):
            sha.update(piece)
        return sha.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, CpuSeconds):
        return
    if isinstance(value, np.ndarray):
        yield str(value.dtype).encode() + str(value.shape).encode()
        yield np.ascontiguousarray(value).tobytes()
    elif is_dataclass(value):
        for field in fields(value):
            yield field.name.encode()
            yield from _pieces(getattr(value, field.name))
    elif isinstance(value, Mapping) and not all(
        isinstance(entry, str | int | float | bool) for entry in value.values()
    ):
        for key in sorted(value):
            yield str(key).encode()
            yield from _pieces(value[key])
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _pieces(entry)
    else:
        yield json.dumps(value, sort_keys=True, default=repr).encode()
