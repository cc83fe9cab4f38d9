"""The scoreboard's results as a page of Markdown, with the command that makes it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from flyball_sim.scoreboard.catalog import OURS, ROWS
from flyball_sim.scoreboard.goals import CellName, Rows, Tally, Verdict, cells_of, judge, tallies
from flyball_sim.scoreboard.ranking import beats, duels, rank_agreement
from flyball_sim.scoreboard.records import Record

_MODEL: Final = ("static-clock", "static-cap", "static-pair", "clairvoyant", "bound")
_READ_AS: Final = (
    "Energies are modelled, over those of unlocked clocks in the same cell; in italics, the attainment of a row that is"
    " below 99 % and has no rank; in bold, the controller with the least energy.\n"
)
_PAGED_AS: Final = (
    "The same tuned parameters, which were tuned with the signals each paper assumes. PALS sees no more anyway.\n"
)


@dataclass(frozen=True, slots=True)
class Season:
    """Controllers as they start, or after half an hour.

    Attributes:
        title: heading.
        ours: name of Flyball's row.
        warm: whether rows of warm controllers are meant.
        page_only: whether all see a page every half second and nothing else.
    """

    title: str
    ours: str
    warm: bool = False
    page_only: bool = False

    @property
    def rivals(self) -> tuple[str, ...]:
        """Rows Flyball has to beat."""
        wanted = (name for name, kind in ROWS.items() if kind.warm == self.warm)
        return tuple(name for name in wanted if (ROWS[name].page_only if self.page_only else ROWS[name].rival))

    @property
    def controllers(self) -> tuple[str, ...]:
        """All rows of controllers, oracles included."""
        wanted = (name for name, kind in ROWS.items() if kind.contender is not None and kind.warm == self.warm)
        return tuple(name for name in wanted if name == self.ours or ROWS[name].page_only == self.page_only)


COLD: Final = Season("Cold: learning counted, Flyball's prior wrong by up to 30 %", OURS)
WARMED: Final = Season("After 30 minutes that do not count", f"{OURS}/warm", warm=True)
PAGED: Final = Season("Everybody on a page every half second, as a node agent reads one", OURS, page_only=True)


def page(records: Sequence[Record], *, command: str, machine: str, tuned: Mapping[str, Any]) -> str:
    """The page.

    Args:
        records: of all cells played.
        command: that makes them again.
        machine: it was run on.
        tuned: what tuning found, by controller.
    """
    parts = [
        "# Scoreboard: results\n",
        f"`{command}`, {machine}. Rules, rows and goals: [scoreboard.md](scoreboard.md).\n",
        _READ_AS,
    ]
    for season in (COLD, WARMED):
        if any(record["controller"] == season.ours for record in records):
            parts += [f"## {season.title}\n", *_energies(records, season), *_goals(records, season)]
    played = {record["controller"] for record in records}
    if played & set(PAGED.rivals):
        parts += [f"## {PAGED.title}\n", _PAGED_AS, *_energies(records, PAGED)]
    parts += _ranking(records, COLD)
    parts += _costs(records)
    parts += _tuning(tuned)
    return "\n".join(parts)


def summary(records: Sequence[Record]) -> str:
    """Goals and ranking alone."""
    parts: list[str] = []
    for season in (COLD, WARMED):
        if any(record["controller"] == season.ours for record in records):
            parts += [f"## {season.title}\n", *_goals(records, season)]
    return "\n".join([*parts, *_ranking(records, COLD)])


def _energies(records: Sequence[Record], season: Season) -> Iterator[str]:
    played = {record["controller"] for record in records}
    names = [name for name in (*_MODEL, *season.controllers) if name in played]
    for world, group in groupby(sorted(cells_of(records).items(), key=lambda item: item[0]), lambda item: item[0][0]):
        yield f"### {world}\n"
        yield from _table(
            ["cell", "unlocked, kJ", *names],
            [[_cell(cell, world=False), *_figures(rows, names)] for cell, rows in group],
        )


def _figures(rows: Rows, names: Iterable[str]) -> Iterator[str]:
    yield f"{rows['unlocked']['energy_joules'] / 1000:.1f}"
    shown = [name for name in names if name in rows and rows[name]["ranked"] and ROWS[name].contender is not None]
    best = min(shown, key=lambda name: rows[name]["energy_joules"], default="")
    for name in names:
        row = rows.get(name)
        if row is None:
            yield ""
        elif not row["ranked"]:
            yield f"*{100 * row['attainment']:.1f} %*"
        else:
            text = f"{row['of_unlocked']:.3f}"
            yield f"**{text}**" if name == best else text


def _goals(records: Sequence[Record], season: Season) -> Iterator[str]:
    verdicts = judge(records, ours=season.ours, rivals=season.rivals)
    found = tallies(verdicts)
    yield "### Goals\n"
    yield from _table(
        ["goal", "says", "cells", "reached"],
        [[tally.goal.name, tally.goal.says, str(tally.cells), str(tally.holds)] for tally in found],
    )
    if any(tally.exceptions for tally in found):
        yield "Exceptions:\n"
        yield from _table(
            ["goal", "cell", "value", "limit", "against", "reason"],
            [_exception(verdict) for tally in found for verdict in _worst_first(tally)],
        )
    else:
        yield "No exceptions.\n"


def _worst_first(tally: Tally) -> list[Verdict]:
    sign = 1.0 if tally.goal.name == "attainment" else -1.0
    return sorted(tally.exceptions, key=lambda verdict: sign * (verdict.value - verdict.limit))


def _exception(verdict: Verdict) -> list[str]:
    if verdict.goal == "attainment":
        figures = [f"{100 * verdict.value:.2f} %", f"{100 * verdict.limit:.2f} %"]
    else:
        figures = [f"{verdict.value:.3f}", f"{verdict.limit:.2f}"]
    return [verdict.goal, _cell(verdict.cell), *figures, verdict.against, verdict.reason]


def _ranking(records: Sequence[Record], season: Season) -> Iterator[str]:
    played = {record["controller"] for record in records}
    rivals = [name for name in (*_MODEL[:3], *season.rivals) if name in played]
    if season.ours not in played or not rivals:
        return
    found = duels(records, ours=season.ours, rivals=rivals)
    yield "## Does the ranking hold in every parameter draw?\n"
    if not any(duel.draws for duel in found):
        yield "No draws were played (`--draws`): wins are with the nominal parameters alone.\n"
    yield from _table(
        ["Flyball against", "cells", "won, nominal", "cells x draws", "won", "draws lost that nominal parameters win"],
        [
            [
                duel.rival,
                str(duel.cells),
                str(duel.nominal),
                str(duel.draws),
                str(duel.won),
                _lost(records, duel.rival, duel.lost, season.ours),
            ]
            for duel in found
        ],
    )
    agreement = rank_agreement(records, [season.ours, *rivals])
    if agreement:
        each = ", ".join(f"{tau:.3f}" for tau in agreement)
        mean = sum(agreement) / len(agreement)
        yield f"Kendall's tau with the nominal order, mean over cells, by draw: {each}; mean {mean:.3f}.\n"


def _lost(records: Sequence[Record], rival: str, lost: Sequence[tuple[CellName, int]], ours: str) -> str:
    cells = cells_of(records)
    turned: dict[CellName, list[int]] = {}
    for cell, index in lost:
        if beats(cells[cell][ours], cells[cell][rival]):
            turned.setdefault(cell, []).append(index)
    return "; ".join(f"{_cell(cell)}: {', '.join(map(str, numbers))}" for cell, numbers in sorted(turned.items()))


def _costs(records: Sequence[Record]) -> Iterator[str]:
    rows: dict[str, list[Record]] = {}
    for record in records:
        if record.get("decisions"):
            rows.setdefault(record["controller"], []).append(record)
    if not rows:
        return
    yield "## What controllers take\n"
    yield from _table(
        ["row", "cells", "decisions a cell", "CPU a decision", "setpoint changes a cell", "preemptions", "degraded in"],
        [
            [
                name,
                str(len(mine)),
                f"{_mean(mine, 'decisions'):.0f}",
                f"{1e6 * _sum(mine, 'controller_seconds') / max(1.0, _sum(mine, 'decisions')):.0f} us",
                f"{_mean(mine, 'changes'):.0f}",
                f"{_sum(mine, 'preemptions'):.0f}",
                str(sum(bool(row.get("degraded")) for row in mine)),
            ]
            for name, mine in rows.items()
        ],
    )


def _tuning(tuned: Mapping[str, Any]) -> Iterator[str]:
    if not tuned:
        return
    yield "## Tuned parameters\n"
    yield from _table(
        ["controller", "trials", "seed", "objective", "of the defaults", "attained, by tuning cell", "parameters"],
        [
            [
                name,
                str(entry["trials"]),
                str(entry["seed"]),
                f"{entry['objective']:.4f}",
                f"{entry['objective_of_defaults']:.4f}",
                ", ".join(f"{100 * share:.2f} %" for share in entry["attainment"]),
                ", ".join(f"{field} {value}" for field, value in entry["parameters"].items()) or "the defaults",
            ]
            for name, entry in tuned.items()
        ],
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    yield "\n".join(lines) + "\n"


def _cell(cell: CellName, *, world: bool = True) -> str:
    name, trace, load, slo = cell
    return f"{name}, {trace}, {load} %, {slo}" if world else f"{trace}, {load} %, {slo}"


def _sum(rows: Iterable[Record], field: str) -> float:
    return math.fsum(float(row.get(field) or 0.0) for row in rows)


def _mean(rows: Sequence[Record], field: str) -> float:
    return _sum(rows, field) / len(rows)
