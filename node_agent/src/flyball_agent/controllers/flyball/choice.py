"""Which clock to hold: the one of least predicted power among those that hold the objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from flyball_agent.controllers.base import Targets
from flyball_agent.controllers.flyball.feasibility import (
    ACTUATION_SECONDS,
    LONG_PROMPT,
    Forecast,
    binding,
    forecast,
    misses_of,
    watts_of,
)
from flyball_agent.controllers.flyball.latency import LatencyModel
from flyball_agent.controllers.flyball.load import Load
from flyball_agent.controllers.flyball.margin import Margin
from flyball_agent.controllers.flyball.power import PowerModel

_VALLEY_STEPS: Final = 24
"""The grid above the lowest feasible clock is looked through in at most so many steps."""
_COARSE_STEPS: Final = 10
"""The same, before a finer look around the best of them."""
_UNKNOWN_SHARE: Final = 0.55
_UNKNOWN_SLACK: Final = 0.4
"""Of the time to first token, for what is lost at a clock that an unknown engine waits at."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A clock and why.

    Attributes:
        index: of the clock in the grid; None: no clock holds the objectives.
        lowest: index of the lowest clock that holds them.
        binds: what the next lower one breaks; empty where it is the lowest of all.
        forecast: of the chosen clock, the highest where none holds.
        watts: of the group at it.
    """

    index: int | None
    lowest: int
    binds: str
    forecast: Forecast
    watts: float


@dataclass(frozen=True, slots=True)
class View:
    """What a choice is made from.

    Attributes:
        latency: model of step times.
        power: model of watts.
        clocks: the grid in MHz, ascending.
        top_mhz: the clock the models' times are for.
        targets: the objectives.
        margin: how much of each objective a prediction may use up.
        miss_joules: what a miss of the time per output token is worth.
    """

    latency: LatencyModel
    power: PowerModel
    clocks: Sequence[int]
    top_mhz: int
    targets: Targets
    margin: Margin
    miss_joules: float = 0.0
    _seen: dict[int, Forecast] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, load: Load, index: int) -> Forecast:
        """What the clock with this index would do; a view is of one load."""
        seen = self._seen.get(index)
        if seen is None:
            share = self.clocks[index] / self.top_mhz
            seen = self._seen[index] = forecast(self.latency, load, share)
        return seen

    def breaks(self, load: Load, index: int, slack: float = 1.0) -> str:
        """Which objective it would break."""
        return binding(
            self.at(load, index),
            load,
            self.targets,
            ttft_margin=self.margin.ttft,
            tpot_margin=self.margin.tpot,
            slack=slack,
        )

    def cost(self, load: Load, index: int, slack: float = 1.0) -> float:
        """Watts, and what the misses that it would make are worth."""
        seen = self.at(load, index)
        watts = self.watts(seen)
        tpot = self.targets.tpot_seconds
        if tpot is None or self.miss_joules <= 0.0:
            return watts
        return watts + self.miss_joules * misses_of(seen, self.latency, load, tpot, slack=slack)

    def watts(self, seen: Forecast) -> float:
        """Of the group at a forecast."""
        return watts_of(self.power, self.latency, seen)


def choose(view: View, load: Load, *, known: int, slack: float) -> Choice:
    """The clock of least predicted power, misses priced, among those that hold the objectives.

    Args:
        view: models, grid and objectives.
        load: what asks for work.
        known: the lowest index at which the engine was seen to work; below it predictions are stretched.
        slack: how far they are.
    """
    top = len(view.clocks) - 1

    def broken(index: int) -> str:
        return view.breaks(load, index, slack if index < known else 1.0)

    why = broken(top)
    if why:
        seen = view.at(load, top)
        return Choice(None, top, why, seen, view.watts(seen))
    low, high, binds = -1, top, ""
    while high - low > 1:
        middle = (low + high) // 2
        found = broken(middle)
        if found:
            low, binds = middle, found
        else:
            high = middle

    def cost(index: int) -> float:
        return view.cost(load, index, slack if index < known else 1.0)

    stride = max(1, (top - high) // _COARSE_STEPS)
    best = min((*range(high, top, stride), top), key=cost)
    while stride > 1:
        stride = (stride + 1) // 2
        best = min((best, max(high, best - stride), min(top, best + stride)), key=cost)
    seen = view.at(load, best)
    return Choice(best, high, binds, seen, view.watts(seen))


def parking(view: View, load: Load, *, wake: int, look_seconds: float, slack: float) -> int:
    """The lowest clock at which an idle engine may wait for its next request.

    What comes right after a look is served at this clock until the next look and the change of clock that follows;
    a long prompt, with what a rush brings in that time, must still give its first token within the objective, and
    decode steps must keep theirs.

    Args:
        view: models, grid and objectives.
        load: of the time before.
        wake: index of the clock that the next look would choose.
        look_seconds: between two looks.
        slack: how far predictions are stretched.
    """
    late = look_seconds + ACTUATION_SECONDS
    tokens = LONG_PROMPT * load.prompt_tokens + load.rush_rate * late
    fast = view.latency.prompt_seconds(view.clocks[wake] / view.top_mhz)
    for index in range(0, wake, max(1, wake // _VALLEY_STEPS)):
        share = view.clocks[index] / view.top_mhz
        slow = view.latency.prompt_seconds(share)
        first = tokens * slow
        if first > late:
            first = late + (tokens - late / slow) * fast
        step = view.latency.base(share)
        tpot, ttft = view.targets.tpot_seconds, view.targets.ttft_seconds
        if tpot is not None and step * slack > min(1.0, view.margin.tpot) * tpot:
            continue
        if ttft is not None and (first + step) * slack > min(1.0, view.margin.ttft) * ttft:
            continue
        return index
    return wake


def unknown_parking(clocks: Sequence[int], top_mhz: int, ttft_seconds: float, look_seconds: float) -> int:
    """The lowest clock at which an engine that has never worked may wait for its first request.

    Nothing is known of it, but that no work takes longer than in inverse proportion to the clock: until the next look
    has changed the clock, a request falls behind by at most `1 - x` of that time.
    """
    late = look_seconds + ACTUATION_SECONDS
    share = max(_UNKNOWN_SHARE, 1.0 - _UNKNOWN_SLACK * ttft_seconds / late)
    return next((index for index, mhz in enumerate(clocks) if mhz >= share * top_mhz), len(clocks) - 1)
