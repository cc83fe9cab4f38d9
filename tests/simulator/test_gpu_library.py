"""Building the NVML library, and its whole way: setter, driver tick, read-back."""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from pathlib import Path

import pytest

from flyball_sim.gpu import library
from flyball_sim.gpu.dies import NOMINAL_DIE
from flyball_sim.gpu.driver import GpuDriver
from flyball_sim.gpu.library import LIBRARY_NAME, LibraryBuildError, build_library
from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.gpu.types import GPU_TYPES


def test_the_library_is_built_once_and_then_found(tmp_path, monkeypatch):
    built = build_library(tmp_path)
    assert built.name == LIBRARY_NAME
    monkeypatch.setattr(library, "_compile", None)
    assert build_library(tmp_path) == built
    assert sorted(entry.name for entry in built.parent.iterdir()) == ["build.lock", LIBRARY_NAME]


def test_builds_at_once_make_one_library(tmp_path):
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(build_library(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1


def test_no_compiler_is_said_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler --wall")
    with pytest.raises(LibraryBuildError, match=r"tried CC='no-such-compiler --wall'\): install one"):
        build_library(tmp_path)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LibraryBuildError, match="tried cc, gcc and clang"):
        build_library(tmp_path)


def test_what_the_compiler_said_is_shown_and_no_half_library_stays(tmp_path, monkeypatch):
    compiler = tmp_path / "bad-cc"
    compiler.write_text("#!/bin/sh\necho stdint.h: no such file >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(LibraryBuildError, match=r"(?s)install the C library's headers.*no such file"):
        build_library(tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*so*")) == []


def test_a_cap_set_over_nvml_slows_the_card_and_shows_in_its_sensors(tmp_path, monkeypatch):
    path = tmp_path / "gpus.state"
    monkeypatch.setenv("FLYBALL_NVML_STATE", str(path))
    nvml = ctypes.CDLL(str(build_library()))
    with GpuStateFile.create(path, [GPU_TYPES["H100-SXM5"]], seed=1, node_name="n", dies=[NOMINAL_DIE]) as state:
        gpu, now_ns = state.gpus[0], [10**12]
        driver = GpuDriver(state, lambda: now_ns[0])

        def serve(seconds: float) -> None:
            for _ in range(round(seconds * 20)):
                now_ns[0] += 50_000_000
                gpu.write_load(0.6, 0.4, 1.0, now_ns[0], os.getpid())
                driver.tick()

        def read(name: str, kind: type = ctypes.c_uint) -> int:
            answer = kind()
            assert getattr(nvml, name)(handle, ctypes.byref(answer)) == 0
            return int(answer.value)

        handle = ctypes.c_void_p()
        assert nvml.nvmlInitWithFlags(0) == 0
        assert nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) == 0
        serve(2.0)
        assert read("nvmlDeviceGetPowerUsage") == pytest.approx(687_000, rel=0.01)
        assert nvml.nvmlDeviceSetPowerManagementLimit(handle, 450_000) == 0
        serve(2.0)
        assert read("nvmlDeviceGetEnforcedPowerLimit") == 450_000
        assert 430_000 < read("nvmlDeviceGetPowerUsage") <= 450_000
        assert read("nvmlDeviceGetCurrentClocksEventReasons", ctypes.c_ulonglong) == 4
        capped_mhz = gpu.sm_mhz
        assert 1000 < capped_mhz < 1980
        assert nvml.nvmlDeviceSetGpuLockedClocks(handle, 900, 900) == 0
        joules = read("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)
        serve(2.0)
        assert gpu.sm_mhz == 900
        assert read("nvmlDeviceGetCurrentClocksEventReasons", ctypes.c_ulonglong) == 0
        spent = read("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong) - joules
        assert spent == pytest.approx(2000 * gpu.power_watts, rel=0.1)
        assert nvml.nvmlDeviceSetGpuLockedClocks(handle, 1800, 1800) == 0
        serve(2.0)
        assert gpu.sm_mhz == capped_mhz
        assert nvml.nvmlShutdown() == 0
