"""Parameters of AGFT (arXiv 2508.01744). Clocks are shares of the cards' highest one, so that they fit any card."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flyball_api.common import ApiModel, Unit

_Milliseconds = Unit("ms")


class AgftController(ApiModel):
    """Parameters of AGFT (arXiv 2508.01744); all have defaults, which are the published code's."""

    improved: bool = Field(
        default=False,
        description="Whether four of its weaknesses are mended: an intercept in the model, a baseline that follows the"
        " load, an SLO boundary that comes down again, and energy from the cards' counter.",
    )
    window_milliseconds: Annotated[int, Field(ge=200, le=10_000), _Milliseconds] = Field(
        default=800, description="Length of each window of observation."
    )
    poll_milliseconds: Annotated[int, Field(ge=5, le=1000), _Milliseconds] = Field(
        default=10, description="Time between two looks within a window. On a node no page is read more often than 100."
    )
    coarse_step_permille: Annotated[int, Field(ge=5, le=500), Unit("1/1000 of the highest clock")] = Field(
        default=43, description="Distance of the clocks that are tried first: 90 of the paper's 2100 MHz."
    )
    fine_window_permille: Annotated[int, Field(ge=5, le=500), Unit("1/1000 of the highest clock")] = Field(
        default=71, description="How far around its anchor a refined choice goes: 150 of the paper's 2100 MHz."
    )
    ridge: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5,
        description="Ridge of each clock's linear model. The paper's settings say 1, of which its code makes 5.",
    )
    alpha_start_percent: Annotated[int, Field(ge=0, le=10_000), Unit("%")] = Field(
        default=1000, description="Weight of the unknown in the first round."
    )
    alpha_decay_permille: Annotated[int, Field(ge=0, le=1000), Unit("1/1000 per round")] = Field(
        default=20, description="Rate at which that weight falls with each round."
    )
    alpha_floor_percent: Annotated[int, Field(ge=0, le=10_000), Unit("%")] = Field(
        default=10, description="Least weight of the unknown."
    )
    extreme_reward_permille: Annotated[int, Field(ge=0, le=2000), Unit("-1/1000")] = Field(
        default=1200, description="A clock whose mean reward is as far below zero after three rounds is given up."
    )
    historical_percent: Annotated[int, Field(ge=50, le=5000), Unit("%")] = Field(
        default=400,
        description="A clock is given up whose energy-delay product is above the best by more than this share of the"
        " spread between clocks.",
    )
    ttft_limit_milliseconds: Annotated[int, Field(ge=1, le=10_000_000), _Milliseconds] = Field(
        default=1_000_000, description="Mean time to first token of a window above which its clock is given up."
    )
    tpot_limit_milliseconds: Annotated[int, Field(ge=1, le=10_000_000), _Milliseconds] = Field(
        default=800, description="Mean time per output token of a window above which its clock is given up."
    )
    policy_slo: bool = Field(
        default=False, description="Whether the policy's objectives take the place of the two limits where it has them."
    )
    slo_margin_percent: Annotated[int, Field(ge=1, le=200), Unit("%")] = Field(
        default=100, description="Share of the policy's objectives that is taken as the limit."
    )
