"""What Flyball is to reach in every cell, which cells it does not reach it in, and what the numbers say of why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from flyball_sim.scoreboard.intervals import ratio_interval
from flyball_sim.scoreboard.records import Record
from flyball_sim.scoreboard.slo import ATTAINMENT, CAPACITY_ATTAINMENT

STATIONARY: Final = frozenset({"code", "bursts"})
"""Traces whose rate does not change; all others' does."""
ATTAINMENT_SLACK: Final = 0.005
STATIC_SLACK: Final = 1.01
CHANGING_SHARE: Final = 0.95
WORTH_IT: Final = 0.92
"""A changing cell counts where the schedule that knows the future is this much of the best static setting or less."""
CLAIRVOYANT_SLACK: Final = 1.07
_STATICS: Final = ("static-clock", "static-cap", "static-pair")
_SEED: Final = 1

Rows: TypeAlias = Mapping[str, Record]
CellName: TypeAlias = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal in one cell.

    Attributes:
        goal: its name.
        cell: (world, trace, load, SLO).
        holds: whether it is reached.
        value: what is compared with the limit.
        limit: what it may be.
        against: the row it is compared with; empty: none.
        reason: what the numbers say where it is not reached.
    """

    goal: str
    cell: CellName
    holds: bool
    value: float
    limit: float
    against: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal: its name, what it says, and its verdict on a cell (None: it does not apply)."""

    name: str
    says: str
    judge: Callable[[_Cell], Verdict | None]


@dataclass(frozen=True, slots=True)
class _Cell:
    name: CellName
    rows: Rows
    ours: Record
    rivals: tuple[Record, ...]

    def ranked(self, names: Iterable[str]) -> list[Record]:
        return [self.rows[name] for name in names if name in self.rows and self.rows[name]["ranked"]]

    @property
    def static(self) -> Record | None:
        """The best static setting that holds the SLO."""
        return min(self.ranked(_STATICS), key=_joules, default=None)


def cells_of(records: Iterable[Record]) -> dict[CellName, dict[str, Record]]:
    """The rows of each cell by their name."""
    found: dict[CellName, dict[str, Record]] = {}
    for record in records:
        cell = (record["world"], record["trace"], record["load"], record["slo"])
        found.setdefault(cell, {})[record["controller"]] = record
    return found


def judge(records: Sequence[Record], *, ours: str, rivals: Iterable[str]) -> list[Verdict]:
    """Every goal in every cell that has the row `ours`.

    Args:
        records: of any number of cells.
        ours: name of the row that is judged.
        rivals: names of the rows it has to beat.
    """
    rivals = tuple(rivals)
    verdicts = []
    for name, rows in sorted(cells_of(records).items()):
        if ours not in rows:
            continue
        cell = _Cell(name, rows, rows[ours], tuple(rows[rival] for rival in rivals if rival in rows))
        found = [goal.judge(cell) for goal in GOALS]
        verdicts += [verdict for verdict in found if verdict is not None]
    return verdicts


def _attains(cell: _Cell) -> Verdict:
    unlocked, ours = cell.rows["unlocked"]["attainment"], cell.ours["attainment"]
    limit = ATTAINMENT if unlocked >= CAPACITY_ATTAINMENT else unlocked - ATTAINMENT_SLACK
    reason = ""
    if ours < limit:
        missed = round((limit - ours) * cell.ours["requests_offered"])
        reason = f"{missed} of {cell.ours['requests_offered']} requests too many miss"
        low, high = cell.ours["attainment_low"], cell.ours["attainment_high"]
        if low is not None and low <= limit <= high:
            reason += f"; the 95 % interval {100 * low:.2f}-{100 * high:.2f} % holds the limit"
        reason += _others_miss(cell)
    return Verdict("attainment", cell.name, ours >= limit, ours, limit, "unlocked", reason)


def _others_miss(cell: _Cell) -> str:
    missing = sum(not rival["ranked"] for rival in cell.rivals)
    return f"; {missing} of {len(cell.rivals)} rivals miss 99 % too" if cell.rivals else ""


def _beats_rivals(cell: _Cell) -> Verdict | None:
    attaining = [rival for rival in cell.rivals if rival["ranked"]]
    if not attaining:
        return None
    best = min(attaining, key=_joules)
    return _compared("rivals", cell, best, 1.0)


def _near_static(cell: _Cell) -> Verdict | None:
    if cell.name[1] not in STATIONARY or cell.static is None:
        return None
    return _compared("stationary", cell, cell.static, STATIC_SLACK)


def _below_static(cell: _Cell) -> Verdict | None:
    schedule, static = cell.rows.get("clairvoyant"), cell.static
    if cell.name[1] in STATIONARY or schedule is None or static is None:
        return None
    if _joules(schedule) > WORTH_IT * _joules(static):
        return None
    return _compared("changing", cell, static, CHANGING_SHARE)


def _near_clairvoyant(cell: _Cell) -> Verdict | None:
    schedule = cell.rows.get("clairvoyant")
    return None if schedule is None else _compared("clairvoyant", cell, schedule, CLAIRVOYANT_SLACK)


def _compared(goal: str, cell: _Cell, other: Record, limit: float) -> Verdict:
    """Ours over another row's energy is at most the limit, and the SLO holds."""
    ratio = _joules(cell.ours) / _joules(other)
    holds = cell.ours["ranked"] and (ratio <= limit if limit != 1.0 else ratio < 1.0)
    reason = "" if holds else _reason(cell, other, ratio, limit)
    return Verdict(goal, cell.name, holds, round(ratio, 4), limit, other["controller"], reason)


def _reason(cell: _Cell, other: Record, ratio: float, limit: float) -> str:
    if not cell.ours["ranked"]:
        return f"attains {100 * cell.ours['attainment']:.2f} %"
    reasons = []
    if cell.rows.get("static-clock", {}).get("lowest_clock") and other["controller"] != "clairvoyant":
        reasons.append("no clock below the best static one")
    ours, its = (np.array(row["blocks_joules"]) for row in (cell.ours, other))
    if len(ours) and len(ours) == len(its):
        low, high = ratio_interval(ours, its, seed=_SEED)
        if low <= limit:
            reasons.append(f"within the 95 % interval ({low:.3f}-{high:.3f})")
        seconds, after = _learnt_after(ours, its, limit, cell.ours["seconds"])
        if seconds is not None:
            reasons.append(f"cold learning: the first {seconds:.0f} s; {after:.3f} after them")
    reasons += _on_our_signals(cell, other)
    spare = cell.ours["attainment"] - other["attainment"]
    if spare >= 0.001:
        reasons.append(f"leaves {100 * spare:.2f} points of misses unspent that {other['controller']} spends")
    static = cell.static
    if other["controller"] == "clairvoyant" and static is not None:
        reasons.append(f"the best static setting is {_joules(static) / _joules(other):.3f} of it")
    return "; ".join(reasons) or f"not explained by these numbers ({ratio - limit:+.3f})"


def _on_our_signals(cell: _Cell, other: Record) -> list[str]:
    """What the same rival does where it sees no more than Flyball."""
    rival = other["controller"].removesuffix("/tuned")
    blind = cell.rows.get(f"{rival}/page")
    if blind is None or rival == other["controller"]:
        return []
    ratio = _joules(blind) / _joules(cell.ours)
    what = f"takes {ratio:.3f} of ours" if blind["ranked"] else f"attains {100 * blind['attainment']:.1f} %"
    return [f"reads the engine's scheduler: on our page it {what}"]


def _learnt_after(
    ours: np.typing.NDArray[np.float64], its: np.typing.NDArray[np.float64], limit: float, seconds: float
) -> tuple[float | None, float]:
    """When, in the run's first half, the rest of it meets the limit, and its ratio; (None, 0) if never."""
    for first in range(1, len(ours) // 2 + 1):
        ratio = float(ours[first:].sum() / its[first:].sum())
        if ratio <= limit:
            return seconds * first / len(ours), ratio
    return None, 0.0


def _joules(record: Record) -> float:
    joules: float = record["energy_joules"]
    return joules


GOALS: Final = (
    Goal("attainment", "attains 99 % where unlocked clocks attain 99.5 %, elsewhere 0.5 points less", _attains),
    Goal("rivals", "less energy than every rival that attains 99 %, paper or tuned", _beats_rivals),
    Goal("stationary", "at most the best static setting and 1 %, where the rate does not change", _near_static),
    Goal(
        "changing",
        "at most 0.95 of the best static setting, where the rate changes and the clairvoyant schedule is at most 0.92"
        " of it",
        _below_static,
    ),
    Goal("clairvoyant", "at most 7 % above the clairvoyant schedule", _near_clairvoyant),
)


@dataclass(frozen=True, slots=True)
class Tally:
    """How often a goal holds, and where it does not."""

    goal: Goal
    cells: int
    holds: int
    exceptions: tuple[Verdict, ...]


def tallies(verdicts: Sequence[Verdict]) -> list[Tally]:
    """One for each goal."""
    found = []
    for goal in GOALS:
        mine = [verdict for verdict in verdicts if verdict.goal == goal.name]
        exceptions = tuple(verdict for verdict in mine if not verdict.holds)
        found.append(Tally(goal, len(mine), len(mine) - len(exceptions), exceptions))
    return found
