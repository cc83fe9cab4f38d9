"""The GPU models the simulator knows, with where each number comes from.

Sources: public data sheets and logs, and the fits of `fits.py` (docs/simulated-gpus.md names both). A number with no
public measurement behind it is marked *modelled*, and those that matter have a range in `parameters.py`.
"""

from __future__ import annotations

from flyball_sim.gpu.kind import MIB, GpuType, PowerModel

_VOLTA, _AMPERE, _ADA, _HOPPER = 5, 7, 8, 9  # NVML's architecture numbers

_H100 = GpuType(
    name="H100-SXM5",
    product_name="NVIDIA H100 80GB HBM3",
    provenance="measured",
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
    power=PowerModel(197.0, 120.0, 217.0, 719.0, 2.48, 1095.0),
    memory_knee_mhz=1095.0,
    decode_clock_share=0.05,
    prefill_clock_share=0.95,
    lock_latency_median_seconds=0.020,  # modelled, after arXiv 2502.20075
    power_usage_is_averaged=True,
)

_H200 = GpuType(
    name="H200-SXM",
    product_name="NVIDIA H200",
    provenance="measured",
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
    power=PowerModel(126.0, 172.0, 209.0, 719.0, 2.02, 1095.0),
    memory_knee_mhz=1095.0,
    decode_clock_share=0.05,
    prefill_clock_share=0.95,
    lock_latency_median_seconds=0.020,
    power_usage_is_averaged=True,
)

_A100_80 = GpuType(
    name="A100-SXM4-80GB",
    product_name="NVIDIA A100-SXM4-80GB",
    provenance="measured",
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
    power=PowerModel(105.0, 75.0, 200.0, 350.0, 2.0, 1080.0),
    memory_knee_mhz=810.0,
    decode_clock_share=0.1,
    prefill_clock_share=0.95,
    lock_latency_median_seconds=0.015,
    power_usage_is_averaged=False,  # GA100 reports instantaneous power
)

_A100_40 = GpuType(
    name="A100-SXM4-40GB",
    product_name="NVIDIA A100-SXM4-40GB",
    provenance="modelled",
    architecture=_AMPERE,
    compute_capability=(8, 0),
    pci_device_id=0x20B010DE,
    memory_bytes=40960 * MIB,
    memory_bandwidth_bytes_per_second=1.555e12,
    dense_bf16_flops=312e12,
    memory_mhz=1215,
    sm_min_mhz=210,
    sm_max_mhz=1410,
    lock_ceiling_mhz=1410,
    cap_min_watts=100.0,
    cap_max_watts=400.0,
    cap_default_watts=400.0,
    idle_watts=53.7,  # arXiv 2605.23918, order of its columns inferred
    context_watts=40.0,
    power=PowerModel(105.0, 75.0, 200.0, 350.0, 2.0, 1080.0),  # modelled: those of the 80 GB part
    memory_knee_mhz=810.0,
    decode_clock_share=0.1,
    prefill_clock_share=0.95,
    lock_latency_median_seconds=0.015,
    power_usage_is_averaged=False,
)

_L40S = GpuType(
    name="L40S",
    product_name="NVIDIA L40S",
    provenance="modelled",
    architecture=_ADA,
    compute_capability=(8, 9),
    pci_device_id=0x26B910DE,
    memory_bytes=46068 * MIB,
    memory_bandwidth_bytes_per_second=864e9,
    dense_bf16_flops=362e12,
    memory_mhz=9001,
    sm_min_mhz=210,
    sm_max_mhz=2520,
    lock_ceiling_mhz=2520,
    cap_min_watts=100.0,
    cap_max_watts=350.0,
    cap_default_watts=350.0,
    idle_watts=35.6,  # arXiv 2605.23918, order of its columns inferred
    context_watts=40.0,
    power=PowerModel(95.0, 60.0, 120.0, 260.0, 2.0, 1300.0),
    memory_knee_mhz=1200.0,
    decode_clock_share=0.1,
    prefill_clock_share=0.95,
    lock_latency_median_seconds=0.020,
    power_usage_is_averaged=True,
    sensor_window_seconds=0.1,
)

_A6000 = GpuType(
    name="RTX-A6000",
    product_name="NVIDIA RTX A6000",
    provenance="modelled",
    architecture=_AMPERE,
    compute_capability=(8, 6),
    pci_device_id=0x223010DE,
    memory_bytes=49140 * MIB,
    memory_bandwidth_bytes_per_second=768e9,
    dense_bf16_flops=155e12,
    memory_mhz=8001,
    sm_min_mhz=210,
    sm_max_mhz=2100,
    lock_ceiling_mhz=2100,
    cap_min_watts=100.0,
    cap_max_watts=300.0,
    cap_default_watts=300.0,
    idle_watts=33.0,  # measured
    context_watts=2.0,
    power=PowerModel(80.0, 60.0, 120.0, 260.0, 2.2, 1065.0),
    memory_knee_mhz=1020.0,
    decode_clock_share=0.1,
    prefill_clock_share=0.95,
    lock_latency_median_seconds=0.020,
    power_usage_is_averaged=True,
    linger_watts=60.0,  # measured: 89-97 W after load ...
    linger_seconds=16.0,  # ... for some 16 s, then 33-35 W
    sensor_window_seconds=0.1,
)

_V100 = GpuType(
    name="V100-SXM2",
    product_name="Tesla V100-SXM2-16GB",
    provenance="modelled",
    architecture=_VOLTA,
    compute_capability=(7, 0),
    pci_device_id=0x1DB110DE,
    memory_bytes=16160 * MIB,
    memory_bandwidth_bytes_per_second=900e9,
    dense_bf16_flops=125e12,
    memory_mhz=877,
    sm_min_mhz=135,
    sm_max_mhz=1530,
    lock_ceiling_mhz=1530,
    cap_min_watts=100.0,
    cap_max_watts=300.0,
    cap_default_watts=300.0,
    idle_watts=40.0,
    context_watts=15.0,
    power=PowerModel(55.0, 60.0, 110.0, 200.0, 2.0, 800.0),
    memory_knee_mhz=1300.0,
    decode_clock_share=0.1,
    prefill_clock_share=0.95,
    lock_latency_median_seconds=0.020,
    power_usage_is_averaged=False,
    sensor_refresh_seconds=0.02,  # 20 ms median refresh measured
    sensor_window_seconds=0.02,
    cap_down_tau_seconds=0.025,
    cap_up_tau_seconds=0.15,
)

CATALOGUE: tuple[GpuType, ...] = (_H100, _H200, _A100_80, _L40S, _A100_40, _A6000, _V100)
