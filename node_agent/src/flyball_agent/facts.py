"""What the loops bring in and decisions are made from: plain values without input or output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from flyball_agent.controllers.base import Board
from flyball_agent.scanner import EngineSample

Report = dict[str, Any]
"""What the actuator says of one GPU (`actuator.governor.Governor.report`), or of a request."""

SCRAPE_SECONDS: Final = 0.5
"""How often an engine is scraped when no controller wants more or less."""
LEAST_SCRAPE_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Engine:
    """Where an engine is scraped."""

    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """Its metrics page."""
        return self._base + self.path

    @property
    def board_url(self) -> str:
        """Where an engine that lets one at its scheduler shows it."""
        return self._base + "/flyball/board"

    @property
    def limits_url(self) -> str:
        """Where such an engine takes limits of its batch and its admission."""
        return self._base + "/flyball/limits"

    @property
    def _base(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the controllers want read of an engine.

    Attributes:
        period_seconds: how often.
        board: whether its scheduler's board is wanted beside the page.
    """

    period_seconds: float = SCRAPE_SECONDS
    board: bool = False


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
        board: what its scheduler said beside the newest page; None: it was not asked, or does not tell.
        board_at: monotonic seconds of the newest board there ever was; None: the engine has shown none.
        board_error: why there is no board beside the newest page; empty: there is, or it was not asked.
        restarts: how often its counters were seen to begin anew.
    """

    since: float
    sample: EngineSample | None = None
    at: float | None = None
    pages: int = 0
    failures: int = 0
    error: str = ""
    board: Board | None = None
    board_at: float | None = None
    board_error: str = ""
    restarts: int = 0

    def take(self, sample: EngineSample, now: float, board: Board | None = None, board_error: str = "") -> None:
        """A page was read, and perhaps the board beside it."""
        if _began_anew(self.sample, sample) or _went_back(self.board, board):
            self.restarts += 1
        self.sample, self.at, self.error = sample, now, ""
        self.pages += 1
        self.board, self.board_error = board, board_error
        if board is not None:
            self.board_at = now

    def fail(self, why: str) -> None:
        """No page was read."""
        self.failures += 1
        self.error = why
        self.board = None

    def age_seconds(self, now: float) -> float:
        """Seconds since the last page, or since it was first wanted."""
        return now - (self.since if self.at is None else self.at)


def _began_anew(before: EngineSample | None, now: EngineSample) -> bool:
    """Whether a counter went back; one that a page lacks says nothing."""
    if before is None:
        return False
    return any(
        now.values.get(name, math.inf) < before.values.get(name, 0.0) for name in ("generation_tokens", "prompt_tokens")
    )


def _went_back(before: Board | None, now: Board | None) -> bool:
    return before is not None and now is not None and now.iteration < before.iteration


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
