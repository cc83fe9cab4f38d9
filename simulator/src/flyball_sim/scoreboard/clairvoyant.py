"""The best clock schedule a search finds with the future known: one clock per slot, parked while idle.

It starts from the best static clock, and from schedules that follow the load, brought towards that clock until they
hold the SLO. Then sweeps: slots far enough apart that they hardly feel each other are moved at once, so that a dozen
runs say of every slot what moving it down or up would save and whom it would hurt. The moves are chosen together, at
one price for a miss, and the run that has them all decides. The best static clock is a schedule too, so the result is
never above it.
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

_STEPS = (24, 12, 6, 3, 1)
_MIXES = 4
_TRIES = 5
_SPARE = 0.05
"""Of the misses allowed, the share that may be left unspent."""
_WORTH_IT = 0.002
"""A sweep that saves less than this share goes on to smaller moves."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What the search sees of a cell.

    Attributes:
        run: the outcomes of a schedule, one grid index per slot; energy by slot edge in `marks_joules`.
        energy: energy of a run as the schedule would have it, parked while idle.
        met: 1 for each request of a run that met its SLO.
        slot_of: per request, the slot it arrives in.
        slots: how many there are.
        top: the highest grid index.
        misses: how many requests may miss.
        stride: slots so far apart hardly feel each other.
    """

    run: Callable[[Clocks], Outcomes]
    energy: Callable[[Outcomes], float]
    met: Callable[[Outcomes], Floats]
    slot_of: NDArray[np.int64]
    slots: int
    top: int
    misses: int
    stride: int


@dataclass(frozen=True, slots=True)
class Found:
    """The best schedule found, its run and energy, and the runs it took."""

    clocks: Clocks
    outcomes: Outcomes
    energy_joules: float
    runs: int


@dataclass(frozen=True, slots=True)
class _Tried:
    clocks: Clocks
    outcomes: Outcomes
    energy: float
    misses: int


def search(problem: Problem, starts: Sequence[Clocks], *, static: Clocks, runs: int) -> Found:
    """The best schedule within about so many runs.

    Args:
        problem: the cell.
        starts: schedules to bring towards the static one until they hold the SLO.
        static: a schedule that holds it.
        runs: how many runs it may take.

    Raises:
        ValueError: the static schedule does not hold the SLO.
    """
    state = _Search(problem, runs)
    state.evaluate(static)
    if state.best is None:
        raise ValueError("the static schedule misses the SLO: give one that holds it")
    for start in starts:
        state.mix(start, static)
    for step in _STEPS:
        while step <= problem.top and state.left > 0 and state.sweep(step):
            pass
    best = state.best
    return Found(best.clocks, best.outcomes, best.energy, state.runs)


class _Search:
    def __init__(self, problem: Problem, budget: int) -> None:
        self.problem = problem
        self.budget = budget
        self.runs = 0
        self.best: _Tried | None = None

    @property
    def left(self) -> int:
        return self.budget - self.runs

    def evaluate(self, clocks: Clocks) -> _Tried:
        """Run a schedule; it becomes the best if it holds the SLO with less energy."""
        self.runs += 1
        problem = self.problem
        outcomes = problem.run(clocks)
        misses = len(problem.slot_of) - int(problem.met(outcomes).sum())
        tried = _Tried(clocks, outcomes, problem.energy(outcomes), misses)
        if misses <= problem.misses and (self.best is None or tried.energy < self.best.energy):
            self.best = tried
        return tried

    def mix(self, start: Clocks, static: Clocks) -> None:
        """Find the mix nearest to the start, slot by slot between it and the static one, that holds the SLO."""
        low, high = 0.0, 1.0
        for _ in range(_MIXES):
            middle = (low + high) / 2.0
            mixed = np.rint(start + middle * (static - start)).astype(np.int64)
            if self.evaluate(np.clip(mixed, 0, self.problem.top)).misses <= self.problem.misses:
                high = middle
            else:
                low = middle

    def sweep(self, step: int) -> bool:
        """Move slots by one step; whether it was worth another."""
        base, problem = self.best, self.problem
        assert base is not None  # noqa: S101 - the static schedule came first
        stride = max(1, min(problem.stride, problem.slots // 4))
        saved, lost = np.zeros((2, problem.slots)), np.zeros((2, problem.slots))
        for index, direction in enumerate((-step, step)):
            for offset in range(stride):
                if self.left <= 0:
                    return False
                self._probe(base, np.arange(offset, problem.slots, stride), direction, (saved[index], lost[index]))
        self._choose(base, step, saved, lost)
        assert self.best is not None  # noqa: S101
        return self.best.energy < base.energy * (1.0 - _WORTH_IT)

    def _choose(self, base: _Tried, step: int, saved: Floats, lost: Floats) -> None:
        """Make the moves that together spend the misses that are left, as nearly as a few runs can tell."""
        problem = self.problem
        # Neighbours that move together hurt more, or less, than each alone: the slack to plan with is searched for.
        slack, kept, broken = float(problem.misses - base.misses), -math.inf, math.inf
        for _ in range(_TRIES):
            moves = _moves(saved, lost, slack)
            if self.left <= 0 or not moves.any():
                return
            tried = self.evaluate(np.clip(base.clocks + step * moves, 0, problem.top))
            spare = problem.misses - tried.misses
            if spare >= 0:
                kept = slack
            else:
                broken = slack
            if 0 <= spare <= _SPARE * problem.misses:
                return
            slack += spare if spare > 0 else min(spare, -1)
            if not kept < slack < broken:
                if not (math.isfinite(kept) and math.isfinite(broken)) or broken - kept < 1.0:
                    return
                slack = (kept + broken) / 2.0

    def _probe(self, base: _Tried, slots: NDArray[np.int64], direction: int, into: tuple[Floats, Floats]) -> None:
        """Move some slots and note what each saved and whom it hurt, from its own slot to the next moved one."""
        problem = self.problem
        clocks = base.clocks.copy()
        clocks[slots] = np.clip(clocks[slots] + direction, 0, problem.top)
        changed = clocks[slots] != base.clocks[slots]
        if not changed.any():
            return
        moved = self.evaluate(clocks)
        # A slot answers for requests that come a little before it too: they are in the batch when it begins.
        stride = int(slots[1] - slots[0]) if len(slots) > 1 else problem.slots
        before = stride // 4
        group = np.clip((np.arange(problem.slots) - slots[0] + before) // stride, 0, len(slots) - 1)
        energy = np.diff(base.outcomes.marks_joules) - np.diff(moved.outcomes.marks_joules)
        hurt = problem.met(base.outcomes) - problem.met(moved.outcomes)
        saved, lost = into
        saved[slots] = np.where(changed, np.bincount(group, energy, len(slots)), 0.0)
        lost[slots] = np.where(changed, np.bincount(group[problem.slot_of], hurt, len(slots)), 0.0)


def _moves(saved: Floats, lost: Floats, slack: float) -> NDArray[np.int64]:
    """Per slot -1, 0 or 1: the moves that save most at the lowest price of a miss that keeps within the slack.

    Args:
        saved: joules by (down or up, slot).
        lost: requests that would no longer meet their SLO, likewise; negative where more would.
        slack: how many more may miss.
    """
    slots = saved.shape[1]

    def at(price: float) -> tuple[NDArray[np.int64], float]:
        worth = np.vstack((np.zeros(slots), saved - price * lost))
        choice = worth.argmax(axis=0)
        total = float(np.vstack((np.zeros(slots), lost))[choice, np.arange(slots)].sum())
        return np.array([0, -1, 1])[choice], total

    low, high = 0.0, 1.0 + 10.0 * float(np.abs(saved).max())
    moves, total = at(low)
    if total <= slack:
        return moves
    for _ in range(40):
        middle = (low + high) / 2.0
        moves, total = at(middle)
        if total <= slack:
            high = middle
        else:
            low = middle
    moves, total = at(high)
    return moves if total <= slack else np.zeros(slots, dtype=np.int64)
