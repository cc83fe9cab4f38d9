"""Parameters of PALS (arXiv 2605.21427).

The paper gives the period (0.5 s), the rule of choice, and that the feedback acts on deviations of more than 5 % that
persist; the other numbers are not published and are our reading of it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flyball_api.common import Unit
from flyball_api.controllers.profiled import Profiled

_Percent = Annotated[int, Field(ge=0, le=100), Unit("%")]


class PalsController(Profiled):
    """Parameters of PALS: cap and batch from an offline model, under a power budget; all have defaults."""

    target_tokens_per_second: Annotated[int, Field(ge=1, le=10_000_000), Unit("output tokens/s")] | None = Field(
        default=None,
        description="Output that each engine is to reach; absent: offeredPercent of what its requests ask for.",
    )
    budget_watts: Annotated[int, Field(ge=50, le=1_000_000), Unit("W")] | None = Field(
        default=None,
        description="Most that the cards of one engine may draw together; absent: their granted caps' sum. The lower"
        " of both holds.",
    )
    node_base_watts: Annotated[int, Field(ge=0, le=100_000), Unit("W")] = Field(
        default=0, description="What the engine's share of its node draws beside the cards; the paper measures it."
    )
    node_factor_percent: Annotated[int, Field(ge=100, le=300), Unit("%")] = Field(
        default=100, description="Watts of the node for each watt of its cards: fans and power supplies."
    )
    offered_percent: Annotated[int, Field(ge=100, le=1000), Unit("%")] = Field(
        default=115, description="Target, of the offered output, where none is set."
    )
    offered_milliseconds: Annotated[int, Field(ge=500, le=600_000), Unit("ms")] = Field(
        default=10_000, description="Time constant of the mean of the offered output."
    )
    throughput_milliseconds: Annotated[int, Field(ge=500, le=60_000), Unit("ms")] = Field(
        default=1500, description="Time constant of the mean of the measured output."
    )
    model_margin_percent: _Percent = Field(
        default=5, description="By how much the predicted power may be wrong before a candidate is within the budget."
    )
    proportional_percent: Annotated[int, Field(ge=0, le=1000), Unit("%")] = Field(
        default=50, description="Gain of the feedback on the deviation."
    )
    integral_percent: Annotated[int, Field(ge=0, le=1000), Unit("%/s")] = Field(
        default=10, description="Gain of the feedback on the deviation's sum over time."
    )
    derivative_percent: Annotated[int, Field(ge=0, le=1000), Unit("% s")] = Field(
        default=5, description="Gain of the feedback on the deviation's slope."
    )
    correction_percent: _Percent = Field(default=25, description="Most that the feedback corrects the target by.")
    deviation_percent: _Percent = Field(default=5, description="Deviation from the target that the feedback acts on.")
    deviation_ticks: Annotated[int, Field(ge=1, le=100), Unit("periods")] = Field(
        default=2, description="For how many periods of 0.5 s a deviation must have been there."
    )
    hysteresis_percent: _Percent = Field(
        default=2, description="Gain that a change must bring while the present choice holds target and budget."
    )
    dwell_up_milliseconds: Annotated[int, Field(ge=0, le=600_000), Unit("ms")] = Field(
        default=1000, description="Least time from one change to one that draws more; those that draw less never wait."
    )
    batch_knob: bool = Field(
        default=True, description="Whether the engine's batch is chosen as well, where the engine has such a knob."
    )
    floor_clock: bool = Field(
        default=True, description="Whether clocks are locked to the lowest while no choice is within the budget."
    )
