"""Tuning: the same trials, objective and traces for every controller, one set of parameters over all cells.

Trials: the defaults, then a Sobol sequence over the whole space, then one over a box around the best so far that halves
twice. The traces are of kinds and seeds the board does not play; the measured hour is never among them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from flyball_agent.controllers.registry import CONTROLLERS
from flyball_api.controllers.union import PARAMETERS
from flyball_sim.load.generators import open_trace
from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard import cells, search
from flyball_sim.scoreboard.cells import WORLDS
from flyball_sim.scoreboard.contest import BLOCKS, CAPACITY_TOLERANCE
from flyball_sim.scoreboard.digests import code_digest
from flyball_sim.scoreboard.profiled import needs_profile, profile_of
from flyball_sim.scoreboard.rivals import CONTENDERS, Contender, make, prior_factors, serve
from flyball_sim.scoreboard.runs import UNLOCKED, Engine, run_machine
from flyball_sim.scoreboard.slo import ATTAINMENT, CAPACITY_ATTAINMENT, Floats, Slo
from flyball_sim.scoreboard.spaces import SPACES, Space
from flyball_sim.scoreboard.store import Store
from flyball_sim.world.direct import setup_of

TRIALS: Final = 50
SEED: Final = 90_001
"""Of the tuning traces and of the search; the board's own is 1."""
PENALTY: Final = 30.0
"""For each unit of attainment short of 99 %: one point costs as much as 30 % of unlocked clocks' energy."""
_SPREAD_SHARE: Final = 0.6
"""Of the trials, the share that is spread over the whole space."""
_BOX: Final = (0.25, 0.125)
"""Half the width of the box around the best, in its first and its second half."""
_RATE: Final = 5.0
_CAPACITY_SECONDS: Final = 1200


@dataclass(frozen=True, slots=True)
class TuningCell:
    """A world under a generated trace at a share of its capacity.

    Attributes:
        world: a name of `WORLDS`.
        trace: as `open_trace` takes it, without rate and seconds.
        slo: of the world's.
        load: percent of SLO capacity.
        seconds: of the trace.
    """

    world: str
    trace: str
    slo: str
    load: int
    seconds: int


CELLS: Final = (
    TuningCell("8b-h100", "diurnal:swing=0.7", "mid", 60, 160),
    TuningCell("8b-h100", "ramp:factor=4,cv=1.5,lengths=code", "loose", 30, 200),
    TuningCell("70b-h100-tp4", "poisson", "mid", 80, 240),
    TuningCell("8b-a100", "diurnal:swing=0.9,period=180,cv=2", "mid", 25, 600),
)
"""Short, so that fifty trials take minutes; of kinds, worlds, SLOs and loads as far apart as the board's."""


@dataclass(frozen=True, slots=True)
class Arena:
    """What a tuning cell is played on."""

    cell: TuningCell
    slo: Slo
    engine: Engine
    trace: tuple[TraceRequest, ...]
    end_seconds: float
    blocks: Floats
    seed: int
    unlocked_joules: float


@lru_cache(maxsize=8)
def arena_of(cell: TuningCell, seed: int = SEED) -> Arena:
    """A tuning cell's arrivals at its load, and what unlocked clocks make of them."""
    world = WORLDS[cell.world]
    slo = next(slo for slo in world.slos if slo.name == cell.slo)
    engine = cells.engine_of(world)
    separator = "," if ":" in cell.trace else ":"

    def trace_at(rate: float, seconds: int) -> tuple[TraceRequest, ...]:
        return open_trace(f"{cell.trace}{separator}rate={rate},seconds={seconds}", seed=seed)

    base = trace_at(_RATE, _CAPACITY_SECONDS)

    def holds(multiplier: float) -> bool:
        dense = cells.at_multiplier(base, multiplier)
        run = run_machine(engine, dense, [(0.0, UNLOCKED)], end_seconds=cells.end_seconds(dense, slo))
        return float(run.met(slo).mean()) >= CAPACITY_ATTAINMENT

    multiplier = search.capacity(holds, tolerance=CAPACITY_TOLERANCE).multiplier
    if multiplier is None:
        raise ValueError(f"tuning cell {cell} has no capacity: give it a looser SLO")
    trace = trace_at(_RATE * multiplier * cell.load / 100.0, cell.seconds)
    end = cells.end_seconds(trace, slo)
    unlocked = run_machine(engine, trace, [(0.0, UNLOCKED)], end_seconds=end)
    blocks = np.linspace(0.0, end, BLOCKS + 1)[1:]
    return Arena(cell, slo, engine, trace, end, blocks, seed, unlocked.energy_joules)


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of parameters over all tuning cells.

    Attributes:
        number: from 0, the defaults.
        parameters: fields that were set.
        objective: mean over the cells; less is better.
        of_unlocked: energy over that of unlocked clocks, by cell.
        attainment: by cell.
    """

    number: int
    parameters: Mapping[str, Any]
    objective: float
    of_unlocked: tuple[float, ...]
    attainment: tuple[float, ...]


def evaluate(contender: Contender, parameters: Mapping[str, Any], number: int) -> Trial:
    """Play one set of parameters on every tuning cell."""
    energies, shares = [], []
    for index, cell in enumerate(CELLS):
        arena = arena_of(cell)
        profile = profile_of(cell.world, contender.kind) if needs_profile(contender.kind) else None
        setup = setup_of(arena.engine.model, seed=SEED + index, profile=profile)
        controller = make(contender.with_parameters(parameters), setup, prior_factors(contender, SEED + index))
        played = serve(arena, arena.engine, controller, native=contender.native)
        energies.append(played.run.energy_joules / arena.unlocked_joules)
        shares.append(float(played.met.mean()))
    costs = [energy + PENALTY * max(0.0, ATTAINMENT - share) for energy, share in zip(energies, shares, strict=True)]
    return Trial(
        number=number,
        parameters=dict(parameters),
        objective=round(float(np.mean(costs)), 6),
        of_unlocked=tuple(round(energy, 6) for energy in energies),
        attainment=tuple(round(share, 6) for share in shares),
    )


def tune(
    contender: Contender, space: Space, store: Store, *, trials: int = TRIALS, watch: Callable[[Trial], None]
) -> list[Trial]:
    """All trials, in order; those the store has are not played again.

    Args:
        contender: with its default parameters.
        space: what may be set.
        store: what is done.
        trials: how many, the defaults included.
        watch: told of each.
    """
    digest = digest_of(contender)
    done: list[Trial] = []
    for places in _points(space, contender, trials, done):
        number = len(done)
        parameters = {} if places is None else space.at(places)
        key = {"what": "trial", "controller": contender.name, "parameters": json.dumps(parameters, sort_keys=True)}
        known = store.get(key, digest)
        trial = _trial(number, known) if known else evaluate(contender, parameters, number)
        if not known:
            store.put(key, digest, asdict(trial))
        done.append(trial)
        watch(trial)
    return done


def best_of(trials: Sequence[Trial]) -> Trial:
    """The least objective; of several the first."""
    return min(trials, key=lambda trial: (trial.objective, trial.number))


def entry_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """What is kept of a controller's tuning beside the parameters it found."""
    best = best_of(trials)
    return {
        "parameters": dict(best.parameters),
        "trial": best.number,
        "trials": len(trials),
        "seed": SEED,
        "objective": best.objective,
        "objective_of_defaults": trials[0].objective,
        "of_unlocked": list(best.of_unlocked),
        "attainment": list(best.attainment),
    }


def digest_of(contender: Contender) -> str:
    """Of the code and the cells a trial depends on."""
    roots = ("flyball_sim.scoreboard.tuning", CONTROLLERS[contender.kind][0])
    text = json.dumps([code_digest(roots), [asdict(cell) for cell in CELLS], dict(contender.parameters)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _points(
    space: Space, contender: Contender, trials: int, done: Sequence[Trial]
) -> Iterator[NDArray[np.float64] | None]:
    """The defaults (None), then points of the unit cube."""
    yield None
    dimensions = len(space.knobs)
    spread = math.floor(trials * _SPREAD_SHARE)
    rest = max(0, trials - 1 - spread)
    whole = _sobol(dimensions, spread, SEED)
    yield from whole
    near = _sobol(dimensions, rest, SEED + 1)
    for index, place in enumerate(near):
        half = _BOX[0] if index < rest / 2 else _BOX[1]
        best = {**_defaults(contender), **best_of(done).parameters}
        centre = np.array(space.places(best))
        yield np.clip(centre + (2.0 * place - 1.0) * half, 0.0, 1.0)


def _sobol(dimensions: int, points: int, seed: int) -> NDArray[np.float64]:
    power = max(1, math.ceil(math.log2(max(points, 2))))
    drawn: NDArray[np.float64] = qmc.Sobol(dimensions, rng=np.random.default_rng(seed)).random_base2(power)
    return drawn[:points]


def _defaults(contender: Contender) -> dict[str, Any]:
    return PARAMETERS[contender.kind][1](**contender.parameters).model_dump()


def _trial(number: int, known: Mapping[str, Any]) -> Trial:
    return Trial(
        number=number,
        parameters=known["parameters"],
        objective=known["objective"],
        of_unlocked=tuple(known["of_unlocked"]),
        attainment=tuple(known["attainment"]),
    )


def tunable() -> tuple[str, ...]:
    """Names of the controllers that have a space."""
    return tuple(name for name in CONTENDERS if name in SPACES)
