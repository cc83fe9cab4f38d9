"""What is said of a decision: the agent's `/explain` page."""

from __future__ import annotations

from typing import Any

from flyball_agent.controllers.base import GroupSetpoint
from flyball_agent.driving import Outcome
from flyball_agent.groups import Group
from flyball_api.nodeenergyplan import PlanGpu


def explained(group: Group, entry: PlanGpu, outcome: Outcome | None, degraded: tuple[str, ...]) -> dict[str, Any]:
    """What was decided last of one GPU, and why, as JSON.

    Args:
        group: the GPU's.
        entry: its grant.
        outcome: what was decided; None: nothing yet.
        degraded: what keeps the controller from controlling well.
    """
    return {
        "gpu": entry.uuid,
        "policy": group.policy.name,
        "controller": group.policy.controller.type,
        "role": entry.role,
        "action": entry.action,
        "engine": None if group.engine is None else group.engine.url,
        "grantedCapWatts": entry.cap_watts,
        "setpoint": None if outcome is None else setpoint_json(outcome.setpoint),
        "would": None if outcome is None or not group.observed else setpoint_json(outcome.would),
        "because": "" if outcome is None else outcome.because,
        "decisions": 0 if outcome is None else outcome.turn,
        "degraded": list(degraded),
    }


def setpoint_json(setpoint: GroupSetpoint) -> dict[str, Any]:
    """A setpoint; null: unlocked, the granted cap, the engine's own limit, all that fit."""
    return {
        "smMegahertz": None if setpoint.sm_mhz is None else list(setpoint.sm_mhz),
        "capWatts": setpoint.cap_watts,
        "batchLimit": setpoint.batch_limit,
        "admit": setpoint.admit,
    }
