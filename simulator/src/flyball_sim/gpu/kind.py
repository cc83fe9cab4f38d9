"""What a GPU model is to the simulator: limits, peaks, power coefficients, delays and how its sensors report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20

Provenance = Literal["measured", "modelled"]


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Coefficients of the power law at SM clock f, watts.

    ``P(f) = waiting(f) + (static - waiting(f_max))*busy + hbm*mu + (sm*mu + tensor*cu) * s(f)``

    mu is the share of peak memory bandwidth in use, cu the share of the dense bf16 peak *at clock f*, busy the share
    of time with a kernel running; all are averaged over time. ``waiting(f)`` is idle plus context (`GpuType`).
    ``s(f)`` is ``(f/f_max)**clock_exponent`` above `voltage_floor_mhz`, below which the voltage falls no further
    and power goes down with the clock alone; it is continuous and 1 at f_max.
    """

    static_watts: float
    hbm_watts: float
    sm_watts: float
    tensor_watts: float
    clock_exponent: float
    voltage_floor_mhz: float


@dataclass(frozen=True, slots=True)
class GpuType:
    """One GPU model.

    Args:
        provenance: "modelled" where the type's power or its step times rest on no public rows.
        lock_ceiling_mhz: locks above it end here, though free boost may go higher.
        idle_watts: no process on the card.
        context_watts: what a CUDA context adds to it at the highest clock.
        context_clock_share: the part of `context_watts` that falls with the clock, as s(f) does.
        linger_watts: drawn on top of waiting for `linger_seconds` after the last kernel; clocks stay up as long.
        memory_knee_mhz: below this SM clock memory bandwidth falls, as ``(f/knee)**memory_knee_exponent``.
        decode_clock_share: part of a decode step's time on the GPU that stretches as 1/f.
        prefill_clock_share: the same of a prefill step.
        sensor_refresh_seconds: how often power sensors and energy counter take a new value.
        sensor_window_seconds: the part of each refresh the instantaneous sensor averages over, its end.
        power_usage_is_averaged: PowerUsage is the mean of one second, not the instantaneous sensor.
        cap_held_share: the share of the power limit at which the firmware holds the mean power under load.
    """

    name: str
    product_name: str
    provenance: Provenance
    architecture: int
    compute_capability: tuple[int, int]
    pci_device_id: int
    memory_bytes: int
    memory_bandwidth_bytes_per_second: float
    dense_bf16_flops: float
    memory_mhz: int
    sm_min_mhz: int
    sm_max_mhz: int
    lock_ceiling_mhz: int
    cap_min_watts: float
    cap_max_watts: float
    cap_default_watts: float
    idle_watts: float
    context_watts: float
    power: PowerModel
    memory_knee_mhz: float
    decode_clock_share: float
    prefill_clock_share: float
    lock_latency_median_seconds: float
    power_usage_is_averaged: bool
    context_clock_share: float = 0.5
    linger_watts: float = 0.0
    linger_seconds: float = 0.0
    sensor_refresh_seconds: float = 0.1
    sensor_window_seconds: float = 0.025
    lock_latency_p99_seconds: float = 0.1
    lock_tail_share: float = 0.005
    lock_call_seconds: float = 0.001
    cap_call_seconds: float = 0.005
    cap_down_tau_seconds: float = 0.05
    cap_up_tau_seconds: float = 0.2
    memory_knee_exponent: float = 1.0
    cap_held_share: float = 0.985
    sm_step_mhz: int = 15

    def supported_sm_mhz(self) -> range:
        """Every SM clock a lock can name, lowest first."""
        return range(self.sm_min_mhz, self.sm_max_mhz + 1, self.sm_step_mhz)

    @property
    def active_floor_watts(self) -> float:
        """Watts at the highest clock while kernels run back to back that move and compute next to nothing."""
        return max(self.power.static_watts, self.idle_watts + self.context_watts)

    def bandwidth_factor(self, sm_mhz: float) -> float:
        """Memory bandwidth at `sm_mhz` over its peak: 1 at the knee and above."""
        if sm_mhz >= self.memory_knee_mhz:
            return 1.0
        return math.pow(sm_mhz / self.memory_knee_mhz, self.memory_knee_exponent)

    def clock_scale(self, sm_mhz: float) -> float:
        """s(f) of the power law: power of switching at `sm_mhz` over that at the highest clock."""
        power = self.power
        if sm_mhz >= power.voltage_floor_mhz:
            return math.pow(sm_mhz / self.sm_max_mhz, power.clock_exponent)
        floor = power.voltage_floor_mhz
        return math.pow(floor / self.sm_max_mhz, power.clock_exponent) * sm_mhz / floor

    def waiting_watts(self, sm_mhz: float) -> float:
        """Watts of a card whose context holds its clock at `sm_mhz` and runs no kernel."""
        share = self.context_clock_share
        return self.idle_watts + self.context_watts * (1.0 - share + share * self.clock_scale(sm_mhz))
