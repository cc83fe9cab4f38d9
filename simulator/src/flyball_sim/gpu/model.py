"""GPU physics without a clock of its own: power, SM clock under lock and cap, delays, linger.

`step` is pure, so the same model runs in real time behind the NVML library and in virtual time in a simulation.
The power law is `kind.PowerModel`'s. A power cap lowers the SM clock until the law fits under what the firmware
holds of it, a clock lock bounds what is left, and neither goes below the card's lowest clock: a card whose cap is too
low for its lowest clock overshoots and says so in its event reasons. What NVML shows of it is `sensors.Sensor`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from flyball_sim.gpu.delays import cap_tau_seconds, lock_delay_from
from flyball_sim.gpu.kind import GpuType

REASON_IDLE = 0x1
REASON_SW_POWER_CAP = 0x4

_CAP_SETTLED_WATTS = 0.5
_LAG_GRID_SECONDS = 0.01
_GRID_SLACK = 1e-9  # keeps a value that is on a grid, up to rounding, from falling one step short
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """What runs on a card: shares from 0 to 1, averaged over idle gaps too.

    `memory_use` is of peak bandwidth, `compute_use` of peak dense bf16, `busy` of time with a kernel running.
    `context` says that a process holds a CUDA context, which costs watts and keeps the clock up.
    """

    memory_use: float
    compute_use: float
    busy: float
    context: bool = True


NO_LOAD = GpuLoad(0.0, 0.0, 0.0, context=False)


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """What the firmware is told: the enforced power limit, and the SM clock lock as (lowest, highest) MHz."""

    cap_watts: float
    lock_sm_mhz: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class GpuState:
    """One card at one instant.

    `cap_lagged_watts` is the limit the power controller has reached on its way to the enforced one. A lock takes
    effect at `lock_effect_seconds` (infinite: nothing pending) on the axis of `time_seconds`, on which the last
    kernel ended at `kernels_until_seconds`. `pieces` are the (end in seconds, watts) of which the last step was
    made, for whoever senses them.
    """

    time_seconds: float
    sm_mhz: int
    power_watts: float
    energy_joules: float
    cap_lagged_watts: float
    lock_in_force: tuple[int, int] | None
    lock_target: tuple[int, int] | None
    lock_effect_seconds: float
    kernels_until_seconds: float
    event_reasons: int
    power_capped_seconds: float
    pieces: tuple[tuple[float, float], ...]
    random_state: int


def booted(
    gpu_type: GpuType,
    random_state: int,
    *,
    energy_joules: float = 0.0,
    cap_watts: float | None = None,
    lock_sm_mhz: tuple[int, int] | None = None,
) -> GpuState:
    """An idle card at time 0; the keywords resume one whose settings and counter were kept elsewhere."""
    return GpuState(
        time_seconds=0.0,
        sm_mhz=gpu_type.sm_min_mhz,
        power_watts=gpu_type.idle_watts,
        energy_joules=energy_joules,
        cap_lagged_watts=gpu_type.cap_default_watts if cap_watts is None else cap_watts,
        lock_in_force=lock_sm_mhz,
        lock_target=lock_sm_mhz,
        lock_effect_seconds=math.inf,
        kernels_until_seconds=-math.inf,
        event_reasons=REASON_IDLE,
        power_capped_seconds=0.0,
        pieces=(),
        random_state=random_state,
    )


def static_watts(gpu_type: GpuType, load: GpuLoad) -> float:
    """Power that no SM clock changes: idle, the floor of running kernels, and memory traffic."""
    if not load.context:
        return gpu_type.idle_watts
    waiting = gpu_type.idle_watts + gpu_type.context_watts
    kernels = (gpu_type.active_floor_watts - waiting) * load.busy + gpu_type.power.hbm_watts * load.memory_use
    return waiting - gpu_type.context_watts * gpu_type.context_clock_share + kernels


def dynamic_watts(gpu_type: GpuType, load: GpuLoad) -> float:
    """Power that scales with the SM clock, at the highest one."""
    if not load.context:
        return 0.0
    kernels = gpu_type.power.sm_watts * load.memory_use + gpu_type.power.tensor_watts * load.compute_use
    return gpu_type.context_watts * gpu_type.context_clock_share + kernels


def power_at(gpu_type: GpuType, load: GpuLoad, sm_mhz: float) -> float:
    """Watts of a card that runs `load` at `sm_mhz`: linear in the shares of the load at one clock."""
    return static_watts(gpu_type, load) + dynamic_watts(gpu_type, load) * gpu_type.clock_scale(sm_mhz)


def snap_down(gpu_type: GpuType, sm_mhz: float) -> int:
    """The highest supported SM clock at or below `sm_mhz`; the lowest one where there is none."""
    steps = math.floor((sm_mhz - gpu_type.sm_min_mhz) / gpu_type.sm_step_mhz + _GRID_SLACK)
    highest = (gpu_type.sm_max_mhz - gpu_type.sm_min_mhz) // gpu_type.sm_step_mhz
    return gpu_type.sm_min_mhz + gpu_type.sm_step_mhz * min(max(steps, 0), highest)


def unlocked_or_locked_mhz(gpu_type: GpuType, lock_sm_mhz: tuple[int, int] | None) -> int:
    """The SM clock a card with a context runs at where no cap binds."""
    if lock_sm_mhz is None:
        return gpu_type.sm_max_mhz
    return snap_down(gpu_type, min(lock_sm_mhz[1], gpu_type.lock_ceiling_mhz))


def highest_clock_under(gpu_type: GpuType, watts_at: Callable[[float], float], held_watts: float, over_mhz: int) -> int:
    """The highest supported clock below `over_mhz` whose watts fit; the lowest clock where none does.

    Args:
        gpu_type: the card's type.
        watts_at: watts by SM clock, not falling with it.
        held_watts: what must not be exceeded.
        over_mhz: a supported clock that exceeds it.
    """
    lowest, grid = gpu_type.sm_min_mhz, gpu_type.sm_step_mhz
    fits, over = 0, (over_mhz - lowest) // grid
    while over - fits > 1:
        middle = (fits + over) // 2
        if watts_at(lowest + middle * grid) <= held_watts:
            fits = middle
        else:
            over = middle
    return lowest + fits * grid


def clock_under(
    gpu_type: GpuType, load: GpuLoad, cap_watts: float, lock_sm_mhz: tuple[int, int] | None
) -> tuple[int, int]:
    """The SM clock (MHz) a card settles at, and its event reasons: free boost, then the cap, then the lock."""
    if not load.context:
        return gpu_type.sm_min_mhz, REASON_IDLE
    reasons = REASON_IDLE if load.busy <= 0.0 else 0
    wanted, held_watts = unlocked_or_locked_mhz(gpu_type, lock_sm_mhz), cap_watts * gpu_type.cap_held_share
    if power_at(gpu_type, load, wanted) <= held_watts:
        return wanted, reasons
    static, dynamic = static_watts(gpu_type, load), dynamic_watts(gpu_type, load)
    scale = gpu_type.clock_scale
    sm_mhz = highest_clock_under(gpu_type, lambda mhz: static + dynamic * scale(mhz), held_watts, wanted)
    return sm_mhz, reasons | REASON_SW_POWER_CAP


def step(gpu_type: GpuType, state: GpuState, load: GpuLoad, requested: GpuSettings, dt_seconds: float) -> GpuState:
    """The card `dt_seconds` later, with `load` and `requested` as they are all the while.

    A lock other than the last one asked for starts its delay at the beginning of the step. Splitting a step in
    two gives the same clocks and, but for the grid of the cap's lag, the same energy.

    Raises:
        ValueError: `dt_seconds` is negative.
    """
    if dt_seconds < 0.0:
        raise ValueError(f"dt_seconds is {dt_seconds!r}: a card cannot run backwards, give 0 or more")
    now, end = state.time_seconds, state.time_seconds + dt_seconds
    lock, target, effect, random_state = (
        state.lock_in_force,
        state.lock_target,
        state.lock_effect_seconds,
        state.random_state,
    )
    if requested.lock_sm_mhz != target:
        target = requested.lock_sm_mhz
        delay, random_state = _lock_delay(gpu_type, random_state)
        effect = now + delay
    lagged, cap = state.cap_lagged_watts, requested.cap_watts
    energy, capped_seconds = state.energy_joules, state.power_capped_seconds
    works = load.context and load.busy > 0.0
    linger_until = math.inf if works else state.kernels_until_seconds + gpu_type.linger_seconds
    pieces: list[tuple[float, float]] = []
    while now < end:
        if effect <= now:
            lock, effect = target, math.inf
        piece_end = min(end, effect)
        if lagged != cap:
            piece_end = min(piece_end, _next_lag_time(now))
        if now < linger_until:
            piece_end = min(piece_end, linger_until)
        seconds = piece_end - now
        lingers = not works and now < linger_until
        _, power, reasons = _running(gpu_type, load, lingers, _approach(gpu_type, lagged, cap, seconds / 2.0), lock)
        pieces.append((piece_end, power))
        energy += power * seconds
        if reasons & REASON_SW_POWER_CAP:
            capped_seconds += seconds
        lagged = _approach(gpu_type, lagged, cap, seconds)
        now = piece_end
    if effect <= end:
        lock, effect = target, math.inf
    sm_mhz, power, reasons = _running(gpu_type, load, not works and end < linger_until, lagged, lock)
    return replace(
        state,
        time_seconds=end,
        sm_mhz=sm_mhz,
        power_watts=power,
        energy_joules=energy,
        cap_lagged_watts=lagged,
        lock_in_force=lock,
        lock_target=target,
        lock_effect_seconds=effect,
        kernels_until_seconds=end if works else state.kernels_until_seconds,
        event_reasons=reasons,
        power_capped_seconds=capped_seconds,
        pieces=tuple(pieces),
        random_state=random_state,
    )


def _running(
    gpu_type: GpuType, load: GpuLoad, lingers: bool, cap_watts: float, lock_sm_mhz: tuple[int, int] | None
) -> tuple[int, float, int]:
    """SM clock, watts and event reasons; a card that lingers keeps its clock up, whether or not its process is gone."""
    sm_mhz, reasons = clock_under(gpu_type, load, cap_watts, lock_sm_mhz)
    power = power_at(gpu_type, load, sm_mhz)
    if lingers:
        return unlocked_or_locked_mhz(gpu_type, lock_sm_mhz), power + gpu_type.linger_watts, reasons
    return sm_mhz, power, reasons


def temperature_celsius(power_watts: float) -> int:
    """A die temperature that goes with a steady power; modelled, 29 at idle and 67 at 700 W."""
    return round(25.0 + 0.06 * power_watts)


def _approach(gpu_type: GpuType, lagged_watts: float, cap_watts: float, seconds: float) -> float:
    """The limit in effect `seconds` later: first order, faster down than up, and then exactly the cap."""
    tau = cap_tau_seconds(gpu_type, rising=cap_watts > lagged_watts)
    later = cap_watts + (lagged_watts - cap_watts) * math.exp(-seconds / tau)
    return cap_watts if abs(later - cap_watts) < _CAP_SETTLED_WATTS else later


def _next_lag_time(now_seconds: float) -> float:
    """The next time on a grid that does not depend on where steps begin."""
    return (math.floor(now_seconds / _LAG_GRID_SECONDS + _GRID_SLACK) + 1) * _LAG_GRID_SECONDS


def _lock_delay(gpu_type: GpuType, random_state: int) -> tuple[float, int]:
    """Seconds until a lock takes effect, and the generator's next state."""
    kind, random_state = _uniform(random_state)
    place, random_state = _uniform(random_state)
    return lock_delay_from(gpu_type, kind, place), random_state


def _uniform(random_state: int) -> tuple[float, int]:
    """A number inside (0, 1) and the next state, by splitmix64 (Steele, Lea and Flood 2014)."""
    random_state = (random_state + 0x9E3779B97F4A7C15) & _MASK64
    mixed = ((random_state ^ (random_state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
    mixed ^= mixed >> 31
    return ((mixed >> 11) + 0.5) / (1 << 53), random_state
