"""What `docs/scoreboard-results.md` shows: cells and rows that two cores play in two hours; all of them take days."""

from __future__ import annotations

from typing import Final

from flyball_sim.scoreboard.catalog import PAGED
from flyball_sim.scoreboard.cells import AZURE, TRACES, Case, Cell

ROWS: Final = (
    "unlocked",
    "static-clock",
    "static-pair",
    "clairvoyant",
    "bound",
    *(f"{rival}/{how}" for rival in ("agft", "voltanallm", "throttllem", "pals") for how in ("paper", "tuned")),
    *(f"{rival}/page" for rival in PAGED),
    "flyball",
)
_SLO: Final = "mid"
_LOADS: Final = (30, 60, 90)
"""At 5 % a trace lasts twenty times as long, and controllers that look every 10 ms take hours over it."""
_SHIFTING: Final = ("conversation", "bursts", "step", "flash-crowd")
_OTHER_WORLDS: Final = (
    ("70b-h100-tp4", (60, 90)),
    ("70b-h200-tp4", (60,)),
    ("qwen3-32b-h100-tp2", (60,)),
    ("8b-a100", (60,)),
    ("8b-pd-h100", (60,)),
)


def cells(*, data: bool) -> tuple[Cell, ...]:
    """Every trace and load on one H100, and the traces whose load moves on the others.

    Args:
        data: whether the measured trace is at hand; its cells are left out where not.
    """
    home = [Cell(Case("8b-h100", trace, _SLO), load) for trace in TRACES if data or trace != AZURE for load in _LOADS]
    away = [
        Cell(Case(world, trace, _SLO), load) for world, loads in _OTHER_WORLDS for trace in _SHIFTING for load in loads
    ]
    return tuple(home + away)
