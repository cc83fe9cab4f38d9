"""Rows 15 to 18: what papers say their controllers save."""

from __future__ import annotations

from pathlib import Path

from flyball_sim.validation import agft, pals, voltanallm_rows
from flyball_sim.validation.rows import Row, Subject, not_run

NOT_BUILT = "next: the controller is not built yet"


def rows(data: Path | None = None) -> tuple[Row, ...]:
    """Rows 15 to 18; when they run they test ordering and rough size."""
    claims = (("17", "throttLL'eM, A100: energy saved at most", 43.8, "arXiv 2408.05235, abstract"),)
    unbuilt = tuple(
        not_run(Subject(number, what, "%", source, "not fitted"), NOT_BUILT, published)
        for number, what, published, source in claims
    )
    return (*agft.rows(), *voltanallm_rows.rows(data), *unbuilt, *pals.rows())
