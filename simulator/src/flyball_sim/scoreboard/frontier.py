"""The least energy of an activity for each time it may take, over every supported SM clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull

from flyball_sim.engine.book import power_line
from flyball_sim.engine.models import StepModel
from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.scoreboard.slo import Floats

_MANY = 2000


@dataclass(frozen=True, slots=True)
class Frontier:
    """Corners of a convex curve that no clock and no mix of clocks comes below: seconds and joules per unit."""

    seconds: Floats
    joules: Floats

    def scaled(self, factor: float) -> Frontier:
        """The frontier of `factor` units."""
        return Frontier(self.seconds * factor, self.joules * factor)

    def joined(self, *others: Frontier) -> Frontier:
        """The frontier of one or the other, or any mix of them."""
        every = (self, *others)
        return lower_hull(np.concatenate([one.seconds for one in every]), np.concatenate([one.joules for one in every]))

    def then(self, other: Frontier) -> Frontier:
        """The frontier of the one and then the other."""
        return lower_hull(
            np.add.outer(self.seconds, other.seconds).ravel(), np.add.outer(self.joules, other.joules).ravel()
        )


class Clocks:
    """Time and energy at every supported SM clock of one group of cards.

    Energy is linear in time, busy time, bytes and operations at a clock (`power_line`), whatever the cap: a cap only
    chooses among these clocks.
    """

    def __init__(self, model: StepModel, dies: Sequence[Die] = ()) -> None:
        gpu = model.gpu
        dies = tuple(dies) or (NOMINAL_DIE,) * model.gpus
        supported = sorted({*gpu.supported_sm_mhz(), gpu.sm_max_mhz})
        self.sm_mhz = np.array(supported, dtype=float)
        lines = [power_line(gpu, float(sm_mhz), dies) for sm_mhz in supported]
        self._waiting, self._busy, self._memory, self._compute = (
            np.array([getattr(line, name) for line in lines]) for name in ("waiting", "busy", "memory", "compute")
        )
        self._bandwidth = np.array([gpu.bandwidth_factor(float(sm_mhz)) for sm_mhz in supported])
        self._stretch = model.reference_mhz / self.sm_mhz
        self._bytes_per_second = gpu.memory_bandwidth_bytes_per_second
        # `compute` is per share of the peak at the clock, so the same operations are a larger share of a lower clock.
        self._flops_per_second = gpu.dense_bf16_flops * self.sm_mhz / gpu.sm_max_mhz

    @property
    def idle_watts(self) -> float:
        """The least watts of waiting cards."""
        return float(self._waiting.min())

    @property
    def busy_watts(self) -> float:
        """The least watts of cards with a kernel running that moves and computes nothing."""
        return float((self._waiting + self._busy).min())

    def seconds(self, costs: Floats) -> Floats:
        """Seconds by (cost, clock) of costs in the order of `floors.QUANTITIES`."""
        host, fixed, clocked = (costs[:, index][:, None] for index in range(3))
        return np.asarray(host + fixed / self._bandwidth + clocked * self._stretch)

    def joules(self, costs: Floats) -> Floats:
        """Joules of the whole group by (cost, clock)."""
        host, _, _, memory, flops = (costs[:, index][:, None] for index in range(5))
        seconds = self.seconds(costs)
        return np.asarray(
            self._waiting * seconds
            + self._busy * (seconds - host)
            + self._memory * memory / self._bytes_per_second
            + self._compute * flops / self._flops_per_second
        )

    def frontier(self, costs: Floats) -> Frontier:
        """The frontier of an activity with these alternatives, (alternatives, quantities) per unit of it."""
        return lower_hull(self.seconds(costs).ravel(), self.joules(costs).ravel())

    def top_seconds(self, costs: Floats) -> Floats:
        """Seconds of each cost at the clock it is fastest at."""
        return np.asarray(self.seconds(costs).min(axis=1))


def lower_hull(seconds: Floats, joules: Floats) -> Frontier:
    """The lower convex hull of points, from the left; of points above each other the lowest."""
    if len(seconds) > _MANY:
        corners = ConvexHull(np.column_stack((seconds, joules))).vertices
        seconds, joules = seconds[corners], joules[corners]
    order = np.lexsort((joules, seconds))
    hull: list[tuple[float, float]] = []
    for point in zip(seconds[order].tolist(), joules[order].tolist(), strict=True):
        if hull and point[0] <= hull[-1][0]:
            continue
        while len(hull) > 1 and _turn(hull[-2], hull[-1], point) <= 0.0:
            hull.pop()
        hull.append(point)
    corners = np.array(hull)
    return Frontier(corners[:, 0], corners[:, 1])


def _turn(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> float:
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0])


def simplified(frontier: Frontier, tolerance: float) -> Frontier:
    """Fewer corners on a convex curve that lies nowhere above the given one, and about a share `tolerance` below it.

    An edge is taken out by extending its two neighbours until they meet, below it.
    """
    points = list(zip(frontier.seconds.tolist(), frontier.joules.tolist(), strict=True))
    allowed = tolerance * min(frontier.joules)
    spent = [0.0] * len(points)
    while len(points) > 3:
        best: tuple[float, int, tuple[float, float]] | None = None
        for index in range(1, len(points) - 2):
            meet = _meeting(points[index - 1], points[index], points[index + 1], points[index + 2])
            if meet is None:
                continue
            left, right = points[index], points[index + 1]
            chord = left[1] + (right[1] - left[1]) * (meet[0] - left[0]) / (right[0] - left[0])
            drop = chord - meet[1] + max(spent[index], spent[index + 1])
            if best is None or drop < best[0]:
                best = (drop, index, meet)
        if best is None or best[0] > allowed:
            break
        drop, index, meet = best
        points[index : index + 2] = [meet]
        spent[index : index + 2] = [drop]
    corners = np.array(points)
    return Frontier(corners[:, 0], corners[:, 1])


def _meeting(
    first: tuple[float, float], second: tuple[float, float], third: tuple[float, float], fourth: tuple[float, float]
) -> tuple[float, float] | None:
    """Where the line through the first two points meets the line through the last two, if between them."""
    left = (second[1] - first[1]) / (second[0] - first[0])
    right = (fourth[1] - third[1]) / (fourth[0] - third[0])
    if right <= left:
        return None
    at = (third[1] - second[1] + left * second[0] - right * third[0]) / (left - right)
    if not second[0] <= at <= third[0]:
        return None
    return at, second[1] + left * (at - second[0])
