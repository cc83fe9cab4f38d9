"""Which controller a policy's `spec.controller.type` names."""

from __future__ import annotations

from flyball_agent.controllers.base import GroupController
from flyball_agent.controllers.fixed import Fixed
from flyball_agent.controllers.observing import Observing
from flyball_api.energypolicy import Controller, FixedController


def make_controller(spec: Controller, *, observe: bool) -> GroupController:
    """A fresh controller for one GPU group.

    Args:
        spec: `spec.controller` of the policy; the API knows no type that is not here.
        observe: only say what it would do.
    """
    builders = {"Fixed": lambda: Fixed(spec.fixed or FixedController())}
    inner = builders[spec.type]()
    return Observing(inner) if observe else inner
