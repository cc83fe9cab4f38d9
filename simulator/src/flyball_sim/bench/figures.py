"""What is counted: CPU seconds and memory of processes, and writes to the API server."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessFigures:
    """One reading of a process: CPU seconds since its start, and resident memory."""

    cpu_seconds: float
    rss_mebibytes: float


def process_figures(pid: int, proc: Path = Path("/proc")) -> ProcessFigures:
    """Read `/proc/PID/stat` and `status`.

    Raises:
        FileNotFoundError: there is no such process.
    """
    # The command's name is in parentheses and may hold spaces: fields are counted after the last one.
    fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    rss = next(
        line.split()[1] for line in (proc / str(pid) / "status").read_text().splitlines() if line.startswith("VmRSS:")
    )
    return ProcessFigures((int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND, int(rss) / 1024)


def core_percent(before: ProcessFigures, after: ProcessFigures, seconds: float) -> float:
    """CPU use between two readings, in percent of one core."""
    return 100 * (after.cpu_seconds - before.cpu_seconds) / seconds


def count_writes(lines: Iterable[str]) -> Counter[tuple[str, str, str]]:
    """Count the writes in an audit log (one JSON event a line), by (who, verb, resource).

    A line cut off by the end of the file is left out: it will be whole at the next reading.
    """
    writes: Counter[tuple[str, str, str]] = Counter()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        reference: Mapping[str, str] = event.get("objectRef") or {}
        if event.get("verb") in WRITES:
            resource = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
            writes[event["user"]["username"], event["verb"], resource] += 1
    return writes


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: of few values the 99th is the highest. NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
