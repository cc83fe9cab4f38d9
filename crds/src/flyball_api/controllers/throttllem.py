"""Parameters of throttLL'eM (arXiv 2408.05235)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flyball_api.common import Unit
from flyball_api.controllers.profiled import Profiled


class ThrottLlemController(Profiled):
    """Parameters of throttLL'eM (arXiv 2408.05235); those the paper has default to its own."""

    slo: Literal["Translated", "EndToEnd"] = Field(
        default="Translated",
        description="What every request is held to. Translated: its last token by arrival + TTFT + (predicted length -"
        " 1) x TPOT of the policy's objectives. EndToEnd: by arrival + the policy's end-to-end objective, as in the"
        " paper.",
    )
    ttft_share_percent: Annotated[int, Field(ge=0, le=100), Unit("% of the TTFT objective")] = Field(
        default=100,
        description="How much of the time to first token a translated deadline grants; less keeps it from being spent"
        " on later tokens.",
    )
    length_error_percent: Annotated[int, Field(ge=0, le=100), Unit("%")] = Field(
        default=15,
        description="On engines that know the true length of answers (simulated ones): 95 % of predictions are off by"
        " no more than this, and predictions are made this much longer; 0 is the paper's oracle. Other engines' lengths"
        " are predicted from the answers before.",
    )
    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000), Unit("tokens")] = Field(
        default=2048, description="Length that a request is given that outlives its prediction."
    )
    tbt_milliseconds: Annotated[int, Field(ge=1, le=60_000), Unit("ms")] = Field(
        default=200, description="Bound of the time between tokens where the policy has no objective for it."
    )
    tbt_reading: Literal["Average", "Strict"] = Field(
        default="Average",
        description="Whether the time between tokens is bounded on average, or in every projected step.",
    )
    admission: bool = Field(
        default=True,
        description="Whether requests wait in the engine's queue while letting them in would break a deadline. Only"
        " engines with Flyball's board have the gate.",
    )
    count_prefill: bool = Field(
        default=False,
        description="Whether the time of prompts still to be computed is part of the projection; the paper leaves it"
        " out.",
    )
    margin_percent: Annotated[int, Field(ge=0, le=300), Unit("%")] = Field(
        default=0, description="Share by which predicted times are made longer; the paper has none."
    )
    floor_percent: Annotated[int, Field(ge=0, le=100), Unit("% of the highest clock")] = Field(
        default=0, description="Lowest clock that is considered; the paper has none."
    )
    dwell_milliseconds: Annotated[int, Field(ge=0, le=60_000), Unit("ms")] = Field(
        default=0, description="How long a clock is kept before a lower one may follow; the paper has no such time."
    )
