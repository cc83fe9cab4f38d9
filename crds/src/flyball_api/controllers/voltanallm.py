"""Parameters of VoltanaLLM (arXiv 2509.04827)."""

from __future__ import annotations

from flyball_api.controllers.profiled import Profiled


class VoltanaLlmController(Profiled):
    """Parameters of VoltanaLLM (arXiv 2509.04827); all have defaults."""
