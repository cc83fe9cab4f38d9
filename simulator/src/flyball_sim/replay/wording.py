"""Numbers as a reader wants them: three digits, a unit, a sign where it is a difference."""

from __future__ import annotations

import math

ABSENT = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def digits(value: float, count: int = 3) -> str:
    """A number with so many significant digits and thousands apart: 19,400; 3.41; 0.0123."""
    if math.isnan(value):
        return ABSENT
    if value == 0:
        return "0"
    places = max(0, count - 1 - math.floor(math.log10(abs(value))))
    text = f"{round(value, count - 1 - math.floor(math.log10(abs(value)))):,.{places}f}"
    return text.replace("-", MINUS)


def joules(value: float) -> str:
    """Energy, in the unit that leaves one to three digits before the point."""
    for unit, size in (("GJ", 1e9), ("MJ", 1e6), ("kJ", 1e3)):
        if abs(value) >= size:
            return f"{digits(value / size)} {unit}"
    return f"{digits(value)} J"


def watts(value: float) -> str:
    """Power in whole watts."""
    return ABSENT if math.isnan(value) else f"{value:,.0f} W"


def latency(value: float | None) -> str:
    """A latency in milliseconds, from 10 s on in seconds."""
    if value is None or math.isnan(value):
        return ABSENT
    return f"{value:,.1f} s" if value >= 10 else f"{digits(value * 1000)} ms"


def percent(share: float) -> str:
    """A share in percent, never rounded up: 98.99 is not 99, and 100 is all of them."""
    if math.isnan(share):
        return ABSENT
    places = 2 if 0.99 <= share < 1 else 1
    scale = 10**places
    value = math.floor(100 * scale * share + 1e-6) / scale
    return f"{f'{value:.{places}f}'.removesuffix('.0')} %"


def change(before: float, after: float) -> str:
    """By how many percent a quantity changed."""
    if math.isnan(before) or math.isnan(after) or before == 0:
        return ABSENT
    return signed(100 * (after / before - 1), "%")


def signed(value: float, unit: str, places: int = 1) -> str:
    """A difference with its sign."""
    if math.isnan(value):
        return ABSENT
    text = f"{abs(value):,.{places}f}"
    zero = float(text.replace(",", "")) == 0
    return f"{'±' if zero else MINUS if value < 0 else '+'}{text} {unit}"


def seconds(value: float) -> str:
    """A duration: 45 s, 12 min 30 s, 3 h 5 min."""
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if left else f"{hours} h"


def count(number: int, noun: str) -> str:
    """A number of things: 1 GPU, 24 GPUs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
