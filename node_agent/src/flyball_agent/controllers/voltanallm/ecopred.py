"""EcoPred's tables: how long prompts and decode steps take, by SM clock (arXiv 2509.04827, after the public code v0.1).

Prefill: one line by clock, over new prompt tokens of the batch. Decode: one plane by clock and batch bin, over
sequences and the KV tokens they hold. Between two clocks it is interpolated linearly; outside of them it predicts
nothing (the code dies there). What comes out at 0 or below is 20 ms, as in the code.

Ours: the bins of a real profile have gaps, because every batch of it costs time. Between two bins it is interpolated
linearly in the sequences, from the last of the one to the first of the other. A fraction of a sequence counts as a
whole one (the code skips the clock if the median falls between two bins).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

VERSION: Final = 1
DECODE_COLUMNS: Final = ("freq", "bs_start", "bs_end", "coef_bs", "coef_tokens", "coef_intercept", "r_2")
PREFILL_COLUMNS: Final = ("freq", "coef_tokens", "coef_intercept", "r_2")
"""The code's own; milliseconds and MHz."""
FALLBACK_MS: Final = 20.0
"""What the code predicts where its line gives nothing above 0."""


class Line(NamedTuple):
    """Milliseconds of prompts at one clock."""

    per_token: float
    constant: float


class Plane(NamedTuple):
    """Milliseconds of a decode step at one clock, for one bin of batches."""

    first: int
    last: int
    per_sequence: float
    per_token: float
    constant: float

    def ms(self, running: float, kv_tokens: float) -> float:
        """At these many sequences and tokens."""
        return self.per_sequence * running + self.per_token * kv_tokens + self.constant


@dataclass(frozen=True, slots=True)
class EcoPred:
    """Predicts from tables.

    Attributes:
        prefill: by SM clock in MHz, ascending.
        decode: likewise, planes by batch.
    """

    prefill: Mapping[int, Line]
    decode: Mapping[int, tuple[Plane, ...]]

    @staticmethod
    def from_fit(fit: Mapping[str, Any]) -> EcoPred:
        """What `fit.fit` made.

        Raises:
            ValueError: it is damaged or of another version.
        """
        if fit.get("version") != VERSION:
            raise ValueError(f"version of the fit is {fit.get('version')!r}, and this Flyball reads {VERSION}")
        prefill = {int(row[0]): Line(row[1], row[2]) for row in _rows(fit, "prefill", PREFILL_COLUMNS)}
        planes: dict[int, list[Plane]] = {}
        for row in _rows(fit, "decode", DECODE_COLUMNS):
            planes.setdefault(int(row[0]), []).append(Plane(int(row[1]), int(row[2]), *row[3:6]))
        decode = {mhz: tuple(sorted(planes[mhz])) for mhz in sorted(planes)}
        return EcoPred({mhz: prefill[mhz] for mhz in sorted(prefill)}, decode)

    def prompt_seconds_per_token(self, sm_mhz: float) -> float | None:
        """Slope of the prefill line; None outside the profiled clocks."""
        return _between(self.prefill, sm_mhz, lambda line: line.per_token / 1e3)

    def prefill_seconds(self, sm_mhz: float, prompt_tokens: float) -> float | None:
        """Execution of a batch of prompts, no queueing; None outside the profiled clocks."""
        if prompt_tokens <= 0:
            return 0.0
        return _between(self.prefill, sm_mhz, lambda line: _seconds(line.per_token * prompt_tokens + line.constant))

    def decode_seconds(self, sm_mhz: float, running: float, kv_tokens: float) -> float | None:
        """A decode step; None outside the profiled clocks and beyond the largest profiled batch."""
        if running <= 0:
            return 0.0
        whole = math.ceil(running)
        return _between(self.decode, sm_mhz, lambda planes: _step_seconds(planes, whole, kv_tokens))


def _seconds(ms: float) -> float:
    return (ms if ms > 0.0 else FALLBACK_MS) / 1e3


def _step_seconds(planes: tuple[Plane, ...], running: int, kv_tokens: float) -> float | None:
    at = bisect_left(planes, running, key=lambda plane: plane.last)
    if at == len(planes):
        return None
    right = planes[at]
    if running >= right.first or at == 0:
        return _seconds(right.ms(running, kv_tokens))
    left = planes[at - 1]
    share = (running - left.last) / (right.first - left.last)
    low, high = left.ms(left.last, kv_tokens), right.ms(right.first, kv_tokens)
    return _seconds(low + share * (high - low))


_T = TypeVar("_T")


def _between(tables: Mapping[int, _T], sm_mhz: float, value: Callable[[_T], float | None]) -> float | None:
    """The value at a clock, linear between the profiled ones; None outside of them or where one has none."""
    low = high = None
    for mhz in tables:
        if mhz <= sm_mhz:
            low = mhz
        if mhz >= sm_mhz:
            high = mhz
            break
    if low is None or high is None:
        return None
    below = value(tables[low])
    if low == high or below is None:
        return below
    above = value(tables[high])
    return None if above is None else below + (sm_mhz - low) / (high - low) * (above - below)


def _rows(fit: Mapping[str, Any], table: str, columns: tuple[str, ...]) -> list[list[float]]:
    """Rows of a table of the fit.

    Raises:
        ValueError: it is no such table, or a number in it is none.
    """
    held = fit.get(table)
    rows = held.get("rows") if isinstance(held, Mapping) and held.get("columns") == list(columns) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{table} of the fit is no table of {', '.join(columns)} with rows: make the profile anew")
    for row in rows:
        if not isinstance(row, list) or len(row) != len(columns) or not all(_is_number(value) for value in row):
            raise ValueError(f"row {str(row)[:60]} in {table} of the fit is not {len(columns)} numbers: make it anew")
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
