"""Leases of clock locks: pure, the clock is an argument (monotonic seconds)."""

from __future__ import annotations


class Leases:
    """Which GPUs are controlled, and until when. A lease that has run out is never renewed, only taken anew."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[float, float]] = {}  # UUID -> (expires at, length in seconds)

    def hold(self, uuid: str, seconds: float, now: float) -> None:
        """Take or replace the lease of a GPU."""
        self._held[uuid] = (now + seconds, seconds)

    def renew(self, now: float) -> list[str]:
        """Start every lease anew that has not run out; returns those that had, which are gone."""
        expired = self.expire(now)
        self._held = {uuid: (now + seconds, seconds) for uuid, (_, seconds) in self._held.items()}
        return expired

    def expire(self, now: float) -> list[str]:
        """Remove and return the leases that have run out."""
        expired = [uuid for uuid, (at, _) in self._held.items() if at <= now]
        for uuid in expired:
            del self._held[uuid]
        return expired

    def extend(self, uuid: str, now: float) -> None:
        """Start one lease anew, unless it has run out or was never taken."""
        at, seconds = self._held.get(uuid, (now, 0.0))
        if at > now:
            self._held[uuid] = (now + seconds, seconds)

    def drop(self, uuid: str) -> None:
        """Give up one lease, if it is held."""
        self._held.pop(uuid, None)

    def clear(self) -> list[str]:
        """Give up all; returns which were held."""
        held = list(self._held)
        self._held.clear()
        return held

    def holds(self, uuid: str) -> bool:
        """Whether the GPU has a lease (that nobody has yet found expired)."""
        return uuid in self._held

    def next_expiry(self) -> float | None:
        """When the next one runs out; None when none is held."""
        return min((at for at, _ in self._held.values()), default=None)
