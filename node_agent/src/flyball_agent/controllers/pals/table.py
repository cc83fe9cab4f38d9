"""What the offline model predicts of every cap and batch limit, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

VERSION: Final = 1
_MOST_CANDIDATES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One cap and batch limit, and what the model predicts of a saturated engine under both.

    Attributes:
        cap_watts: of each card.
        batch_limit: most sequences in the batch.
        tokens_per_second: output of the engine.
        power_watts: of one card.
    """

    cap_watts: int
    batch_limit: int
    tokens_per_second: float
    power_watts: float


@dataclass(frozen=True, slots=True)
class NodePower:
    """Watts of the node from those of its cards, a straight line (paper, telemetry).

    Attributes:
        base_watts: what it draws beside its cards.
        factor: watts of the node for each watt of the cards.
    """

    base_watts: float = 0.0
    factor: float = 1.0

    def watts(self, gpu_watts: float) -> float:
        """Of the node, for the cards' sum."""
        return self.base_watts + self.factor * gpu_watts


@dataclass(frozen=True, slots=True)
class Table:
    """The model's predictions on its grid.

    Attributes:
        gpus: cards of the group.
        candidates: ascending by cap, then batch limit.
        throughput_error_percent: mean absolute error on configurations that were held out.
        power_error_percent: likewise.
        accepted: both errors are at most the published ones.
    """

    gpus: int
    candidates: tuple[Candidate, ...]
    throughput_error_percent: float
    power_error_percent: float
    accepted: bool

    @property
    def largest_batch(self) -> int:
        """The largest batch limit of the grid."""
        return max(candidate.batch_limit for candidate in self.candidates)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen.

    Attributes:
        candidate: it.
        meets: it is predicted to reach what is needed.
        within: it is predicted to stay within the budget.
    """

    candidate: Candidate
    meets: bool
    within: bool


@dataclass(frozen=True, slots=True)
class Bounds:
    """What candidates are judged by.

    Attributes:
        budget_watts: most that the cards may draw together.
        needed_tokens_per_second: output to be reached; None: not known, as much as can be had.
        margin: share by which predicted power may be too low.
        gpus: cards.
        node: watts of the node.
    """

    budget_watts: float
    needed_tokens_per_second: float | None
    margin: float
    gpus: int
    node: NodePower = NodePower()

    def within(self, candidate: Candidate) -> bool:
        """Whether it stays within the budget: its cards' caps keep it there, or the model says that it draws less.

        A cap is held by the card itself; a margin for the model's error on top of it would forbid the lowest cap
        under a budget of exactly that.
        """
        drawn = min(float(candidate.cap_watts), candidate.power_watts * (1.0 + self.margin))
        return self.gpus * drawn <= self.budget_watts + 1e-9

    def meets(self, candidate: Candidate) -> bool:
        """Whether it is predicted to give what is needed."""
        needed = self.needed_tokens_per_second
        return needed is not None and candidate.tokens_per_second >= needed

    def efficiency(self, candidate: Candidate) -> float:
        """Tokens per joule of the node."""
        return candidate.tokens_per_second / max(self.node.watts(self.gpus * candidate.power_watts), 1e-9)


def nearest(candidates: Sequence[Candidate], cap_watts: int, batch_limit: int) -> Candidate:
    """The candidate of this batch limit, or the next one, with the cap that is nearest."""
    return min(candidates, key=lambda one: (abs(one.batch_limit - batch_limit), abs(one.cap_watts - cap_watts)))


def choose(candidates: Sequence[Candidate], bounds: Bounds) -> Choice:
    """The rule of the paper: of those within the budget that reach the target the most efficient, else the fastest.

    With none within the budget: the lowest cap with the smallest batch. Ties go to the lower cap and smaller batch.

    Args:
        candidates: at least one.
        bounds: what they are judged by.
    """
    within = [candidate for candidate in candidates if bounds.within(candidate)]
    if not within:
        least = min(candidates, key=lambda one: (one.cap_watts, one.batch_limit))
        return Choice(least, meets=bounds.meets(least), within=False)
    meeting = [candidate for candidate in within if bounds.meets(candidate)]
    if meeting:
        return Choice(max(meeting, key=bounds.efficiency), meets=True, within=True)
    return Choice(max(within, key=lambda one: (one.tokens_per_second, -one.cap_watts)), meets=False, within=True)


def read_table(fit: Mapping[str, Any], gpus: int) -> Table:
    """The table that `fit` put into a profile.

    Args:
        fit: `profile.fits["PALS"]`.
        gpus: cards of the group that it is wanted for.

    Raises:
        ValueError: it is of another version or group size, or damaged; the message says what is wrong.
    """
    try:
        if fit["version"] != VERSION:
            raise ValueError(f"it is of version {fit['version']!r}, not {VERSION}")
        if fit["gpus"] != gpus:
            raise ValueError(f"it is of {fit['gpus']!r} GPUs and the engine has {gpus}")
        caps, batches = _whole(fit["caps_watts"]), _whole(fit["batch_limits"])
        tokens, watts = fit["tokens_per_second"], fit["power_watts"]
        if not 0 < len(caps) * len(batches) <= _MOST_CANDIDATES:
            raise ValueError(f"its grid has {len(caps)} x {len(batches)} places")
        candidates = tuple(
            Candidate(cap, batch, _positive(tokens[row][column]), _positive(watts[row][column]))
            for row, cap in enumerate(caps)
            for column, batch in enumerate(batches)
        )
        throughput, power = _error(fit["throughput_error_percent"]), _error(fit["power_error_percent"])
        return Table(gpus, candidates, throughput, power, accepted=fit["accepted"] is True)
    except (KeyError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error


def _whole(values: Any) -> list[int]:
    found = [int(value) for value in values]
    if sorted(set(found)) != found or (found and found[0] < 1):
        raise ValueError(f"a side of its grid is not ascending from 1: {found[:8]}")
    return found


def _error(value: Any) -> float:
    error = float(value)
    if not 0.0 <= error < math.inf:
        raise ValueError(f"it holds {value!r} where an error in percent belongs")
    return error


def _positive(value: Any) -> float:
    number = float(value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"it holds {value!r} where a number above 0 belongs")
    return number
