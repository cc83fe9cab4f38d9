"""Become another user, then become the container's program. Run as a script, by root, standard library only.

    python -I -S launch.py '{"uid": 65532, "gid": 65532, "groups": [], "veils": {...}}' PROGRAM ARGUMENT...

A container sees its own file system; a host process sees this one, where the interpreter may lie below a directory
closed to other users (a Python under /root). `veils` names such directories and what below each the program needs: in
a mount namespace of its own the directory is covered by an empty one that all may pass, with only the needed
directories bound into it. Nothing of this is seen outside the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18

CANNOT_LAUNCH_STATUS = 128
"""Exit status when the program could not be started, as container runtimes have it."""


def lift_veils(veils: Mapping[str, Sequence[str]]) -> None:
    """Make the named directories passable, in a mount namespace of this process' own.

    Args:
        veils: Needed directories by closed directory above them.

    Raises:
        OSError: The kernel refuses (no CAP_SYS_ADMIN).
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        words = [None if word is None else word.encode() for word in (source, target, kind)]
        if libc.mount(*words, ctypes.c_ulong(flags), None if options is None else options.encode()) != 0:
            raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")

    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    for closed, needed in veils.items():
        held = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY)) for path in needed]
        mount("tmpfs", closed, "tmpfs", 0, "mode=0755,size=1m")
        for path, descriptor in held:
            Path(path).mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", path, None, MS_BIND | MS_REC)
            os.close(descriptor)


def main() -> None:
    """Replace this process by the program; on failure say why on stderr and exit 128."""
    wanted = json.loads(sys.argv[1])
    directory = str(Path.cwd())
    try:
        if wanted["veils"]:
            lift_veils(wanted["veils"])
            os.chdir(directory)
        os.setgroups(wanted["groups"])
        os.setgid(wanted["gid"])
        os.setuid(wanted["uid"])
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - to become it is the purpose
    except OSError as error:
        closed = ", ".join(wanted["veils"]) or "nothing"
        sys.stderr.write(
            f"cannot start {sys.argv[2]} as uid {wanted['uid']}: {error} (directories closed to that user: {closed}; "
            "give them o+x, or install Python and choose --root outside them)\n"
        )
        sys.exit(CANNOT_LAUNCH_STATUS)


if __name__ == "__main__":
    main()
