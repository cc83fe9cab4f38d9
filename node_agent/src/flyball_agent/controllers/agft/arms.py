"""Which clocks are to choose from: the grid, what is given up and why, and refinement (brief 1.5 to 1.7)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import pstdev
from typing import Any, Final

from flyball_agent.controllers.agft.bandit import Arm

EXTREME_UNTIL: Final = 60
EXTREME_ROUNDS: Final = 3
HISTORICAL_FROM: Final = 30
HISTORICAL_EVERY: Final = 20
HISTORICAL_SAMPLES: Final = 6
HISTORICAL_LEAST_SPREAD: Final = 0.05
"""Joule seconds; the paper's figure for its card, whatever the card."""
LEAST_ARMS: Final = 2
ANCHOR_SAMPLES: Final = 4
MATURE_FROM: Final = 100
_LOAD_SHARES: Final = (0.33, 0.67)


def coarse_grid(clocks_mhz: Sequence[int], step_mhz: int) -> tuple[int, ...]:
    """From the highest clock downward in steps, each put to a supported clock at or below, and the lowest; falling."""
    grid = []
    wanted = clocks_mhz[-1]
    while wanted > clocks_mhz[0]:
        grid.append(_at_most(clocks_mhz, wanted))
        wanted -= step_mhz
    return tuple(dict.fromkeys([*grid, clocks_mhz[0]]))


def fine_grid(clocks_mhz: Sequence[int], anchor_mhz: int, window_mhz: int) -> tuple[int, ...]:
    """Every supported clock so near to the anchor; falling."""
    return tuple(clock for clock in reversed(clocks_mhz) if abs(clock - anchor_mhz) <= window_mhz)


def _at_most(clocks_mhz: Sequence[int], wanted: int) -> int:
    return clocks_mhz[max(bisect_right(clocks_mhz, wanted) - 1, 0)]


class Arms:
    """The clocks of one group.

    Args:
        clocks_mhz: supported ones, ascending and not empty.
        step_mhz: of the coarse grid.
        width: of the context.
        ridge: of each clock's regression.
    """

    def __init__(self, clocks_mhz: Sequence[int], step_mhz: int, *, width: int, ridge: float) -> None:
        self._clocks = tuple(clocks_mhz)
        self._width, self._ridge = width, ridge
        self._coarse = coarse_grid(clocks_mhz, step_mhz)
        self.listed = self._coarse
        self.known: dict[int, Arm] = {}
        self.pruned: set[int] = set()
        self.failed: set[int] = set()
        self.boundary_mhz = 0

    def available(self, low_mhz: int, high_mhz: int) -> list[int]:
        """What may be chosen within these limits, highest first."""
        return [clock for clock in self.listed if low_mhz <= clock <= high_mhz and self._open(clock)]

    def arm(self, sm_mhz: int) -> Arm:
        """The model of a clock."""
        found = self.known.get(sm_mhz)
        if found is None:
            found = self.known[sm_mhz] = Arm(self._width, self._ridge)
        return found

    def _open(self, sm_mhz: int) -> bool:
        return sm_mhz not in self.pruned and sm_mhz not in self.failed and sm_mhz > self.boundary_mhz

    def widen(self) -> None:
        """Choose from the whole coarse grid again."""
        self.listed = self._coarse

    # -- giving up -------------------------------------------------------------------------------------------

    def give_up(self, clocks: Iterable[int]) -> None:
        """Remove clocks for good, and below half of the highest one everything at or below them."""
        for clock in clocks:
            self.pruned.add(clock)
            if clock < self._clocks[-1] // 2:
                self.pruned.update(other for other in self.listed if other <= clock)

    def prune_extreme(self, sm_mhz: int, rounds: int, worst_reward: float) -> bool:
        """After a round: whether the clock just played is given up."""
        arm = self.arm(sm_mhz)
        hopeless = rounds <= EXTREME_UNTIL and arm.rounds >= EXTREME_ROUNDS and arm.mean_reward <= worst_reward
        if hopeless:
            self.give_up([sm_mhz])
        return hopeless

    def prune_historical(self, rounds: int, factor: float) -> list[int]:
        """After a round: the clocks that are given up for their energy-delay product."""
        if rounds < HISTORICAL_FROM or (rounds - HISTORICAL_FROM) % HISTORICAL_EVERY:
            return []
        left = [clock for clock in self.listed if self._open(clock)]
        means = {
            clock: self.known[clock].mean_edp
            for clock in left
            if clock in self.known and len(self.known[clock].edps) >= HISTORICAL_SAMPLES
        }
        if len(left) <= LEAST_ARMS or len(means) < LEAST_ARMS:
            return []
        threshold = factor * max(pstdev(means.values()), HISTORICAL_LEAST_SPREAD)
        least = min(means.values())
        worst_first = sorted(means, key=lambda clock: (-means[clock], clock))
        gone = [clock for clock in worst_first if means[clock] - least > threshold][: len(left) - LEAST_ARMS]
        self.give_up(gone)
        return gone

    # -- refining --------------------------------------------------------------------------------------------

    def refine(self, anchor_mhz: int, window_mhz: int) -> bool:
        """Choose from every clock around the anchor from now on; False where none of them is left."""
        fine = fine_grid(self._clocks, anchor_mhz, window_mhz)
        if not any(self._open(clock) for clock in fine):
            return False
        self.listed = fine
        return True

    def anchor(self, rounds: int, current: tuple[int, float | None], score: Callable[[Arm], float]) -> int | None:
        """The clock to refine around; None: there is too little to tell.

        Args:
            rounds: so far.
            current: the clock just played and its energy-delay product.
            score: upper confidence bound of a clock now.
        """
        explored = {clock: arm for clock, arm in self.known.items() if arm.rounds and self._open(clock)}
        if rounds >= MATURE_FROM:
            return _mature_anchor(explored, score)
        anchor = _immature_anchor(explored, current)
        return _least_edp(explored, ANCHOR_SAMPLES) if anchor is None else anchor

    # -- memory ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "listed": list(self.listed),
            "known": {str(clock): arm.state() for clock, arm in self.known.items()},
            "pruned": sorted(self.pruned),
            "failed": sorted(self.failed),
            "boundary": self.boundary_mhz,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """What `state` gave; KeyError, TypeError, ValueError where it is damaged or of other clocks."""
        listed = tuple(int(clock) for clock in state["listed"])
        known = {int(clock): Arm.of(arm, self._width) for clock, arm in state["known"].items()}
        strange = sorted({*listed, *known} - set(self._clocks))
        if strange or not listed:
            raise ValueError(f"its clocks {strange} MHz are none of these cards")
        self.pruned = {int(clock) for clock in state["pruned"]}
        self.failed = {int(clock) for clock in state["failed"]}
        self.boundary_mhz = int(state["boundary"])
        self.listed, self.known = listed, known


def _thirds(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    low, high = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in _LOAD_SHARES)
    return low, high


def _class_of(value: float, bounds: tuple[float, float]) -> int:
    return (value > bounds[0]) + (value > bounds[1])


def _immature_anchor(explored: Mapping[int, Arm], current: tuple[int, float | None]) -> int | None:
    """The clock of least energy-delay product in the load class of the present window.

    A window's class is judged within its own clock's products: the paper takes a high product for high load.
    """
    clock, edp = current
    bounds = {each: _thirds(arm.edps) for each, arm in explored.items() if len(arm.edps) >= HISTORICAL_SAMPLES}
    if edp is None or clock not in bounds:
        return None
    wanted = _class_of(edp, bounds[clock])
    means = {}
    for each, limits in bounds.items():
        alike = [value for value in explored[each].edps if _class_of(value, limits) == wanted]
        if alike:
            means[each] = sum(alike) / len(alike)
    return min(means, key=lambda each: (means[each], each)) if means else None


def _least_edp(arms: Mapping[int, Arm], samples: int) -> int | None:
    tried = {clock: arm.mean_edp for clock, arm in arms.items() if len(arm.edps) >= samples}
    return min(tried, key=lambda clock: (tried[clock], clock)) if tried else None


def _mature_anchor(explored: Mapping[int, Arm], score: Callable[[Arm], float]) -> int | None:
    scores = {clock: score(arm) for clock, arm in explored.items()}
    if not scores:
        return None
    best = max(scores.values())
    bar = 0.8 * best if best > 0.0 else best - 0.3
    candidates = {clock: explored[clock] for clock, value in scores.items() if value >= bar}
    anchor = _least_edp(candidates, ANCHOR_SAMPLES)
    return max(scores, key=lambda clock: (scores[clock], clock)) if anchor is None else anchor
