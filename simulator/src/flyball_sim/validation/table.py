"""The rows as a person reads them, and as a program does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from flyball_sim.validation.rows import Row

HEADINGS = ("#", "what", "published", "ours", "error", "allowed", "the published value is", "verdict")
_NUMERIC = frozenset({"published", "ours", "error", "allowed"})


def markdown(rows: Sequence[Row]) -> str:
    """A table in Markdown, its columns padded so that it reads in a terminal too."""
    lines = [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in (HEADINGS, *lines)) for column in range(len(HEADINGS))]
    rules = [
        "-" * (width - 1) + ":" if name in _NUMERIC else "-" * width
        for name, width in zip(HEADINGS, widths, strict=True)
    ]
    return "\n".join(_line(line, widths) for line in (HEADINGS, tuple(rules), *lines))


def sources(rows: Sequence[Row]) -> str:
    """Where the published values stand, one line of Markdown for each source."""
    numbers: dict[str, list[str]] = {}
    for row in rows:
        held = numbers.setdefault(row.subject.source, [])
        if row.subject.number not in held:
            held.append(row.subject.number)
    return "\n".join(f"- {', '.join(held)}: {source}" for source, held in numbers.items())


def summary(rows: Sequence[Row]) -> str:
    """How many rows passed, missed and were not run."""
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("pass", "miss", "not run")}
    text = f"{counts['pass']} pass, {counts['miss']} miss, {counts['not run']} not run"
    failing = [row.subject.what for row in rows if row.fails]
    return text + (f"; a gate is missed: {'; '.join(failing)}" if failing else "; every gate that was run holds")


def json_lines(rows: Sequence[Row]) -> str:
    """One JSON object a line for each row."""
    return "\n".join(json.dumps(_flat(row), allow_nan=False) for row in rows)


def _flat(row: Row) -> dict[str, object]:
    fields = asdict(row)
    return {**fields.pop("subject"), **fields}


def _cells(row: Row) -> tuple[str, ...]:
    subject = row.subject
    published = row.published
    if isinstance(published, tuple):
        published_text = f"{published[0]:.4g}-{published[1]:.4g} {subject.unit}"
    else:
        published_text = "" if published is None else f"{published:.4g} {subject.unit}"
    has_error = row.error is not None and published is not None
    allowed = "" if row.tolerance is None else f"{row.tolerance:g} {row.error_unit}".strip()
    return (
        subject.number,
        subject.what,
        published_text.strip(),
        "" if row.ours is None else f"{row.ours:.4g} {subject.unit}".strip(),
        f"{row.error:+.3g} {row.error_unit}".strip() if has_error else "",
        allowed + (" (gate)" if allowed and subject.gated else ""),
        subject.standing,
        row.verdict + (f": {row.note}" if row.note else ""),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if name in _NUMERIC else cell.ljust(width)
        for name, cell, width in zip(HEADINGS, cells, widths, strict=True)
    ]
    return f"| {' | '.join(padded)} |"
