"""Rows 15 to 18: what papers say their controllers save."""

from __future__ import annotations

from flyball_sim.validation import pals
from flyball_sim.validation.rows import Row, Subject, not_run

NOT_BUILT = "next: the controller is not built yet"


def rows() -> tuple[Row, ...]:
    """Rows 15 to 18; when they run they test ordering and rough size."""
    claims = (
        ("15", "AGFT, RTX A6000: energy saved", 44.3, "arXiv 2508.01744, abstract"),
        ("16", "VoltanaLLM, A100: energy saved at most, near full attainment", 36.3, "arXiv 2509.04827, abstract"),
        ("17", "throttLL'eM, A100: energy saved at most", 43.8, "arXiv 2408.05235, abstract"),
    )
    unbuilt = tuple(
        not_run(Subject(number, what, "%", source, "not fitted"), NOT_BUILT, published)
        for number, what, published, source in claims
    )
    return (*unbuilt, *pals.rows())
