"""A cell of two engines, one that prefills and one that decodes: unlocked clocks and the best pair of static ones.

There is no clairvoyant schedule and no bound: both rest on one engine that computes a request from its first token to
its last, and a hand-over between two is not in the class of schedules that the bound is proved for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flyball_agent.controllers.fixed import Fixed
from flyball_api.controllers.fixed import FixedController
from flyball_sim.engine.machine import Machine
from flyball_sim.scoreboard import cells, search
from flyball_sim.scoreboard.cells import Cell
from flyball_sim.scoreboard.contest import CAPACITY_TOLERANCE, Ground, Options, Row
from flyball_sim.scoreboard.runs import Engine
from flyball_sim.scoreboard.slo import ATTAINMENT, CAPACITY_ATTAINMENT
from flyball_sim.world.pair import PairRun, run_pair
from flyball_sim.world.slo import met_all

PREFILL_CLOCKS = 9
DECODE_STEP = 4
"""The pair of clocks is looked for among so many for prefill, and every fourth one (60 MHz) for decode."""
_PERIOD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PairTrial:
    """A pair of clocks, of prefill and decode; None: unlocked."""

    prefill_mhz: int | None
    decode_mhz: int | None
    run: PairRun
    attainment: float

    @property
    def energy_joules(self) -> float:
        """Of all cards."""
        return self.run.energy_joules


def machines(engine: Engine, seed: int, *, actuation_delays: bool = True) -> tuple[Machine, Machine]:
    """A fresh engine for prefill and one for decode."""
    prefill, decode = (
        Machine(engine.model, engine.limits, seed=seed + number, actuation_delays=actuation_delays)
        for number in range(2)
    )
    return prefill, decode


class Pool(Ground):
    """A cell of a prefill and a decode engine; runs are made when a row first asks for them."""

    def held(self, prefill_mhz: int | None, decode_mhz: int | None, engine: Engine | None = None) -> PairTrial:
        """Run with each engine's clock locked from the start (None: unlocked)."""
        pair = machines(engine or self.engine, self.seed, actuation_delays=False)
        for machine, sm_mhz in zip(pair, (prefill_mhz, decode_mhz), strict=True):
            machine.set_lock(0.0, None if sm_mhz is None else (sm_mhz, sm_mhz))
        run = run_pair(
            pair[:1],
            pair[1:],
            self.trace,
            # One that sets nothing leaves the locks as they are.
            controllers=lambda *_: Fixed(FixedController()),
            end_seconds=self.end_seconds,
            period_seconds=_PERIOD_SECONDS,
            marks=self.blocks.tolist(),
        )
        attainment = float(met_all(run.outcomes, self.slo.bounds).mean())
        return PairTrial(prefill_mhz, decode_mhz, run, attainment)

    @cached_property
    def unlocked(self) -> PairTrial:
        """No locks."""
        return self.held(None, None)

    @cached_property
    def static_pair(self) -> PairTrial:
        """The best pair of clocks on the grid; unlocked clocks where none holds the SLO."""
        few = [self.clocks[index] for index in np.linspace(0, len(self.clocks) - 1, PREFILL_CLOCKS).round().astype(int)]
        found = [self.unlocked, *(self._best_decode(prefill_mhz) for prefill_mhz in (*few, None))]
        holding = [trial for trial in found if trial.attainment >= ATTAINMENT]
        return min(holding or [self.unlocked], key=lambda trial: trial.energy_joules)

    def _best_decode(self, prefill_mhz: int | None) -> PairTrial:
        decode = [*self.clocks[::DECODE_STEP], None]
        best = search.best_static(len(decode), lambda index: self.held(prefill_mhz, decode[index]), ATTAINMENT)
        return best.trial


def pool_capacity(case: cells.Case, options: Options) -> search.Capacity:
    """The SLO capacity of a case: the largest rate multiplier unlocked clocks hold."""

    def holds(multiplier: float) -> bool:
        return Pool(Cell(case, 100), multiplier, options).unlocked.attainment >= CAPACITY_ATTAINMENT

    return search.capacity(holds, tolerance=CAPACITY_TOLERANCE)


def pool_row(pool: Pool, trial: PairTrial, **details: str | float | int | None) -> Row:
    """A static pair's row."""
    outcomes = trial.run.outcomes
    done = ~np.isnan(outcomes.finished_seconds)
    again = [pool.held(trial.prefill_mhz, trial.decode_mhz, engine) for engine in pool.drawn_engines()]
    return Row(
        energy_joules=trial.energy_joules,
        attainment=trial.attainment,
        completed=int(done.sum()),
        output_tokens=int(outcomes.output_tokens[done].sum()),
        blocks_joules=np.diff(trial.run.marks_joules, prepend=0.0),
        met=met_all(outcomes, pool.slo.bounds).astype(float),
        drawn=tuple((each.energy_joules, each.attainment) for each in again),
        details={"preemptions": trial.run.preemptions, **details},
    )


def unlocked_row(pool: Pool) -> Row:
    """Both engines' clocks unlocked."""
    return pool_row(pool, pool.unlocked)


def static_pair_row(pool: Pool) -> Row:
    """The best pair of static clocks in hindsight."""
    best = pool.static_pair
    lowest = best.prefill_mhz == best.decode_mhz == pool.clocks[0]
    return pool_row(pool, best, prefill_mhz=best.prefill_mhz, decode_mhz=best.decode_mhz, lowest_clock=int(lowest))
