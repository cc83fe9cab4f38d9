"""Fixed: one range of SM clocks per role, held whatever the load is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flyball_agent.controllers.base import UNLOCKED, ControlLimits, Decision, Event, GroupSetpoint, Observation, Setup
from flyball_api.controllers.fixed import FixedController


class Fixed:
    """Holds the clocks given for the group's role; a role that is not named stays unlocked.

    Args:
        parameters: `spec.controller.fixed` of the policy.
        setup: what it drives; nothing of it matters here.
    """

    requires: frozenset[str] = frozenset()
    events: frozenset[Event] = frozenset()
    wants_board = False
    period_seconds = 0.5

    def __init__(self, parameters: FixedController, setup: Setup | None = None) -> None:  # noqa: ARG002
        self._clocks = {clock.role: (clock.min_megahertz, clock.max_megahertz) for clock in parameters.clocks}

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:  # noqa: ARG002
        """See `GroupController.decide`."""
        wanted = self._clocks.get(observation.role)
        if wanted is None:
            return Decision(UNLOCKED)
        held = limits.clip(*wanted)
        if held[0] > wanted[1] or held[1] < wanted[0]:
            why = (
                f"the {observation.role} clocks {wanted[0]}-{wanted[1]} MHz are outside what these cards and the policy"
                f" allow ({limits.sm_min_mhz}-{limits.sm_max_mhz} MHz): {held[0]}-{held[1]} MHz are held instead"
            )
            return Decision(GroupSetpoint(sm_mhz=held), degraded=(why,))
        return Decision(GroupSetpoint(sm_mhz=held))

    def state(self) -> dict[str, Any]:
        """It learns nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""
