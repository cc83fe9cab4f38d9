"""Which controller a policy's `spec.controller.type` names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

from flyball_agent.controllers.base import GroupController, Setup
from flyball_agent.controllers.observing import Observing
from flyball_api.controllers.union import Controller

CONTROLLERS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "Fixed": ("flyball_agent.controllers.fixed", "Fixed"),
        "Flyball": ("flyball_agent.controllers.flyball.controller", "Flyball"),
        "AGFT": ("flyball_agent.controllers.agft.controller", "Agft"),
        "VoltanaLLM": ("flyball_agent.controllers.voltanallm.controller", "VoltanaLlm"),
        "ThrottLLeM": ("flyball_agent.controllers.throttllem.controller", "ThrottLlem"),
        "PALS": ("flyball_agent.controllers.pals.controller", "Pals"),
    }
)
"""By type: module and class. A controller's module is imported when a policy first asks for it, so that an agent pays
for no library that its policies do not need."""


def make_controller(spec: Controller, *, observe: bool, setup: Setup | None = None) -> GroupController:
    """A fresh controller for one GPU group.

    Args:
        spec: `spec.controller` of the policy; the API knows no type that is not here.
        observe: only say what it would do.
        setup: what it drives.
    """
    module, name = CONTROLLERS[spec.type]
    make: Any = getattr(import_module(module), name)
    inner: GroupController = make(spec.parameters, setup or Setup())
    return Observing(inner) if observe else inner
