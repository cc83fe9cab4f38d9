"""The GPU models the simulator knows, with where each number comes from.

Sources: `derived/gpu_constants.csv` and the fits of the calibration notes (docs/simulated-gpus.md names them);
a number with no public measurement behind it is marked *modelled*.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MIB = 1 << 20


class UnknownGpuTypeError(LookupError):
    """A GPU type nobody described; the message names the nearest one that exists."""


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Coefficients of `P(f) = static + hbm*mu + (sm*mu + tensor*cu) * (f/f_max)**clock_exponent`, watts.

    mu is the share of peak memory bandwidth in use and cu the share of peak dense bf16 compute, both averaged
    over time. `static_watts` holds while kernels run back to back; without work a card falls to idle.
    """

    static_watts: float
    hbm_watts: float
    sm_watts: float
    tensor_watts: float
    clock_exponent: float


@dataclass(frozen=True, slots=True)
class GpuType:
    """What one GPU model is: limits (MHz, W), peaks, power coefficients and how its sensors report."""

    name: str
    product_name: str
    architecture: int
    compute_capability: tuple[int, int]
    pci_device_id: int
    memory_bytes: int
    memory_bandwidth_bytes_per_second: float
    dense_bf16_flops: float
    memory_mhz: int
    sm_min_mhz: int
    sm_max_mhz: int
    lock_ceiling_mhz: int
    cap_min_watts: float
    cap_max_watts: float
    cap_default_watts: float
    idle_watts: float
    context_watts: float
    power: PowerModel
    lock_latency_median_seconds: float
    power_usage_is_averaged: bool
    sm_step_mhz: int = 15

    def supported_sm_mhz(self) -> range:
        """Every SM clock a lock can name, lowest first."""
        return range(self.sm_min_mhz, self.sm_max_mhz + 1, self.sm_step_mhz)


_HOPPER = 9  # NVML's architecture numbers
_AMPERE = 7

_TYPES = (
    GpuType(
        name="H100-SXM5",
        product_name="NVIDIA H100 80GB HBM3",
        architecture=_HOPPER,
        compute_capability=(9, 0),
        pci_device_id=0x233010DE,
        memory_bytes=81559 * MIB,
        memory_bandwidth_bytes_per_second=3.35e12,
        dense_bf16_flops=989e12,
        memory_mhz=2619,
        sm_min_mhz=345,  # modelled: the H100 NVL's lowest; the SXM part's is not public
        sm_max_mhz=1980,
        lock_ceiling_mhz=1980,
        cap_min_watts=200.0,  # DGX H100 guide
        cap_max_watts=700.0,
        cap_default_watts=700.0,
        idle_watts=72.0,  # 64-79 W measured; 71.8 W in arXiv 2605.23918
        context_watts=52.0,  # per GPU of 4xH100, arXiv 2605.23918
        # 197, 120+217 and 719: fit to 64 ML.ENERGY points at 1980 MHz. The split 120 : 217 and the exponent are
        # modelled: six MLPerf cap pairs put 2.48 on the line of (static, exponent) at 197 W.
        power=PowerModel(197.0, 120.0, 217.0, 719.0, 2.48),
        lock_latency_median_seconds=0.020,  # modelled, after arXiv 2502.20075
        power_usage_is_averaged=True,
    ),
    GpuType(
        name="H200-SXM",
        product_name="NVIDIA H200",
        architecture=_HOPPER,
        compute_capability=(9, 0),
        pci_device_id=0x233510DE,
        memory_bytes=143771 * MIB,
        memory_bandwidth_bytes_per_second=4.8e12,
        dense_bf16_flops=989e12,
        memory_mhz=3201,
        sm_min_mhz=345,  # modelled, as above
        sm_max_mhz=1980,
        lock_ceiling_mhz=1830,  # arXiv 2605.11999: higher locks clamp here, free boost still reaches 1980
        cap_min_watts=200.0,
        cap_max_watts=700.0,
        cap_default_watts=700.0,
        idle_watts=75.0,  # modelled: no public figure
        context_watts=51.0,  # modelled: brings the card to its measured active floor of 126 W
        # 126 and 2.02: MLPerf v4.1 cap pairs. 172: H100's HBM watts scaled by bandwidth (modelled); 209 puts
        # weight streaming at ~450 W (410-500 measured); tensor as H100, which pins prefill at the cap (691 W).
        power=PowerModel(126.0, 172.0, 209.0, 719.0, 2.02),
        lock_latency_median_seconds=0.020,
        power_usage_is_averaged=True,
    ),
    GpuType(
        name="A100-SXM4-80GB",
        product_name="NVIDIA A100-SXM4-80GB",
        architecture=_AMPERE,
        compute_capability=(8, 0),
        pci_device_id=0x20B210DE,
        memory_bytes=81920 * MIB,
        memory_bandwidth_bytes_per_second=2.039e12,
        dense_bf16_flops=312e12,
        memory_mhz=1593,
        sm_min_mhz=210,
        sm_max_mhz=1410,
        lock_ceiling_mhz=1410,
        cap_min_watts=100.0,
        cap_max_watts=400.0,
        cap_default_watts=400.0,
        idle_watts=60.0,  # 59-62 W measured
        context_watts=40.0,  # modelled within the 26-66 W of arXiv 2605.23918
        # modelled: lands in the measured bands, decode 291-363 W and prefill about 400 W
        power=PowerModel(105.0, 75.0, 200.0, 350.0, 2.0),
        lock_latency_median_seconds=0.015,
        power_usage_is_averaged=False,  # GA100 reports instantaneous power
    ),
)

GPU_TYPES: Mapping[str, GpuType] = MappingProxyType({gpu_type.name: gpu_type for gpu_type in _TYPES})


def gpu_type(name: str) -> GpuType:
    """The type called `name`.

    Raises:
        UnknownGpuTypeError: there is none; the message names the nearest and all others.
    """
    if name in GPU_TYPES:
        return GPU_TYPES[name]
    nearest = difflib.get_close_matches(name.upper(), GPU_TYPES, n=1, cutoff=0.0)[0]
    raise UnknownGpuTypeError(
        f"GPU type {name!r} is unknown: did you mean {nearest!r}? Known types: {', '.join(GPU_TYPES)}"
    )
