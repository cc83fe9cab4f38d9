"""Where each value lies in the GPU state file: the Python side of `simulator/nvml/state.h`.

The file is made of 8-byte cells in the machine's byte order, because an aligned 8-byte load or store cannot tear.
A header comes first, then one block per GPU. The C library exports its own table of names, offsets and sizes
(`flyball_nvml_layout`), and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

MAGIC = 0x4C4C4142594C4647  # the bytes "GFLYBALL"
VERSION = 2
CELL_BYTES = 8
MAX_GPUS = 16
FAULT_CELLS = 4  # return code, calls left (-1: for ever), delay in milliseconds, epoch
NO_LOCK = 0

CALLS: tuple[str, ...] = (
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetHandleBySerial",
    "nvmlDeviceGetHandleByPciBusId_v2",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetSerial",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetBrand",
    "nvmlDeviceGetArchitecture",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetNumaNodeId",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceSetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetPersistenceMode",
    "nvmlDeviceSetPersistenceMode",
    "nvmlDeviceGetPerformanceState",
    "nvmlDeviceGetPowerState",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetTemperatureThreshold",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetPowerManagementMode",
    "nvmlDeviceGetPowerManagementLimit",
    "nvmlDeviceGetPowerManagementLimitConstraints",
    "nvmlDeviceGetPowerManagementDefaultLimit",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceSetPowerManagementLimit",
    "nvmlDeviceSetPowerManagementLimit_v2",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetSamples",
    "nvmlDeviceGetViolationStatus",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetClock",
    "nvmlDeviceGetMaxCustomerBoostClock",
    "nvmlDeviceGetSupportedMemoryClocks",
    "nvmlDeviceGetSupportedGraphicsClocks",
    "nvmlDeviceSetGpuLockedClocks",
    "nvmlDeviceResetGpuLockedClocks",
    "nvmlDeviceSetMemoryLockedClocks",
    "nvmlDeviceResetMemoryLockedClocks",
    "nvmlDeviceGetApplicationsClock",
    "nvmlDeviceGetDefaultApplicationsClock",
    "nvmlDeviceSetApplicationsClocks",
    "nvmlDeviceResetApplicationsClocks",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetSupportedClocksEventReasons",
    "nvmlDeviceGetSupportedClocksThrottleReasons",
)
"""Calls that take a device, in the order of their fault cells."""

HEADER_FIELDS: tuple[tuple[str, int], ...] = (
    ("magic", 1),
    ("version", 1),
    ("file_bytes", 1),
    ("gpu_count", 1),
    ("header_bytes", 1),
    ("gpu_bytes", 1),
    ("admin_uid", 1),  # besides uid 0, the uid whose setters are obeyed: whoever made the file
    ("tick_stamp_ns", 1),
    ("tick_count", 1),
    ("driver_version", 4),
    ("node_name", 32),
)
"""Field name and number of cells; text fields are NUL-padded UTF-8."""

GPU_FIELDS: tuple[tuple[str, int], ...] = (
    # what the card is (written once)
    ("index", 1),
    ("uuid", 6),
    ("serial", 4),
    ("product_name", 12),
    ("type_name", 4),
    ("brand", 1),
    ("architecture", 1),
    ("compute_major", 1),
    ("compute_minor", 1),
    ("pci_bus", 1),
    ("pci_device_id", 1),
    ("memory_bytes", 1),
    ("memory_mhz", 1),
    ("sm_min_mhz", 1),
    ("sm_max_mhz", 1),
    ("sm_step_mhz", 1),
    ("cap_min_mw", 1),
    ("cap_max_mw", 1),
    ("cap_default_mw", 1),
    ("power_usage_is_averaged", 1),
    ("die_power_factor", 1),
    ("die_idle_factor", 1),
    ("sensor_gain", 1),
    # settings (written by the C library's setters); a lock is min | max << 32, in MHz
    ("cap_requested_mw", 1),
    ("cap_in_force_mw", 1),
    ("cap_stamp_ns", 1),
    ("cap_sequence", 1),
    ("lock_requested", 1),
    ("lock_in_force", 1),
    ("lock_stamp_ns", 1),
    ("lock_sequence", 1),
    ("memory_lock_requested", 1),
    ("persistence_mode", 1),
    ("cap_set_calls", 1),
    ("lock_set_calls", 1),
    ("lock_reset_calls", 1),
    # load (written by the engine that holds the card)
    ("load_memory_use", 1),
    ("load_compute_use", 1),
    ("load_busy", 1),
    ("load_pid", 1),
    ("load_stamp_ns", 1),
    # what the physics made of it (written by the driver tick)
    ("sm_mhz", 1),
    ("event_reasons", 1),
    ("power_watts", 1),
    ("energy_joules", 1),
    ("cap_lagged_watts", 1),
    ("power_average_mw", 1),
    ("power_instant_mw", 1),
    ("energy_mj", 1),
    ("power_cap_violation_ns", 1),
    ("temperature_celsius", 1),
    ("memory_temperature_celsius", 1),
    ("utilization_gpu_percent", 1),
    ("utilization_memory_percent", 1),
    ("memory_used_bytes", 1),
    ("process_pid", 1),
    ("random_state", 1),
    # faults (written by tests and demonstrations)
    ("reboot_sequence", 1),
    ("lost", 1),
    ("cap_not_in_force", 1),
    ("lock_not_in_force", 1),
    ("out_of_band_limit_mw", 1),  # 0: none
    ("faults", FAULT_CELLS * len(CALLS)),
)
"""As HEADER_FIELDS, for the block each GPU has."""


def _offsets(fields: tuple[tuple[str, int], ...]) -> Mapping[str, int]:
    offsets: dict[str, int] = {}
    cell = 0
    for name, cells in fields:
        offsets[name] = cell
        cell += cells
    return MappingProxyType(offsets)


HEADER_OFFSETS = _offsets(HEADER_FIELDS)
HEADER_CELLS = sum(cells for _, cells in HEADER_FIELDS)
GPU_OFFSETS = _offsets(GPU_FIELDS)
GPU_CELLS = sum(cells for _, cells in GPU_FIELDS)
CALL_INDEX: Mapping[str, int] = MappingProxyType({name: index for index, name in enumerate(CALLS)})


def pack_lock(lock: tuple[int, int] | None) -> int:
    """One cell for a lock, so that its two ends are always read together."""
    return NO_LOCK if lock is None else lock[0] | lock[1] << 32


def unpack_lock(packed: int) -> tuple[int, int] | None:
    """The (lowest, highest) SM clock in MHz of a packed lock, or None where no lock is set."""
    return None if packed == NO_LOCK else (packed & 0xFFFFFFFF, packed >> 32)
