"""Few runs instead of one per grid point: the best static setting, and the largest load that holds an SLO.

Both rest on attainment that does not fall as a setting rises. A run is deterministic, and a higher clock ends each
step sooner, but requests then meet other batches: near the threshold a sample can go against the rule by a request
or two. `best_static` therefore looks below the boundary it found, and a test compares it with every grid point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Trial(Protocol):
    """What a search sees of a run."""

    @property
    def attainment(self) -> float:
        """Share of requests that met their SLO."""

    @property
    def energy_joules(self) -> float:
        """Energy of all cards from 0 to the common end."""


T = TypeVar("T", bound=Trial)

_LOOK_BELOW = 2
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, slots=True)
class Best(Generic[T]):
    """The best setting of a grid: where, its run, whether it holds the SLO, and how many runs it took."""

    index: int
    trial: T
    feasible: bool
    runs: int


def best_static(points: int, run: Callable[[int], T], attainment: float) -> Best[T]:
    """The grid point of least energy among those that attain the share; the highest point where none does.

    First the lowest feasible point, by bisection; then the least energy from there up, by golden section, for energy
    over a static clock falls to one valley (less switching power) and rises again (longer steps on static power).

    Args:
        points: size of the grid, lowest setting first.
        run: the run at a grid point; called once per point.
        attainment: the share to hold.
    """
    seen: dict[int, T] = {}

    def at(index: int) -> T:
        if index not in seen:
            seen[index] = run(index)
        return seen[index]

    top = points - 1
    if at(top).attainment < attainment:
        return Best(top, at(top), feasible=False, runs=len(seen))
    infeasible, lowest = -1, top
    while lowest - infeasible > 1:
        middle = (infeasible + lowest) // 2
        if at(middle).attainment >= attainment:
            lowest = middle
        else:
            infeasible = middle
    for index in range(max(0, lowest - 1 - _LOOK_BELOW), max(0, lowest - 1)):
        at(index)
    _valley(lowest, top, lambda index: at(index).energy_joules)
    feasible = [index for index, trial in seen.items() if trial.attainment >= attainment]
    best = min(feasible, key=lambda index: (seen[index].energy_joules, index))
    return Best(best, seen[best], feasible=True, runs=len(seen))


def _valley(low: int, high: int, value: Callable[[int], float]) -> None:
    """Evaluate `value` where its valley is, in [low, high]; the caller remembers what was seen."""
    # The valley is at the lowest point in most busy cells: two runs settle it.
    if high > low and value(low) <= value(low + 1) and value(low) <= value(min(high, low + 4)):
        return
    while high - low > 3:
        span = high - low
        left, right = high - round(span * _GOLDEN), low + round(span * _GOLDEN)
        if left >= right:
            left, right = low + span // 2, low + span // 2 + 1
        if value(left) <= value(right):
            high = right
        else:
            low = left
    for index in range(low, high + 1):
        value(index)


@dataclass(frozen=True, slots=True)
class Capacity:
    """SLO capacity of a world under a trace: the multiplier, its tolerance (a share) and the runs it took.

    `multiplier` is None where even the sparsest load tried misses the share.
    """

    multiplier: float | None
    tolerance: float
    runs: int


def capacity(
    holds: Callable[[float], bool],
    *,
    tolerance: float,
    start: float = 1.0,
    lowest: float = 1 / 64,
    highest: float = 4096.0,
) -> Capacity:
    """The largest rate multiplier that holds, up to a share `tolerance` below it.

    Brackets by doubling and halving from `start`, then bisects the logarithm.

    Args:
        holds: whether the share is attained at a multiplier.
        tolerance: the found multiplier holds, and this share above it a tried one does not.
        start: the first guess.
        lowest: below this the search gives up.
        highest: above this too; the capacity is then this.
    """
    runs = 0

    def held(multiplier: float) -> bool:
        nonlocal runs
        runs += 1
        return holds(multiplier)

    low, high = start, start
    if held(start):
        high = 2.0 * start
        while held(high):
            if high > highest:
                return Capacity(high, tolerance, runs)
            low, high = high, 2.0 * high
    else:
        low = start / 2.0
        while not held(low):
            if low < lowest:
                return Capacity(None, tolerance, runs)
            low, high = low / 2.0, low
    while high > low * (1.0 + tolerance):
        middle = math.sqrt(low * high)
        if held(middle):
            low = middle
        else:
            high = middle
    return Capacity(low, tolerance, runs)
