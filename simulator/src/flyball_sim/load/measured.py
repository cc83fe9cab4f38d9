"""Measured rates and lengths, read from the data directory; the project itself carries only what was fitted to them."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flyball_sim.load.traces import TraceError

AZURE_TRACE: Final = "azure2023_conv.csv"
LMSYS_LENGTHS: Final = "lmsys_length_cdf.json"
SERVEGEN_MODELS: Final = ("m-large", "m-small")


@dataclass(frozen=True, slots=True)
class RateTable:
    """A rate per window: requests per second, and the coefficient of variation of gaps, averaged over clients."""

    window_seconds: float
    rates: tuple[float, ...]
    variations: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LengthTable:
    """A cumulative distribution of lengths: the share of requests of at most so many tokens."""

    tokens: tuple[float, ...]
    shares: tuple[float, ...]


def data_file(data: Path | None, name: str) -> Path:
    """The path of a trace file in the data directory.

    Raises:
        TraceError: no directory is given, or it has no such file.
    """
    if data is None:
        raise TraceError(
            f"traces/{name} is measured data, which is not part of the project: give its directory (--data)"
        )
    path = data / "traces" / name
    if not path.is_file():
        said = "has no such file" if data.is_dir() else "is not a directory"
        raise TraceError(f"{path}: {data} {said}: give the directory of the measured data (--data)")
    return path


def servegen_rates(data: Path | None, model: str) -> RateTable:
    """ServeGen's request rates of one model.

    Raises:
        TraceError: the file is missing or of another form.
    """
    path = data_file(data, f"servegen_{model}_rate_10min.csv")
    rows = _columns(path, ("t_s", "rate", "rate_weighted_cv"))
    if len(rows) < 2:
        raise TraceError(f"{path} has {len(rows)} windows: give at least 2")
    return RateTable(rows[1][0] - rows[0][0], tuple(row[1] for row in rows), tuple(row[2] for row in rows))


def servegen_lengths(data: Path | None, model: str) -> tuple[LengthTable, LengthTable]:
    """ServeGen's lengths of prompts and of answers of one model.

    Raises:
        TraceError: the file is missing or of another form.
    """
    path = data_file(data, f"servegen_{model}_length_cdf.csv")
    rows = [row for row in _columns(path, ("le_tokens", "input_cdf", "output_cdf")) if math.isfinite(row[0])]
    tokens = tuple(row[0] for row in rows)
    return LengthTable(tokens, tuple(row[1] for row in rows)), LengthTable(tokens, tuple(row[2] for row in rows))


def lmsys_lengths(data: Path | None) -> LengthTable:
    """Lengths of LMSYS conversations, prompt and answer together.

    Raises:
        TraceError: the file is missing or of another form.
    """
    path = data_file(data, LMSYS_LENGTHS)
    try:
        pairs = [(float(tokens), float(share)) for tokens, share in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise TraceError(f"{path}: {error}: give a list of [tokens, share] pairs") from error
    return LengthTable(tuple(tokens for tokens, _ in pairs), tuple(share for _, share in pairs))


def _columns(path: Path, names: tuple[str, ...]) -> list[tuple[float, ...]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        try:
            return [tuple(float(row[name]) for name in names) for row in reader]
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}, line {reader.line_num}: {error}: give numbers in {','.join(names)}") from error
