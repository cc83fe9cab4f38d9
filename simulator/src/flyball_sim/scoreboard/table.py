"""The scoreboard as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from flyball_sim.scoreboard.records import Record


def table(records: Sequence[Record], title: str) -> Table:
    """One line a row, cells apart; energy of what misses the SLO is not shown."""
    grid = Table(title=title, title_justify="left")
    for heading in ("world", "trace", "load", "slo", "controller"):
        grid.add_column(heading, no_wrap=True)
    for heading in ("energy", "band", "of unlocked", "of bound", "attained", "setting"):
        grid.add_column(heading, justify="right", no_wrap=True)

    def cell(record: Record) -> tuple[str, str, int, str]:
        return record["world"], record["trace"], record["load"], record["slo"]

    for _, rows in groupby(sorted(records, key=cell), key=cell):
        for number, record in enumerate(rows):
            grid.add_row(*(["", "", "", ""] if number else _name(record)), *_figures(record))
        grid.add_section()
    return grid


def _name(record: Record) -> list[str]:
    return [record["world"], record["trace"], f"{record['load']} %", record["slo"]]


def _figures(record: Record) -> list[str]:
    attained = f"{100 * record['attainment']:.2f} %"
    mark = " (modelled)" if record["provenance"] == "modelled" else ""
    setting = ""
    if record.get("sm_mhz"):
        setting = f"{record['sm_mhz']} MHz"
    elif record.get("cap_watts"):
        setting = f"{record['cap_watts']:.0f} W"
    if record["controller"] == "bound":
        return ["bound", _joules(record["energy_joules"]) + mark, "", _share(record, "of_unlocked"), "1.000", "", ""]
    if not record["ranked"]:
        return [record["controller"], "[yellow]misses SLO[/]", "", "", "", attained, setting]
    band = ""
    if record["draws"]:
        band = f"{_joules(record['energy_joules_low'])} to {_joules(record['energy_joules_high'])}"
    of_bound = "" if record["of_bound"] is None else f"{record['of_bound']:.3f}"
    return [
        record["controller"],
        _joules(record["energy_joules"]) + mark,
        band,
        _share(record, "of_unlocked"),
        of_bound,
        attained,
        setting,
    ]


def _joules(joules: float) -> str:
    return f"{joules / 1000:.1f} kJ"


def _share(record: Record, field: str) -> str:
    text = f"{record[field]:.3f}"
    if record.get(f"{field}_low") is not None:
        text += f" ({record[f'{field}_low']:.3f}-{record[f'{field}_high']:.3f})"
    return text
