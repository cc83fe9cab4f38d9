/* The GPU state file: the C side of flyball_sim/gpu/layout.py, where each field is explained.
 *
 * Every number is an aligned 8-byte cell in the machine's byte order, so loads and stores cannot tear.
 * flyball_nvml_layout() exports this table for the test that holds the two descriptions together.
 */
#ifndef FLYBALL_STATE_H
#define FLYBALL_STATE_H

#include <stdint.h>

#define FLYBALL_MAGIC UINT64_C(0x4C4C4142594C4647)
#define FLYBALL_VERSION 2
#define FLYBALL_MAX_GPUS 16
#define FLYBALL_NO_LOCK UINT64_C(0)

/* Calls that take a device; each has its fault cells in every GPU's block. */
#define FLYBALL_CALL_LIST(X) \
    X(nvmlDeviceGetHandleByIndex_v2) \
    X(nvmlDeviceGetHandleByUUID) \
    X(nvmlDeviceGetHandleBySerial) \
    X(nvmlDeviceGetHandleByPciBusId_v2) \
    X(nvmlDeviceGetName) \
    X(nvmlDeviceGetUUID) \
    X(nvmlDeviceGetSerial) \
    X(nvmlDeviceGetIndex) \
    X(nvmlDeviceGetMinorNumber) \
    X(nvmlDeviceGetBrand) \
    X(nvmlDeviceGetArchitecture) \
    X(nvmlDeviceGetCudaComputeCapability) \
    X(nvmlDeviceGetNumaNodeId) \
    X(nvmlDeviceGetPciInfo_v3) \
    X(nvmlDeviceGetMemoryInfo) \
    X(nvmlDeviceGetMemoryInfo_v2) \
    X(nvmlDeviceGetComputeRunningProcesses_v3) \
    X(nvmlDeviceGetGraphicsRunningProcesses_v3) \
    X(nvmlDeviceGetMigMode) \
    X(nvmlDeviceSetMigMode) \
    X(nvmlDeviceGetMaxMigDeviceCount) \
    X(nvmlDeviceGetMigDeviceHandleByIndex) \
    X(nvmlDeviceIsMigDeviceHandle) \
    X(nvmlDeviceGetPersistenceMode) \
    X(nvmlDeviceSetPersistenceMode) \
    X(nvmlDeviceGetPerformanceState) \
    X(nvmlDeviceGetPowerState) \
    X(nvmlDeviceGetUtilizationRates) \
    X(nvmlDeviceGetTemperature) \
    X(nvmlDeviceGetTemperatureV) \
    X(nvmlDeviceGetTemperatureThreshold) \
    X(nvmlDeviceGetPowerUsage) \
    X(nvmlDeviceGetTotalEnergyConsumption) \
    X(nvmlDeviceGetPowerManagementMode) \
    X(nvmlDeviceGetPowerManagementLimit) \
    X(nvmlDeviceGetPowerManagementLimitConstraints) \
    X(nvmlDeviceGetPowerManagementDefaultLimit) \
    X(nvmlDeviceGetEnforcedPowerLimit) \
    X(nvmlDeviceSetPowerManagementLimit) \
    X(nvmlDeviceSetPowerManagementLimit_v2) \
    X(nvmlDeviceGetFieldValues) \
    X(nvmlDeviceGetSamples) \
    X(nvmlDeviceGetViolationStatus) \
    X(nvmlDeviceGetClockInfo) \
    X(nvmlDeviceGetMaxClockInfo) \
    X(nvmlDeviceGetClock) \
    X(nvmlDeviceGetMaxCustomerBoostClock) \
    X(nvmlDeviceGetSupportedMemoryClocks) \
    X(nvmlDeviceGetSupportedGraphicsClocks) \
    X(nvmlDeviceSetGpuLockedClocks) \
    X(nvmlDeviceResetGpuLockedClocks) \
    X(nvmlDeviceSetMemoryLockedClocks) \
    X(nvmlDeviceResetMemoryLockedClocks) \
    X(nvmlDeviceGetApplicationsClock) \
    X(nvmlDeviceGetDefaultApplicationsClock) \
    X(nvmlDeviceSetApplicationsClocks) \
    X(nvmlDeviceResetApplicationsClocks) \
    X(nvmlDeviceGetCurrentClocksEventReasons) \
    X(nvmlDeviceGetCurrentClocksThrottleReasons) \
    X(nvmlDeviceGetSupportedClocksEventReasons) \
    X(nvmlDeviceGetSupportedClocksThrottleReasons)

#define X(call) CALL_##call,
enum flyball_call { FLYBALL_CALL_LIST(X) FLYBALL_CALLS };
#undef X

struct flyball_fault {
    int64_t return_code;
    int64_t remaining; /* -1: for ever */
    uint64_t delay_ms;
    uint64_t epoch; /* changes when the fault is set, so that a reader without write access can count */
};

#define FLYBALL_HEADER_FIELDS(ONE, MANY) \
    ONE(uint64_t, magic) \
    ONE(uint64_t, version) \
    ONE(uint64_t, file_bytes) \
    ONE(uint64_t, gpu_count) \
    ONE(uint64_t, header_bytes) \
    ONE(uint64_t, gpu_bytes) \
    ONE(uint64_t, admin_uid) \
    ONE(uint64_t, tick_stamp_ns) \
    ONE(uint64_t, tick_count) \
    MANY(char, driver_version, 32) \
    MANY(char, node_name, 256)

#define FLYBALL_GPU_FIELDS(ONE, MANY) \
    ONE(uint64_t, index) \
    MANY(char, uuid, 48) \
    MANY(char, serial, 32) \
    MANY(char, product_name, 96) \
    MANY(char, type_name, 32) \
    ONE(uint64_t, brand) \
    ONE(uint64_t, architecture) \
    ONE(uint64_t, compute_major) \
    ONE(uint64_t, compute_minor) \
    ONE(uint64_t, pci_bus) \
    ONE(uint64_t, pci_device_id) \
    ONE(uint64_t, memory_bytes) \
    ONE(uint64_t, memory_mhz) \
    ONE(uint64_t, sm_min_mhz) \
    ONE(uint64_t, sm_max_mhz) \
    ONE(uint64_t, sm_step_mhz) \
    ONE(uint64_t, cap_min_mw) \
    ONE(uint64_t, cap_max_mw) \
    ONE(uint64_t, cap_default_mw) \
    ONE(uint64_t, power_usage_is_averaged) \
    ONE(double, die_power_factor) \
    ONE(double, die_idle_factor) \
    ONE(double, sensor_gain) \
    ONE(uint64_t, cap_requested_mw) \
    ONE(uint64_t, cap_in_force_mw) \
    ONE(uint64_t, cap_stamp_ns) \
    ONE(uint64_t, cap_sequence) \
    ONE(uint64_t, lock_requested) \
    ONE(uint64_t, lock_in_force) \
    ONE(uint64_t, lock_stamp_ns) \
    ONE(uint64_t, lock_sequence) \
    ONE(uint64_t, memory_lock_requested) \
    ONE(uint64_t, persistence_mode) \
    ONE(uint64_t, cap_set_calls) \
    ONE(uint64_t, lock_set_calls) \
    ONE(uint64_t, lock_reset_calls) \
    ONE(double, load_memory_use) \
    ONE(double, load_compute_use) \
    ONE(double, load_busy) \
    ONE(uint64_t, load_pid) \
    ONE(uint64_t, load_stamp_ns) \
    ONE(uint64_t, sm_mhz) \
    ONE(uint64_t, event_reasons) \
    ONE(double, power_watts) \
    ONE(double, energy_joules) \
    ONE(double, cap_lagged_watts) \
    ONE(uint64_t, power_average_mw) \
    ONE(uint64_t, power_instant_mw) \
    ONE(uint64_t, energy_mj) \
    ONE(uint64_t, power_cap_violation_ns) \
    ONE(uint64_t, temperature_celsius) \
    ONE(uint64_t, memory_temperature_celsius) \
    ONE(uint64_t, utilization_gpu_percent) \
    ONE(uint64_t, utilization_memory_percent) \
    ONE(uint64_t, memory_used_bytes) \
    ONE(uint64_t, process_pid) \
    ONE(uint64_t, random_state) \
    ONE(uint64_t, reboot_sequence) \
    ONE(uint64_t, lost) \
    ONE(uint64_t, cap_not_in_force) \
    ONE(uint64_t, lock_not_in_force) \
    ONE(uint64_t, out_of_band_limit_mw) \
    MANY(struct flyball_fault, faults, FLYBALL_CALLS)

#define ONE(type, name) type name;
#define MANY(type, name, count) type name[count];
struct flyball_header {
    FLYBALL_HEADER_FIELDS(ONE, MANY)
};

struct flyball_gpu {
    FLYBALL_GPU_FIELDS(ONE, MANY)
};
#undef ONE
#undef MANY

#endif
