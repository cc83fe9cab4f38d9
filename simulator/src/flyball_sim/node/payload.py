"""Directories of files that change all at once, as the kubelet makes them for ConfigMaps, Secrets and tokens.

The files lie in a directory with a name of its own; `..data` is a symbolic link to it, and each file's visible name
is a link through `..data`. A new version is written beside and `..data` replaced by a rename: a reader sees the old
set or the new one, never a mixture.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CURRENT = "..data"


@dataclass(frozen=True)
class PayloadFile:
    """One file of a payload; `owner` None leaves it to the node's own user."""

    data: bytes
    mode: int
    owner: int | None = None
    group: int | None = None


Payload = Mapping[str, PayloadFile]
"""Files by relative path."""


def write_payload(directory: Path, payload: Payload) -> bool:
    """Bring a directory to a payload; False if it was there already.

    Args:
        directory: Exists, and holds nothing but what this function writes.
        payload: All the files; what is not in it is removed.
    """
    current = directory / _CURRENT
    if current.exists() and _read(current) == {name: (file.data, file.mode) for name, file in payload.items()}:
        return False
    version = directory / f"..{secrets.token_hex(8)}"
    version.mkdir(mode=0o755)
    version.chmod(0o755)
    for name, file in payload.items():
        path = version / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(file.mode)
        if file.owner is not None or file.group is not None:
            os.chown(path, -1 if file.owner is None else file.owner, -1 if file.group is None else file.group)
    old = current.resolve() if current.is_symlink() else None
    _replace_link(current, version.name)
    visible = {name.split("/", 1)[0] for name in payload}
    for entry in visible:
        if not (directory / entry).is_symlink():
            _replace_link(directory / entry, f"{_CURRENT}/{entry}")
    for path in directory.iterdir():
        if not path.name.startswith("..") and path.name not in visible:
            path.unlink()
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return True


def _replace_link(link: Path, target: str) -> None:
    temporary = link.with_name(f"..link_{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)


def _read(version: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(version)): (path.read_bytes(), path.stat().st_mode & 0o7777)
        for path in version.rglob("*")
        if path.is_file()
    }
