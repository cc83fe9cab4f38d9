"""The C library when calls fail, cards are lost and callers err."""

from __future__ import annotations

import ctypes
import os
import threading
import time

from flyball_sim.gpu import layout
from flyball_sim.gpu.library import build_library
from flyball_sim.gpu.statefile import GpuSlot, GpuStateFile

UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, INSUFFICIENT_SIZE = 1, 2, 3, 4, 6, 7
DRIVER_NOT_LOADED, TIMEOUT, GPU_IS_LOST, VERSIONS_DIFFER, ARGUMENT_VERSION, UNKNOWN = 9, 10, 15, 18, 25, 999

# -- faults --------------------------------------------------------------------------------------------------


def answer_of(nvml, gpu, call) -> int:
    """The return code of one call with arguments good enough to get past its fault."""
    found_by = {
        "nvmlDeviceGetHandleByIndex_v2": 0,
        "nvmlDeviceGetHandleByUUID": gpu.uuid,
        "nvmlDeviceGetHandleBySerial": nvml_serial(gpu),
        "nvmlDeviceGetHandleByPciBusId_v2": "00000000:1B:00.0",
    }
    if call in found_by:
        return nvml.raw(call, found_by[call], "buffer")
    return nvml.raw(call, "handle", None, None, None, None, None)


def nvml_serial(gpu: GpuSlot) -> str:
    return gpu._text("serial", 4)


def test_any_call_fails_as_often_as_it_was_told_to(nvml, gpu):
    for call in layout.CALLS:
        for code in (NO_PERMISSION, UNKNOWN):
            gpu.set_fault(call, code, 2)
            assert [answer_of(nvml, gpu, call) for _ in range(2)] == [code, code], call
            assert gpu.fault_uses_left(call) == 0
            assert answer_of(nvml, gpu, call) not in {code, UNINITIALIZED}, call


def test_a_fault_without_a_count_stays_until_it_is_cleared(nvml, gpu, gpu_state):
    gpu.set_fault("nvmlDeviceGetPowerUsage", TIMEOUT)
    assert [nvml.code("GetPowerUsage") for _ in range(3)] == [TIMEOUT] * 3
    assert nvml.raw("nvmlDeviceGetHandleByUUID", gpu_state.gpus[1].uuid, "buffer") == 0
    gpu.clear_faults()
    assert nvml.get("GetPowerUsage") == 72_000


def test_a_setter_that_fails_changes_nothing_and_is_counted(nvml, gpu):
    gpu.set_fault("nvmlDeviceSetPowerManagementLimit", UNKNOWN, 1)
    assert nvml.code("SetPowerManagementLimit", 300_000) == UNKNOWN
    assert (gpu.cap_watts, gpu.cap_set_calls) == (700.0, 1)


def test_a_reader_without_write_access_counts_its_own_faults(stranger, gpu_state):
    with GpuStateFile.open(gpu_state.path) as current:
        current.gpus[0].set_fault("nvmlDeviceGetPowerUsage", UNKNOWN, 2)
        assert [stranger.code("GetPowerUsage") for _ in range(2)] == [UNKNOWN, UNKNOWN]
        assert stranger.get("GetPowerUsage") == 72_000
        current.gpus[0].set_fault("nvmlDeviceGetPowerUsage", TIMEOUT, 1)
        assert stranger.code("GetPowerUsage") == TIMEOUT
        assert stranger.get("GetPowerUsage") == 72_000


def test_a_lost_gpu_answers_nothing_else_and_its_neighbour_goes_on(nvml, gpu, gpu_state):
    gpu.lost = True
    for call in layout.CALLS:
        assert answer_of(nvml, gpu, call) == GPU_IS_LOST, call
    assert nvml.find("nvmlDeviceGetHandleByUUID", gpu_state.gpus[1].uuid) == 1
    gpu.lost = False
    assert nvml.get("GetIndex") == 0


def test_a_slow_call_takes_that_much_longer(nvml, gpu):
    gpu.set_slow("nvmlDeviceGetPowerUsage", 250)
    began = time.monotonic()
    nvml.get("GetPowerUsage")
    assert time.monotonic() - began >= 0.25


def test_a_limit_can_be_accepted_and_not_be_in_force(nvml, gpu):
    gpu.cap_not_in_force = True
    nvml.get("SetPowerManagementLimit", 300_000)
    assert nvml.get("GetPowerManagementLimit") == 300_000
    assert nvml.get("GetEnforcedPowerLimit") == 700_000
    gpu.clear_faults()
    nvml.get("SetPowerManagementLimit", 300_000)
    assert nvml.get("GetEnforcedPowerLimit") == 300_000


def test_a_lock_can_be_accepted_and_not_be_in_force(nvml, gpu):
    gpu.lock_not_in_force = True
    nvml.get("SetGpuLockedClocks", 900, 900)
    assert (gpu.locked_sm_mhz, gpu.lock_in_force_sm_mhz) == ((900, 900), None)


def test_limits_change_from_outside(nvml, gpu):
    gpu.set_out_of_band_limit(450.0)
    assert (nvml.get("GetPowerManagementLimit"), nvml.get("GetEnforcedPowerLimit")) == (700_000, 450_000)
    gpu.change_cap_externally(400.0, time.monotonic_ns())
    assert (nvml.get("GetPowerManagementLimit"), nvml.get("GetEnforcedPowerLimit")) == (400_000, 400_000)
    assert gpu.cap_set_calls == 0
    gpu.reboot()
    assert nvml.get("GetPowerManagementLimit") == 700_000


# -- misuse --------------------------------------------------------------------------------------------------

WITHOUT_POINTERS = {name for name in layout.CALLS if ("Set" in name and "_v2" not in name) or "Reset" in name}


def test_null_pointers_and_foreign_handles_are_invalid_arguments(nvml):
    for call in layout.CALLS:
        if call in WITHOUT_POINTERS or "Applications" in call or "GetHandleBy" in call:
            continue
        # 2619 stands where one call takes a memory clock before its pointers
        second = 2619 if call == "nvmlDeviceGetSupportedGraphicsClocks" else None
        assert nvml.raw(call, "handle", second, None, None, None, None) == INVALID, call
        assert nvml.raw(call, "buffer", None, None, None, None, None) == INVALID, call
        assert nvml.raw(call, None, None, None, None, None, None) == INVALID, call


def test_threads_may_init_read_and_shut_down_at_once(gpu_state):
    library = ctypes.CDLL(str(build_library()))
    os.environ["FLYBALL_NVML_STATE"] = str(gpu_state.path)
    codes: set[int] = set()

    def hammer() -> None:
        handle, watts = ctypes.c_void_p(), ctypes.c_uint()
        for _ in range(300):
            codes.add(library.nvmlInitWithFlags(0))
            codes.add(library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)))
            codes.add(library.nvmlDeviceGetPowerUsage(handle, ctypes.byref(watts)))
            codes.add(library.nvmlShutdown())

    try:
        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        del os.environ["FLYBALL_NVML_STATE"]
    assert codes == {0}
    assert library.nvmlShutdown() == UNINITIALIZED
