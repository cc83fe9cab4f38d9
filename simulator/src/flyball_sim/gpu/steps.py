"""A step on a card: how long it takes at a clock, what it draws, and the clock a cap leaves it.

The shares of the power law are averaged over the whole step, its host gap included, and depend on the clock because
the step's length does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flyball_sim.gpu.dies import NOMINAL_DIE, Die, apply
from flyball_sim.gpu.kind import GpuType
from flyball_sim.gpu.model import REASON_SW_POWER_CAP, highest_clock_under, unlocked_or_locked_mhz


class Cost(Protocol):
    """What a step asks of each card; at SM clock f it takes ``host + fixed/bandwidth_factor(f) + clocked*ref/f``."""

    @property
    def host_seconds(self) -> float:
        """Time in which the card waits for the host."""

    @property
    def fixed_seconds(self) -> float:
        """Time on the card that stretches only where memory bandwidth falls."""

    @property
    def clocked_seconds(self) -> float:
        """Time on the card at the reference clock that stretches as 1/f."""

    @property
    def memory_bytes(self) -> float:
        """Bytes moved to and from the card's memory."""

    @property
    def flops(self) -> float:
        """Dense floating-point operations."""


def step_seconds(gpu_type: GpuType, cost: Cost, sm_mhz: float, reference_mhz: float) -> float:
    """How long the step takes at `sm_mhz`."""
    on_card = cost.fixed_seconds / gpu_type.bandwidth_factor(sm_mhz) + cost.clocked_seconds * reference_mhz / sm_mhz
    return cost.host_seconds + on_card


def watts_by_clock(gpu_type: GpuType, cost: Cost, reference_mhz: float) -> Callable[[float], float]:
    """Mean watts over the step as a function of the SM clock, host gap included."""
    power, share = gpu_type.power, gpu_type.context_clock_share
    clocked_context = gpu_type.context_watts * share
    steady_context = gpu_type.idle_watts + gpu_type.context_watts - clocked_context
    kernels_floor = gpu_type.active_floor_watts - gpu_type.idle_watts - gpu_type.context_watts
    memory_seconds = cost.memory_bytes / gpu_type.memory_bandwidth_bytes_per_second
    hbm_joules = power.hbm_watts * memory_seconds
    sm_joules = power.sm_watts * memory_seconds
    tensor_joules = power.tensor_watts * cost.flops / gpu_type.dense_bf16_flops * gpu_type.sm_max_mhz
    host, fixed, clocked = cost.host_seconds, cost.fixed_seconds, cost.clocked_seconds * reference_mhz
    if host + fixed + clocked <= 0.0:
        return gpu_type.waiting_watts
    bandwidth_factor, clock_scale = gpu_type.bandwidth_factor, gpu_type.clock_scale

    def watts(sm_mhz: float) -> float:
        scale = clock_scale(sm_mhz)
        on_card = fixed / bandwidth_factor(sm_mhz) + clocked / sm_mhz
        joules = kernels_floor * on_card + hbm_joules + (sm_joules + tensor_joules / sm_mhz) * scale
        return steady_context + clocked_context * scale + joules / (host + on_card)

    return watts


def step_watts(gpu_type: GpuType, cost: Cost, sm_mhz: float, reference_mhz: float) -> float:
    """Mean watts over the step at `sm_mhz`, host gap included."""
    return watts_by_clock(gpu_type, cost, reference_mhz)(sm_mhz)


def settle(
    gpu_type: GpuType,
    cost: Cost,
    cap_watts: float,
    lock_sm_mhz: tuple[int, int] | None = None,
    die: Die = NOMINAL_DIE,
    *,
    reference_mhz: float | None = None,
) -> tuple[int, float, int]:
    """The SM clock a card runs the step at, the step's mean watts, and the event reasons.

    Free boost, then the cap, then the lock: the highest supported clock at which the step fits under what the
    firmware holds of `cap_watts`, and the lock; the lowest clock where none does.

    Args:
        gpu_type: the card's type.
        cost: the step.
        cap_watts: the limit in effect now, its lag included.
        lock_sm_mhz: the lock in effect, lowest and highest MHz.
        die: the card's own departure from its type.
        reference_mhz: the clock `cost` holds at; the type's highest by default.
    """
    if die is not NOMINAL_DIE:
        gpu_type = apply(gpu_type, die)
    watts_at = watts_by_clock(gpu_type, cost, float(gpu_type.sm_max_mhz) if reference_mhz is None else reference_mhz)
    wanted, held_watts = unlocked_or_locked_mhz(gpu_type, lock_sm_mhz), cap_watts * gpu_type.cap_held_share
    watts = watts_at(wanted)
    if watts <= held_watts:
        return wanted, watts, 0
    sm_mhz = highest_clock_under(gpu_type, watts_at, held_watts, wanted)
    return sm_mhz, watts_at(sm_mhz), REASON_SW_POWER_CAP
