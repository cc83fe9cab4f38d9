"""The numbers no measurement fixes: each by name, with its range, what leaves it open and where the range is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from flyball_sim.gpu.dies import DEFAULT_SPREAD
from flyball_sim.gpu.kind import GpuType
from flyball_sim.gpu.types import GPU_TYPES

EVERY_GPU = "*"

Effect = Literal["power", "time", "actuation", "sensor"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number no measurement fixes.

    `gpu` is a type's name or `EVERY_GPU`; `why` says what leaves it open, `source` where the range is from, and
    `effect` what it changes: watts alone, step times, delays of settings, or what NVML shows.
    """

    name: str
    gpu: str
    nominal: float
    low: float
    high: float
    unit: str
    effect: Effect
    why: str
    source: str

    @property
    def key(self) -> str:
        """Its name in a `Draw`."""
        return f"{self.gpu}.{self.name}"


DRAWN_ON_THE_LINE = ("H100-SXM5", "H200-SXM")
"""Types whose static, SM and tensor watts follow their exponent (`parameters.apply`)."""
_KNEE_WHY = "no step times or bandwidth by SM clock are public for this part"
_MARGINS: Mapping[str, tuple[float, float]] = MappingProxyType({"measured": (0.9, 1.1), "modelled": (0.75, 1.3)})
_HBM_RANGE_WATTS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "H100-SXM5": (80.0, 200.0),
        "H200-SXM": (115.0, 287.0),
        "A100-SXM4-80GB": (45.0, 110.0),
        "A100-SXM4-40GB": (35.0, 85.0),
    }
)
_KNEE_RANGE_MHZ: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "H100-SXM5": (750.0, 1500.0),
        "H200-SXM": (750.0, 1500.0),
        "A100-SXM4-80GB": (600.0, 1005.0),
        "A100-SXM4-40GB": (600.0, 1005.0),
        "RTX-A6000": (930.0, 1110.0),
        "V100-SXM2": (945.0, 1100.0),
    }
)
_FLOOR_RANGE_MHZ: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "H100-SXM5": (750.0, 1110.0),  # above, the 350 W pair of MLPerf, at some 1060 MHz, would be missed
        "H200-SXM": (750.0, 1110.0),
        "A100-SXM4-80GB": (750.0, 1080.0),
        "A100-SXM4-40GB": (750.0, 1080.0),
        "RTX-A6000": (1020.0, 1200.0),
        "V100-SXM2": (450.0, 950.0),
    }
)
_EXPONENT_RANGE: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "H100-SXM5": (1.8, 2.5),
        "H200-SXM": (1.8, 2.5),
        "A100-SXM4-80GB": (2.1, 2.7),
        "A100-SXM4-40GB": (2.1, 2.7),
        "RTX-A6000": (2.4, 3.1),
        "V100-SXM2": (1.9, 2.6),
    }
)
_IDLE_RANGE_WATTS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "H100-SXM5": (64.0, 79.0),
        "H200-SXM": (64.0, 90.0),
        "A100-SXM4-80GB": (59.0, 62.0),
        "A100-SXM4-40GB": (45.0, 60.0),
        "RTX-A6000": (33.0, 35.0),
    }
)


def _power_parameters(kind: GpuType) -> tuple[Parameter, ...]:
    name, power = kind.name, kind.power
    low, high = _MARGINS[kind.provenance]

    def watts(field: str, nominal: float, bounds: tuple[float, float], why: str, source: str) -> Parameter:
        return Parameter(field, name, nominal, *bounds, "W", "power", why, source)

    line = name in DRAWN_ON_THE_LINE
    exponents = _EXPONENT_RANGE.get(name, (1.8, 2.8))
    found = [
        Parameter(
            "clock_exponent",
            name,
            power.clock_exponent,
            *exponents,
            "1",
            "power",
            "voltage by clock is not public; data fix k only together with the static power",
            "six MLPerf v4.1 cap pairs" if line else "modelled around the fit of the type's own rows",
        ),
        Parameter(
            "voltage_floor_mhz",
            name,
            power.voltage_floor_mhz,
            *_FLOOR_RANGE_MHZ.get(name, (0.45 * kind.sm_max_mhz, 0.65 * kind.sm_max_mhz)),
            "MHz",
            "power",
            "the clock at which the voltage stops falling is not public",
            "A100 712.5 mV at 1080 MHz, A40-class 706 mV at 1095 MHz (nvidia-smi -q)",
        ),
        watts(
            "hbm_watts",
            power.hbm_watts,
            _HBM_RANGE_WATTS.get(name, (0.6 * power.hbm_watts, 1.5 * power.hbm_watts)),
            "measurements at one clock do not part memory from SM power",
            "3 to 7 pJ a bit at full bandwidth",
        ),
        watts(
            "idle_watts",
            kind.idle_watts,
            _IDLE_RANGE_WATTS.get(name, (0.8 * kind.idle_watts, 1.2 * kind.idle_watts)),
            "published idle figures differ, or there is none",
            "gpu_constants.csv; arXiv 2605.23918",
        ),
        watts(
            "context_watts",
            kind.context_watts,
            (26.0, 66.0) if kind.context_watts >= 26.0 else (0.5 * kind.context_watts, 2.0 * kind.context_watts),
            "one figure, for H100",
            "26-66 W: arXiv 2605.23918",
        ),
        Parameter(
            "context_clock_share",
            name,
            kind.context_clock_share,
            min(0.2, kind.context_clock_share),
            0.9,
            "1",
            "power",
            "how much of a context's power goes with its boosted SM clock, under a lock, is not public",
            "arXiv 2605.23918: without the performance boost it is gone",
        ),
        Parameter(
            "cap_held_share",
            name,
            kind.cap_held_share,
            0.97,
            1.0,
            "1",
            "power",
            "how close under its limit the firmware holds a card",
            "H100 and H200 0.98-0.99 of 700 W, V100 0.98 of 150 and 200 W",
        ),
        watts(
            "linger_watts",
            kind.linger_watts,
            (54.0, 62.0) if kind.linger_watts else (0.0, 30.0),
            "watts after load are logged for RTX A6000 only",
            "RTX A6000 89-97 W for some 16 s (LLMServingSim's log)",
        ),
        Parameter(
            "linger_seconds",
            name,
            kind.linger_seconds,
            12.0 if kind.linger_seconds else 0.0,
            20.0,
            "s",
            "power",
            "as linger_watts",
            "as linger_watts",
        ),
    ]
    if not line:
        for field in ("sm_watts", "tensor_watts"):
            nominal = float(getattr(power, field))
            found.append(
                watts(field, nominal, (low * nominal, high * nominal), "fitted to few rows, or to none", "modelled")
            )
    return tuple(found)


def _time_parameters(kind: GpuType) -> tuple[Parameter, ...]:
    name = kind.name

    def share(field: str, nominal: float, bounds: tuple[float, float], source: str) -> Parameter:
        return Parameter(field, name, nominal, *bounds, "1", "time", _KNEE_WHY, source)

    return (
        share(
            "decode_clock_share",
            kind.decode_clock_share,
            (0.0, 0.2),
            "roofline 0.05-0.2; H200 below 0.01 from 1590 to 1980 MHz (arXiv 2605.11999); A100 0.19 with prefill",
        ),
        share("prefill_clock_share", kind.prefill_clock_share, (0.9, 1.0), "roofline of matrix products"),
        Parameter(
            "memory_knee_mhz",
            name,
            kind.memory_knee_mhz,
            *_KNEE_RANGE_MHZ.get(name, (0.4 * kind.sm_max_mhz, 0.7 * kind.sm_max_mhz)),
            "MHz",
            "time",
            _KNEE_WHY,
            "RTX A6000 1020 MHz, V100 1005 MHz fitted; H200 below 1590 MHz; A100 some 840 MHz",
        ),
        Parameter(
            "memory_knee_exponent",
            name,
            kind.memory_knee_exponent,
            1.0,
            2.75,
            "1",
            "time",
            _KNEE_WHY,
            "1 where L2 goes with the SM clock; V100 2.5 fitted",
        ),
    )


def _actuation_parameters(kind: GpuType) -> tuple[Parameter, ...]:
    rows: tuple[tuple[str, tuple[float, float], str], ...] = (
        ("lock_latency_median_seconds", (0.007, 0.05), "arXiv 2502.20075: differs by part and target clock"),
        ("lock_latency_p99_seconds", (0.06, 0.3), "the same"),
        ("lock_tail_share", (0.0, 0.01), "the same: rare targets of several hundred milliseconds"),
        ("lock_call_seconds", (0.0002, 0.005), "no figure for a resident handle on these parts"),
        ("cap_call_seconds", (0.001, 0.03), "30 ms with nvidia-smi on V100; no figure for a resident handle"),
        ("cap_down_tau_seconds", (0.02, 0.2), "V100 25 ms (GridPilot); no other measurement"),
        ("cap_up_tau_seconds", (0.1, 0.3), "V100 100-230 ms (GridPilot); no other measurement"),
    )
    found = []
    for field, (low, high), source in rows:
        nominal = float(getattr(kind, field))
        unit = "1" if field.endswith("share") else "s"
        why = "not published for this part"
        found.append(Parameter(field, kind.name, nominal, low, high, unit, "actuation", why, source))
    return tuple(found)


DIES = (
    Parameter(
        "power_sigma",
        EVERY_GPU,
        DEFAULT_SPREAD.power_sigma,
        0.01,
        0.03,
        "1",
        "power",
        "die-to-die spread is public for B200 only",
        "B200: 5.7 % in energy, read as the range over eight cards",
    ),
    Parameter(
        "idle_sigma",
        EVERY_GPU,
        DEFAULT_SPREAD.idle_sigma,
        0.015,
        0.045,
        "1",
        "power",
        "die-to-die spread is public for B200 only",
        "B200: 8.9 % at idle, read likewise",
    ),
    Parameter(
        "gain_error",
        EVERY_GPU,
        DEFAULT_SPREAD.gain_error,
        0.02,
        0.08,
        "1",
        "sensor",
        "differs from card to card",
        "some 5 % (arXiv 2312.02741, second hand)",
    ),
)

PARAMETERS: tuple[Parameter, ...] = (
    *(
        parameter
        for kind in GPU_TYPES.values()
        for parameter in (*_power_parameters(kind), *_time_parameters(kind), *_actuation_parameters(kind))
    ),
    *DIES,
)
"""Everything no measurement fixes, of every type."""
