"""One cell: every row's run on the same arrivals, from unlocked clocks to the proved bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from flyball_agent.controllers.fixed import Fixed
from flyball_api.controllers.fixed import FixedController, RoleClock
from flyball_sim.engine.machine import Machine
from flyball_sim.gpu.parameters import draw
from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard import cells, clairvoyant, search
from flyball_sim.scoreboard.bound import Bound, BoundProgram
from flyball_sim.scoreboard.cells import WORLDS, Cell
from flyball_sim.scoreboard.runs import UNLOCKED, Engine, Outcomes, Schedule, Setting, run_machine
from flyball_sim.scoreboard.slo import ATTAINMENT, CAPACITY_ATTAINMENT, Floats, Slo, allowed_misses
from flyball_sim.world.direct import EngineRun, run_engine
from flyball_sim.world.slo import met_all

CAPACITY_TOLERANCE = 0.02
CAP_STEP_WATTS = 5.0
SEARCH_RUNS = 300
QUICK_RUNS = 120
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
        requests: only so many of each trace (None: all); for tests, too few to mean anything.
        search_runs: runs of the search for the clairvoyant schedule.
    """

    seed: int = 1
    draws: int = 0
    data: Path | None = None
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
        drawn_joules: energy under each parameter draw.
        details: what else is worth saying, by name.
    """

    energy_joules: float
    attainment: float
    completed: int
    output_tokens: int
    blocks_joules: Floats = field(default_factory=lambda: np.empty(0))
    met: Floats = field(default_factory=lambda: np.empty(0))
    drawn_joules: tuple[float, ...] = ()
    details: Mapping[str, str | float | int | None] = field(default_factory=dict)


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


class Contest:
    """One cell at its load; runs are made when a row first asks for them.

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
        self.misses = allowed_misses(len(self.trace))
        self.blocks = np.linspace(0.0, self.end_seconds, BLOCKS + 1)[1:]
        gpu = self.engine.model.gpu
        self.clocks = [clock for clock in gpu.supported_sm_mhz() if clock <= gpu.lock_ceiling_mhz]
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

    def drawn_engines(self) -> Iterator[Engine]:
        """The engine under each parameter draw."""
        for index in range(self.options.draws):
            yield cells.engine_of(self.world, draw(self.options.seed, index))

    def drawn(self, schedule: Schedule, outcomes: Outcomes, *, parked: bool = False) -> tuple[float, ...]:
        """Energy of the same schedule under each parameter draw.

        One clock that no cap lowered is weighed again: the same times, the draw's watts. Anything else runs again.
        """
        used = [sums for sums in outcomes.book.clocks.values() if sums.idle_seconds + sums.step_seconds > 0.0]
        single = len(schedule) == 1 and schedule[0][1].cap_watts is None and len(used) == 1
        energies = []
        for engine in self.drawn_engines():
            if single:
                dies = engine.dies or Machine(engine.model, engine.limits).dies
                energies.append(outcomes.book.energy_joules(engine.model.gpu, dies))
            else:
                again = self.serve(schedule, engine=engine, marks=())
                energies.append(parked_joules(engine, again) if parked else again.energy_joules)
        return tuple(energies)


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
    base = cells.shortened(cells.base_trace(cell.case.trace, options.data, options.seed), options.requests)
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


def _static(contest: Contest, trial: Trial, **details: str | float | int | None) -> Row:
    outcomes = trial.outcomes
    return _row(contest, outcomes, outcomes.energy_joules, [(0.0, trial.setting)], details)


def _row(
    contest: Contest,
    outcomes: Outcomes,
    energy: float,
    schedule: Schedule,
    details: Mapping[str, str | float | int | None],
    *,
    parked: bool = False,
) -> Row:
    met = outcomes.met(contest.slo)
    done = ~np.isnan(outcomes.finished_seconds)
    tokens = np.array([request.output_tokens for request in contest.trace])
    spread = np.diff(outcomes.marks_joules, prepend=0.0) if len(outcomes.marks_joules) == BLOCKS else np.empty(0)
    itl = outcomes.itl_p99_seconds
    return Row(
        energy_joules=energy,
        attainment=float(met.mean()),
        completed=outcomes.completed,
        output_tokens=int(tokens[done].sum()),
        blocks_joules=spread,
        met=met,
        drawn_joules=contest.drawn(schedule, outcomes, parked=parked),
        details={
            "itl_p99_seconds": None if np.isnan(itl) else round(itl, 6),
            "refused": outcomes.refused,
            "preemptions": outcomes.preemptions,
            **details,
        },
    )


def _unlocked(contest: Contest) -> Row:
    return _static(contest, contest.unlocked)


def _static_clock(contest: Contest) -> Row:
    best = contest.static_clock
    return _static(contest, best.trial, sm_mhz=best.trial.setting.sm_mhz, runs=best.runs)


def _static_cap(contest: Contest) -> Row:
    best = contest.static_cap
    return _static(contest, best.trial, cap_watts=best.trial.setting.cap_watts, runs=best.runs)


def _fixed(contest: Contest) -> Row:
    """The best static clock as a real controller holds it: late to start, through page and tick."""
    clock = contest.static_clock.trial.setting.sm_mhz
    parameters = FixedController(
        clocks=() if clock is None else (RoleClock(role="unified", min_megahertz=clock, max_megahertz=clock),)
    )

    def held(engine: Engine) -> EngineRun:
        machine = Machine(engine.model, engine.limits, dies=engine.dies, seed=contest.options.seed)
        end = contest.end_seconds
        return run_engine(machine, contest.trace, Fixed(parameters), model=engine.model, end_seconds=end)

    run = held(contest.engine)
    met = met_all(run.outcomes, contest.slo.bounds)
    return Row(
        energy_joules=run.energy_joules,
        attainment=float(met.mean()),
        completed=run.outcomes.count("finished"),
        output_tokens=int(run.outcomes.output_tokens[~np.isnan(run.outcomes.finished_seconds)].sum()),
        met=met.astype(float),
        drawn_joules=tuple(held(engine).energy_joules for engine in contest.drawn_engines()),
        details={"sm_mhz": clock},
    )


def _clairvoyant(contest: Contest) -> Row:
    found, cap = contest.best_schedule, contest.static_cap
    if found is None:
        return _static(contest, contest.unlocked, why="no static clock holds the SLO")
    capped = parked_joules(contest.engine, cap.trial.outcomes)
    if cap.feasible and capped < found.energy_joules:
        whole = [(0.0, cap.trial.setting)]
        details = {"cap_watts": cap.trial.setting.cap_watts, "runs": found.runs}
        return _row(contest, cap.trial.outcomes, capped, whole, details, parked=True)
    schedule = contest.slot_schedule(found.clocks)
    outcomes = contest.serve(schedule)
    return _row(contest, outcomes, found.energy_joules, schedule, {"runs": found.runs}, parked=True)


def _bound(contest: Contest) -> Row:
    outcomes = contest.unlocked.outcomes
    done = ~np.isnan(outcomes.finished_seconds)
    tokens = np.array([request.output_tokens for request in contest.trace])
    return Row(
        energy_joules=contest.bound.energy_joules,
        attainment=ATTAINMENT,
        completed=int(done.sum()),
        output_tokens=int(tokens[done].sum()),
    )


ROWS: Mapping[str, Callable[[Contest], Row]] = MappingProxyType(
    {
        "unlocked": _unlocked,
        "static-clock": _static_clock,
        "static-cap": _static_cap,
        "fixed": _fixed,
        "clairvoyant": _clairvoyant,
        "bound": _bound,
    }
)
"""Every row of a cell by its controller's name; a controller with two sets of parameters is two rows."""
