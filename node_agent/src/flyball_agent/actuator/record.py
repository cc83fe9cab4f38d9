"""What the actuator changed on this node, kept in a host file so that no death of a process strands it.

An entry is on the disk before the card is written: a SIGKILL in between leaves a record of something that did not
happen, which is harmless, and never the other way round. A lock is recorded as a fact and not as a value: what is
done about it (reset) does not depend on the value, and a controller that moves it twice a second needs no fsync.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flyball_agent.actuator.limits import TOLERANCE_WATTS

VERSION = 1


class RecordError(Exception):
    """The record cannot be read, written or held; the message names the file, the reason and the mend."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What may hold on one GPU because of us.

    Attributes:
        lock: a clock lock of ours may be on the card.
        cap_watts: the cap we last set out to write; None: never.
        cap_previous_watts: what it replaced, so that a death between record and card leaves both known as ours.
        cap_before_watts: what was on the card before we first wrote.
        held: it was written for a connection that has the card for itself, so nothing of it may outlive that.
    """

    lock: bool = False
    cap_watts: float | None = None
    cap_previous_watts: float | None = None
    cap_before_watts: float | None = None
    held: bool = False

    @property
    def ours_watts(self) -> tuple[float, ...]:
        """The caps that we may have written."""
        return tuple(cap for cap in (self.cap_watts, self.cap_previous_watts) if cap is not None)

    def with_cap(self, watts: float, found_watts: float) -> Entry:
        """The entry for writing `watts` over the `found_watts` on the card now."""
        if watts == self.cap_watts:
            return self  # on record already, so that a cap can be put back on a full disk too
        before = found_watts if self.cap_before_watts is None else self.cap_before_watts
        # Not always the last on record: a card that refused that one still has the one before.
        found = next((cap for cap in self.ours_watts if abs(cap - found_watts) <= TOLERANCE_WATTS), self.cap_watts)
        return replace(self, cap_watts=watts, cap_previous_watts=found, cap_before_watts=before)


EMPTY = Entry()


@dataclass(frozen=True, slots=True)
class Left:
    """What an earlier life left, as far as it still matters.

    Attributes:
        entries: by GPU UUID, of this boot.
        forgotten: UUIDs whose entries are of another boot, which put the cards back to their defaults.
        damaged: the file could not be understood; locks of every GPU are to be reset.
    """

    entries: Mapping[str, Entry]
    forgotten: tuple[str, ...] = ()
    damaged: str = ""


def encode(boot_id: str, entries: Mapping[str, Entry]) -> bytes:
    """The record as it is in the file."""
    gpus = {uuid: asdict(entry) for uuid, entry in sorted(entries.items())}
    return json.dumps({"version": VERSION, "boot_id": boot_id, "gpus": gpus}, indent=1).encode() + b"\n"


def decode(raw: bytes, boot_id: str) -> Left:
    """What the file says, judged in this boot; a damaged file is not an error but a fact."""
    try:
        document = json.loads(raw)
        if document["version"] != VERSION:
            return Left({}, damaged=f"it has version {document['version']!r}, this actuator knows {VERSION}")
        entries = {uuid: _entry(body) for uuid, body in document["gpus"].items()}
        if document["boot_id"] != boot_id:
            return Left({}, forgotten=tuple(entries))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Left({}, damaged=f"{type(error).__name__}: {error}")
    return Left(entries)


def _entry(body: Mapping[str, Any]) -> Entry:
    caps = {key: body[key] for key in ("cap_watts", "cap_previous_watts", "cap_before_watts")}
    for key, value in caps.items():
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"{key} is {value!r}, not a number")
    return Entry(lock=bool(body["lock"]), held=bool(body.get("held", False)), **caps)


class Record:
    """The record file, held by one actuator at a time.

    Args:
        path: the file; its directory is made when it is missing.
        boot_id: this boot of the node.

    Raises:
        RecordError: another actuator holds it, or the directory cannot be used.
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file of its own: the record itself is replaced, and a lock belongs to a file, not to a name.
            self._held = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RecordError(
                f"record {path} cannot be used ({error.strerror}): mount a writable host directory at {path.parent}"
            ) from error
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._held)
            raise RecordError(
                f"record {path} is held by another actuator: one per node; end the other or give another --record"
            ) from error
        self._entries: dict[str, Entry] = {}
        self._writing = threading.Lock()  # a job that was given up may still be writing when the next one does

    def load(self) -> Left:
        """Read what an earlier life left, and go on from there."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return Left({})
        except OSError as error:
            return Left({}, damaged=f"it cannot be read: {error.strerror}")
        left = decode(raw, self._boot_id)
        self._entries = dict(left.entries)
        return left

    def entry(self, uuid: str) -> Entry:
        """What is recorded of a GPU; `EMPTY` when nothing is."""
        return self._entries.get(uuid, EMPTY)

    def uuids(self) -> Iterable[str]:
        """GPUs with an entry."""
        return tuple(self._entries)

    def put(self, uuid: str, entry: Entry) -> None:
        """Make an entry durable; `EMPTY` removes it. Nothing is done when it says so already.

        Raises:
            RecordError: it is not on the disk; the record is as it was.
        """
        with self._writing:
            if self.entry(uuid) == entry:
                return
            changed = {key: value for key, value in self._entries.items() if key != uuid}
            if entry != EMPTY:
                changed[uuid] = entry
            self._replace(encode(self._boot_id, changed))
            self._entries = changed

    def _replace(self, content: bytes) -> None:
        draft = self._path.with_name(self._path.name + ".new")
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            mend = "free space on it" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend it"
            raise RecordError(
                f"record {self._path} cannot be written ({error.strerror}), so nothing is written to the GPUs:"
                f" {mend}; clock locks can still be reset"
            ) from error

    def close(self) -> None:
        """Let another actuator have it."""
        os.close(self._held)
