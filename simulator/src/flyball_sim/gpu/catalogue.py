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
    # static and exponent lie on the line that six MLPerf cap pairs leave open; 403.7 = hbm + sm and 812.8 are the fit
    # to 64 ML.ENERGY runs with that static (fits.fit_power). hbm : sm and the voltage floor are modelled, within what
    # the H200 saves under a lock (arXiv 2605.11999).
    power=PowerModel(150.0, 165.0, 238.7, 812.8, 2.15, 1095.0),
    memory_knee_mhz=1095.0,  # modelled: below 1590 MHz, see H200; 0.55 of the highest clock as on RTX A6000 and A100
    decode_clock_share=0.02,  # modelled after the H200
    prefill_clock_share=0.95,  # modelled: roofline of matrix products
    cap_held_share=0.987,  # 685-691 W of 700 in saturated ML.ENERGY runs and H200 kernels
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
    # 126: measured active floor; 2.03: fits.fit_cap_exponent with it, on the two GPT-J pairs of MLPerf. 843.8: the
    # H100 fit with a static of 126, the silicon being the same. 323.6 = hbm + sm: fit to medians of kernels that
    # stream memory (fits.fit_kernel_memory_watts). hbm : sm is set so that a lock saves decode 25-40 % of its energy.
    power=PowerModel(126.0, 172.0, 151.6, 843.8, 2.03, 1095.0),
    memory_knee_mhz=1095.0,  # modelled: decode runs as fast at 1590 MHz as at 1980 (arXiv 2605.11999)
    decode_clock_share=0.02,  # modelled: the same source saw less than 0.1 %
    prefill_clock_share=0.95,
    cap_held_share=0.987,
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
    # fitted together: throttLL'eM's P(1050)/P(1410), VoltanaLLM's E(1005)/E(1410), decode runs of 291-363 W, prefill
    # at its limit. The split into coefficients and the voltage floor (712.5 mV at 1080 MHz is public) are modelled.
    power=PowerModel(105.0, 65.0, 250.0, 350.0, 2.4, 900.0),
    memory_knee_mhz=840.0,  # throttLL'eM: below it a token costs more energy
    decode_clock_share=0.1,  # throttLL'eM: 6.25 % less throughput at 1050 MHz, prefill included
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
    # modelled: the 80 GB part's, memory and SM watts scaled with the bandwidth
    power=PowerModel(105.0, 50.0, 190.0, 350.0, 2.4, 900.0),
    memory_knee_mhz=840.0,
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
    power=PowerModel(90.0, 60.0, 130.0, 320.0, 2.2, 1380.0),  # modelled: no public row
    memory_knee_mhz=1320.0,  # modelled
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
    context_watts=2.0,  # measured: 33-35 W with the server waiting
    # fitted to AGFT's sweep (sweeps.fit_a6000), whose load is not known; 2100 MHz is never reached under load
    power=PowerModel(46.4, 40.0, 600.0, 1404.0, 2.75, 1155.0),
    memory_knee_mhz=1020.0,  # fitted to the same sweep's time per token
    memory_knee_exponent=1.3,
    decode_clock_share=0.1,
    prefill_clock_share=0.95,
    lock_latency_median_seconds=0.020,
    power_usage_is_averaged=True,
    linger_watts=58.0,  # measured: 89-97 W after load ...
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
    dense_bf16_flops=125e12,  # fp16: the part has no bf16
    memory_mhz=877,
    sm_min_mhz=135,
    sm_max_mhz=1530,
    lock_ceiling_mhz=1530,
    cap_min_watts=100.0,
    cap_max_watts=300.0,
    cap_default_watts=300.0,
    idle_watts=38.0,  # modelled
    context_watts=13.0,  # modelled
    context_clock_share=0.0,
    power=PowerModel(53.0, 83.0, 145.8, 275.2, 2.2, 600.0),  # fitted to GridPilot's locked rows (sweeps.fit_v100)
    memory_knee_mhz=1005.0,  # fitted to the same rows
    memory_knee_exponent=2.5,
    cap_held_share=0.98,  # 147 W of 150, 196 W of 200
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
