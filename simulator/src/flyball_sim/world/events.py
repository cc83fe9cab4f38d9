"""Virtual time: what is to happen, in order of time, and at one time in the order in which it was asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

BOOT_SECONDS: Final = 10_000.0
"""What monotonic clocks show at the trace's second 0: the warm-up before it must not make them negative."""


class EventQueue:
    """The clock of a world and what is due on it.

    Args:
        start_seconds: the time at which it begins; 0 is the trace's beginning.
    """

    __slots__ = ("_count", "_heap", "now")

    def __init__(self, start_seconds: float = 0.0) -> None:
        self.now = start_seconds
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        """Call `act(*arguments)` at a time; at once, after what is due already, where that time is past."""
        self._count += 1
        heapq.heappush(self._heap, (seconds if seconds > self.now else self.now, self._count, act, arguments))

    def after(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        """Call `act(*arguments)` so many seconds from now."""
        self.at(self.now + seconds, act, *arguments)

    def monotonic(self) -> float:
        """What every process's monotonic clock shows."""
        return self.now + BOOT_SECONDS

    def run(self, until_seconds: float, go_on: Callable[[], bool]) -> None:
        """Do all that is due up to and at a time, or until `go_on` says no; the clock ends where that was.

        Args:
            until_seconds: the end; infinite: until nothing is left or `go_on` says no.
            go_on: asked before every event.
        """
        heap = self._heap
        while heap and heap[0][0] <= until_seconds and go_on():
            self.now, _, act, arguments = heapq.heappop(heap)
            act(*arguments)
        if until_seconds < float("inf") and go_on():
            self.now = max(self.now, until_seconds)
