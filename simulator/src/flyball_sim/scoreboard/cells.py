"""What is compared: worlds, traces, loads and SLOs, and the cells they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.models import step_model
from flyball_sim.gpu.parameters import Draw, apply
from flyball_sim.gpu.types import gpu_type
from flyball_sim.load.generators import open_trace, scale
from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard.runs import Engine
from flyball_sim.scoreboard.slo import Slo

LOADS = (5, 30, 60, 90)
"""Percent of SLO capacity."""
CONTEXT_TOKENS = 32_768

_SMALL = (Slo("tight", 0.5, 0.025), Slo("mid", 1.0, 0.05), Slo("loose", 2.0, 0.1))
# Edges of vLLM's histograms; a larger model gets the ones at which it has a comparable batch.
_LARGE = (Slo("tight", 1.0, 0.05), Slo("mid", 2.5, 0.075), Slo("loose", 5.0, 0.15))
OFF_EDGE = Slo("off-edge", 0.8, 0.035)
"""On no edge of vLLM's histograms."""


@dataclass(frozen=True, slots=True)
class World:
    """One engine on its cards, or one that prefills and one like it that decodes, and the SLOs it is asked to hold."""

    name: str
    gpu: str
    model: str
    gpus: int
    slos: tuple[Slo, ...]
    split: bool = False


WORLDS: Mapping[str, World] = MappingProxyType(
    {
        world.name: world
        for world in (
            World("8b-h100", "H100-SXM5", "llama-3.1-8b", 1, (*_SMALL, OFF_EDGE)),
            World("70b-h100-tp4", "H100-SXM5", "llama-3.1-70b", 4, _LARGE),
            World("70b-h200-tp4", "H200-SXM", "llama-3.1-70b", 4, _LARGE),
            World("qwen3-32b-h100-tp2", "H100-SXM5", "qwen3-32b", 2, _LARGE),
            World("8b-a100", "A100-SXM4-80GB", "llama-3.1-8b", 1, _SMALL),
            World("8b-pd-h100", "H100-SXM5", "llama-3.1-8b", 1, _SMALL[1:2], split=True),
        )
    }
)

AZURE = "azure-conversation"
TRACES: Mapping[str, str] = MappingProxyType(
    {
        AZURE: "azure",
        "conversation": "conversation:rate=5",
        "code": "code:rate=5",
        "servegen-day": "servegen-day:rate=5",
        "bursts": "gamma:rate=5,cv=3",
        "step": "step:rate=5",
        "flash-crowd": "flash-crowd:rate=5",
        "idle-heavy": "idle-heavy:rate=5",
    }
)
"""By name, what `load.generators.open_trace` is asked for; rates are those of multiplier 1."""
SECONDS = 1200.0
QUICK_SECONDS = 400.0
"""Of a generated trace at multiplier 1; of the quick board's."""


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """A world, a trace and an SLO: what has one capacity."""

    world: str
    trace: str
    slo: str

    def objective(self) -> Slo:
        """Its SLO."""
        return next(slo for slo in WORLDS[self.world].slos if slo.name == self.slo)


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A case at a load, percent of its capacity."""

    case: Case
    load: int

    @property
    def key(self) -> dict[str, str | int]:
        """The fields that name it."""
        return {"world": self.case.world, "trace": self.case.trace, "load": self.load, "slo": self.case.slo}


QUICK: tuple[Cell, ...] = (
    Cell(Case("8b-h100", "conversation", "mid"), 30),
    Cell(Case("8b-h100", "step", "tight"), 60),
    Cell(Case("8b-h100", "idle-heavy", "loose"), 30),
    Cell(Case("70b-h100-tp4", "conversation", "mid"), 90),
)
"""A few that differ in everything."""


def all_cells(*, data: bool) -> tuple[Cell, ...]:
    """Every cell; those of the measured trace only where its data is at hand."""
    return tuple(
        Cell(Case(world.name, trace, slo.name), load)
        for world in WORLDS.values()
        for trace in TRACES
        if data or trace != AZURE
        for slo in world.slos
        for load in LOADS
        # One row of SLOs off the buckets' edges.
        if slo is not OFF_EDGE or trace == "conversation"
    )


def chosen(cells: Iterable[Cell], filters: Mapping[str, Sequence[str | int]]) -> tuple[Cell, ...]:
    """The cells whose fields are among the filter's values; a field without values lets all pass."""
    return tuple(
        cell for cell in cells if all(not values or cell.key[field] in values for field, values in filters.items())
    )


def engine_of(world: World, draw: Draw | None = None) -> Engine:
    """What runs in a world, with a draw's parameters if given."""
    gpu = gpu_type(world.gpu)
    if draw is not None:
        gpu = apply(gpu, draw)
    model = step_model(gpu, world.model, world.gpus)
    return Engine(model, EngineLimits(min(CONTEXT_TOKENS, model.model.context_tokens)))


@lru_cache(maxsize=16)
def base_trace(name: str, data: Path | None, seed: int, seconds: float = SECONDS) -> tuple[TraceRequest, ...]:
    """The trace at multiplier 1; the measured one is as long as it is."""
    return open_trace(TRACES[name], seconds=None if name == AZURE else seconds, seed=seed, data=data)


def at_multiplier(trace: Sequence[TraceRequest], multiplier: float) -> tuple[TraceRequest, ...]:
    """The same requests, arriving so many times as densely; lengths stay."""
    return scale(trace, multiplier)


def end_seconds(trace: Sequence[TraceRequest], slo: Slo) -> float:
    """The common end of a cell: the last deadline, and time for late requests to finish."""
    return float(slo.deadlines(trace).max()) + max(30.0, 10.0 * slo.ttft_seconds)


def shortened(trace: Sequence[TraceRequest], requests: int | None) -> tuple[TraceRequest, ...]:
    """The first so many requests (None: all)."""
    return tuple(trace) if requests is None else tuple(replace(request) for request in trace[:requests])
