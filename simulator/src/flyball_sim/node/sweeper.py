"""Kills what a node process leaves behind. Run as a script by the node, standard library only.

Reads `+PGID` and `-PGID` lines on stdin, one per container's process group. The end of the input means that the node
process is gone, by whatever way (kill -9 included): every group still listed is killed, and this process ends.
A parent-death signal would reach only a container's first process and is forgotten at a change of user.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable


def sweep(lines: Iterable[str]) -> None:
    """Follow the list until it ends, then kill what is on it."""
    groups: set[int] = set()
    for line in lines:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sweep(sys.stdin)
