"""Byte relay to the kubelet's PodResources socket, which only root can reach.

It carries bytes and understands nothing: PodResources is a read-only service, and a parser would be more code with
privileges. Few connections, bounded buffers: a side that does not read stops the other side from being read.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from flyball_agent.actuator.log import Log
from flyball_agent.actuator.peers import peer_uid, refusal

MAX_CONNECTIONS: Final = 4
BUFFER_BYTES: Final = 64 * 1024


class _Pipe:
    """One end of a relayed connection and what waits to be written to it."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.pending = bytearray()
        self.finished = False  # nothing more will come from this end

    def events(self, other: _Pipe) -> int:
        """What to wait for on this end."""
        events = 0
        if not self.finished and len(other.pending) < BUFFER_BYTES:
            events |= selectors.EVENT_READ
        if self.pending:
            events |= selectors.EVENT_WRITE
        return events


class Relay:
    """Accepts the agent, connects to the kubelet, and moves bytes.

    Args:
        selector: the process's selector; the data of each key is a callable without arguments.
        listener: where the agent connects.
        kubelet: the kubelet's socket.
        agent_uid: the only uid that is served.
        log: structured log.
    """

    def __init__(
        self, selector: selectors.BaseSelector, listener: socket.socket, kubelet: Path, agent_uid: int, log: Log
    ) -> None:
        self._selector = selector
        self._listener = listener
        self._kubelet = str(kubelet)
        self._agent_uid = agent_uid
        self._log = log
        self._pairs: set[tuple[_Pipe, _Pipe]] = set()
        self._watched: dict[socket.socket, int] = {}
        self._complained = False
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            agent, _ = self._listener.accept()
        except OSError:
            return
        agent.setblocking(False)
        why = refusal(peer_uid(agent), self._agent_uid)
        if why is None and len(self._pairs) >= MAX_CONNECTIONS:
            why = f"{MAX_CONNECTIONS} connections to PodResources are open: close one"
        if why is not None:
            self._log.warning("PodResources peer refused", reason=why)
            agent.close()
            return
        kubelet = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            kubelet.connect(self._kubelet)
        except OSError as error:
            if not self._complained:
                self._log.warning("kubelet not reached", socket=self._kubelet, error=str(error))
            self._complained = True
            kubelet.close()
            agent.close()
            return
        self._complained = False
        pair = (_Pipe(agent), _Pipe(kubelet))
        self._pairs.add(pair)
        self._watch(pair)

    def _watch(self, pair: tuple[_Pipe, _Pipe]) -> None:
        for pipe, other in (pair, pair[::-1]):
            events = pipe.events(other)
            known = self._watched.get(pipe.end, 0)
            if events == known:
                continue
            move = partial(self._move, pair, pipe, other)
            _register(self._selector, pipe.end, known, events, move)
            self._watched[pipe.end] = events

    def _move(self, pair: tuple[_Pipe, _Pipe], pipe: _Pipe, other: _Pipe) -> None:
        if pair not in self._pairs:
            return
        try:
            if pipe.pending:
                with contextlib.suppress(BlockingIOError):
                    del pipe.pending[: pipe.end.send(pipe.pending)]
            if not pipe.finished and len(other.pending) < BUFFER_BYTES:
                with contextlib.suppress(BlockingIOError):
                    piece = pipe.end.recv(BUFFER_BYTES - len(other.pending))
                    pipe.finished = not piece
                    other.pending += piece
        except OSError:
            self._drop(pair)
            return
        if any(one.finished and not two.pending for one, two in (pair, pair[::-1])):
            self._drop(pair)
            return
        self._watch(pair)

    def _drop(self, pair: tuple[_Pipe, _Pipe]) -> None:
        self._pairs.discard(pair)
        for pipe in pair:
            if self._watched.pop(pipe.end, 0):
                self._selector.unregister(pipe.end)
            pipe.end.close()


def _register(
    selector: selectors.BaseSelector, end: socket.socket, known: int, events: int, move: Callable[[], None]
) -> None:
    """Wait for these events from now on; selectors know no empty set of events."""
    if not events:
        selector.unregister(end)
    elif known:
        selector.modify(end, events, move)
    else:
        selector.register(end, events, move)
