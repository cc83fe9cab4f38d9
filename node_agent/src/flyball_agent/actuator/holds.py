"""Cards that one connection has for itself for a while, as a profiler has: pure, the clock is an argument.

Who holds a card alone changes it, and when the hold ends, by whatever, the card is given back as it was found.
"""

from __future__ import annotations

from flyball_agent.actuator.leases import Leases


class Holds:
    """Which connection holds which GPU, and until when."""

    def __init__(self) -> None:
        self._connections: dict[str, int] = {}
        self._leases = Leases()

    def take(self, uuid: str, connection: int, seconds: float, now: float) -> bool:
        """Take a card, or keep it; False when another connection has it."""
        if self._connections.setdefault(uuid, connection) != connection:
            return False
        self._leases.hold(uuid, seconds, now)
        return True

    def holder(self, uuid: str) -> int | None:
        """The connection that holds the card; None when nobody does."""
        return self._connections.get(uuid)

    def of(self, connection: int) -> list[str]:
        """The cards of one connection."""
        return [uuid for uuid, holder in self._connections.items() if holder == connection]

    def all(self) -> list[str]:
        """Every card that is held."""
        return list(self._connections)

    def renew(self, connection: int, now: float) -> None:
        """A sign of life of a connection: its holds that have not run out start anew."""
        for uuid in self.of(connection):
            self._leases.extend(uuid, now)

    def end(self, uuid: str) -> None:
        """The card is held no more."""
        self._connections.pop(uuid, None)
        self._leases.drop(uuid)

    def expire(self, now: float) -> list[str]:
        """The cards whose hold has run out; the caller ends them."""
        return self._leases.expire(now)

    def next_expiry(self) -> float | None:
        """When the next one runs out; None when none is held."""
        return self._leases.next_expiry()
