"""One GPU as the actuator sees it: what it is, what it measures, and the four writes.

`Device` is the seam: `nvml.NvmlDevice` is the real one, tests of the logic above use a recording fake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

NO_PERMISSION: Final = 4
NOT_SUPPORTED: Final = 3
GPU_IS_LOST: Final = 15

REASON_IDLE: Final = 0x1
REASONS_CAP: Final = 0x4
REASONS_SLOWED: Final = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
"""Software power cap, hardware slowdown, software and hardware thermal slowdown, power brake (nvml.h)."""


class DeviceError(Exception):
    """An NVML call that did not return success.

    Attributes:
        code: nvmlReturn_t.
        call: the NVML function.
    """

    def __init__(self, code: int, call: str, text: str) -> None:
        super().__init__(f"{call} returned {code} ({text})")
        self.code = code
        self.call = call


@dataclass(frozen=True, slots=True)
class Identity:
    """What a card is and takes; clocks in MHz ascending, caps in watts."""

    uuid: str
    index: int
    product: str
    cap_min_watts: float
    cap_max_watts: float
    cap_default_watts: float
    sm_mhz: tuple[int, ...]
    mig_enabled: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What a card measured just now; None where the card does not say."""

    power_average_watts: float | None
    power_instant_watts: float | None
    energy_joules: float | None
    sm_mhz: int
    reasons: int
    cap_watts: float
    enforced_cap_watts: float
    utilisation_percent: int | None


class Device(Protocol):
    """One GPU. Every method raises `DeviceError`, and any of them may hang as long as the driver likes."""

    @property
    def identity(self) -> Identity:
        """What the card is; read once, when it was opened."""
        ...

    def sample(self) -> Sample:
        """Measure."""
        ...

    def caps(self) -> tuple[float, float]:
        """(requested, enforced) power limit in watts; enforced is lower where somebody limits out of band."""
        ...

    def set_cap(self, watts: float) -> None:
        """Request a power limit."""
        ...

    def lock(self, low_mhz: int, high_mhz: int) -> None:
        """Lock the SM clock into a range."""
        ...

    def unlock(self) -> None:
        """Take any lock of the SM clock away."""
        ...


@dataclass(frozen=True, slots=True)
class Cards:
    """All GPUs of the node and the driver they hang on."""

    driver_version: str
    devices: tuple[Device, ...]
