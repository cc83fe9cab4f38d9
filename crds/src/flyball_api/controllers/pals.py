"""Parameters of PALS (arXiv 2605.21427)."""

from __future__ import annotations

from flyball_api.common import ApiModel


class PalsController(ApiModel):
    """Parameters of PALS (arXiv 2605.21427); all have defaults."""
