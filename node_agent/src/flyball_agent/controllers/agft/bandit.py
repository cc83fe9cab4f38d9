"""One ridge regression per clock, and how its worth is judged: disjoint LinUCB (brief 1.4).

The inverse is kept up to date by Sherman and Morrison's formula instead of being solved for anew: the same numbers,
and at 7 x 7 no library is needed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MOST_KEPT: Final = 200
"""Energy-delay products remembered of each clock; the paper's code keeps all."""


class Arm:
    """What is known of one clock.

    Args:
        width: of the context.
        ridge: of the regression.
    """

    def __init__(self, width: int, ridge: float) -> None:
        self._inverse = [[1.0 / ridge if row == column else 0.0 for column in range(width)] for row in range(width)]
        self._moments = [0.0] * width
        self._theta = [0.0] * width
        self.rounds = 0
        self.reward_sum = 0.0
        self.edps: deque[float] = deque(maxlen=MOST_KEPT)

    @property
    def mean_reward(self) -> float:
        """0 before the first round."""
        return self.reward_sum / self.rounds if self.rounds else 0.0

    @property
    def mean_edp(self) -> float:
        """Infinite before the first valid one."""
        return sum(self.edps) / len(self.edps) if self.edps else math.inf

    def expected(self, context: Sequence[float]) -> float:
        """The reward that the regression expects."""
        return _dot(self._theta, context)

    def width(self, context: Sequence[float]) -> float:
        """How little is known of this context."""
        return math.sqrt(max(_dot(context, [_dot(row, context) for row in self._inverse]), 0.0))

    def learn(self, context: Sequence[float], reward: float, edp: float | None) -> None:
        """One round's outcome; `edp` None where it is not valid."""
        pulled = [_dot(row, context) for row in self._inverse]
        scale = 1.0 / (1.0 + _dot(context, pulled))
        for row, left in zip(self._inverse, pulled, strict=True):
            for column, right in enumerate(pulled):
                row[column] -= scale * left * right
        self._moments = [moment + reward * value for moment, value in zip(self._moments, context, strict=True)]
        self._theta = [_dot(row, self._moments) for row in self._inverse]
        self.rounds += 1
        self.reward_sum += reward
        if edp is not None:
            self.edps.append(edp)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "inverse": [list(row) for row in self._inverse],
            "moments": list(self._moments),
            "rounds": self.rounds,
            "reward": self.reward_sum,
            "edps": list(self.edps),
        }

    @staticmethod
    def of(state: Mapping[str, Any], width: int) -> Arm:
        """What `state` gave; KeyError, TypeError, ValueError where it is damaged."""
        arm = Arm(width, 1.0)
        arm._inverse = [[float(value) for value in row] for row in state["inverse"]]
        arm._moments = [float(value) for value in state["moments"]]
        if len(arm._moments) != width or [len(row) for row in arm._inverse] != [width] * width:
            raise ValueError(f"a clock's model has {len(arm._moments)} features, not {width}")
        arm._theta = [_dot(row, arm._moments) for row in arm._inverse]
        arm.rounds, arm.reward_sum = int(state["rounds"]), float(state["reward"])
        arm.edps.extend(float(value) for value in state["edps"])
        return arm


@dataclass(frozen=True, slots=True)
class Exploration:
    """The weight of the unknown: `max(start * exp(-decay * round), floor)`."""

    start: float
    decay: float
    floor: float

    def alpha(self, round_number: int) -> float:
        """In this round, counted from 0."""
        return max(self.start * math.exp(-self.decay * round_number), self.floor)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum([one * other for one, other in zip(left, right, strict=True)])


def reward_of(edp: float | None, baseline: float) -> float:
    """From -2 at twice the baseline and beyond, over 0 at the baseline, to +2; 0 where nothing was measured."""
    return 0.0 if edp is None else 2.0 * (1.0 - min(2.0, edp / baseline))
