"""A controller as the node agent runs it: unlocked when the page is stale or lacks what is needed, or when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from flyball_agent.controllers.base import UNLOCKED, ControlLimits, Decision, GroupController, Observation
from flyball_agent.groups import ALWAYS_NEEDED
from flyball_agent.scanner import EngineSample
from flyball_sim.robustness.faults import Fault

PATIENCE_SECONDS: Final = 5.0
"""`spec.failSafe.metricsStaleSeconds` where a policy says nothing."""
TICK_SECONDS: Final = 0.5
"""How often the agent looks, whatever its controllers asked for."""
PROMISED: Final = frozenset({"time_to_first_token", "inter_token_latency"})
"""Families of the objectives, without which nobody can say whether they hold."""


class Guarded:
    """Stands between an engine and its controller, with what the fault hides.

    Args:
        inner: the controller.
        fault: what it does not see, and when it is not asked.
        lasting_seconds: of the run.
    """

    def __init__(self, inner: GroupController, fault: Fault, lasting_seconds: float) -> None:
        self._inner, self._fault = inner, fault
        self.requires, self.events = inner.requires, inner.events
        self.wants_board, self.period_seconds = inner.wants_board, inner.period_seconds
        lost = fault.lost_at_share * lasting_seconds
        self._lost = (lost, lost + TICK_SECONDS) if lost > 0.0 else (0.0, 0.0)
        self._page: tuple[EngineSample, float] | None = None
        self._decision = Decision(UNLOCKED)
        self._due = 0.0
        self.failures = 0

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """See `GroupController.decide`."""
        if self._lost[0] <= now_seconds < self._lost[1]:
            return self._held(self._decision, now_seconds)
        seen = self._seen(observation, now_seconds)
        if observation.event is not None or now_seconds >= self._due - 1e-9:
            try:
                self._decision = self._inner.decide(seen, limits, now_seconds)
                self._due = now_seconds + self._decision.next_wake_seconds
            except Exception:  # noqa: BLE001 - as in the agent, a controller's fault must not be the node's
                self.failures += 1
                self._decision, self._due = Decision(UNLOCKED, degraded=("it failed",)), now_seconds + TICK_SECONDS
        age = seen.engine_age_seconds
        lacks = (self.requires | ALWAYS_NEEDED | PROMISED) & set(seen.missing)
        if age is None or age > PATIENCE_SECONDS or lacks:
            return self._held(replace(self._decision, setpoint=UNLOCKED), now_seconds)
        return self._held(self._decision, now_seconds)

    def _held(self, decision: Decision, now: float) -> Decision:
        wake = min(max(self._due - now, 0.0), TICK_SECONDS)
        return replace(decision, next_wake_seconds=wake if wake > 0.0 else TICK_SECONDS)

    def _seen(self, observation: Observation, now: float) -> Observation:
        """What comes through; a page that is not read is the last one, growing old."""
        every = self._fault.blind_every_seconds
        if observation.engine is None:
            return observation
        if every <= 0.0 or now % every < every - self._fault.blind_seconds:
            self._page = (observation.engine, now)
            return observation
        if self._page is None:
            return replace(observation, engine=None, engine_age_seconds=None, missing=(), board=None)
        page, read = self._page
        return replace(observation, engine=page, engine_age_seconds=now - read, missing=page.missing, board=None)

    def state(self) -> dict[str, Any]:
        """The inner controller's."""
        return self._inner.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Hands it on."""
        self._inner.restore(state)
