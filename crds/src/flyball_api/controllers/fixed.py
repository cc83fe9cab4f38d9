"""Parameters of the Fixed controller."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flyball_api.common import ApiModel, ListMap, Megahertz, Role, Rule, RuledModel, field_value


class RoleClock(RuledModel):
    """The SM clocks of one role."""

    RULES = (
        Rule(
            cel="self.minMegahertz <= self.maxMegahertz",
            holds=lambda self: self.min_megahertz <= self.max_megahertz,
            message="the lowest SM clock of role %s is %s MHz and the highest is %s MHz: give a minMegahertz that is at"
            " most maxMegahertz",
            values=(field_value("role"), field_value("minMegahertz"), field_value("maxMegahertz")),
        ),
    )

    role: Role = Field(description="The role that these clocks are for.")
    min_megahertz: Megahertz = Field(description="Lowest SM clock in MHz.")
    max_megahertz: Megahertz = Field(description="Highest SM clock in MHz; the same as the lowest locks one clock.")


class FixedController(ApiModel):
    """Parameters of the Fixed controller: one clock range per role, held whatever happens."""

    clocks: Annotated[tuple[RoleClock, ...], Field(max_length=3), ListMap("role")] = Field(
        default=(), description="SM clocks per role; a role not named stays unlocked."
    )
