"""Request traces: what arrives when, and how long it is. Reading, cutting, thinning and speeding up."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A trace file that cannot be read; the message names the line, what is wrong there, and the mend."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: when it arrives (seconds from the trace's start), its prompt and its answer in tokens."""

    arrival_seconds: float
    prompt_tokens: int
    output_tokens: int


def _seconds(timestamp: str) -> float:
    # Azure writes seven digits of a second, datetime holds six: the fraction is read by itself.
    whole, _, fraction = timestamp.strip().partition(".")
    if fraction and not fraction.isdigit():
        raise ValueError(timestamp)
    moment = datetime.fromisoformat(f"{whole}+00:00").timestamp()
    return moment + (float(f"0.{fraction}") if fraction else 0.0)


def _tokens(row: Sequence[str], column: int, place: str) -> int:
    name = AZURE_COLUMNS[column]
    try:
        tokens = int(row[column])
    except ValueError:
        raise TraceError(f"{place}: {name} is {row[column]!r}: write a whole number of tokens") from None
    if tokens < 1:
        raise TraceError(f"{place}: {name} is {tokens}: a request has at least 1, drop the line")
    return tokens


def read_azure_csv(path: Path) -> tuple[TraceRequest, ...]:
    """Read a trace of the Azure LLM inference trace's form: TIMESTAMP,ContextTokens,GeneratedTokens.

    Arrivals count from the first line.

    Raises:
        TraceError: the file is missing, not text of this form, out of order or empty.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return _parse(((reader.line_num, row) for row in reader), path)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}: give a CSV file with {','.join(AZURE_COLUMNS)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} is not a CSV file in UTF-8 ({error}): save it as one") from error


def _parse(rows: Iterator[tuple[int, list[str]]], path: Path) -> tuple[TraceRequest, ...]:
    _, header = next(rows, (1, []))
    if tuple(name.strip() for name in header) != AZURE_COLUMNS:
        raise TraceError(
            f"{path}, line 1: the columns are {','.join(header)!r}: make the first line {','.join(AZURE_COLUMNS)}"
        )
    requests: list[TraceRequest] = []
    start = latest = 0.0
    for line, row in rows:
        if not row:
            continue
        place = f"{path}, line {line}"
        if len(row) != len(AZURE_COLUMNS):
            raise TraceError(f"{place}: {len(row)} values, not {len(AZURE_COLUMNS)}: write {','.join(AZURE_COLUMNS)}")
        try:
            moment = _seconds(row[0])
        except ValueError:
            raise TraceError(f"{place}: TIMESTAMP is {row[0]!r}: write it as 2023-11-16 18:15:46.6805900") from None
        if not requests:
            start = latest = moment
        if moment < latest:
            raise TraceError(f"{place}: TIMESTAMP {row[0]} is before the line above: sort the file by time")
        latest = moment
        requests.append(TraceRequest(moment - start, _tokens(row, 1, place), _tokens(row, 2, place)))
    if not requests:
        raise TraceError(f"{path} has no requests: add lines below the header")
    return tuple(requests)


def segment(
    trace: Sequence[TraceRequest], *, start_seconds: float = 0.0, duration_seconds: float | None = None
) -> tuple[TraceRequest, ...]:
    """The requests that arrive in [start, start + duration), with arrivals counted from its start.

    Raises:
        ValueError: the segment holds no request.
    """
    end = float("inf") if duration_seconds is None else start_seconds + duration_seconds
    chosen = tuple(
        replace(request, arrival_seconds=request.arrival_seconds - start_seconds)
        for request in trace
        if start_seconds <= request.arrival_seconds < end
    )
    if not chosen:
        last = trace[-1].arrival_seconds if trace else 0.0
        raise ValueError(
            f"no request arrives from {start_seconds} s to {end} s of the trace, whose last is at {last:.1f} s: "
            "start earlier or take more"
        )
    return chosen


def speed_up(trace: Sequence[TraceRequest], factor: float) -> tuple[TraceRequest, ...]:
    """The same requests, arriving `factor` times as densely; lengths stay.

    Raises:
        ValueError: the factor is not positive.
    """
    if factor <= 0:
        raise ValueError(f"the speed is {factor}: give a number above 0 (1 keeps the trace's own pace)")
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
