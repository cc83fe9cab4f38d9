"""Parameters of throttLL'eM (arXiv 2408.05235)."""

from __future__ import annotations

from flyball_api.controllers.profiled import Profiled


class ThrottLlemController(Profiled):
    """Parameters of throttLL'eM (arXiv 2408.05235); all have defaults."""
