"""What differs between two cards of one type: the silicon, and the gain of the power sensor."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from flyball_sim.gpu.kind import GpuType


@dataclass(frozen=True, slots=True)
class Die:
    """One card's departure from its type.

    `power_factor` is on the watts above waiting, `idle_factor` on those of waiting, `sensor_gain` on what NVML
    shows of either; 1 is the type's own.
    """

    power_factor: float
    idle_factor: float
    sensor_gain: float


@dataclass(frozen=True, slots=True)
class DieSpread:
    """How far dies differ: two standard deviations, and the largest gain error (shares of 1)."""

    power_sigma: float = 0.02
    idle_sigma: float = 0.03
    gain_error: float = 0.05


NOMINAL_DIE = Die(1.0, 1.0, 1.0)
DEFAULT_SPREAD = DieSpread()
"""B200: 5.7 % spread in energy and 8.9 % at idle, read as the range over eight cards (2.85 standard deviations);
gain within 5 % (arXiv 2312.02741 reports it so for data-centre parts). Modelled for every type here."""

_FARTHEST_SIGMAS = 2.5


def draw_die(rng: random.Random, spread: DieSpread = DEFAULT_SPREAD) -> Die:
    """One card's die: normal factors cut at 2.5 standard deviations, gain uniform."""

    def factor(sigma: float) -> float:
        return 1.0 + sigma * max(-_FARTHEST_SIGMAS, min(_FARTHEST_SIGMAS, rng.gauss(0.0, 1.0)))

    return Die(
        power_factor=factor(spread.power_sigma),
        idle_factor=factor(spread.idle_sigma),
        sensor_gain=1.0 + spread.gain_error * (2.0 * rng.random() - 1.0),
    )


def draw_dies(seed: int, count: int, spread: DieSpread = DEFAULT_SPREAD) -> tuple[Die, ...]:
    """The dies of `count` cards; card i is the same whatever `count` is."""
    rng = random.Random(seed)  # noqa: S311
    return tuple(draw_die(rng, spread) for _ in range(count))


def apply(gpu_type: GpuType, die: Die) -> GpuType:
    """The type as this die is: its watts while it waits, and those above them."""
    power, waiting = gpu_type.power, gpu_type.idle_watts + gpu_type.context_watts
    factor = die.power_factor
    return replace(
        gpu_type,
        idle_watts=gpu_type.idle_watts * die.idle_factor,
        context_watts=gpu_type.context_watts * die.idle_factor,
        linger_watts=gpu_type.linger_watts * factor,
        power=replace(
            power,
            static_watts=waiting * die.idle_factor + (gpu_type.active_floor_watts - waiting) * factor,
            hbm_watts=power.hbm_watts * factor,
            sm_watts=power.sm_watts * factor,
            tensor_watts=power.tensor_watts * factor,
        ),
    )
