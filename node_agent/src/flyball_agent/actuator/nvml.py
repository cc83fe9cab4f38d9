"""The real `Device`, over unmodified nvidia-ml-py. `references`: nvml.h of API 13, docs/node-agent.md.

Watts and joules outside, milliwatts and millijoules inside. The plain power limit setter is used: its `_v2` exists
only in newer drivers and does the same for scope GPU.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flyball_agent.actuator.device import NOT_SUPPORTED, Cards, DeviceError, Identity, Sample

if TYPE_CHECKING:
    from types import ModuleType

_FUNCTION_NOT_FOUND = 13


def load_library(path: Path) -> None:
    """Load exactly this libnvidia-ml.so.1; glibc then answers nvidia-ml-py's own load by the library's SONAME.

    Raises:
        OSError: it cannot be loaded; the message names the path.
    """
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


class NvmlDevice:
    """One GPU behind an NVML handle."""

    def __init__(self, nvml: ModuleType, index: int) -> None:
        self._nvml = nvml
        self._handle = self._call("nvmlDeviceGetHandleByIndex", index)
        self._fields = [nvml.NVML_FI_DEV_POWER_AVERAGE, nvml.NVML_FI_DEV_POWER_INSTANT]
        self._identity = self._identify(index)

    @property
    def identity(self) -> Identity:
        """See `Device`."""
        return self._identity

    def sample(self) -> Sample:
        """See `Device`."""
        average, instant = self._power()
        cap, enforced = self.caps()
        energy = self._optional("nvmlDeviceGetTotalEnergyConsumption")
        use = self._optional("nvmlDeviceGetUtilizationRates")
        return Sample(
            power_average_watts=average,
            power_instant_watts=instant,
            energy_joules=None if energy is None else energy / 1000.0,
            sm_mhz=self._of("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            reasons=self._of("nvmlDeviceGetCurrentClocksEventReasons"),
            cap_watts=cap,
            enforced_cap_watts=enforced,
            utilisation_percent=None if use is None else use.gpu,
        )

    def caps(self) -> tuple[float, float]:
        """See `Device`."""
        requested = self._of("nvmlDeviceGetPowerManagementLimit")
        return requested / 1000.0, self._of("nvmlDeviceGetEnforcedPowerLimit") / 1000.0

    def set_cap(self, watts: float) -> None:
        """See `Device`."""
        self._of("nvmlDeviceSetPowerManagementLimit", round(watts * 1000))

    def lock(self, low_mhz: int, high_mhz: int) -> None:
        """See `Device`."""
        self._of("nvmlDeviceSetGpuLockedClocks", low_mhz, high_mhz)

    def unlock(self) -> None:
        """See `Device`."""
        self._of("nvmlDeviceResetGpuLockedClocks")

    def _identify(self, index: int) -> Identity:
        low, high = self._of("nvmlDeviceGetPowerManagementLimitConstraints")
        mig = self._optional("nvmlDeviceGetMigMode")
        return Identity(
            uuid=self._of("nvmlDeviceGetUUID"),
            index=index,
            product=self._of("nvmlDeviceGetName"),
            cap_min_watts=low / 1000.0,
            cap_max_watts=high / 1000.0,
            cap_default_watts=self._of("nvmlDeviceGetPowerManagementDefaultLimit") / 1000.0,
            sm_mhz=self._supported_clocks(),
            mig_enabled=mig is not None and mig[0] == self._nvml.NVML_DEVICE_MIG_ENABLE,
        )

    def _supported_clocks(self) -> tuple[int, ...]:
        """SM clocks at the fastest memory clock; () where the card lists none, so that nothing can be locked."""
        memory = self._optional("nvmlDeviceGetSupportedMemoryClocks")
        if not memory:
            return ()
        return tuple(sorted(self._of("nvmlDeviceGetSupportedGraphicsClocks", max(memory))))

    def _power(self) -> tuple[float | None, float | None]:
        """(1 s average, instantaneous) watts. What PowerUsage means differs by generation: last resort only."""
        try:
            values = self._of("nvmlDeviceGetFieldValues", self._fields)
        except DeviceError as error:
            if error.code not in (NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
                raise
        else:
            average, instant = (None if value.nvmlReturn else value.value.uiVal / 1000.0 for value in values)
            if average is not None or instant is not None:
                return average, instant
        usage = self._optional("nvmlDeviceGetPowerUsage")
        return None, None if usage is None else usage / 1000.0

    def _optional(self, name: str) -> Any:
        """The answer of a getter that some cards or drivers do not have; None there."""
        try:
            return self._of(name)
        except DeviceError as error:
            if error.code in (NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
                return None
            raise

    def _of(self, name: str, *arguments: Any) -> Any:
        return self._call(name, self._handle, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._nvml, name, *arguments)


def open_cards(nvml: ModuleType) -> Cards:
    """Initialise NVML and open every GPU.

    Raises:
        DeviceError: no library, no driver, or a GPU that cannot be read.
    """
    call(nvml, "nvmlInit")
    version: str = call(nvml, "nvmlSystemGetDriverVersion")
    return Cards(version, tuple(NvmlDevice(nvml, index) for index in range(call(nvml, "nvmlDeviceGetCount"))))


def call(nvml: ModuleType, name: str, *arguments: Any) -> Any:
    """Call one function of nvidia-ml-py.

    Raises:
        DeviceError: it did not return success.
    """
    try:
        return getattr(nvml, name)(*arguments)
    except nvml.NVMLError as error:
        raise DeviceError(error.value, name, str(error)) from error
