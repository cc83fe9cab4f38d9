"""Parameters of AGFT (arXiv 2508.01744)."""

from __future__ import annotations

from flyball_api.common import ApiModel


class AgftController(ApiModel):
    """Parameters of AGFT (arXiv 2508.01744); all have defaults."""
