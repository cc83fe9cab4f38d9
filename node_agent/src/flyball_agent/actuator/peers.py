"""Who is at the other end of a Unix socket, as the kernel says."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_UCRED = struct.Struct("3i")  # pid, uid, gid (unix(7))


def peer_uid(connection: socket.socket) -> int:
    """The uid of the process that connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    return int(uid)


def refusal(uid: int, agent_uid: int) -> str | None:
    """Why a peer of this uid is not served; None when it is the agent."""
    if uid == agent_uid:
        return None
    return f"uid {uid} may not use the actuator: connect as uid {agent_uid}, or start it with --agent-uid={uid}"


def listen(path: Path, backlog: int) -> socket.socket:
    """A non-blocking listening socket at `path`, in place of what an earlier life left there.

    Anybody may connect; `refusal` decides who is served. Without CAP_CHOWN and CAP_DAC_OVERRIDE a uid 0 process has
    no narrower way to let another uid in.

    Raises:
        OSError: the directory cannot be used.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o666)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
