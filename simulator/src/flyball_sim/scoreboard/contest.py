"""One cell: runs on the same arrivals, from unlocked clocks to the proved bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flyball_sim.engine.machine import Machine
from flyball_sim.gpu.parameters import draw
from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard import cells, clairvoyant, search
from flyball_sim.scoreboard.bound import Bound, BoundProgram
from flyball_sim.scoreboard.cells import WORLDS, Cell
from flyball_sim.scoreboard.runs import UNLOCKED, Engine, Outcomes, Schedule, Setting, run_machine
from flyball_sim.scoreboard.slo import ATTAINMENT, CAPACITY_ATTAINMENT, Floats, Slo, allowed_misses

CAPACITY_TOLERANCE = 0.02
CAP_STEP_WATTS = 5.0
SEARCH_RUNS = 300
QUICK_RUNS = 60
"""Runs of the search for the clairvoyant schedule."""
MEMORY_SECONDS = 40.0
"""For so long an engine feels a slot's clock, at most loads."""
BLOCKS = 40
"""Stretches of a run that are resampled for its intervals."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a cell is computed with.

    Attributes:
        seed: of traces, draws and intervals.
        draws: parameter draws for the bands of energy; 0: none.
        data: directory of the measured data.
        seconds: of each generated trace at multiplier 1.
        requests: only so many of each trace (None: all); for tests, too few to mean anything.
        search_runs: runs of the search for the clairvoyant schedule.
    """

    seed: int = 1
    draws: int = 0
    data: Path | None = None
    seconds: float = cells.SECONDS
    requests: int | None = None
    search_runs: int = SEARCH_RUNS


@dataclass(frozen=True, slots=True)
class Row:
    """What one controller did in a cell.

    Attributes:
        energy_joules: of all cards from 0 to the common end; None where there is none.
        attainment: share of offered requests that met their SLO.
        completed: requests finished by the end.
        output_tokens: of those.
        blocks_joules: energy by block of the run; empty where it has none.
        met: 1 for each request that met its SLO, by arrival; empty where it has none.
        drawn: (energy, attainment) under each parameter draw.
        details: what else is worth saying, by name.
    """

    energy_joules: float
    attainment: float
    completed: int
    output_tokens: int
    blocks_joules: Floats = field(default_factory=lambda: np.empty(0))
    met: Floats = field(default_factory=lambda: np.empty(0))
    drawn: tuple[tuple[float, float], ...] = ()
    details: dict[str, str | float | int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """A static setting's run."""

    setting: Setting
    outcomes: Outcomes
    attainment: float

    @property
    def energy_joules(self) -> float:
        """Of all cards."""
        return self.outcomes.energy_joules


class Ground:
    """A cell at its load: what every run of it has in common.

    Args:
        cell: which.
        multiplier: the capacity of its case.
        options: of the whole scoreboard.
    """

    def __init__(self, cell: Cell, multiplier: float, options: Options) -> None:
        self.cell, self.options = cell, options
        self.slo: Slo = cell.case.objective()
        self.world = WORLDS[cell.case.world]
        self.engine: Engine = cells.engine_of(self.world)
        self.multiplier = multiplier * cell.load / 100.0
        self.trace = case_trace(cell, self.multiplier, options)
        self.end_seconds = cells.end_seconds(self.trace, self.slo)
        self.blocks = np.linspace(0.0, self.end_seconds, BLOCKS + 1)[1:]
        gpu = self.engine.model.gpu
        self.clocks = [clock for clock in gpu.supported_sm_mhz() if clock <= gpu.lock_ceiling_mhz]

    @property
    def seed(self) -> int:
        """Of everything random in it."""
        return self.options.seed

    def drawn_engines(self) -> Iterator[Engine]:
        """The engine under each parameter draw."""
        for index in range(self.options.draws):
            yield self.drawn_engine(index)

    def drawn_engine(self, index: int) -> Engine:
        """The engine under one parameter draw."""
        return cells.engine_of(self.world, draw(self.options.seed, index))


class Contest(Ground):
    """A cell of one engine; runs are made when a row first asks for them."""

    def __init__(self, cell: Cell, multiplier: float, options: Options) -> None:
        super().__init__(cell, multiplier, options)
        gpu = self.engine.model.gpu
        self.misses = allowed_misses(len(self.trace))
        self.caps = list(np.arange(gpu.cap_min_watts, gpu.cap_max_watts + 0.5, CAP_STEP_WATTS))

    def serve(
        self, schedule: Schedule, *, engine: Engine | None = None, marks: Sequence[float] | Floats | None = None
    ) -> Outcomes:
        """Run a schedule over the cell's arrivals."""
        return run_machine(
            engine or self.engine,
            self.trace,
            schedule,
            end_seconds=self.end_seconds,
            marks=self.blocks if marks is None else marks,
        )

    def trial(self, setting: Setting) -> Trial:
        """Run one setting from the start to the end."""
        outcomes = self.serve([(0.0, setting)])
        return Trial(setting, outcomes, float(outcomes.met(self.slo).mean()))

    @cached_property
    def unlocked(self) -> Trial:
        """No lock, the default cap."""
        return self.trial(UNLOCKED)

    @cached_property
    def static_clock(self) -> search.Best[Trial]:
        """The best one clock in hindsight; unlocked clocks are one of the choices."""
        settings = [*(Setting(sm_mhz=clock) for clock in self.clocks), UNLOCKED]
        return search.best_static(
            len(settings),
            lambda index: self.unlocked if settings[index] is UNLOCKED else self.trial(settings[index]),
            ATTAINMENT,
        )

    @cached_property
    def static_cap(self) -> search.Best[Trial]:
        """The best one cap in hindsight."""
        return search.best_static(
            len(self.caps), lambda index: self.trial(Setting(cap_watts=float(self.caps[index]))), ATTAINMENT
        )

    @cached_property
    def bound(self) -> Bound:
        """The proved bound for schedules that complete what unlocked clocks complete."""
        done = ~np.isnan(self.unlocked.outcomes.finished_seconds)
        served = [request for request, finished in zip(self.trace, done, strict=True) if finished]
        misses = max(0, self.misses - (len(self.trace) - len(served)))
        return bound_program(self.world.name).bound(served, self.slo, misses=misses, end_seconds=self.end_seconds)

    @cached_property
    def best_schedule(self) -> clairvoyant.Found | None:
        """The best schedule found; None where no static clock holds the SLO."""
        static = self.static_clock
        if not static.feasible:
            return None
        edges = self.bound.edges
        grid = np.array(self.clocks)

        def run(clocks: clairvoyant.Clocks) -> Outcomes:
            return self.serve(self.slot_schedule(clocks), marks=edges)

        arrivals = np.array([request.arrival_seconds for request in self.trace])
        slots = len(edges) - 1
        problem = clairvoyant.Problem(
            run=run,
            energy=lambda outcomes: parked_joules(self.engine, outcomes),
            met=lambda outcomes: outcomes.met(self.slo),
            slot_of=np.clip(np.searchsorted(edges, arrivals, side="right") - 1, 0, slots - 1),
            slots=slots,
            top=len(grid),
            misses=self.misses,
            stride=max(3, min(10, round(MEMORY_SECONDS / float(edges[1])))),
        )
        best = np.full(slots, static.index, dtype=np.int64)
        starts = [
            np.clip(np.rint(static.index * _load_shares(problem.slot_of, self.trace, slots) ** power), 0, len(grid))
            for power in (0.5, 1.0)
        ]
        return clairvoyant.search(
            problem, [start.astype(np.int64) for start in starts], static=best, runs=self.options.search_runs
        )

    def slot_schedule(self, clocks: clairvoyant.Clocks) -> Schedule:
        """The schedule of one grid index per slot; the index above the grid is unlocked."""
        schedule: list[tuple[float, Setting]] = []
        for at, index in zip(self.bound.edges, clocks.tolist(), strict=False):
            setting = UNLOCKED if index >= len(self.clocks) else Setting(sm_mhz=self.clocks[index])
            if not schedule or schedule[-1][1] != setting:
                schedule.append((float(at), setting))
        return schedule

    def drawn(self, schedule: Schedule, outcomes: Outcomes, *, parked: bool = False) -> tuple[tuple[float, float], ...]:
        """Energy and attainment of the same schedule under each parameter draw.

        One clock that no cap lowered is weighed again: the same times, the draw's watts. Anything else runs again.
        """
        used = [sums for sums in outcomes.book.clocks.values() if sums.idle_seconds + sums.step_seconds > 0.0]
        single = len(schedule) == 1 and schedule[0][1].cap_watts is None and len(used) == 1
        attainment = float(outcomes.met(self.slo).mean())
        drawn = []
        for engine in self.drawn_engines():
            if single:
                dies = engine.dies or Machine(engine.model, engine.limits).dies
                drawn.append((outcomes.book.energy_joules(engine.model.gpu, dies), attainment))
            else:
                again = self.serve(schedule, engine=engine, marks=())
                joules = parked_joules(engine, again) if parked else again.energy_joules
                drawn.append((joules, float(again.met(self.slo).mean())))
        return tuple(drawn)


def _load_shares(slot_of: NDArray[np.int64], trace: Sequence[TraceRequest], slots: int) -> Floats:
    """Work that arrives around each slot, over that around the busy ones; a prompt token weighs as half an answer's."""
    work = np.array([request.prompt_tokens / 2.0 + request.output_tokens for request in trace])
    arriving = np.bincount(slot_of, work, slots)
    around = np.convolve(arriving, np.full(5, 0.2), mode="same") if slots >= 5 else arriving
    return np.asarray(around / max(float(np.quantile(around, 0.9)), 1e-9))


def parked_joules(engine: Engine, outcomes: Outcomes) -> float:
    """Energy of a run, had its clock been the lowest whenever the engine was idle.

    A schedule that knows the arrivals can do so without delaying anything: an idle engine's clock serves nobody.
    """
    gpu = engine.model.gpu
    factors = sum(die.idle_factor for die in engine.dies) if engine.dies else float(engine.model.gpus)
    lowest = gpu.waiting_watts(gpu.sm_min_mhz)
    saved = sum(sums.idle_seconds * (gpu.waiting_watts(clock) - lowest) for clock, sums in outcomes.book.clocks.items())
    return outcomes.energy_joules - factors * saved


def case_trace(cell: Cell, multiplier: float, options: Options) -> tuple[TraceRequest, ...]:
    """A cell's arrivals at a rate multiplier."""
    base = cells.shortened(
        cells.base_trace(cell.case.trace, options.data, options.seed, options.seconds), options.requests
    )
    return cells.at_multiplier(base, multiplier)


@lru_cache(maxsize=8)
def bound_program(world: str) -> BoundProgram:
    """The bound's program of a world, nominal parameters."""
    engine = cells.engine_of(WORLDS[world])
    return BoundProgram(engine.model, engine.limits, engine.dies)


def capacity(case: cells.Case, options: Options) -> search.Capacity:
    """The SLO capacity of a case: the largest rate multiplier unlocked clocks hold."""
    slo, engine = case.objective(), cells.engine_of(WORLDS[case.world])
    cell = Cell(case, 100)

    def holds(multiplier: float) -> bool:
        trace = case_trace(cell, multiplier, options)
        outcomes = run_machine(engine, trace, [(0.0, UNLOCKED)], end_seconds=cells.end_seconds(trace, slo))
        return float(outcomes.met(slo).mean()) >= CAPACITY_ATTAINMENT

    return search.capacity(holds, tolerance=CAPACITY_TOLERANCE)
