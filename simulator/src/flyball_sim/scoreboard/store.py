"""Finished work in a file of JSON lines: what a killed run leaves is what the next one need not do again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout


class StoreError(RuntimeError):
    """The file cannot be used; the message says why and the mend."""


def key_of(fields: Mapping[str, Any]) -> str:
    """The fields as one string, the same whatever their order."""
    return json.dumps(dict(sorted(fields.items())), separators=(",", ":"))


class Store:
    """Results by key, each with the digest of what made it; one process writes at a time.

    A line is written whole and synced before the next. A line without an end, which a kill leaves, is cut off when
    the file is opened; a line whose digest is not the one asked for counts as not there.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._results: dict[str, tuple[str, Any]] = {}
        self._file: int | None = None
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        if self._path.is_dir():
            raise StoreError(f"{self._path} is a directory: give a file as --out")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._path.with_name(f"{self._path.name}.lock"))
            self._lock.acquire(timeout=0)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._load()
        except Timeout:
            raise StoreError(
                f"{self._path} is being written by another run: wait for it or give another --out"
            ) from None
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}: give a file that can be written as --out") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
        if self._lock is not None:
            self._lock.release()

    def _load(self) -> None:
        assert self._path is not None  # noqa: S101 - only called with a file
        assert self._file is not None  # noqa: S101
        text = self._path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.ftruncate(self._file, whole)
        for number, line in enumerate(text[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                key, digest, result = entry["key"], entry["digest"], entry["result"]
            except (ValueError, KeyError, TypeError):
                raise StoreError(
                    f"{self._path}, line {number} is no result of the scoreboard: give another --out, or drop the line"
                ) from None
            self._results[key_of(key)] = digest, result

    def get(self, key: Mapping[str, Any], digest: str) -> Any | None:
        """The result under a key if this made it, or None."""
        made_by, result = self._results.get(key_of(key), ("", None))
        return result if made_by == digest else None

    def put(self, key: Mapping[str, Any], digest: str, result: Any) -> None:
        """Keep a result and what made it, on the disk before this returns."""
        self._results[key_of(key)] = digest, result
        if self._file is not None:
            line = json.dumps({"key": dict(key), "digest": digest, "result": result}, separators=(",", ":"))
            os.write(self._file, f"{line}\n".encode())
            os.fsync(self._file)
