"""Parameters of throttLL'eM (arXiv 2408.05235)."""

from __future__ import annotations

from flyball_api.common import ApiModel


class ThrottLlemController(ApiModel):
    """Parameters of throttLL'eM (arXiv 2408.05235); all have defaults."""
