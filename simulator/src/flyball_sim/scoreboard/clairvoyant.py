"""The best clock schedule a search finds with the future known: one clock per slot, parked while idle.

Starts are the best static clock, whatever comes, and clocks from the bound's linear program, scaled until they hold
the SLO. From the best start, slots far enough apart that they hardly feel each other are moved at once, one run for
all of them; moves that pay locally are kept together, then the run that has them all decides. Its energy is never
above the best static clock's, which is a schedule too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flyball_sim.scoreboard.runs import Outcomes
from flyball_sim.scoreboard.slo import Floats

Clocks: TypeAlias = NDArray[np.int64]
"""Per slot, an index into the grid of clocks."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What the search sees of a cell.

    Attributes:
        run: the outcomes of a schedule, one grid index per slot; energy by slot in `marks_joules`.
        energy: energy of a run as the schedule would have it, parked while idle.
        met: 1 for each request of a run that met its SLO.
        slot_of: per request, the slot it arrives in.
        slots: how many there are.
        top: the highest grid index.
        misses: how many requests may miss.
    """

    run: Callable[[Clocks], Outcomes]
    energy: Callable[[Outcomes], float]
    met: Callable[[Outcomes], Floats]
    slot_of: NDArray[np.int64]
    slots: int
    top: int
    misses: int


@dataclass(frozen=True, slots=True)
class Found:
    """The best schedule found, its run and energy, and the runs it took."""

    clocks: Clocks
    outcomes: Outcomes
    energy_joules: float
    runs: int


class _Search:
    def __init__(self, problem: Problem, budget: int) -> None:
        self.problem = problem
        self.left = budget
        self.runs = 0
        self.best: tuple[float, Clocks, Outcomes] | None = None

    def evaluate(self, clocks: Clocks) -> tuple[Outcomes, float, int]:
        """(the run, its energy, its misses); remembers the best that holds the SLO."""
        self.runs += 1
        self.left -= 1
        outcomes = self.problem.run(clocks)
        energy = self.problem.energy(outcomes)
        misses = len(self.problem.slot_of) - int(self.problem.met(outcomes).sum())
        if misses <= self.problem.misses and (self.best is None or energy < self.best[0]):
            self.best = (energy, clocks.copy(), outcomes)
        return outcomes, energy, misses


def search(problem: Problem, starts: Sequence[Clocks], *, static: Clocks, runs: int) -> Found:
    """The best schedule within so many runs.

    Args:
        problem: the cell.
        starts: schedules to scale until they hold the SLO.
        static: a schedule that holds it.
        runs: how many runs it may take.
    """
    state = _Search(problem, runs)
    state.evaluate(static)
    for start in starts:
        _lift(state, start, static)
    step = max(1, problem.top // 12)
    while step >= 1 and state.left > 0:
        if not _sweep(state, step):
            step //= 2
    if state.best is None:
        raise ValueError("the static schedule misses the SLO: a clairvoyant one needs a start that holds it")
    energy, clocks, outcomes = state.best
    return Found(clocks, outcomes, energy, state.runs)


def _lift(state: _Search, start: Clocks, static: Clocks) -> None:
    """Between the start and the static clock, or above both, the mix nearest to the start that holds the SLO."""
    problem = state.problem
    low, high = 0.0, 1.0
    for _ in range(5):
        if state.left <= 0:
            return
        middle = (low + high) / 2.0
        mixed = np.clip(np.rint(start + middle * (static - start)), 0, problem.top).astype(np.int64)
        if state.evaluate(mixed)[2] <= problem.misses:
            high = middle
        else:
            low = middle
    lifted = start
    for _ in range(4):
        if state.left <= 0:
            return
        lifted = np.clip(lifted + max(1, problem.top // 10), 0, problem.top)
        if state.evaluate(lifted)[2] <= problem.misses:
            return


def _sweep(state: _Search, step: int) -> bool:
    """Move every slot by one step down and up, in groups of slots far apart; whether the best got better."""
    problem = state.problem
    assert state.best is not None  # noqa: S101 - the static schedule came first
    stride = max(4, min(12, problem.slots // 8))
    before = state.best[0]
    for direction in (-step, step):
        for offset in range(stride):
            if state.left <= 1:
                return False
            _move(state, np.arange(offset, problem.slots, stride), direction, stride)
    return state.best[0] < before * (1.0 - 2e-4)


def _move(state: _Search, slots: NDArray[np.int64], direction: int, stride: int) -> None:
    problem = state.problem
    assert state.best is not None  # noqa: S101
    energy, clocks, outcomes = state.best
    tried = clocks.copy()
    tried[slots] = np.clip(tried[slots] + direction, 0, problem.top)
    if (tried == clocks).all():
        return
    moved, _, misses = state.evaluate(tried)
    if misses <= problem.misses and problem.energy(moved) < energy:
        return
    # Each group of slots from one moved slot to the next answers for its energy and its requests.
    group = np.clip((np.arange(problem.slots) - slots[0]) // stride, 0, len(slots) - 1)
    saved = np.bincount(group, np.diff(outcomes.marks_joules) - np.diff(moved.marks_joules), len(slots))
    lost = np.bincount(group[problem.slot_of], problem.met(outcomes) - problem.met(moved), len(slots))
    slack = problem.misses - (len(problem.slot_of) - int(problem.met(outcomes).sum()))
    chosen = _affordable(saved.astype(float), lost.astype(float), slack)
    if not chosen.any() or state.left <= 0:
        return
    kept = clocks.copy()
    kept[slots[chosen]] = tried[slots[chosen]]
    state.evaluate(kept)


def _affordable(saved: Floats, lost: Floats, slack: int) -> NDArray[np.bool_]:
    """The moves worth making: what saves and loses nothing, then what saves most per miss while misses are left."""
    free = (saved > 0.0) & (lost <= 0.0)
    room = float(slack) - float(lost[free].sum())
    chosen = free.copy()
    paid = np.flatnonzero((saved > 0.0) & (lost > 0.0))
    for index in paid[np.argsort(-saved[paid] / lost[paid])]:
        if lost[index] <= math.floor(room):
            chosen[index] = True
            room -= float(lost[index])
    return chosen
