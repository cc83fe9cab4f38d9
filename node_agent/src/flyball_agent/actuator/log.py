"""Structured log lines with the keys structlog gives the other processes; structlog itself costs 15 MB here."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO


class Log:
    """Writes one event a line.

    Args:
        stream: where to.
        form: `json`, or `console` for people.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self, stream: TextIO, form: Literal["json", "console"], wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._stream = stream
        self._form = form
        self._wall_clock = wall_clock

    def info(self, event: str, **fields: Any) -> None:
        """Something that happens in normal work."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that a person may want to know."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something that a person must know."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        seconds = self._wall_clock()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"
        if self._form == "json":
            line = json.dumps({**fields, "event": event, "level": level, "timestamp": stamp}, default=str)
        else:
            line = f"{stamp} [{level}] {event} " + " ".join(f"{key}={value}" for key, value in fields.items())
        with contextlib.suppress(OSError):  # a full disk under the log must not keep locks from being reset
            self._stream.write(line + "\n")
            self._stream.flush()
