"""The points of a sweep in a file, one a line, so that an end at any moment loses one at most."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flyball_agent.profiles import DecodePoint, LoadPoint, PrefillPoint, ProfileError, point_of, point_row
from flyball_agent.profiling.sweep import Point

_KINDS: Final[Mapping[str, type[Any]]] = {"decode": DecodePoint, "prefill": PrefillPoint, "load": LoadPoint}


class PointsError(ValueError):
    """The file is not of this engine, or not of points; the message says which and what to do."""


class PointsFile:
    """Where measured points are kept.

    Args:
        path: of the file; made when it is missing.
        subject: what is measured; points of another subject are not gone on from.
    """

    def __init__(self, path: Path, subject: Mapping[str, str | int]) -> None:
        self._path = path
        self._subject = dict(subject)

    def load(self) -> dict[str, Point]:
        """The points so far, by name; a last line that was cut short is left out.

        Raises:
            PointsError: another subject was measured, or a line is damaged.
            OSError: the file cannot be read or made.
        """
        if not self._path.exists():
            self._path.write_text(json.dumps({"subject": self._subject}) + "\n", "utf-8")
            return {}
        text = self._path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if len(whole) < len(text):
            self._path.write_text(whole, "utf-8")
        lines = whole.splitlines()
        try:
            found = json.loads(lines[0])["subject"] if lines else None
        except (ValueError, KeyError, TypeError):
            found = None
        if found != self._subject:
            raise PointsError(
                f"points {self._path} are of {found}, and this is {self._subject}: give another --points, or remove it"
            )
        return dict(self._point(number, line) for number, line in enumerate(lines[1:], start=2))

    def keep(self, key: str, point: Point) -> None:
        """Add a point."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": point_row(point)}) + "\n")

    def _point(self, number: int, line: str) -> tuple[str, Point]:
        try:
            body = json.loads(line)
            key = str(body["key"])
            return key, point_of(_KINDS[key.partition("/")[0]], body["row"])
        except (ValueError, KeyError, TypeError, ProfileError) as error:
            raise PointsError(
                f"points {self._path}, line {number} cannot be read ({error}): remove that line"
            ) from None
