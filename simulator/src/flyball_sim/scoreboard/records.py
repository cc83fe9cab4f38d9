"""A row of a cell as it is kept, and as `--json` prints it beside the rows it is compared with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flyball_sim.scoreboard.cells import Cell
from flyball_sim.scoreboard.contest import BLOCKS, Ground, Row
from flyball_sim.scoreboard.intervals import ratio_interval, share_interval
from flyball_sim.scoreboard.slo import ATTAINMENT

Kept = dict[str, Any]
"""One row of one cell, by itself."""
Record = dict[str, Any]
"""One row of one cell, as `--json` prints it."""


def kept_of(contest: Ground, row: Row) -> Kept:
    """All that is worth keeping of a row; it depends on no other row."""
    interval: tuple[float | None, float | None] = (None, None)
    if len(row.met):
        interval = share_interval(row.met, blocks=BLOCKS, seed=contest.options.seed)
    return _plain(
        {
            "energy_joules": round(row.energy_joules, 3),
            "attainment": round(row.attainment, 6),
            "attainment_low": _rounded(interval[0]),
            "attainment_high": _rounded(interval[1]),
            "requests_offered": len(contest.trace),
            "requests_completed": row.completed,
            "output_tokens": row.output_tokens,
            "seconds": round(contest.end_seconds, 6),
            "multiplier": round(contest.multiplier, 6),
            "provenance": _provenance(contest),
            "blocks_joules": [round(joules, 2) for joules in row.blocks_joules.tolist()],
            "drawn": [[round(joules, 3), round(share, 6)] for joules, share in row.drawn],
            "details": dict(row.details),
        }
    )


def record_of(cell: Cell, name: str, kept: Kept, *, unlocked: Kept, bound: Kept | None, seed: int) -> Record:
    """A row beside unlocked clocks and the bound.

    Args:
        cell: which.
        name: of the row.
        kept: the row.
        unlocked: the cell's row of unlocked clocks.
        bound: the cell's bound, where it was asked for.
        seed: of the resampling.
    """
    energy: float = kept["energy_joules"]
    energies = [energy, *(joules for joules, _ in kept["drawn"])]
    low, high = None, None
    if kept["blocks_joules"] and unlocked["blocks_joules"] and name != "unlocked":
        low, high = ratio_interval(np.array(kept["blocks_joules"]), np.array(unlocked["blocks_joules"]), seed=seed)
    return {
        "world": cell.case.world,
        "trace": cell.case.trace,
        "load": cell.load,
        "slo": cell.case.slo,
        "controller": name,
        "energy_joules": energy,
        "energy_joules_low": min(energies),
        "energy_joules_high": max(energies),
        "attainment": kept["attainment"],
        "requests_offered": kept["requests_offered"],
        "requests_completed": kept["requests_completed"],
        "output_tokens": kept["output_tokens"],
        "seconds": kept["seconds"],
        "ranked": kept["attainment"] >= ATTAINMENT,
        "of_unlocked": round(energy / unlocked["energy_joules"], 6),
        "of_unlocked_low": _rounded(low),
        "of_unlocked_high": _rounded(high),
        "attainment_low": kept["attainment_low"],
        "attainment_high": kept["attainment_high"],
        "of_bound": None if bound is None else round(energy / bound["energy_joules"], 6),
        "multiplier": kept["multiplier"],
        "draws": len(kept["drawn"]),
        "provenance": kept["provenance"],
        **kept["details"],
        "drawn": kept["drawn"],
        "blocks_joules": kept["blocks_joules"],
    }


def _provenance(contest: Ground) -> str:
    model = contest.engine.model
    modelled = "modelled" in (model.provenance, model.gpu.provenance)
    return "modelled" if modelled else "measured"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields.items()}
