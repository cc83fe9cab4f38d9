"""Rows 15 to 18: what papers say their controllers save."""

from __future__ import annotations

from pathlib import Path

from flyball_sim.validation import agft, pals, throttllem, voltanallm_rows
from flyball_sim.validation.rows import Row


def rows(data: Path | None = None) -> tuple[Row, ...]:
    """Rows 15 to 18; they test ordering and rough size."""
    return (*agft.rows(), *voltanallm_rows.rows(data), *throttllem.rows(data), *pals.rows())
