"""A measured figure beside the bound it is held to, and the table of them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what, under which load, the figure, and the bound it is held to (none: only shown)."""

    what: str
    load: str
    figure: float
    bound: float | None
    unit: str
    sample: str = ""

    @property
    def within(self) -> bool:
        """Whether the figure keeps the bound."""
        return self.bound is None or self.figure <= self.bound


def machine() -> str:
    """The machine the figures hold for, and how busy it is."""
    load_average = os.getloadavg()[0]
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load_average:.1f}"


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Print the table."""
    grid = Table(title=f"{title}; {machine()}")
    for heading in ("what", "under", "figure", "bound", "", "sample"):
        grid.add_column(heading, justify="right" if heading in {"figure", "bound"} else "left")
    for row in rows:
        kept = "" if row.bound is None else "kept" if row.within else "[red]NOT KEPT[/]"
        bound = "" if row.bound is None else f"{row.bound:g} {row.unit}"
        grid.add_row(row.what, row.load, f"{row.figure:.2f} {row.unit}", bound, kept, row.sample)
    console.print(grid, soft_wrap=True)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write machine and rows as JSON."""
    path.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))
