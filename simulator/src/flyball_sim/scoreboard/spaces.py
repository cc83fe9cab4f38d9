"""What tuning may set of each controller, declared in one table: every controller's is searched the same way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number between two bounds, both included; `log`: as likely to be halved as doubled."""

    low: int
    high: int
    log: bool = False

    def at(self, place: float) -> int:
        """The value at a place in 0 to 1."""
        if not self.log:
            return round(self.low + place * (self.high - self.low))
        return round(math.exp(math.log(self.low) + place * math.log(self.high / self.low)))

    def place(self, value: Any) -> float:
        """Where a value is in 0 to 1, about; `at` gives it back."""
        inside = float(min(max(value, self.low), self.high))
        if not self.log:
            return (inside - self.low) / (self.high - self.low)
        return math.log(inside / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values."""

    values: Sequence[Any]

    def at(self, place: float) -> Any:
        """The value at a place in 0 to 1."""
        return self.values[min(int(place * len(self.values)), len(self.values) - 1)]

    def place(self, value: Any) -> float:
        """Where a value is in 0 to 1; `at` gives it back."""
        return (list(self.values).index(value) + 0.5) / len(self.values)


Knob = Number | Choice


@dataclass(frozen=True, slots=True)
class Space:
    """What of one controller is searched.

    Attributes:
        knobs: by field of its parameters.
        fixed: fields that every trial sets.
    """

    knobs: Mapping[str, Knob]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def at(self, places: Iterable[float]) -> dict[str, Any]:
        """The parameters at a point of the unit cube."""
        values = {name: knob.at(place) for (name, knob), place in zip(self.knobs.items(), places, strict=True)}
        return {**self.fixed, **values}

    def places(self, parameters: Mapping[str, Any]) -> list[float]:
        """The point of the unit cube at these parameters."""
        return [knob.place(parameters[name]) for name, knob in self.knobs.items()]


_AGFT: Final = Space(
    {
        "slo_margin_percent": Number(30, 120),
        "alpha_start_percent": Number(50, 1000, log=True),
        "alpha_decay_permille": Number(5, 100, log=True),
        "alpha_floor_percent": Number(2, 100, log=True),
        "coarse_step_permille": Number(25, 120),
        "ridge": Number(1, 20, log=True),
        "historical_percent": Number(100, 1000, log=True),
        "extreme_reward_permille": Number(400, 1900),
    },
    # Its own limits of latency are far beyond any objective here.
    {"policy_slo": True},
)

SPACES: Final[Mapping[str, Space]] = MappingProxyType(
    {
        "agft": _AGFT,
        "agft-improved": _AGFT,
        "voltanallm": Space(
            {
                "margin_percent": Number(-60, 100),
                "clocks_permille": Choice(
                    (
                        (713, 1000),
                        (713, 777, 851, 926, 1000),
                        (500, 600, 713, 777, 851, 926, 1000),
                        (400, 500, 600, 700, 800, 900, 1000),
                    )
                ),
                "idle_milliseconds": Number(200, 10_000, log=True),
                "window_milliseconds": Choice((0, 100, 1000)),
                "correction_percent": Choice((0, 10, 30)),
            }
        ),
        "throttllem": Space(
            {
                "margin_percent": Number(0, 150),
                "count_prefill": Choice((False, True)),
                "ttft_share_percent": Number(0, 100),
                "tbt_reading": Choice(("Average", "Strict")),
                "admission": Choice((False, True)),
                "floor_percent": Number(0, 80),
                "dwell_milliseconds": Number(0, 3000),
            }
        ),
        "pals": Space(
            {
                "offered_percent": Number(105, 400, log=True),
                "offered_milliseconds": Number(1000, 60_000, log=True),
                "deviation_percent": Number(0, 15),
                "deviation_ticks": Number(1, 6),
                "hysteresis_percent": Number(0, 10),
                "correction_percent": Number(0, 100),
                "integral_percent": Number(0, 40),
                "dwell_up_milliseconds": Number(0, 10_000),
            }
        ),
        "flyball": Space(
            {
                "miss_budget_percent": Number(40, 90),
                "margin_gain_percent": Number(2, 10, log=True),
                "exploration_percent": Number(105, 150),
                "down_delay_milliseconds": Number(0, 5000),
                "least_gain_percent": Number(0, 3),
            }
        ),
    }
)
"""By contender."""
