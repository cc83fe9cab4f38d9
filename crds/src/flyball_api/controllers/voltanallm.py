"""Parameters of VoltanaLLM (arXiv 2509.04827)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flyball_api.common import ListSet, Unit
from flyball_api.controllers.profiled import Profiled

Permille = Annotated[int, Field(ge=50, le=1000, description="One clock."), Unit("per mille")]


class VoltanaLlmController(Profiled):
    """Parameters of VoltanaLLM (arXiv 2509.04827); the defaults are those of its demo."""

    clocks_permille: Annotated[tuple[Permille, ...], Field(min_length=1, max_length=32), ListSet()] = Field(
        default=(713, 1000),
        description="SM clocks to choose from, in thousandths of the card's highest. The paper's are 1005 and 1410 MHz"
        " of an A100 (713, 1000); its finer list is 713, 777, 851, 926, 1000.",
    )
    margin_percent: Annotated[int, Field(ge=-90, le=300), Unit("%")] = Field(
        default=35,
        description="Predicted latencies may be the objective and so much more; below 0, less.",
    )
    window_milliseconds: Annotated[int, Field(ge=0, le=60_000), Unit("ms")] = Field(
        default=0,
        description="Time between two decisions, of which each is made on the medians of what came in between; 0"
        " decides at every step of the engine, as the paper does.",
    )
    idle_milliseconds: Annotated[int, Field(ge=100, le=600_000), Unit("ms")] = Field(
        default=5000,
        description="An engine without work for so long goes to the lowest of the clocks.",
    )
    burst_milliseconds: Annotated[int, Field(ge=100, le=60_000), Unit("ms")] = Field(
        default=3000,
        description="Length of the window in which arrivals are counted.",
    )
    prompt_tokens_per_second: Annotated[int, Field(ge=1, le=1_000_000_000), Unit("tokens/s")] = Field(
        default=1_125_000,
        description="More prompt tokens than this a second ask for the highest clock in prefill.",
    )
    requests_per_second: Annotated[int, Field(ge=1, le=1_000_000_000), Unit("requests/s")] = Field(
        default=1_000_000,
        description="More requests than this a second ask for the highest clock.",
    )
    correction_percent: Annotated[int, Field(ge=0, le=100), Unit("%")] = Field(
        default=10,
        description="Weight of each second's measured time between tokens in the correction of the predicted one; 0"
        " trusts the profile alone, as the public code does.",
    )
