"""Request traces: what arrives when, and how long it is. Reading, cutting, thinning and scaling."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Final, TextIO

AZURE_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
PLAIN_COLUMNS: Final = ("arrival_seconds", "prompt_tokens", "output_tokens")
MOST_TOKENS: Final = 10_000_000
"""Of one prompt or answer: beyond any model's context, so a slip of the pen."""

_LONGEST_LINE: Final = 4096
_LONGEST_SHOWN: Final = 60
_WHOLE: Final = re.compile(r"[+-]?[0-9]+")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TIMESTAMP: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]+)?")


class TraceError(ValueError):
    """A trace that cannot be had; the message names where it fails (file and line, or option), and the mend."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: when it arrives (seconds from the trace's start), its prompt and its answer in tokens."""

    arrival_seconds: float
    prompt_tokens: int
    output_tokens: int


def stream_trace(path: Path) -> Iterator[TraceRequest]:
    """The requests of a CSV file, one at a time: a file of any length in the memory of one line.

    The first line says which of two forms it has. `TIMESTAMP,ContextTokens,GeneratedTokens` is that of the Azure LLM
    inference traces: arrivals count from its first request. `arrival_seconds,prompt_tokens,output_tokens` is the plain
    one: arrivals count from 0, which may be before its first request.

    Raises:
        TraceError: the file is missing, not text of one of these forms, out of order or empty.
    """
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            yield from _requests(file, path)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}: give a CSV file with {','.join(AZURE_COLUMNS)}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is not a CSV file in UTF-8 ({error.reason}): save it as one") from error


def read_trace(
    path: Path, *, start_seconds: float = 0.0, duration_seconds: float | None = None
) -> tuple[TraceRequest, ...]:
    """Read a CSV file, or the segment of it that `segment` would cut; lines behind the segment are not read.

    Raises:
        TraceError: see `stream_trace`.
        ValueError: the segment holds no request.
    """
    if start_seconds == 0 and duration_seconds is None:
        return tuple(stream_trace(path))
    return segment(stream_trace(path), start_seconds=start_seconds, duration_seconds=duration_seconds)


def _requests(file: TextIO, path: Path) -> Iterator[TraceRequest]:
    lines = _lines(file, path)
    _, header = next(lines, (1, ""))
    columns = tuple(_fields(header))
    if columns not in {AZURE_COLUMNS, PLAIN_COLUMNS}:
        raise TraceError(
            f"{path}, line 1: the columns are {_shown(header)}: make the first line {','.join(AZURE_COLUMNS)}"
            f" or {','.join(PLAIN_COLUMNS)}"
        )
    start: float | None = None if columns == AZURE_COLUMNS else 0.0
    latest, count = -math.inf, 0
    for line, text in lines:
        if not text.strip():
            continue
        place, values = f"{path}, line {line}", _fields(text)
        if len(values) != len(columns):
            raise TraceError(f"{place}: {len(values)} values, not {len(columns)}: write {','.join(columns)}")
        moment = _timestamp(values[0], place) if columns == AZURE_COLUMNS else _seconds(values[0], place)
        if moment < latest:
            raise TraceError(f"{place}: {columns[0]} {values[0]} is before the line above: sort the file by time")
        latest, start = moment, moment if start is None else start
        yield TraceRequest(moment - start, _tokens(values, 1, columns, place), _tokens(values, 2, columns, place))
        count += 1
    if not count:
        raise TraceError(f"{path} has no requests: add lines below the header")


def _lines(file: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines; a file without line ends is not read into memory."""
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith("\n"):
            raise TraceError(f"{path}, line {number}: over {_LONGEST_LINE} characters: give one request a line")
        yield number, line.removesuffix("\n")


def _fields(line: str) -> list[str]:
    return [value.strip().strip('"').strip() for value in line.split(",")]


def _timestamp(text: str, place: str) -> float:
    # Azure writes seven digits of a second, datetime holds six: the fraction is read by itself.
    found = _TIMESTAMP.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        return datetime.fromisoformat(f"{found[1]}+00:00").timestamp() + float(found[2] or 0)
    except ValueError:
        raise TraceError(f"{place}: TIMESTAMP is {_shown(text)}: write it as 2023-11-16 18:15:46.6805900") from None


def _seconds(text: str, place: str) -> float:
    if not _DECIMAL.fullmatch(text) or not math.isfinite(seconds := float(text)):
        raise TraceError(f"{place}: arrival_seconds is {_shown(text)}: write a finite number of seconds")
    if seconds < 0:
        raise TraceError(f"{place}: arrival_seconds is {_shown(text)}: count from the trace's start, which is 0")
    return seconds


def _tokens(values: Sequence[str], column: int, columns: Sequence[str], place: str) -> int:
    name, text = columns[column], values[column]
    if not _WHOLE.fullmatch(text):
        raise TraceError(f"{place}: {name} is {_shown(text)}: write a whole number of tokens")
    # Digits are counted first, for Python refuses to read thousands of them.
    tokens = int(text) if len(text) <= 20 else -MOST_TOKENS if text[0] == "-" else 2 * MOST_TOKENS
    if tokens < 1:
        raise TraceError(f"{place}: {name} is {_shown(text)}: a request has at least 1, drop the line")
    if tokens > MOST_TOKENS:
        raise TraceError(f"{place}: {name} is {_shown(text)}: give at most {MOST_TOKENS}")
    return tokens


def _shown(text: str) -> str:
    if not text:
        return "missing"
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")


def segment(
    trace: Iterable[TraceRequest], *, start_seconds: float = 0.0, duration_seconds: float | None = None
) -> tuple[TraceRequest, ...]:
    """The requests that arrive in [start, start + duration), with arrivals counted from its start.

    Args:
        trace: by arrival; it is read up to the first request behind the segment.
        start_seconds: where in the trace the segment begins.
        duration_seconds: how long it is; None: to the trace's end.

    Raises:
        ValueError: the segment holds no request.
    """
    end = float("inf") if duration_seconds is None else start_seconds + duration_seconds
    chosen: list[TraceRequest] = []
    last = 0.0
    for request in takewhile(lambda request: request.arrival_seconds < end, trace):
        last = request.arrival_seconds
        if last >= start_seconds:
            chosen.append(replace(request, arrival_seconds=last - start_seconds))
    if not chosen:
        raise ValueError(
            f"no request arrives from {start_seconds} s to {end} s of the trace, the last before that at {last:.1f} s: "
            "start earlier or take more"
        )
    return tuple(chosen)


def scale(trace: Sequence[TraceRequest], factor: float) -> tuple[TraceRequest, ...]:
    """The same requests at `factor` times the load: arrivals move together, lengths stay.

    Raises:
        ValueError: the factor is not a positive number.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"the load factor is {factor}: give a number above 0 (1 keeps the trace's own pace)")
    return tuple(replace(request, arrival_seconds=request.arrival_seconds / factor) for request in trace)


def thin(trace: Sequence[TraceRequest], keep: float, *, seed: int) -> tuple[TraceRequest, ...]:
    """A random share `keep` of the requests; the same seed keeps the same ones, and fewer of them for a lower share.

    Raises:
        ValueError: the share is outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the share to keep is {keep}: give a number above 0 and at most 1")
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    return tuple(request for request in trace if rng.random() < keep)


def thin_to_rate(
    trace: Sequence[TraceRequest], requests_per_second: float, duration_seconds: float, *, seed: int
) -> tuple[TraceRequest, ...]:
    """Thin a trace of this length to a mean rate, where it is above it; its drift and bursts stay in proportion.

    Raises:
        ValueError: the rate or the length is not positive.
    """
    for name, value in (("rate", requests_per_second), ("duration", duration_seconds)):
        if value <= 0:
            raise ValueError(f"the {name} is {value}: give a number above 0")
    keep = min(1.0, requests_per_second * duration_seconds / max(1, len(trace)))
    return thin(trace, keep, seed=seed)
