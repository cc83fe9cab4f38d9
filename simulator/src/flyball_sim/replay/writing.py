"""Put a replay's files into their directory, all of them or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class OutputError(OSError):
    """The files cannot be written; the message names the path, the reason and the mend."""


def prepare(directory: Path) -> None:
    """Make the directory, and prove that a file can be made in it before minutes are spent on one.

    Raises:
        OutputError: that is not possible.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OutputError(f"--out {directory}: {error.strerror}: give a directory that can be written to") from error


def write_all(directory: Path, files: Mapping[str, str]) -> None:
    """Write every file beside its place, then move all into place: a reader never sees half of one.

    Raises:
        OutputError: a file could not be written; what was there before is as it was.
    """
    beside = {name: directory / f".{name}.{os.getpid()}" for name in files}
    name = ""
    try:
        for name, text in files.items():
            with beside[name].open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for name, temporary in beside.items():
            temporary.replace(directory / name)
    except OSError as error:
        raise OutputError(
            f"{directory / name}: {error.strerror}: it was not written; free some space or give another --out"
        ) from error
    finally:
        for temporary in beside.values():
            with suppress(OSError):
                temporary.unlink()
