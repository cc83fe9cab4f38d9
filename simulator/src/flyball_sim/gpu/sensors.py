"""Power sensor and energy counter as NVML shows them, over a card's true power."""

from __future__ import annotations

import math
from collections import deque

from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.kind import GpuType

AVERAGE_SECONDS = 1.0
"""What PowerUsage averages over on Ampere and newer, GA100 excepted (nvml.h)."""
_SLACK = 1e-9  # keeps a time that is on the grid, up to rounding, from falling one refresh short


class Sensor:
    """One card's sensor; times are seconds on any axis that does not run backwards.

    Every refresh the counter takes the energy so far, the instantaneous reading the mean of the window that ends
    there, and the averaged reading the mean of the last second; between refreshes nothing moves. All three are off
    by the die's gain.

    Args:
        gpu_type: refresh, window and what PowerUsage means.
        die: its gain.
        start_seconds: now.
        watts: what the card drew before.
        energy_joules: true energy so far.
    """

    def __init__(
        self,
        gpu_type: GpuType,
        die: Die = NOMINAL_DIE,
        start_seconds: float = 0.0,
        *,
        watts: float | None = None,
        energy_joules: float = 0.0,
    ) -> None:
        before = gpu_type.idle_watts * die.idle_factor if watts is None else watts
        self._period = gpu_type.sensor_refresh_seconds
        self._window = min(gpu_type.sensor_window_seconds, self._period)
        self._averaged = gpu_type.power_usage_is_averaged
        self._gain = die.sensor_gain
        self._start = start_seconds
        self._now = start_seconds
        self._true_joules = energy_joules
        marks = max(1, round(AVERAGE_SECONDS / self._period))
        self._marks = deque((energy_joules - before * self._period * back for back in range(marks, -1, -1)), marks + 1)
        self._mark = 0
        self._instant_watts = before
        self._window_joules = energy_joules
        self._next_window = start_seconds + self._period - self._window
        self._next_mark = start_seconds + self._period

    def run(self, until_seconds: float, watts: float) -> None:
        """The card draws `watts` from the last time given to `until_seconds`."""
        now = self._now
        if until_seconds >= self._next_window - _SLACK:
            self._cross(until_seconds, watts)
        self._true_joules += watts * (until_seconds - now)
        self._now = until_seconds

    def _cross(self, until: float, watts: float) -> None:
        now, joules, period = self._now, self._true_joules, self._period
        if now <= self._next_window:
            self._window_joules = joules + watts * (self._next_window - now)
        newest = math.floor((until - self._start) / period + _SLACK)
        if newest <= self._mark:
            return
        first = self._mark + 1
        for mark in range(max(first, newest - len(self._marks) + 1), newest + 1):
            self._marks.append(joules + watts * (self._start + mark * period - now))
        if newest > first:
            self._instant_watts = watts
        else:
            self._instant_watts = (self._marks[-1] - self._window_joules) / self._window
        self._mark = newest
        self._next_mark = self._start + (newest + 1) * period
        self._next_window = self._next_mark - self._window
        if until >= self._next_window:
            self._window_joules = joules + watts * (self._next_window - now)

    @property
    def true_joules(self) -> float:
        """Energy up to the last time given, without gain or refresh."""
        return self._true_joules

    @property
    def instant_watts(self) -> float:
        """NVML_FI_DEV_POWER_INSTANT."""
        return self._instant_watts * self._gain

    @property
    def average_watts(self) -> float:
        """NVML_FI_DEV_POWER_AVERAGE: the last second."""
        span = (len(self._marks) - 1) * self._period
        return (self._marks[-1] - self._marks[0]) / span * self._gain

    def power_watts(self, now_seconds: float) -> float:
        """What nvmlDeviceGetPowerUsage shows at `now_seconds`, up to which `run` has been called."""
        self._check(now_seconds)
        return self.average_watts if self._averaged else self.instant_watts

    def energy_joules(self, now_seconds: float) -> float:
        """What nvmlDeviceGetTotalEnergyConsumption shows at `now_seconds`, up to which `run` has been called."""
        self._check(now_seconds)
        return self._marks[-1] * self._gain

    def _check(self, now_seconds: float) -> None:
        if now_seconds > self._now + self._period:
            raise ValueError(
                f"the sensor was fed up to {self._now} s and is read at {now_seconds} s: run it up to there first"
            )
