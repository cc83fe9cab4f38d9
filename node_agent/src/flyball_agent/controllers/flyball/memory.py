"""Reading back what a controller had learnt, and refusing what is damaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(state: Mapping[str, Any], name: str, low: float, high: float) -> float:
    """A number of the state.

    Raises:
        ValueError: it is missing, none, or out of bounds.
    """
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"state: {name} is {value!r}: a finite number is wanted")
    if not low <= value <= high:
        raise ValueError(f"state: {name} is {value}: give a number from {low:g} to {high:g}")
    return float(value)


def numbers(value: Any, name: str, count: int) -> list[float]:
    """A list of so many finite numbers.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        raise ValueError(f"state: {name} is {value!r}: a list of {count} numbers is wanted")
    return [number({name: one}, name, -math.inf, math.inf) for one in value]


def part(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object within the state.

    Raises:
        ValueError: it is missing or none.
    """
    value = state.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"state: {name} is {value!r}: an object is wanted")
    return value
