"""What engines that can be limited are to be told, what they were told, and what they are owed. Pure.

Limits are given on a lease, which is renewed: an engine whose agent was killed goes back to its own limits by itself.
An engine that lets in only so many, or nobody, gets a much shorter one: while nobody decides, its callers wait.
What is wanted is compared with what the engine last took, so that a restarted engine is simply told again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flyball_agent.facts import Engine, EngineState

LEASE_SECONDS: Final = 15
RENEW_SECONDS: Final = 5.0
GATE_LEASE_SECONDS: Final = 3
"""Of a limit of admission: an engine that was closed when its agent died answers nobody for that long."""
GATE_RENEW_SECONDS: Final = 1.0
FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a group's controller wants of its engine.

    Attributes:
        batch_limit: most sequences in its batch; None: its own limit.
        admit: how many waiting requests may enter the batch from now on; None: as many as fit.
        turn: which decision said so: the same number of another decision is another grant.
    """

    batch_limit: int | None = None
    admit: int | None = None
    turn: int = 0

    def merged(self, other: Knobs) -> Knobs:
        """What keeps both."""
        limits = [limit for limit in (self.batch_limit, other.batch_limit) if limit is not None]
        admits = [admit for admit in (self.admit, other.admit) if admit is not None]
        return Knobs(min(limits, default=None), min(admits, default=None), self.turn + other.turn)


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """Something to tell an engine.

    Attributes:
        engine: which.
        batch_limit: most sequences in its batch; None: its own limit.
        admit: how many waiting requests may enter; None: as many as fit.
        lease_seconds: after these both are lifted if they are not told again; None: nothing is limited.
        turn: of `Knobs`.
    """

    engine: Engine
    batch_limit: int | None = None
    admit: int | None = None
    lease_seconds: int | None = None
    turn: int = 0

    def body(self) -> dict[str, int | None]:
        """What is posted."""
        limits = {"batchLimit": self.batch_limit, "admit": self.admit}
        return limits if self.lease_seconds is None else limits | {"seconds": self.lease_seconds}


@dataclass(slots=True)
class _Hold:
    """What an engine was told, and when.

    Attributes:
        told: what it last took; None: not known.
        told_at: monotonic seconds at which something was last sent that it may have taken.
        in_flight: what is not answered yet.
        restarts: of the engine, when it was told.
        failure: a sentence on the last try; empty after a success.
        retry_at: monotonic seconds before which nothing is sent again.
        retry_seconds: the next wait.
    """

    told_at: float
    told: EngineCommand | None = None
    in_flight: EngineCommand | None = None
    restarts: int = 0
    failure: str = ""
    retry_at: float = 0.0
    retry_seconds: float = FIRST_RETRY_SECONDS


class EngineKnobs:
    """The limits of a node's engines."""

    def __init__(self) -> None:
        self._holds: dict[Engine, _Hold] = {}

    def commands(
        self, wanted: Mapping[Engine, Knobs], states: Mapping[Engine, EngineState], now: float
    ) -> list[EngineCommand]:
        """What to tell now; each is in flight from here on.

        Args:
            wanted: by engine; whoever is not in it is to be handed back.
            states: of the scraped engines. Only one that has shown its board can be limited.
            now: monotonic seconds.
        """
        made = []
        for engine, knobs in wanted.items():
            command = self._wanted(engine, knobs, states.get(engine), now)
            if command is not None:
                made.append(command)
        for engine in [engine for engine in self._holds if engine not in wanted]:
            command = self._owed(engine, now)
            if command is not None:
                made.append(command)
        return made

    def renewals(self, states: Mapping[Engine, EngineState], now: float) -> list[EngineCommand]:
        """What to tell while nothing may be changed: batch limits stay, and engines are open.

        Whom to let in is said anew by each decision. Without decisions a closed engine would answer nobody, for good.
        """
        same = {
            engine: Knobs(told.batch_limit)
            for engine, hold in self._holds.items()
            if (told := hold.told) is not None and told.batch_limit is not None
        }
        return self.commands(same, states, now)

    def hand_back(self) -> list[EngineCommand]:
        """What to tell at the agent's end."""
        return [EngineCommand(engine) for engine in self._holds]

    def answered(self, command: EngineCommand, now: float) -> None:
        """The engine took it."""
        hold = self._holds.get(command.engine)
        if hold is None or hold.in_flight is not command:
            return
        hold.in_flight, hold.told, hold.told_at, hold.failure = None, command, now, ""
        hold.retry_seconds = FIRST_RETRY_SECONDS
        if command.lease_seconds is None:
            del self._holds[command.engine]

    def failed(self, command: EngineCommand, why: str, now: float) -> None:
        """The engine did not take it, or nobody knows."""
        hold = self._holds.get(command.engine)
        if hold is None or hold.in_flight is not command:
            return
        hold.in_flight = hold.told = None
        hold.failure = why
        hold.retry_at = now + hold.retry_seconds
        hold.retry_seconds = min(2 * hold.retry_seconds, LAST_RETRY_SECONDS)

    def fault(self, engine: Engine) -> str:
        """Why the engine is not limited as its controller wants; empty when it is."""
        hold = self._holds.get(engine)
        if hold is None or not hold.failure:
            return ""
        return f"{engine.limits_url} did not take its limits ({hold.failure}): the engine goes by its own until it does"

    def _wanted(self, engine: Engine, knobs: Knobs, state: EngineState | None, now: float) -> EngineCommand | None:
        if state is None or state.board_at is None:
            return None
        hold = self._holds.setdefault(engine, _Hold(now))
        if hold.in_flight is not None or now < hold.retry_at:
            return None
        limit = knobs.batch_limit
        if limit is not None and state.board is not None:
            limit = min(limit, state.board.max_batch_limit)
        elif limit is not None and hold.told is not None and hold.told.batch_limit is not None:
            # Without a board of now its bound is not known: what it took once it takes again.
            limit = min(limit, hold.told.batch_limit)
        gated = knobs.admit is not None
        lease, renew = (GATE_LEASE_SECONDS, GATE_RENEW_SECONDS) if gated else (LEASE_SECONDS, RENEW_SECONDS)
        command = EngineCommand(engine, limit, knobs.admit, lease, knobs.turn if knobs.admit else 0)
        fresh = hold.told != command or hold.restarts != state.restarts or _shows_another(state, hold)
        if not fresh and now - hold.told_at < renew:
            return None
        hold.in_flight, hold.told_at, hold.restarts = command, now, state.restarts
        return command

    def _owed(self, engine: Engine, now: float) -> EngineCommand | None:
        hold = self._holds[engine]
        if now - hold.told_at > LEASE_SECONDS:
            del self._holds[engine]  # the lease is over
            return None
        if hold.in_flight is not None or now < hold.retry_at:
            return None
        hold.in_flight = EngineCommand(engine)
        return hold.in_flight


def _shows_another(state: EngineState, hold: _Hold) -> bool:
    """Whether the board, read after the engine was told, shows another batch limit than it was told."""
    board, told = state.board, hold.told
    if board is None or told is None or state.board_at is None or state.board_at <= hold.told_at + RENEW_SECONDS / 5:
        return False
    return board.batch_limit != (board.max_batch_limit if told.batch_limit is None else told.batch_limit)
