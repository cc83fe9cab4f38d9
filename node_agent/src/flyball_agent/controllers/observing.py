"""Observing: lets another controller decide, and writes nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flyball_agent.controllers.base import UNLOCKED, ControlLimits, Decision, GroupController, Observation


class Observing:
    """The controller of a policy in mode Observe.

    Args:
        inner: the controller that would drive the group.
    """

    def __init__(self, inner: GroupController) -> None:
        self._inner = inner
        self.requires = inner.requires
        self.events = inner.events
        self.wants_board = inner.wants_board
        self.period_seconds = inner.period_seconds

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """The inner decision as `would`, and nothing to write."""
        decision = self._inner.decide(observation, limits, now_seconds)
        return replace(decision, setpoint=UNLOCKED, would=decision.setpoint)

    def state(self) -> dict[str, Any]:
        """The inner controller's."""
        return self._inner.state()

    def watched_state(self) -> dict[str, Any] | None:
        """What of its state would hold had its setpoints been written; None: nothing.

        A controller that learns by what it reads, not by what it chose, says so by a method of this name.
        """
        watched: Callable[[], dict[str, Any]] | None = getattr(self._inner, "watched_state", None)
        return None if watched is None else watched()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Hands it on."""
        self._inner.restore(state)
