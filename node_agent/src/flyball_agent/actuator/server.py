"""The actuator's one loop: sockets, wake-ups of the worker, signals and time."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from flyball_agent.actuator.core import Actuator
from flyball_agent.actuator.log import Log
from flyball_agent.actuator.messages import MAX_LINE_BYTES, encode
from flyball_agent.actuator.peers import peer_uid, refusal
from flyball_agent.actuator.worker import Worker

MAX_CONNECTIONS: Final = 8
MAX_PENDING_BYTES: Final = 1 << 20
_RECEIVE_BYTES: Final = 16 * 1024
FAREWELL_SECONDS: Final = 5.0
"""How long the end of the process waits for locks to be reset; a pod's grace period is 15 s."""


class Connection:
    """One peer: what it sent short of a line, and what it has not yet read."""

    def __init__(self, number: int, peer: socket.socket) -> None:
        self.number = number
        self.peer = peer
        self.received = bytearray()
        self.pending = bytearray()
        self.closing = False


class Server:
    """Feeds lines to the `Actuator` and carries its answers.

    Args:
        selector: the process's selector; the data of each key is a callable without arguments.
        listener: where the agent connects.
        agent_uid: the only uid that is served.
        clock: monotonic seconds.
        log: structured log.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listener: socket.socket,
        agent_uid: int,
        clock: Callable[[], float],
        log: Log,
    ) -> None:
        self._selector = selector
        self._listener = listener
        self._agent_uid = agent_uid
        self._clock = clock
        self._log = log
        self._connections: dict[int, Connection] = {}
        self._count = 0
        self._stopping = False
        self._actuator: Actuator | None = None
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def stop(self) -> None:
        """End `run` soon, after resetting the locks."""
        self._stopping = True

    def run(self, actuator: Actuator, worker: Worker) -> None:
        """Serve until `stop`."""
        self._actuator = actuator
        actuator.start()
        farewell_at: float | None = None
        while True:
            due = actuator.tick()
            if self._stopping and farewell_at is None:
                farewell_at = self._clock() + FAREWELL_SECONDS
                actuator.shut_down()
            if farewell_at is not None and (worker.idle() or self._clock() >= farewell_at):
                return
            for at in (worker.busy_until(), farewell_at):
                due = at if due is None else due if at is None else min(at, due)
            timeout = None if due is None else max(0.0, due - self._clock())
            for key, _ in self._selector.select(timeout):
                key.data()
            worker.poll(actuator.recovered)

    def send(self, number: int, answer: dict[str, Any]) -> None:
        """Send one answer; to a connection that is gone, nothing."""
        connection = self._connections.get(number)
        if connection is None or connection.closing:
            return
        connection.pending += encode(answer)
        if len(connection.pending) > MAX_PENDING_BYTES:
            self._log.error("peer does not read its answers", connection=number)
            self._drop(connection)
            return
        self._flush(connection)

    def close(self, number: int) -> None:
        """Close a connection once it has what was sent to it."""
        connection = self._connections.get(number)
        if connection is None:
            return
        connection.closing = True
        if not connection.pending:
            self._drop(connection)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        peer.setblocking(False)
        why = refusal(peer_uid(peer), self._agent_uid)
        if why is None and len(self._connections) >= MAX_CONNECTIONS:
            why = f"{MAX_CONNECTIONS} connections are open: close one"
        if why is not None:
            self._log.warning("peer refused", reason=why)
            with contextlib.suppress(OSError):
                peer.send(encode({"id": None, "ok": False, "code": "Refused", "error": why}))
            peer.close()
            return
        self._count += 1
        connection = Connection(self._count, peer)
        self._connections[connection.number] = connection
        self._selector.register(peer, selectors.EVENT_READ, partial(self._serve, connection))

    def _serve(self, connection: Connection) -> None:
        if connection.number not in self._connections:
            return
        if connection.pending:
            self._flush(connection)
        try:
            piece = connection.peer.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._drop(connection)
            return
        connection.received += piece
        *lines, rest = connection.received.split(b"\n")
        connection.received = bytearray(rest)
        for line in lines:
            if connection.closing or connection.number not in self._connections:
                return
            self._line(connection, bytes(line))
        if len(connection.received) > MAX_LINE_BYTES:
            self._line(connection, bytes(connection.received))

    def _line(self, connection: Connection, line: bytes) -> None:
        if self._actuator is None:
            return
        if len(line) > MAX_LINE_BYTES:
            why = f"a line has {len(line)} bytes or more: send at most {MAX_LINE_BYTES}"
            self._actuator.misunderstood(connection.number, why)
            self.close(connection.number)
        else:
            self._actuator.line(connection.number, line)

    def _flush(self, connection: Connection) -> None:
        try:
            del connection.pending[: connection.peer.send(connection.pending)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        if not connection.pending and connection.closing:
            self._drop(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.pending else 0)
        key = self._selector.get_key(connection.peer)
        if key.events != events:
            self._selector.modify(connection.peer, events, key.data)

    def _drop(self, connection: Connection) -> None:
        if self._connections.pop(connection.number, None) is None:
            return
        self._selector.unregister(connection.peer)
        connection.peer.close()
        if self._actuator is not None:
            self._actuator.gone(connection.number)
