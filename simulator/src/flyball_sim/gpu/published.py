"""Published rows about clocks, caps and power that come in no data file, each with its source.

They are few and stand in papers or logs; what is in files is read from there (`fits.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kernel = Literal["memory", "compute"]


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel on a V100 under a power limit and a clock lock: iterations a second, watts, SM clock reached."""

    kernel: Kernel
    cap_watts: float
    lock_mhz: int
    iterations_per_second: float
    watts: float
    sm_mhz: int


V100_ROWS = (
    KernelRow("memory", 300.0, 1380, 509.8, 223.0, 1380),
    KernelRow("memory", 300.0, 945, 404.5, 142.0, 945),
    KernelRow("memory", 300.0, 405, 90.0, 68.0, 405),
    KernelRow("memory", 150.0, 1380, 422.9, 147.0, 1001),
    KernelRow("memory", 200.0, 1380, 492.9, 196.0, 1270),
    KernelRow("compute", 300.0, 1380, 93.7, 206.0, 1380),
    KernelRow("compute", 300.0, 945, 65.4, 122.0, 945),
    KernelRow("compute", 300.0, 405, 15.1, 61.0, 405),
    KernelRow("compute", 150.0, 1380, 79.1, 147.0, 1158),
)
"""V100-SXM2, GridPilot's table E1 (repository commit 481a339)."""


@dataclass(frozen=True, slots=True)
class ServingRow:
    """A card serving at one clock: watts, and mean time per output token in milliseconds."""

    sm_mhz: int
    watts: float
    tpot_ms: float


A6000_ROWS = (
    ServingRow(210, 85.0, 619.0),
    ServingRow(300, 97.0, 246.0),
    ServingRow(390, 109.0, 182.0),
    ServingRow(480, 121.0, 123.0),
    ServingRow(570, 133.0, 96.0),
    ServingRow(660, 142.0, 69.0),
    ServingRow(750, 152.0, 67.0),
    ServingRow(840, 157.0, 55.0),
    ServingRow(930, 163.0, 48.0),
    ServingRow(1020, 168.0, 41.0),
    ServingRow(1110, 185.0, 40.0),
    ServingRow(1200, 206.0, 39.0),
    ServingRow(1290, 237.0, 39.0),
)
"""RTX A6000 under vLLM, AGFT's development log (commit 8e20265). Its load was not the same in all rows."""

MLPERF_500_WATTS = (
    ("llama2-70b Offline", 0.807),
    ("llama2-70b Server", 0.791),
    ("mixtral-8x7b Offline", 0.830),
    ("mixtral-8x7b Server", 0.796),
)
"""MLPerf v4.1, eight H200: throughput under 500 W caps over that at 700 W. Not used in any fit."""

THROTTLLEM_POWER_RATIO = 0.68
THROTTLLEM_THROUGHPUT_RATIO = 0.9375
"""A100-SXM4-40GB, Llama-2-13B at full batch, 1050 MHz over 1410 MHz: arXiv 2408.05235, from -6.25 % throughput and
+37.4 % tokens per joule."""

VOLTANALLM_ENERGY_RATIO = (0.64, 0.72)
"""A100-80GB, Llama-3.1-8B, lowest and highest of E(1005 MHz)/E(1410 MHz) at equal load: arXiv 2509.04827's figure."""

HOST_BOUND_ENERGY_RATIO = 0.63
"""A100-PCIe-40GB, LLaMA with gaps between kernels, 810 MHz over 1410 MHz, at 1.8 % less time (mertside)."""
