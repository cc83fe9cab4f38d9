"""Rows 9 to 12 and the V100: what a power limit does to throughput, power and energy."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from flyball_sim.gpu.anchors import cap_ratios, cap_throughput_ratio, training_under_caps
from flyball_sim.gpu.published import MLPERF_500_WATTS
from flyball_sim.gpu.sweeps import KernelResult, v100_results
from flyball_sim.gpu.types import gpu_type
from flyball_sim.validation.rows import (
    NEEDS_DATA,
    Row,
    Standing,
    Subject,
    at_most,
    difference,
    not_run,
    relative,
    within,
)

MLPERF = "MLPerf inference v4.1 logs, eight H200 (Apache-2.0; unverified by MLCommons)"
ZEUS = "Zeus (NSDI'23) traces of training on V100 (Apache-2.0)"
V100 = "GridPilot repository, commit 481a339, table E1"
WORDS_TO_WATTS = "arXiv 2310.03003, abstract: A100 at 175 W instead of 250 W"
GPTJ_350_WATTS = (("GPT-J Offline", 0.652), ("GPT-J Server", 0.608))
GPTJ_WALL_WATTS = (4775.3, 4722.6)
"""At 350 W caps; what they leave beside eight cards is the one host constant of row 11."""
WALL_500_WATTS = (6150.0, 6280.0)
CARDS = 8


def rows(data: Path | None) -> tuple[Row, ...]:
    """Rows 9 to 12 and the V100's.

    Raises:
        CalibrationDataError: the directory lacks a file of these rows.
    """
    return (*throughput_under_caps(), wall_power(), *a100_cap(), *v100(), training(data))


def throughput_under_caps() -> tuple[Row, ...]:
    """Rows 9 and 10: the 350 W pairs fixed the exponent, the 500 W pairs are predicted."""
    card = gpu_type("H200-SXM")
    at_500, at_350 = cap_throughput_ratio(card, 500.0), cap_throughput_ratio(card, 350.0)
    predicted = tuple(
        difference(_mlperf("9", f"8xH200, 500 W over 700 W, {name}", fitted=False), at_500, ratio, tolerance=0.03)
        for name, ratio in MLPERF_500_WATTS
    )
    held = tuple(
        difference(_mlperf("10", f"8xH200, 350 W over 700 W, {name}", fitted=True), at_350, ratio, tolerance=0.03)
        for name, ratio in GPTJ_350_WATTS
    )
    return predicted + held


def _mlperf(number: str, what: str, *, fitted: bool) -> Subject:
    return Subject(number, f"throughput, {what}", "", MLPERF, "fitted" if fitted else "not fitted", gated=True)


def wall_power() -> Row:
    """Row 11: eight cards at their caps and one constant for the rest, taken from the 350 W runs."""
    rest = fmean(GPTJ_WALL_WATTS) - CARDS * 350.0
    subject = Subject("11", "wall power of 8xH200 under 500 W caps", "W", MLPERF, "not fitted")
    note = f"{rest:.0f} W beside the cards, from the 350 W runs"
    return relative(subject, CARDS * 500.0 + rest, fmean(WALL_500_WATTS), tolerance_percent=5.0, note=note)


def a100_cap() -> tuple[Row, Row]:
    """Row 12: the 40 GB SXM card in place of the 250 W one."""
    ratios = cap_ratios(gpu_type("A100-SXM4-40GB"), 250.0, 175.0)
    energy = Subject("12", "A100, 250 to 175 W: energy saved", "%", WORDS_TO_WATTS, "not fitted")
    longer = Subject("12", "A100, 250 to 175 W: time added", "%", WORDS_TO_WATTS, "not fitted")
    note = "A100-SXM4-40GB in place of the 250 W card"
    return (
        difference(energy, 100.0 * (1.0 - ratios.joules), 23.0, tolerance=5.0, error_unit="points", note=note),
        within(longer, 100.0 * (ratios.seconds - 1.0), (6.0, 7.0), tolerance=5.0, error_unit="points"),
    )


def v100() -> tuple[Row, ...]:
    """Two kernels under clock locks, which were fitted, and under caps, which were not."""
    return tuple(row for result in v100_results(gpu_type("V100-SXM2")) for row in _kernel(result))


def _kernel(result: KernelResult) -> tuple[Row, Row]:
    row = result.row
    setup = f"{row.kernel}-bound, cap {row.cap_watts:.0f} W, lock {row.lock_mhz} MHz"
    standing: Standing = "fitted" if result.fitted else "not fitted"
    speed = Subject("V100", f"{setup}: iterations", "1/s", V100, standing, gated=True)
    power = Subject("V100", f"{setup}: power", "W", V100, standing, gated=True)
    note = "" if result.fitted else f"{result.sm_mhz} MHz, published {row.sm_mhz}"
    return (
        relative(speed, result.iterations_per_second, row.iterations_per_second, tolerance_percent=10.0, note=note),
        relative(power, result.watts, row.watts, tolerance_percent=10.0),
    )


def training(data: Path | None) -> Row:
    """Training tasks on a V100 under caps, far from serving: how much longer an epoch takes."""
    subject = Subject("V100", "training under caps, mean absolute error of an epoch's time", "%", ZEUS, "not fitted")
    if data is None:
        return not_run(subject, NEEDS_DATA)
    path = data / "calibration" / "zeus_cap_sweep_v100.csv"
    errors = [
        100.0 * abs(result.ratio / result.measured_ratio - 1.0)
        for result in training_under_caps(gpu_type("V100-SXM2"), path)
    ]
    return at_most(subject, fmean(errors), bound=10.0, note=f"{len(errors)} points, each task taken as compute-bound")
