"""Which controller a policy wants, and its parameters.

What a type needs of the rest of a policy (objectives, a profile, a power budget) is in `needs`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from flyball_api.common import ApiModel, Rule, RuledModel, field_value
from flyball_api.controllers.agft import AgftController
from flyball_api.controllers.fixed import FixedController
from flyball_api.controllers.flyball import FlyballController
from flyball_api.controllers.pals import PalsController
from flyball_api.controllers.throttllem import ThrottLlemController
from flyball_api.controllers.voltanallm import VoltanaLlmController

ControllerType = Literal["Flyball", "VoltanaLLM", "ThrottLLeM", "AGFT", "PALS", "Fixed"]

PARAMETERS: Final[dict[ControllerType, tuple[str, type[ApiModel]]]] = {
    "Flyball": ("flyball", FlyballController),
    "VoltanaLLM": ("voltana_llm", VoltanaLlmController),
    "ThrottLLeM": ("throttll_em", ThrottLlemController),
    "AGFT": ("agft", AgftController),
    "PALS": ("pals", PalsController),
    "Fixed": ("fixed", FixedController),
}
"""By type: the attribute of `Controller` that holds its parameters, and their model."""

_ON_THE_WIRE: Final = {
    "Flyball": "flyball",
    "VoltanaLLM": "voltanaLLM",
    "ThrottLLeM": "throttLLeM",
    "AGFT": "agft",
    "PALS": "pals",
    "Fixed": "fixed",
}
_STRANGERS: Final = (
    "["
    + ", ".join(f"has(self.{name}) && self.type != '{kind}' ? '{kind}' : ''" for kind, name in _ON_THE_WIRE.items())
    + "].filter(t, t != '')"
)


def _strangers(controller: Any) -> list[str]:
    """Types whose parameters are given although another one is wanted."""
    return [
        kind
        for kind, (attribute, _) in PARAMETERS.items()
        if kind != controller.type and getattr(controller, attribute) is not None
    ]


class Controller(RuledModel):
    """Which controller drives the GPUs, and its parameters (only those of the named type)."""

    RULES = (
        Rule(
            cel="self.type != 'Fixed' || has(self.fixed)",
            holds=lambda self: self.type != "Fixed" or self.fixed is not None,
            message="controller type %s comes without its parameters: give spec.controller.fixed",
            values=(field_value("type"),),
        ),
        Rule(
            cel=" && ".join(f"(self.type == '{kind}' || !has(self.{name}))" for kind, name in _ON_THE_WIRE.items()),
            holds=lambda self: not _strangers(self),
            message="controller type %s comes with parameters of type %s: take them out or change the type",
            values=(field_value("type"), (f"{_STRANGERS}[0]", lambda self: _strangers(self)[0])),
        ),
    )

    type: ControllerType = Field(
        description="Flyball learns the engine and holds the SLO at the least energy; VoltanaLLM, ThrottLLeM, AGFT and"
        " PALS are the published controllers; Fixed holds the SM clocks given per role."
    )
    flyball: FlyballController | None = Field(default=None, description="Parameters of type Flyball.")
    voltana_llm: VoltanaLlmController | None = Field(
        default=None, alias="voltanaLLM", description="Parameters of type VoltanaLLM."
    )
    throttll_em: ThrottLlemController | None = Field(
        default=None, alias="throttLLeM", description="Parameters of type ThrottLLeM."
    )
    agft: AgftController | None = Field(default=None, description="Parameters of type AGFT.")
    pals: PalsController | None = Field(default=None, description="Parameters of type PALS.")
    fixed: FixedController | None = Field(default=None, description="Parameters of type Fixed.")

    @property
    def parameters(self) -> ApiModel:
        """Those of the named type; its defaults where the policy gives none."""
        attribute, model = PARAMETERS[self.type]
        given: ApiModel | None = getattr(self, attribute)
        return model() if given is None else given
