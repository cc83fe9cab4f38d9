"""Parameters of Flyball's own controller."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flyball_api.common import ApiModel, Unit


class FlyballController(ApiModel):
    """Parameters of Flyball's own controller; all have defaults, and most users change none."""

    miss_budget_percent: Annotated[int, Unit("%")] = Field(
        default=80,
        ge=10,
        le=100,
        description="Share of the misses that the objective's percentile allows which the controller aims at; the rest"
        " is kept for what it cannot foresee.",
    )
    margin_gain_percent: Annotated[int, Unit("%")] = Field(
        default=2,
        ge=1,
        le=50,
        description="By how much one missed request tightens the margin between predictions and objectives.",
    )
    exploration_percent: Annotated[int, Unit("%")] = Field(
        default=125,
        ge=100,
        le=300,
        description="A clock below those it knows is tried only where the objectives would hold at this percentage of"
        " the predicted latency.",
    )
    down_delay_milliseconds: Annotated[int, Unit("ms")] = Field(
        default=0, ge=0, le=60_000, description="For so long a lower clock must do before it is set; up is at once."
    )
    least_gain_percent: Annotated[int, Unit("%")] = Field(
        default=1, ge=0, le=50, description="A lower clock must save at least this share of the predicted power."
    )
    park_idle: bool = Field(
        default=True,
        description="Lower the clock of an engine without requests as far as the next request's objective allows.",
    )
    anticipate: bool = Field(
        default=True, description="Reckon with rising load: trends of seconds, and what the hour usually brings."
    )
