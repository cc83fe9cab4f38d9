"""Leaving the network: what only talks to files has no business with sockets of the network."""

from __future__ import annotations

import ctypes
import os

_CLONE_NEWNET = 0x40000000


def leave_network() -> None:
    """Move this process into a network namespace of its own, with nothing in it.

    Unix sockets that are files keep working. To be called before any thread starts: it moves the calling thread, and
    the threads that it starts later.

    Raises:
        OSError: the kernel refuses.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
