"""The agent's two kinds of files: profiles that it reads, and the states of controllers that it keeps."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from flyball_agent.memory import MAX_BYTES
from flyball_agent.profiles import Profile

MAX_PROFILE_BYTES: Final = 2 << 20
"""A ConfigMap holds 1 MiB."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PLAIN: Final = re.compile("[A-Za-z0-9][-._A-Za-z0-9]{0,239}")

_Mark = tuple[int, int, int]
"""Modification time, size and inode: another one is another file."""


class ProfileFolder:
    """Profiles by name in a directory, read when a policy names them and again when their file changes.

    Args:
        directory: with `<name>.json` files; it need not be there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._marks: dict[str, _Mark | None] = {}
        self._shelf: dict[str, Profile | str] = {}

    def shelf(self, names: Collection[str]) -> dict[str, Profile | str]:
        """The named profiles, or why they cannot be read; the same object for as long as no file changed."""
        marks = {name: self._mark(name) for name in names}
        if marks == self._marks:
            return self._shelf
        kept = {name: self._shelf[name] for name, mark in marks.items() if self._marks.get(name, ...) == mark}
        self._shelf = kept | {name: self._read(name) for name in marks.keys() - kept.keys()}
        self._marks = marks
        return self._shelf

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _mark(self, name: str) -> _Mark | None:
        if not _PLAIN.fullmatch(name):
            return None
        try:
            found = self._path(name).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self, name: str) -> Profile | str:
        if not _PLAIN.fullmatch(name):
            return f"profile {name[:60]!r} is no name of a file: use letters, digits, -, _ and ."
        try:
            with self._path(name).open("rb") as file:
                content = file.read(MAX_PROFILE_BYTES + 1)
        except OSError as error:
            return (
                f"profile {name!r} cannot be read ({error.strerror or error}): make it with `flyball profile` and put"
                f" it into ConfigMap flyball-profiles as {name}.json"
            )
        if len(content) > MAX_PROFILE_BYTES:
            return f"profile {name!r} has more than {MAX_PROFILE_BYTES} bytes: make it anew with `flyball profile`"
        try:
            return Profile.from_json(content)
        except ValueError as error:
            return f"profile {name!r} cannot be used: {error}"


class StateFile:
    """The file of controllers' states.

    Args:
        path: of the file; None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written = b""

    @property
    def kept(self) -> bool:
        """Whether anything is kept at all."""
        return self._path is not None

    def read(self) -> bytes | None:
        """What is in the file; None: there is none.

        Raises:
            OSError: it is there and cannot be read.
        """
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None

    def write(self, content: bytes) -> bool:
        """Replace the file at once and whole, if it would change.

        Returns:
            Whether it was written.

        Raises:
            OSError: it could not be written; what was there before still is.
        """
        mark = hashlib.sha256(content).digest()
        if self._path is None or mark == self._written:
            return False
        replace_file(self._path, content)
        self._written = mark
        return True


def boot_id() -> str:
    """This boot of the node; empty where the kernel does not say."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def replace_file(path: Path, content: bytes) -> None:
    """Put this content into a file at once and whole, on the disk before this returns.

    Raises:
        OSError: it could not be written; what was there before still is.
    """
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
