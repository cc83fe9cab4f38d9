"""Whether an engine has become another one: two-sided CUSUM over residuals in their standard deviations."""

from __future__ import annotations

from typing import Final, Literal

_ALLOWANCE: Final = 0.75
_ALARM: Final = 10.0
_LARGEST: Final = 4.0


class DriftWatch:
    """Adds up residuals beyond what chance gives."""

    def __init__(self) -> None:
        self._slower = self._faster = 0.0

    def see(self, residual: float) -> Literal["", "slower", "faster"]:
        """What the residuals have shown by now; an alarm starts the count over."""
        bounded = min(max(residual, -_LARGEST), _LARGEST)
        self._slower = max(0.0, self._slower + bounded - _ALLOWANCE)
        self._faster = max(0.0, self._faster - bounded - _ALLOWANCE)
        if self._slower > _ALARM:
            self.clear()
            return "slower"
        if self._faster > _ALARM:
            self.clear()
            return "faster"
        return ""

    def clear(self) -> None:
        """Start over."""
        self._slower = self._faster = 0.0
