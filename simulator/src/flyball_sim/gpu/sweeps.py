"""The clock and cap sweeps of V100 and RTX A6000: the fit of their coefficients, and what the types say of each row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball_sim.gpu.kind import GpuType
from flyball_sim.gpu.model import GpuLoad, power_at
from flyball_sim.gpu.published import A6000_ROWS, V100_ROWS, Kernel, KernelRow, ServingRow
from flyball_sim.gpu.steps import settle, step_seconds

_V100_REFERENCE_MHZ = 1380.0
V100_MEMORY_USE = 0.85
V100_COMPUTE_USE = 0.7
"""What the two kernels are taken to use of the V100's peaks at 1380 MHz: not published, it only scales coefficients."""


@dataclass(frozen=True, slots=True)
class KernelCost:
    """An iteration of a kernel, as `steps.Cost` asks."""

    host_seconds: float
    fixed_seconds: float
    clocked_seconds: float
    memory_bytes: float
    flops: float


@dataclass(frozen=True, slots=True)
class KernelFit:
    """What the V100's locked rows give.

    Per kernel the seconds of an iteration at 1380 MHz that wait for memory and that stretch as 1/f; for the card the
    memory knee, its exponent and the power law, in watts at full use (of the taken peaks) and 1530 MHz.
    """

    memory_fixed_seconds: float
    memory_clocked_seconds: float
    compute_fixed_seconds: float
    compute_clocked_seconds: float
    memory_knee_mhz: float
    memory_knee_exponent: float
    steady_watts: float
    hbm_watts: float
    sm_watts: float
    tensor_watts: float
    clock_exponent: float
    voltage_floor_mhz: float


V100_KERNELS = {
    "memory": (0.752e-3, 1.140e-3),
    "compute": (4.476e-3, 6.570e-3),
}
"""(fixed, clocked) seconds of an iteration at 1380 MHz: `fit_v100`'s."""


@dataclass(frozen=True, slots=True)
class KernelResult:
    """A published V100 row beside ours."""

    row: KernelRow
    fitted: bool
    iterations_per_second: float
    watts: float
    sm_mhz: int


@dataclass(frozen=True, slots=True)
class ServingResult:
    """A published A6000 row beside ours."""

    row: ServingRow
    watts: float
    tpot_ms: float


def fit_v100(rows: Sequence[KernelRow] = V100_ROWS, top_mhz: float = 1530.0) -> KernelFit:
    """Fit the locked rows; those where a cap binds are left to be predicted.

    A grid over what enters the laws crookedly, least squares of relative error for the rest.
    """
    locked = [row for row in rows if row.sm_mhz == row.lock_mhz]
    times = min(
        (_fit_times(locked, *knee) for knee in itertools.product(_KNEES_MHZ, _KNEE_EXPONENTS)),
        key=lambda found: found[0],
    )
    laws = itertools.product(_STEADY_WATTS, _CLOCK_EXPONENTS, _VOLTAGE_FLOORS_MHZ)
    power = min((_fit_watts(locked, *law, top_mhz) for law in laws), key=lambda found: found[0])
    return KernelFit(*times[1], *power[1])


_KNEES_MHZ = np.arange(900.0, 1201.0, 15.0)
_KNEE_EXPONENTS = np.arange(1.0, 3.01, 0.25)
_STEADY_WATTS = np.arange(40.0, 61.0, 1.0)
_CLOCK_EXPONENTS = np.arange(1.8, 2.81, 0.1)
_VOLTAGE_FLOORS_MHZ = np.arange(600.0, 1201.0, 45.0)


def _columns(rows: Sequence[KernelRow]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    return (
        np.array([float(row.sm_mhz) for row in rows]),
        np.array([row.iterations_per_second for row in rows]),
        np.array([row.watts for row in rows]),
    )


def _relative_squares(columns: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Sum of squared relative errors and the coefficients of least squares."""
    solution, *_ = np.linalg.lstsq(columns / target[:, None], np.ones(len(target)), rcond=None)
    return float((((columns @ solution) / target - 1.0) ** 2).sum()), np.asarray(solution, dtype=np.float64)


def _fit_times(locked: Sequence[KernelRow], knee: float, exponent: float) -> tuple[float, tuple[float, ...]]:
    error = 0.0
    found: list[float] = []
    for kernel in ("memory", "compute"):
        mhz, rate, _ = _columns([row for row in locked if row.kernel == kernel])
        columns = np.column_stack((np.maximum(1.0, knee / mhz) ** exponent, _V100_REFERENCE_MHZ / mhz))
        squares, solution = _relative_squares(columns, 1.0 / rate)
        error += squares + (np.inf if (solution < 0.0).any() else 0.0)
        found.extend(float(seconds) for seconds in solution)
    return error, (*found, float(knee), float(exponent))


def _fit_watts(
    locked: Sequence[KernelRow], steady: float, exponent: float, floor: float, top_mhz: float
) -> tuple[float, tuple[float, ...]]:
    error = 0.0
    found: list[float] = []
    for kernel in ("memory", "compute"):
        mhz, rate, watts = _columns([row for row in locked if row.kernel == kernel])
        scale = (np.maximum(mhz, floor) / top_mhz) ** exponent * np.minimum(1.0, mhz / floor)
        share = rate / rate.max()
        if kernel == "memory":
            columns = np.column_stack((V100_MEMORY_USE * share, V100_MEMORY_USE * share * scale))
        else:
            columns = (V100_COMPUTE_USE * share * _V100_REFERENCE_MHZ / mhz * scale)[:, None]
        weights = 1.0 / watts
        solution, *_ = np.linalg.lstsq(columns * weights[:, None], 1.0 - steady * weights, rcond=None)
        error += float((((columns @ solution + steady) * weights - 1.0) ** 2).sum())
        error += np.inf if (solution < 0.0).any() else 0.0
        found.extend(float(coefficient) for coefficient in solution)
    return error, (float(steady), *found, float(exponent), float(floor))


def v100_cost(gpu_type: GpuType, kernel: Kernel) -> KernelCost:
    """One iteration of a kernel on a V100, at 1380 MHz."""
    fixed, clocked = V100_KERNELS[kernel]
    seconds = fixed + clocked
    if kernel == "memory":
        memory_bytes = V100_MEMORY_USE * seconds * gpu_type.memory_bandwidth_bytes_per_second
        return KernelCost(0.0, fixed, clocked, memory_bytes, 0.0)
    present_share = V100_COMPUTE_USE * _V100_REFERENCE_MHZ / gpu_type.sm_max_mhz
    return KernelCost(0.0, fixed, clocked, 0.0, present_share * seconds * gpu_type.dense_bf16_flops)


def v100_results(gpu_type: GpuType, rows: Sequence[KernelRow] = V100_ROWS) -> tuple[KernelResult, ...]:
    """Every published V100 row as the type has it; rows where a cap binds took no part in its fit."""
    results = []
    for row in rows:
        cost = v100_cost(gpu_type, row.kernel)
        lock = (row.lock_mhz, row.lock_mhz)
        mhz, watts, _ = settle(gpu_type, cost, row.cap_watts, lock, reference_mhz=_V100_REFERENCE_MHZ)
        seconds = step_seconds(gpu_type, cost, mhz, _V100_REFERENCE_MHZ)
        results.append(KernelResult(row, row.sm_mhz == row.lock_mhz, 1.0 / seconds, watts, mhz))
    return tuple(results)


@dataclass(frozen=True, slots=True)
class SweepFit:
    """Watts of one load by clock: ``steady + dynamic * s(f)``."""

    steady_watts: float
    dynamic_watts: float
    clock_exponent: float
    voltage_floor_mhz: float


def fit_a6000(rows: Sequence[ServingRow] = A6000_ROWS, top_mhz: float = 2100.0) -> SweepFit:
    """Fit the watts of the A6000's rows as those of one load."""
    mhz, watts = np.array([float(row.sm_mhz) for row in rows]), np.array([row.watts for row in rows])
    found = []
    for exponent, floor in itertools.product(np.arange(1.5, 3.51, 0.05), np.arange(600.0, 1291.0, 15.0)):
        scale = (np.maximum(mhz, floor) / top_mhz) ** exponent * np.minimum(1.0, mhz / floor)
        squares, solution = _relative_squares(np.column_stack((np.ones(len(mhz)), scale)), watts)
        found.append((squares, float(solution[0]), float(solution[1]), float(exponent), float(floor)))
    return SweepFit(*min(found)[1:])


A6000_LOAD = GpuLoad(memory_use=0.5, compute_use=0.25, busy=1.0)
"""What the A6000's unpublished load is taken to use of its peaks: it only scales coefficients."""
A6000_TOKEN = KernelCost(0.0, 23.0e-3, 20.0e-3 * 1020.0 / 2100.0, 0.0, 0.0)
"""A token of that load: milliseconds that wait for memory, and that stretch as 1/f (at 2100 MHz); fitted."""


def a6000_results(gpu_type: GpuType, rows: Sequence[ServingRow] = A6000_ROWS) -> tuple[ServingResult, ...]:
    """Every published A6000 row as the type has it, its load the same in all; each took part in the fit."""
    return tuple(
        ServingResult(
            row,
            power_at(gpu_type, A6000_LOAD, row.sm_mhz),
            1e3 * step_seconds(gpu_type, A6000_TOKEN, row.sm_mhz, gpu_type.sm_max_mhz),
        )
        for row in rows
    )


def least_energy_delay_mhz(results: Sequence[ServingResult]) -> int:
    """The clock of the rows at which power times time per token is least, ours."""
    return min(results, key=lambda result: result.watts * result.tpot_ms).row.sm_mhz
