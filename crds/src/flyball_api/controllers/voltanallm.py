"""Parameters of VoltanaLLM (arXiv 2509.04827)."""

from __future__ import annotations

from flyball_api.common import ApiModel


class VoltanaLlmController(ApiModel):
    """Parameters of VoltanaLLM (arXiv 2509.04827); all have defaults."""
