"""Coefficients of step times: one row for each GPU type, model, precision and group size."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, NamedTuple

Provenance = Literal["measured", "modelled"]

_FEW = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_MANY = (768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384)
KNOTS = (*_FEW, *_MANY)
"""Tokens in a step at which a row gives the time of its dense part; between them it goes straight."""
DECODE_KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Sequences in decode at which a row gives the time of their attention."""


class RowKey(NamedTuple):
    """What a row is for: the GPU type's name, the model's, `bf16` or `fp8`, and GPUs per engine."""

    gpu: str
    model: str
    dtype: str
    tp: int


class RowError(ValueError):
    """A row file that cannot be used; the message names the line and the mend."""


@dataclass(frozen=True, slots=True)
class StepRow:
    """Times in microseconds at the GPU's highest clock, of one GPU of the group.

    A step with M tokens in all, B sequences in decode that hold K tokens together, R sequences that get a token
    (B and the chunks), and chunks of n tokens after s others takes

    ``dense(M) + head + head_row*R + (decode_attention(B) + decode_attention_token(B)*K if B)
    + (prefill_attention + sum(prefill_attention_token*n + prefill_attention_pair*(n*s + n*n/2)) if chunks)``.

    Args:
        dense: at each of `KNOTS`: matrix products, norms, activations and communication.
        communication: the part of `dense` between the GPUs of the group.
        decode_attention: at each of `DECODE_KNOTS`; straight between them and beyond the last.
        decode_attention_token: at each of `DECODE_KNOTS`; between them this times B goes straight, so that a token
            more of context for every sequence never costs a larger batch less. Beyond the last it stays.
        fit_percent: mean absolute error of the row against what it was fitted to.
        fit_worst_percent: the largest.
    """

    dense: tuple[float, ...]
    communication: tuple[float, ...]
    head: float
    head_row: float
    decode_attention: tuple[float, ...]
    decode_attention_token: tuple[float, ...]
    prefill_attention: float
    prefill_attention_token: float
    prefill_attention_pair: float
    provenance: Provenance = "measured"
    fit_percent: float = 0.0
    fit_worst_percent: float = 0.0


_KEYS = ("gpu", "model", "dtype", "tp")
_LISTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "dense": KNOTS,
        "communication": KNOTS,
        "decode_attention": DECODE_KNOTS,
        "decode_attention_token": DECODE_KNOTS,
    }
)
COLUMNS = (*_KEYS, *(field.name for field in fields(StepRow)))
_NUMBERS = tuple(name for name in COLUMNS if name not in (*_KEYS, *_LISTS, "provenance"))


def _number(text: str, name: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        raise RowError(f"line {line}: {name} is {text!r}: give a number of microseconds") from None
    if not math.isfinite(value) or value < 0.0:
        raise RowError(f"line {line}: {name} is {text}: give a finite number, 0 or more")
    return value


def _knots(text: str, name: str, line: int) -> tuple[float, ...]:
    parts, knots = text.split(), _LISTS[name]
    if not parts and name == "communication":
        return (0.0,) * len(knots)
    if len(parts) != len(knots):
        raise RowError(f"line {line}: {name} has {len(parts)} times: give {len(knots)}, one for each of {knots}")
    values = tuple(_number(part, name, line) for part in parts)
    if name != "decode_attention_token" and any(later < earlier for earlier, later in pairwise(values)):
        raise RowError(f"line {line}: {name} falls somewhere: more tokens never take less time, smooth it first")
    return values


def _group(text: str, line: int) -> int:
    if not text.isdigit() or int(text) < 1:
        raise RowError(f"line {line}: tp is {text!r}: give the number of GPUs, 1 or more")
    return int(text)


def read_rows(text: str) -> dict[RowKey, StepRow]:
    """The rows of a file's text; lines that begin with `#` are remarks.

    Raises:
        RowError: a column is missing or a value is not one.
    """
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line and not line.startswith("#")]
    reader = csv.DictReader(io.StringIO("\n".join(line for _, line in numbered)))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise RowError(f"the header has no {', '.join(missing)}: a row file has the columns {','.join(COLUMNS)}")
    rows: dict[RowKey, StepRow] = {}
    for (number, _), row in zip(numbered[1:], reader, strict=True):
        if any(row[name] is None for name in COLUMNS):
            raise RowError(f"line {number}: has fewer than {len(COLUMNS)} values: give one for each column")
        if row["provenance"] not in ("measured", "modelled"):
            raise RowError(f"line {number}: provenance is {row['provenance']!r}: give measured or modelled")
        key = RowKey(row["gpu"], row["model"], row["dtype"], _group(row["tp"], number))
        if key in rows:
            raise RowError(f"line {number}: {key.model} {key.dtype} on {key.tp} x {key.gpu} is there twice: drop one")
        lists = {name: _knots(row[name], name, number) for name in _LISTS}
        rows[key] = StepRow(
            dense=lists["dense"],
            communication=lists["communication"],
            decode_attention=lists["decode_attention"],
            decode_attention_token=lists["decode_attention_token"],
            provenance="measured" if row["provenance"] == "measured" else "modelled",
            **{name: _number(row[name], name, number) for name in _NUMBERS},
        )
    return rows


def _digits(value: float) -> str:
    return f"{value:.5g}" if value < 1e5 else f"{value:.0f}"


def write_rows(rows: Mapping[RowKey, StepRow], remarks: Iterable[str]) -> str:
    """The text of a row file, rows in the order of their keys, `remarks` before them."""
    out = io.StringIO()
    out.writelines(f"# {remark}\n" for remark in remarks)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key in sorted(rows):
        row = rows[key]
        values: dict[str, str] = {"provenance": row.provenance} | {n: str(v) for n, v in key._asdict().items()}
        values |= {name: " ".join(map(_digits, getattr(row, name))) for name in _LISTS}
        if not any(row.communication):
            values["communication"] = ""
        values |= {name: _digits(getattr(row, name)) for name in _NUMBERS}
        writer.writerow([values[name] for name in COLUMNS])
    return out.getvalue()


@cache
def shipped_rows() -> Mapping[RowKey, StepRow]:
    """The rows that come with the package."""
    return MappingProxyType(read_rows((files(__package__) / "rows.csv").read_text("utf-8")))
