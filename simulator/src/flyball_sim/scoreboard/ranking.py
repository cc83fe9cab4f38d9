"""Whether the ranking holds whatever the numbers are that no measurement fixes: it is looked at draw by draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from flyball_sim.scoreboard.goals import CellName, cells_of
from flyball_sim.scoreboard.records import Record
from flyball_sim.scoreboard.slo import ATTAINMENT


@dataclass(frozen=True, slots=True)
class Duel:
    """One row against another over all cells and draws.

    Attributes:
        rival: the other row.
        cells: cells that have both.
        nominal: of those, won with the nominal parameters.
        draws: cells times draws.
        won: of those, won.
        lost: (cell, number of the draw) that went to the other.
    """

    rival: str
    cells: int
    nominal: int
    draws: int
    won: int
    lost: tuple[tuple[CellName, int], ...]


def duels(records: Sequence[Record], *, ours: str, rivals: Iterable[str]) -> list[Duel]:
    """A row against each of its rivals: less energy where both attain 99 %, else who attains it.

    Where neither does, nobody wins: such cells and draws are left out.

    Args:
        records: of any number of cells.
        ours: name of the row.
        rivals: names of the others.
    """
    cells = cells_of(records)
    found = []
    for rival in rivals:
        both = {cell: rows for cell, rows in cells.items() if ours in rows and rival in rows}
        nominal = [beats(rows[ours], rows[rival]) for rows in both.values()]
        drawn = [
            (cell, index, _wins(mine, its))
            for cell, rows in both.items()
            for index, (mine, its) in enumerate(zip(rows[ours]["drawn"], rows[rival]["drawn"], strict=False))
        ]
        decided = [(cell, index, won) for cell, index, won in drawn if won is not None]
        found.append(
            Duel(
                rival=rival,
                cells=sum(won is not None for won in nominal),
                nominal=sum(won is True for won in nominal),
                draws=len(decided),
                won=sum(won is True for _, _, won in decided),
                lost=tuple((cell, index) for cell, index, won in decided if not won),
            )
        )
    return found


def rank_agreement(records: Sequence[Record], names: Iterable[str]) -> list[float]:
    """For each draw, Kendall's tau of the rows' order with the nominal order, the mean over cells.

    Rows that miss 99 % are behind all that attain it, those of them that attain more before the others.

    Args:
        records: of any number of cells.
        names: of the rows that are ranked.
    """
    names = tuple(names)
    by_draw: dict[int, list[float]] = {}
    for rows in cells_of(records).values():
        ranked = [rows[name] for name in names if name in rows]
        draws = min((len(row["drawn"]) for row in ranked), default=0)
        order = [_place(*_nominal(row)) for row in ranked]
        for index in range(draws):
            tau = float(kendalltau(_ranks(order), _ranks([_place(*row["drawn"][index]) for row in ranked])).statistic)
            if not math.isnan(tau):
                by_draw.setdefault(index, []).append(tau)
    return [float(np.mean(by_draw[index])) for index in sorted(by_draw)]


def beats(mine: Record, its: Record) -> bool | None:
    """Whether one row is ahead of another with the nominal parameters; None where neither attains 99 %."""
    return _wins(_nominal(mine), _nominal(its))


def _nominal(record: Record) -> tuple[float, float]:
    return record["energy_joules"], record["attainment"]


def _wins(mine: Sequence[float], its: Sequence[float]) -> bool | None:
    (my_joules, my_share), (its_joules, its_share) = mine, its
    if my_share < ATTAINMENT and its_share < ATTAINMENT:
        return None
    if my_share < ATTAINMENT or its_share < ATTAINMENT:
        return my_share >= ATTAINMENT
    return my_joules < its_joules


def _place(joules: float, share: float) -> tuple[bool, float]:
    short = share < ATTAINMENT
    return short, -share if short else joules


def _ranks(places: Sequence[tuple[bool, float]]) -> list[int]:
    ordered = sorted(set(places))
    return [ordered.index(place) for place in places]
