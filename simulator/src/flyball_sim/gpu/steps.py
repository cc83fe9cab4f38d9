"""A step on a card: how long it takes at a clock, what it draws, and the clock a cap leaves it.

The shares of the power law are averaged over the whole step, its host gap included, and depend on the clock because
the step's length does.
"""

from __future__ import annotations

from typing import Protocol

from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.kind import GpuType
from flyball_sim.gpu.model import REASON_SW_POWER_CAP, unlocked_or_locked_mhz


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


def step_watts(gpu_type: GpuType, cost: Cost, sm_mhz: float, reference_mhz: float, *, die: Die = NOMINAL_DIE) -> float:
    """Mean watts over the step at `sm_mhz`, host gap included."""
    seconds = step_seconds(gpu_type, cost, sm_mhz, reference_mhz)
    if seconds <= 0.0:
        return gpu_type.waiting_watts(sm_mhz) * die.idle_factor
    power, scale = gpu_type.power, gpu_type.clock_scale(sm_mhz)
    share = gpu_type.context_clock_share
    waiting = gpu_type.idle_watts + gpu_type.context_watts * (1.0 - share + share * scale)
    kernels_floor = gpu_type.active_floor_watts - gpu_type.idle_watts - gpu_type.context_watts
    memory_seconds = cost.memory_bytes / gpu_type.memory_bandwidth_bytes_per_second
    compute_seconds = cost.flops / gpu_type.dense_bf16_flops * gpu_type.sm_max_mhz / sm_mhz
    joules = (
        kernels_floor * (seconds - cost.host_seconds)
        + (power.hbm_watts + power.sm_watts * scale) * memory_seconds
        + power.tensor_watts * scale * compute_seconds
    )
    return waiting * die.idle_factor + joules / seconds * die.power_factor


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

    Free boost, then the cap, then the lock: the highest supported clock at which the step fits under `cap_watts`
    and the lock; the lowest clock where none does.

    Args:
        gpu_type: the card's type.
        cost: the step.
        cap_watts: the limit in effect now, its lag included.
        lock_sm_mhz: the lock in effect, lowest and highest MHz.
        die: the card's own departure from its type.
        reference_mhz: the clock `cost` holds at; the type's highest by default.
    """
    reference = float(gpu_type.sm_max_mhz) if reference_mhz is None else reference_mhz
    wanted = unlocked_or_locked_mhz(gpu_type, lock_sm_mhz)
    watts = step_watts(gpu_type, cost, wanted, reference, die=die)
    if watts <= cap_watts:
        return wanted, watts, 0
    lowest, grid = gpu_type.sm_min_mhz, gpu_type.sm_step_mhz
    fits, over = 0, (wanted - lowest) // grid
    fitting = -1.0
    while over - fits > 1:
        middle = (fits + over) // 2
        watts = step_watts(gpu_type, cost, lowest + middle * grid, reference, die=die)
        if watts <= cap_watts:
            fits, fitting = middle, watts
        else:
            over = middle
    sm_mhz = lowest + fits * grid
    if fitting < 0.0:
        fitting = step_watts(gpu_type, cost, sm_mhz, reference, die=die)
    return sm_mhz, fitting, REASON_SW_POWER_CAP
