"""What is asked: policies, requests, cluster, seed. All that decides the answer, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flyball_agent.profiles import Profile
from flyball_sim.latency.catalogue import Catalogue
from flyball_sim.load.traces import TraceRequest
from flyball_sim.replay.objectives import Objective
from flyball_sim.replay.policies import ReplayPolicy
from flyball_sim.world.cluster import ClusterSpec
from flyball_sim.world.faults import Fault


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests as replayed, under what name, and how they were cut out of it (empty: whole)."""

    name: str
    requests: tuple[TraceRequest, ...]
    cut: str = ""

    @property
    def seconds(self) -> float:
        """From 0 to the last arrival."""
        return self.requests[-1].arrival_seconds

    @property
    def prompt_tokens(self) -> int:
        """Of all requests."""
        return sum(request.prompt_tokens for request in self.requests)

    @property
    def output_tokens(self) -> int:
        """Of all requests."""
        return sum(request.output_tokens for request in self.requests)

    def sha256(self) -> str:
        """Of arrivals and lengths, to tell whether two replays were offered the same."""
        rows = [(r.arrival_seconds, r.prompt_tokens, r.output_tokens) for r in self.requests]
        return hashlib.sha256(np.array(rows, dtype="<f8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster for the reader: where it comes from, one line about it, and itself as `--cluster` would take it.

    `ceilings_watts` is the sum of the highest caps of each policy's GPUs. `modelled` names the GPU types whose power or
    latency rests on no public rows of their own.
    """

    assumed: bool
    summary: str
    gpus: int
    gpu_types: tuple[str, ...]
    ceilings_watts: tuple[float, ...]
    modelled: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """A whole replay.

    Attributes:
        cluster: what the world takes; `view` is for the reader.
        catalogue: of models and their step times; None: the one that is shipped.
        objectives: of the policies, in their order.
        judges: what requests are judged by: a policy's objective, or that of all policies of a disaggregated pool.
        judge_of_engine: index of the judge of the requests of each engine that a policy governs, by its name.
        faults: as written; `injected` is what the world takes.
        end_seconds: both runs end here.
        profiles: that policies name, made of the engines they govern.
    """

    policies: tuple[ReplayPolicy, ...]
    objectives: tuple[Objective, ...]
    trace: Trace
    cluster: ClusterSpec
    catalogue: Catalogue | None
    view: ClusterView
    judges: tuple[Objective, ...]
    judge_of_engine: Mapping[str, int]
    seed: int
    router: str
    faults: tuple[str, ...]
    injected: tuple[Fault, ...]
    end_seconds: float
    sample_seconds: float
    draws: int
    profiles: Mapping[str, Profile] = field(default_factory=dict)
