"""The whole validation plan: every row, in the plan's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flyball_sim.validation import caps, clocks, controllers, latency, linger, power
from flyball_sim.validation.rows import Row

CALIBRATION = "calibration"


class DataError(Exception):
    """The data directory cannot serve; the message names it and the mend."""


def checked_data(directory: Path | None) -> Path | None:
    """The directory, once it is known to hold calibration data; None if none was named.

    Raises:
        DataError: it was named and does not.
    """
    if directory is None or (directory / CALIBRATION).is_dir():
        return directory
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise DataError(f"{directory} {what}: name the directory that holds {CALIBRATION}/, or leave the option out")
    raise DataError(f"{directory} holds no {CALIBRATION}/: name the directory above it, or leave the option out")


def parts(data: Path | None) -> Sequence[tuple[str, Callable[[], tuple[Row, ...]]]]:
    """The plan's parts by name, each as a function that works out its rows."""
    return (
        ("latency", latency.rows),
        ("power", lambda: power.rows(data)),
        ("power limits", lambda: caps.rows(data)),
        ("clock locks", clocks.rows),
        ("controllers", controllers.rows),
        ("after load", linger.rows),
    )
