"""What is about to come: the trend of the last seconds, and what the hour usually brings."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from flyball_agent.controllers.flyball.memory import numbers

_DAY_SECONDS: Final = 86_400.0
SLOTS: Final = 96
"""Quarters of an hour."""
_MEMORY_DAYS: Final = 0.3
"""Weight of a new day."""
_MOST_GROWTH: Final = 1.5
_HALF: Final = 15
"""Looks in each half of the trend."""
_AHEAD_SECONDS: Final = 4.0


class Anticipation:
    """Learns the mean prompt rate of each quarter of an hour, and sees ramps."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=2 * _HALF)
        self.rates: list[float] = [-1.0] * SLOTS
        self._slot = -1
        self._amount = self._seconds = 0.0

    def see(self, prompt_tokens: float, requests: float, seconds: float, now_seconds: float) -> float:
        """By what factor the rates may be higher soon, at least 1."""
        self._remember(prompt_tokens, seconds, now_seconds)
        self._recent.append((requests, seconds))
        return min(_MOST_GROWTH, max(self._trend(), self._usual(now_seconds)))

    def _trend(self) -> float:
        recent = list(self._recent)
        if len(recent) < 2 * _HALF:
            return 1.0
        before, after = recent[:_HALF], recent[_HALF:]
        old, new = sum(part[0] for part in before), sum(part[0] for part in after)
        old_seconds, new_seconds = sum(part[1] for part in before), sum(part[1] for part in after)
        rise = new / new_seconds - old / old_seconds
        chance = 2.0 * math.sqrt(new / new_seconds**2 + old / old_seconds**2)
        if rise <= chance or new <= 0.0:
            return 1.0
        slope = (rise - chance) / (0.5 * (old_seconds + new_seconds))
        return 1.0 + slope * (_AHEAD_SECONDS + 0.5 * new_seconds) * new_seconds / new

    def _remember(self, prompt_tokens: float, seconds: float, now_seconds: float) -> None:
        slot = _slot(now_seconds)
        if slot != self._slot:
            if self._slot >= 0 and self._seconds >= 0.5 * _DAY_SECONDS / SLOTS:
                rate, known = self._amount / self._seconds, self.rates[self._slot]
                self.rates[self._slot] = rate if known < 0.0 else known + _MEMORY_DAYS * (rate - known)
            self._slot, self._amount, self._seconds = slot, 0.0, 0.0
        self._amount += prompt_tokens
        self._seconds += seconds

    def _usual(self, now_seconds: float) -> float:
        """How much busier the next quarter usually is, in the last minute before it."""
        slot = _slot(now_seconds)
        length = _DAY_SECONDS / SLOTS
        if (now_seconds % length) < length - 60.0:
            return 1.0
        here, there = self.rates[slot], self.rates[(slot + 1) % SLOTS]
        return there / here if here > 0.0 and there > here else 1.0

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"rates": list(self.rates)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it is damaged.
        """
        self.rates = numbers(state.get("rates"), "rates", SLOTS)


def _slot(now_seconds: float) -> int:
    return int(now_seconds % _DAY_SECONDS / (_DAY_SECONDS / SLOTS)) % SLOTS
