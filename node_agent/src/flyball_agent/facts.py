"""What the loops bring in and decisions are made from: plain values without input or output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flyball_agent.scanner import EngineSample

Report = dict[str, Any]
"""What the actuator says of one GPU (`actuator.governor.Governor.report`), or of a request."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Where an engine is scraped."""

    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """Its metrics page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.path}"


@dataclass(slots=True)
class EngineState:
    """The newest page of an engine.

    Attributes:
        since: monotonic seconds at which it was first wanted.
        sample: the page; None before the first.
        at: monotonic seconds of the page.
        pages: how many were read.
        failures: how many tries failed.
        error: why the last try failed; empty after a success.
    """

    since: float
    sample: EngineSample | None = None
    at: float | None = None
    pages: int = 0
    failures: int = 0
    error: str = ""

    def age_seconds(self, now: float) -> float:
        """Seconds since the last page, or since it was first wanted."""
        return now - (self.since if self.at is None else self.at)


@dataclass(frozen=True, slots=True)
class Holder:
    """A container that holds GPUs."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """Who holds which GPU.

    Attributes:
        holders: by GPU UUID.
        shared: UUIDs of GPUs that are time-sliced, or held by several pods.
        mig: ids of MIG devices in use.
    """

    holders: dict[str, Holder] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    mig: tuple[str, ...] = ()
