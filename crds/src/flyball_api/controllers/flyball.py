"""Parameters of Flyball's own controller."""

from __future__ import annotations

from flyball_api.common import ApiModel


class FlyballController(ApiModel):
    """Parameters of Flyball's own controller; all have defaults."""
