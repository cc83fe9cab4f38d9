"""How long clock locks and power limits take to bite."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

from flyball_sim.gpu.kind import GpuType

_NORMAL = NormalDist()
_P99_SIGMAS = _NORMAL.inv_cdf(0.99)
_TAIL_SECONDS = (0.2, 0.5)


def lock_delay_from(gpu_type: GpuType, kind: float, place: float) -> float:
    """Seconds until a lock takes effect, from two numbers inside (0, 1).

    Lognormal, its median and 99th percentile the type's; a share of `lock_tail_share` takes 200 to 500 ms (arXiv
    2502.20075 saw such targets; the numbers are modelled).
    """
    if kind < gpu_type.lock_tail_share:
        shortest, longest = _TAIL_SECONDS
        return shortest + (longest - shortest) * place
    median = gpu_type.lock_latency_median_seconds
    sigma = math.log(max(gpu_type.lock_latency_p99_seconds / median, 1.0)) / _P99_SIGMAS
    return median * math.exp(sigma * _NORMAL.inv_cdf(place))


def lock_delay_seconds(gpu_type: GpuType, rng: random.Random) -> float:
    """Seconds from the return of a lock call to the new clock."""
    return lock_delay_from(gpu_type, rng.random(), rng.random() or 0.5)


def cap_tau_seconds(gpu_type: GpuType, rising: bool) -> float:
    """Time constant of the way to a new power limit: slower up than down."""
    return gpu_type.cap_up_tau_seconds if rising else gpu_type.cap_down_tau_seconds


def lock_call_seconds(gpu_type: GpuType) -> float:
    """Seconds a lock call takes to return (modelled)."""
    return gpu_type.lock_call_seconds


def cap_call_seconds(gpu_type: GpuType) -> float:
    """Seconds a power limit call takes to return (modelled)."""
    return gpu_type.cap_call_seconds
