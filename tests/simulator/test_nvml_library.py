"""The C library as unmodified nvidia-ml-py sees it, in a process of its own."""

from __future__ import annotations

import ctypes
import sys
import time

import pytest

from flyball_sim.gpu import layout
from flyball_sim.gpu.library import build_library
from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.gpu.types import GPU_TYPES

UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, INSUFFICIENT_SIZE = 1, 2, 3, 4, 6, 7
DRIVER_NOT_LOADED, TIMEOUT, GPU_IS_LOST, VERSIONS_DIFFER, ARGUMENT_VERSION, UNKNOWN = 9, 10, 15, 18, 25, 999

# -- layout --------------------------------------------------------------------------------------------------


def exported_fields(library: ctypes.CDLL, table: int) -> list[tuple[str, int, int]]:
    name, offset, size = ctypes.c_char_p(), ctypes.c_uint64(), ctypes.c_uint64()
    fields = []
    pointers = (ctypes.byref(name), ctypes.byref(offset), ctypes.byref(size))
    while library.flyball_nvml_layout(table, len(fields), *pointers):
        assert name.value is not None
        fields.append((name.value.decode(), offset.value, size.value))
    return fields


@pytest.mark.parametrize(
    ("table", "fields", "offsets"),
    [(0, layout.HEADER_FIELDS, layout.HEADER_OFFSETS), (1, layout.GPU_FIELDS, layout.GPU_OFFSETS)],
)
def test_the_c_and_the_python_description_of_the_state_file_agree(table, fields, offsets):
    library = ctypes.CDLL(str(build_library()))
    expected = [(name, offsets[name] * layout.CELL_BYTES, cells * layout.CELL_BYTES) for name, cells in fields]
    assert exported_fields(library, table) == expected


def test_the_c_and_the_python_list_of_calls_that_can_fail_agree():
    library = ctypes.CDLL(str(build_library()))
    library.flyball_nvml_call_name.restype = ctypes.c_char_p
    assert tuple(library.flyball_nvml_call_name(i).decode() for i in range(len(layout.CALLS))) == layout.CALLS
    assert library.flyball_nvml_call_name(len(layout.CALLS)) is None


# -- start and end -------------------------------------------------------------------------------------------


def test_every_call_before_init_and_after_the_last_shutdown_is_uninitialized(blank_client, gpu_state):
    blank_client.init(gpu_state.path)
    blank_client.init(gpu_state.path)
    blank_client.call("nvmlShutdown")
    assert blank_client.call("nvmlDeviceGetCount") == 2
    blank_client.call("nvmlShutdown")
    for name in layout.CALLS:
        assert blank_client.raw(name, "handle", None, None, None, None, None) == UNINITIALIZED, name
    assert blank_client.raw("nvmlShutdown") == UNINITIALIZED
    assert blank_client.raw("nvmlSystemGetDriverVersion", "buffer", 80) == UNINITIALIZED


def test_without_a_state_file_the_driver_is_not_loaded(blank_client, driver_root):
    assert blank_client.refusal(blank_client.init, driver_root / "absent.state") == DRIVER_NOT_LOADED


def test_a_file_that_is_no_state_file_is_no_driver_either(blank_client, driver_root):
    (driver_root / "wrong.state").write_bytes(b"x" * 8192)
    assert blank_client.refusal(blank_client.init, driver_root / "wrong.state") == DRIVER_NOT_LOADED


def test_a_state_file_of_another_layout_version_is_refused(blank_client, gpu_state):
    with gpu_state.path.open("r+b") as file:
        file.seek(layout.HEADER_OFFSETS["version"] * layout.CELL_BYTES)
        file.write((layout.VERSION + 1).to_bytes(8, sys.byteorder))
    assert blank_client.refusal(blank_client.init, gpu_state.path) == VERSIONS_DIFFER


def test_the_library_finds_the_state_file_beside_itself(blank_client, gpu_state):
    assert blank_client.init("") == len(gpu_state.gpus)


def test_init_after_shutdown_maps_a_file_that_replaced_the_old_one(nvml, gpu_state):
    nvml.call("nvmlShutdown")
    GpuStateFile.create(gpu_state.path, [GPU_TYPES["H200-SXM"]] * 3, seed=1, node_name="node-1").close()
    assert nvml.init(gpu_state.path) == 3
    assert nvml.get("GetName") == "NVIDIA H200"


def test_versions_and_error_texts_are_answered(nvml):
    assert nvml.call("nvmlSystemGetDriverVersion") == "580.105.08"
    assert nvml.call("nvmlSystemGetNVMLVersion") == "13.580.105.08"
    assert nvml.call("nvmlSystemGetCudaDriverVersion") == 13000
    assert nvml.call("nvmlErrorString", GPU_IS_LOST) == "GPU is lost"
    assert nvml.call("nvmlErrorString", 12345) == "Unknown Error"
    assert nvml.raw("nvmlSystemGetDriverVersion", "buffer", 4) == INSUFFICIENT_SIZE
    assert nvml.raw("nvmlSystemGetDriverVersion", None, 80) == INVALID


# -- which devices -------------------------------------------------------------------------------------------


def test_a_gpu_is_found_by_index_uuid_serial_and_bus_id(nvml, gpu_state):
    second = gpu_state.gpus[1]
    bus_id = "00000000:2B:00.0"
    assert nvml.find("nvmlDeviceGetHandleByUUID", second.uuid) == 1
    assert nvml.find("nvmlDeviceGetHandleByPciBusId", bus_id) == 1
    assert nvml.find("nvmlDeviceGetHandleByPciBusId", "0000:2b:00.0") == 1
    assert nvml.find("nvmlDeviceGetHandleBySerial", nvml.get("GetSerial")) == 0
    for name, wanted, code in (
        ("nvmlDeviceGetHandleByIndex", 2, INVALID),
        ("nvmlDeviceGetHandleByUUID", "GPU-none", NOT_FOUND),
        ("nvmlDeviceGetHandleBySerial", "none", NOT_FOUND),
        ("nvmlDeviceGetHandleByPciBusId", "00000000:FF:00.0", NOT_FOUND),
        ("nvmlDeviceGetHandleByPciBusId", "nonsense", NOT_FOUND),
    ):
        assert nvml.refusal(nvml.find, name, wanted) == code, name


def test_a_gpu_tells_what_it_is(nvml, gpu):
    assert nvml.get("GetUUID") == gpu.uuid
    assert nvml.get("GetName") == "NVIDIA H100 80GB HBM3"
    assert nvml.get("GetIndex") == nvml.get("GetMinorNumber") == 0
    assert nvml.get("GetBrand") == 14
    assert nvml.get("GetArchitecture") == 9
    assert nvml.get("GetCudaComputeCapability") == [9, 0]
    assert nvml.get("GetNumaNodeId") == 0
    assert nvml.get("GetPersistenceMode") == 1
    assert nvml.get("GetPerformanceState") == nvml.get("GetPowerState") == 0
    pci = nvml.get("GetPciInfo_v3")
    assert (pci["busId"], pci["busIdLegacy"], pci["pciDeviceId"]) == (
        "00000000:1B:00.0",
        "0000:1B:00.0",
        0x233010DE,
    )
    assert nvml.raw("nvmlDeviceGetUUID", "handle", "buffer", 10) == INSUFFICIENT_SIZE


def test_mig_is_off_and_cannot_be_had(nvml):
    assert nvml.get("GetMigMode") == [0, 0]
    assert nvml.get("GetMaxMigDeviceCount") == nvml.get("IsMigDeviceHandle") == 0
    assert nvml.code("GetMigDeviceHandleByIndex", 0) == NOT_FOUND
    assert nvml.code("SetMigMode", 1) == NOT_SUPPORTED


def test_memory_and_the_process_that_holds_it_are_reported(nvml, gpu):
    assert nvml.get("GetComputeRunningProcesses") == []
    gpu.write("memory_used_bytes", 50 << 30)
    gpu.write("process_pid", 4242)
    total = GPU_TYPES["H100-SXM5"].memory_bytes
    first = nvml.get("GetMemoryInfo")
    assert first["total"] == total == first["used"] + first["free"]
    second = nvml.get("GetMemoryInfo", 0x02000028)
    assert second["used"] == 50 << 30
    assert second["reserved"] + second["used"] + second["free"] == total
    assert nvml.raw("nvmlDeviceGetMemoryInfo_v2", "handle", "buffer") == ARGUMENT_VERSION
    (process,) = nvml.get("GetComputeRunningProcesses")
    assert (process["pid"], process["usedGpuMemory"]) == (4242, 50 << 30)
    assert nvml.get("GetGraphicsRunningProcesses") == []


# -- power ---------------------------------------------------------------------------------------------------


def test_a_power_limit_is_set_within_its_bounds_and_read_back_everywhere(nvml, gpu):
    assert nvml.get("GetPowerManagementLimitConstraints") == [200_000, 700_000]
    assert nvml.get("GetPowerManagementDefaultLimit") == nvml.get("GetEnforcedPowerLimit") == 700_000
    assert nvml.get("GetPowerManagementMode") == 1
    before_ns = time.monotonic_ns()
    for milliwatts in (700_000, 200_000, 412_345):
        nvml.get("SetPowerManagementLimit", milliwatts)
        assert nvml.get("GetPowerManagementLimit") == nvml.get("GetEnforcedPowerLimit") == milliwatts
    for milliwatts in (0, 199_999, 700_001):
        assert nvml.code("SetPowerManagementLimit", milliwatts) == INVALID
    assert gpu.cap_watts == gpu.enforced_cap_watts == 412.345
    assert (gpu.cap_set_calls, gpu.read("cap_sequence")) == (6, 3)
    assert before_ns < gpu.read("cap_stamp_ns") <= time.monotonic_ns()


def test_the_second_version_of_the_limit_setter_checks_its_structure(nvml, gpu):
    def value(version: int, scope: int, milliwatts: int) -> bytes:
        return b"".join(number.to_bytes(4, sys.byteorder) for number in (version, scope, milliwatts))

    def set_limit(*numbers: int) -> int:
        return nvml.raw("nvmlDeviceSetPowerManagementLimit_v2", "handle", "buffer", buffer=value(*numbers))

    nvml.get("SetPowerManagementLimit_v2", 0, 350_000)
    assert gpu.cap_watts == 350.0
    assert set_limit(0x0200000C, 0, 300_000) == 0
    assert set_limit(0x0100000C, 0, 250_000) == ARGUMENT_VERSION
    assert set_limit(0x0200000C, 1, 250_000) == NOT_SUPPORTED
    assert set_limit(0x0200000C, 9, 250_000) == INVALID
    assert set_limit(0x0200000C, 0, 100_000) == INVALID
    assert nvml.raw("nvmlDeviceSetPowerManagementLimit_v2", "handle", None) == INVALID
    assert gpu.cap_watts == 300.0


def test_power_usage_is_a_one_second_mean_on_hopper_and_instantaneous_on_ga100(nvml, gpu_state):
    for gpu in gpu_state.gpus:
        gpu.write("power_average_mw", 400_000)
        gpu.write("power_instant_mw", 650_000)
    assert nvml.get("GetPowerUsage") == 400_000
    assert [field["value"]["uiVal"] for field in nvml.get("GetFieldValues", [185, 186])] == [400_000, 650_000]
    assert nvml.get("GetSamples", 0, 0)[1][0]["sampleValue"]["uiVal"] == 650_000
    nvml.call("nvmlShutdown")
    GpuStateFile.create(gpu_state.path, [GPU_TYPES["A100-SXM4-80GB"]], seed=7, node_name="node-0").close()
    with GpuStateFile.open(gpu_state.path) as replaced:
        replaced.gpus[0].write("power_average_mw", 100_000)
        replaced.gpus[0].write("power_instant_mw", 300_000)
        nvml.init(gpu_state.path)
        assert nvml.get("GetPowerUsage") == 300_000


def test_field_values_answer_field_by_field(nvml, gpu):
    gpu.write("energy_mj", 1 << 40)
    gpu.write("power_cap_violation_ns", 5_000_000_000)
    gpu.write("memory_temperature_celsius", 61)
    gpu.set_out_of_band_limit(450.0)
    ids = [74, 83, 82, 187, 188, 189, 190, 192, 269, 270, 271]
    fields = nvml.get("GetFieldValues", ids)
    assert [field["nvmlReturn"] for field in fields] == [0] * len(ids)
    values = {field["fieldId"]: field["value"]["ullVal"] for field in fields}
    assert values == {
        74: 5_000_000_000,
        83: 1 << 40,
        82: 61,
        187: 200_000,
        188: 700_000,
        189: 700_000,
        190: 450_000,
        192: 700_000,
        269: 0,
        270: 0,
        271: 0,
    }
    unknown, module, nonsense = nvml.get("GetFieldValues", [1, (186, 1), (186, 77)])
    assert (unknown["nvmlReturn"], module["nvmlReturn"], nonsense["nvmlReturn"]) == (
        NOT_SUPPORTED,
        NOT_SUPPORTED,
        INVALID,
    )
    assert nvml.raw("nvmlDeviceGetFieldValues", "handle", 0, "buffer") == INVALID
    assert nvml.get("GetTotalEnergyConsumption") == 1 << 40
    assert nvml.get("GetViolationStatus", 0)["violationTime"] == 5_000_000_000
    assert nvml.get("GetViolationStatus", 1)["violationTime"] == 0


def test_temperature_and_utilization_are_read(nvml, gpu):
    gpu.write("temperature_celsius", 55)
    gpu.write("utilization_gpu_percent", 90)
    gpu.write("utilization_memory_percent", 40)
    assert nvml.get("GetTemperature", 0) == nvml.get("GetTemperatureV", 0) == 55
    assert nvml.code("GetTemperature", 5) == INVALID
    assert nvml.raw("nvmlDeviceGetTemperatureV", "handle", "buffer") == ARGUMENT_VERSION
    assert nvml.get("GetTemperatureThreshold", 1) == 89
    assert nvml.code("GetTemperatureThreshold", 4) == NOT_SUPPORTED
    assert nvml.code("GetTemperatureThreshold", 8) == INVALID
    assert nvml.get("GetUtilizationRates") == {"gpu": 90, "memory": 40}


# -- clocks --------------------------------------------------------------------------------------------------


def test_clocks_are_read_by_every_name(nvml, gpu):
    gpu.write("sm_mhz", 1410)
    assert nvml.get("GetClockInfo", 1) == nvml.get("GetClockInfo", 0) == nvml.get("GetClock", 1, 0) == 1410
    assert nvml.get("GetMaxClockInfo", 1) == nvml.get("GetClock", 1, 3) == 1980
    assert nvml.get("GetMaxCustomerBoostClock", 1) == 1980
    assert nvml.get("GetClockInfo", 2) == 2619
    assert nvml.code("GetClockInfo", 4) == INVALID
    assert nvml.code("GetClockInfo", 3) == NOT_SUPPORTED
    assert nvml.code("GetClock", 1, 4) == INVALID
    assert nvml.code("GetClock", 1, 1) == NOT_SUPPORTED


def test_supported_clocks_come_highest_first_after_their_count_is_asked(nvml):
    assert nvml.get("GetSupportedMemoryClocks") == [2619]
    clocks = nvml.get("GetSupportedGraphicsClocks", 2619)
    assert clocks == sorted(GPU_TYPES["H100-SXM5"].supported_sm_mhz(), reverse=True)
    assert nvml.code("GetSupportedGraphicsClocks", 1000) == NOT_FOUND
    assert nvml.raw("nvmlDeviceGetSupportedGraphicsClocks", "handle", 2619, "buffer", None) == INSUFFICIENT_SIZE
    assert nvml.raw("nvmlDeviceGetSupportedMemoryClocks", "handle", "buffer", None) == INSUFFICIENT_SIZE


@pytest.mark.parametrize(
    ("asked", "locked"),
    [
        ((1200, 1200), (1200, 1200)),
        ((1203, 1215), (1200, 1215)),
        ((1208, 1213), (1215, 1215)),
        ((345, 1980), (345, 1980)),
        ((1975, 1979), (1980, 1980)),
        ((0xFFFFFF01, 0xFFFFFF02), (1980, 1980)),
    ],
)
def test_a_clock_lock_snaps_to_supported_clocks(nvml, gpu, asked, locked):
    nvml.get("SetGpuLockedClocks", *asked)
    assert gpu.locked_sm_mhz == gpu.lock_in_force_sm_mhz == locked
    nvml.get("ResetGpuLockedClocks")
    assert gpu.locked_sm_mhz is None
    assert (gpu.lock_set_calls, gpu.lock_reset_calls, gpu.read("lock_sequence")) == (1, 1, 2)


@pytest.mark.parametrize("asked", [(1500, 1200), (344, 1200), (1200, 1981), (0, 0), (0xFFFFFF01, 1200)])
def test_a_crossed_or_impossible_clock_lock_is_refused_and_changes_nothing(nvml, gpu, asked):
    nvml.get("SetGpuLockedClocks", 900, 900)
    assert nvml.code("SetGpuLockedClocks", *asked) == INVALID
    assert gpu.locked_sm_mhz == (900, 900)


def test_memory_clocks_lock_at_the_one_there_is(nvml, gpu):
    nvml.get("SetMemoryLockedClocks", 2000, 3000)
    assert layout.unpack_lock(gpu.read("memory_lock_requested")) == (2619, 2619)
    assert nvml.code("SetMemoryLockedClocks", 1000, 2000) == INVALID
    assert nvml.code("SetMemoryLockedClocks", 3000, 2000) == INVALID
    nvml.get("ResetMemoryLockedClocks")
    assert gpu.read("memory_lock_requested") == layout.NO_LOCK


def test_application_clocks_are_gone(nvml):
    assert nvml.code("SetApplicationsClocks", 2619, 1980) == NOT_SUPPORTED
    assert nvml.code("ResetApplicationsClocks") == NOT_SUPPORTED
    assert nvml.code("GetApplicationsClock", 1) == NOT_SUPPORTED
    assert nvml.code("GetDefaultApplicationsClock", 1) == NOT_SUPPORTED


def test_clock_event_reasons_have_their_old_and_their_new_name(nvml, gpu):
    gpu.write("event_reasons", 0x4)
    assert nvml.get("GetCurrentClocksEventReasons") == nvml.get("GetCurrentClocksThrottleReasons") == 0x4
    assert nvml.get("GetSupportedClocksEventReasons") == nvml.get("GetSupportedClocksThrottleReasons") == 0xFF


# -- permission ----------------------------------------------------------------------------------------------

SETTERS: list[tuple[str, tuple[int, ...]]] = [
    ("SetPowerManagementLimit", (300_000,)),
    ("SetGpuLockedClocks", (900, 900)),
    ("ResetGpuLockedClocks", ()),
    ("SetMemoryLockedClocks", (2619, 2619)),
    ("ResetMemoryLockedClocks", ()),
    ("SetApplicationsClocks", (2619, 900)),
    ("ResetApplicationsClocks", ()),
    ("SetPersistenceMode", (0,)),
    ("SetMigMode", (1,)),
]


def test_who_is_not_root_reads_everything_and_sets_nothing(stranger, gpu_state):
    for name, arguments in SETTERS:
        assert stranger.code(name, *arguments) == NO_PERMISSION, name
    assert stranger.raw("nvmlDeviceSetPowerManagementLimit_v2", "handle", "buffer") == NO_PERMISSION
    assert stranger.get("GetPowerManagementLimit") == 700_000
    assert stranger.get("GetPowerUsage") == 72_000
    assert stranger.get("GetClockInfo", 1) == 345
    gpu = gpu_state.gpus[0]
    assert (gpu.cap_watts, gpu.locked_sm_mhz, gpu.cap_set_calls, gpu.lock_set_calls) == (700.0, None, 0, 0)


def test_who_may_set_may_set_everything_that_exists(nvml, gpu):
    for name, arguments in SETTERS:
        if "Application" not in name and "Mig" not in name:
            nvml.get(name, *arguments)
    assert (gpu.cap_watts, gpu.read("persistence_mode")) == (300.0, 0)
    assert nvml.code("SetPersistenceMode", 2) == INVALID
