"""What a type says of the published points about clocks and caps that were not swept: ratios at two settings.

The loads behind them are stated here, because the sources do not give memory and compute use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flyball_sim.gpu.fits import read_rows
from flyball_sim.gpu.kind import GpuType
from flyball_sim.gpu.steps import settle, step_seconds, step_watts
from flyball_sim.gpu.sweeps import KernelCost

_COARSE = 3
"""Every third clock: 45 MHz apart."""
_LITTLE_LOSS = 1.05


@dataclass(frozen=True, slots=True)
class Ratios:
    """The second setting over the first: mean watts, time for the same work, energy for the same work."""

    watts: float
    seconds: float

    @property
    def joules(self) -> float:
        """Energy for the same work."""
        return self.watts * self.seconds


def compute_bound(gpu_type: GpuType) -> KernelCost:
    """A millisecond of matrix products that runs as fast as its clock: 85 % of the dense peak, 20 % of bandwidth."""
    return _cost(gpu_type, clocked=1e-3, memory_use=0.2, compute_use=0.85)


def full_decode(gpu_type: GpuType) -> KernelCost:
    """A decode step of a full batch with its share of prefill, 33.5 ms at the highest clock: 64 % of bandwidth."""
    decode, prefill = 30e-3, 3.5e-3
    clocked = decode * gpu_type.decode_clock_share + prefill * gpu_type.prefill_clock_share
    return _cost(
        gpu_type, host=0.5e-3, fixed=decode + prefill - clocked, clocked=clocked, memory_use=0.635, compute_use=0.116
    )


def decode(gpu_type: GpuType) -> KernelCost:
    """A decode step without prefill, 64 sequences of an 8B model, some 8 ms on an H200: 64 % of bandwidth."""
    clocked = 8e-3 * gpu_type.decode_clock_share
    return _cost(gpu_type, host=0.4e-3, fixed=8e-3 - clocked, clocked=clocked, memory_use=0.64, compute_use=0.13)


def host_bound(gpu_type: GpuType) -> KernelCost:
    """A decode step that waits for the host half of the time and streams weights the rest of it."""
    return _cost(gpu_type, host=10e-3, fixed=10e-3, memory_use=0.4, compute_use=0.015)


def cap_throughput_ratio(gpu_type: GpuType, cap_watts: float) -> float:
    """Throughput of compute-bound work under a cap over that at the default one (MLPerf v4.1's pairs)."""
    cost = compute_bound(gpu_type)
    return 1.0 / ratios(gpu_type, cost, (gpu_type.cap_default_watts, None), (cap_watts, None)).seconds


def full_decode_ratios(gpu_type: GpuType, low_mhz: int) -> Ratios:
    """A lock at `low_mhz` over the highest clock at full batch (throttLL'eM 1050, VoltanaLLM 1005 MHz)."""
    return _locked(gpu_type, full_decode(gpu_type), low_mhz)


def host_bound_ratios(gpu_type: GpuType, low_mhz: int) -> Ratios:
    """A lock at `low_mhz` over the highest clock where the host sets the pace (810 MHz on A100-PCIe)."""
    return _locked(gpu_type, host_bound(gpu_type), low_mhz)


def best_decode_lock_saving(gpu_type: GpuType) -> float:
    """Share of decode energy that the best clock lock saves among those that lengthen a step by 5 % at most.

    Row 13 of the validation table (arXiv 2605.11999) on a coarse grid of clocks.
    """
    cost, cap = decode(gpu_type), (gpu_type.cap_max_watts, None)
    clocks = gpu_type.supported_sm_mhz()[::_COARSE]
    found = (ratios(gpu_type, cost, cap, (gpu_type.cap_max_watts, (clock, clock))) for clock in clocks)
    return max((1.0 - ratio.joules for ratio in found if ratio.seconds <= _LITTLE_LOSS), default=0.0)


def cap_ratios(gpu_type: GpuType, full_watts: float, low_watts: float) -> Ratios:
    """A cap of `low_watts` over one of `full_watts`, for a load that just fills the latter at the highest clock.

    The load is `full_decode` with as long a host gap as that takes (arXiv 2310.03003: A100, 250 and 175 W).
    """
    cost, top = full_decode(gpu_type), gpu_type.sm_max_mhz
    held = full_watts * gpu_type.cap_held_share
    shortest, longest = 0.0, 100.0 * (cost.fixed_seconds + cost.clocked_seconds)
    for _ in range(60):
        host = (shortest + longest) / 2.0
        if step_watts(gpu_type, _with_host(cost, host), top, top) > held:
            shortest = host
        else:
            longest = host
    return ratios(gpu_type, _with_host(cost, longest), (full_watts, None), (low_watts, None))


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Training under a cap over training at the highest cap: seconds an epoch, measured and ours."""

    network: str
    batch: int
    cap_watts: float
    measured_ratio: float
    ratio: float


def training_under_caps(gpu_type: GpuType, path: Path) -> tuple[TrainingResult, ...]:
    """Zeus' cap sweeps (NSDI'23), where caps bind: a look at the power law, far from serving; nothing is fitted.

    Each task is taken as bound by compute and as large as its watts at the highest cap say; tasks that do not reach
    80 % of that cap are left out.

    Args:
        gpu_type: the card of the sweep.
        path: `zeus_cap_sweep_v100.csv`.
    """
    tasks: dict[tuple[str, str, str, str], list[dict[str, str]]] = {}
    for row in read_rows(path):
        tasks.setdefault((row["dataset"], row["network"], row["batch_size"], row["optimizer"]), []).append(row)
    found = []
    for (_, network, batch, _), rows in tasks.items():
        full = max(rows, key=lambda row: float(row["power_limit"]))
        watts, top = float(full["average_power"]), gpu_type.sm_max_mhz
        if watts < 0.8 * float(full["power_limit"]):
            continue
        unit = KernelCost(0.0, 0.0, 1e-3, 0.0, 1e-3 * gpu_type.dense_bf16_flops)
        flops = unit.flops * (watts - gpu_type.active_floor_watts) / gpu_type.power.tensor_watts
        cost = KernelCost(0.0, 0.0, 1e-3, 0.0, flops)
        for row in rows:
            cap = float(row["power_limit"])
            if cap < 0.9 * watts:
                mhz, _, _ = settle(gpu_type, cost, cap)
                measured = float(row["time_per_epoch"]) / float(full["time_per_epoch"])
                found.append(TrainingResult(network, int(batch), cap, measured, top / mhz))
    return tuple(found)


def _cost(
    gpu_type: GpuType,
    *,
    memory_use: float,
    compute_use: float,
    host: float = 0.0,
    fixed: float = 0.0,
    clocked: float = 0.0,
) -> KernelCost:
    seconds = host + fixed + clocked
    return KernelCost(
        host,
        fixed,
        clocked,
        memory_use * seconds * gpu_type.memory_bandwidth_bytes_per_second,
        compute_use * seconds * gpu_type.dense_bf16_flops,
    )


def _with_host(cost: KernelCost, host_seconds: float) -> KernelCost:
    return KernelCost(host_seconds, cost.fixed_seconds, cost.clocked_seconds, cost.memory_bytes, cost.flops)


def _locked(gpu_type: GpuType, cost: KernelCost, low_mhz: int) -> Ratios:
    cap = gpu_type.cap_max_watts
    return ratios(gpu_type, cost, (cap, None), (cap, (low_mhz, low_mhz)))


def ratios(
    gpu_type: GpuType,
    cost: KernelCost,
    first: tuple[float, tuple[int, int] | None],
    second: tuple[float, tuple[int, int] | None],
) -> Ratios:
    """The step under two pairs of (cap in watts, lock or None)."""
    watts, seconds = [], []
    for cap, lock in (first, second):
        mhz, drawn, _ = settle(gpu_type, cost, cap, lock)
        watts.append(drawn)
        seconds.append(step_seconds(gpu_type, cost, mhz, gpu_type.sm_max_mhz))
    return Ratios(watts[1] / watts[0], seconds[1] / seconds[0])
