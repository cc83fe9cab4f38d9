"""One GPU's block of the state file: what is measured, asked for, loaded and broken."""

from __future__ import annotations

import mmap
import random
import uuid

from flyball_sim.gpu import layout
from flyball_sim.gpu.dies import Die, draw_die
from flyball_sim.gpu.types import GpuType, gpu_type

_BRAND_NVIDIA = 14
_FIRST_PCI_BUS = 0x1B
_MILLI = 1000.0


class StateFileError(Exception):
    """A GPU state file cannot be made, opened or understood; the message says what to do."""


class Cells:
    """The mapped file as 8-byte cells: `unsigned`, `signed` and `real` are views of the same bytes."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._raw = memoryview(memory)
        self.unsigned = self._raw.cast("Q")
        self.signed = self._raw.cast("q")
        self.real = self._raw.cast("d")

    def text(self, cell: int, cells: int) -> str:
        """The text of `cells` cells from `cell` on."""
        start = cell * layout.CELL_BYTES
        return bytes(self._raw[start : start + cells * layout.CELL_BYTES]).split(b"\0", 1)[0].decode()

    def put_text(self, cell: int, cells: int, value: str) -> None:
        """Write text there, cut to what fits with its end."""
        size = cells * layout.CELL_BYTES
        encoded = value.encode()[: size - 1]
        start = cell * layout.CELL_BYTES
        self._raw[start : start + size] = encoded.ljust(size, b"\0")

    def close(self) -> None:
        """Unmap the file; the views must not be used afterwards."""
        for view in (self.unsigned, self.signed, self.real, self._raw):
            view.release()
        self._memory.close()


class GpuSlot:
    """One GPU's block of the state file. Clocks are MHz, powers watts, energies joules."""

    def __init__(self, cells: Cells, base: int) -> None:
        self._cells = cells
        self._base = base
        self._sm_mhz_cell = base + layout.GPU_OFFSETS["sm_mhz"]
        self.index = self.read("index")
        self.uuid = self._text("uuid", 6)
        self.gpu_type = gpu_type(self._text("type_name", 4))

    # -- cells ---------------------------------------------------------------------------------------------

    def read(self, field: str) -> int:
        """The whole-number cell `field` of `layout.GPU_FIELDS`."""
        return self._cells.unsigned[self._base + layout.GPU_OFFSETS[field]]

    def write(self, field: str, value: int) -> None:
        """Set the whole-number cell `field`."""
        self._cells.unsigned[self._base + layout.GPU_OFFSETS[field]] = value

    def read_real(self, field: str) -> float:
        """The floating-point cell `field` of `layout.GPU_FIELDS`."""
        return self._cells.real[self._base + layout.GPU_OFFSETS[field]]

    def write_real(self, field: str, value: float) -> None:
        """Set the floating-point cell `field`."""
        self._cells.real[self._base + layout.GPU_OFFSETS[field]] = value

    def _text(self, field: str, cells: int) -> str:
        return self._cells.text(self._base + layout.GPU_OFFSETS[field], cells)

    def _put_text(self, field: str, cells: int, value: str) -> None:
        self._cells.put_text(self._base + layout.GPU_OFFSETS[field], cells, value)

    # -- what is measured ----------------------------------------------------------------------------------

    @property
    def sm_mhz(self) -> int:
        """The SM clock the card runs at now, after lock, cap and their delays."""
        return self._cells.unsigned[self._sm_mhz_cell]

    @property
    def power_watts(self) -> float:
        """True power now (NVML's sensors lag and average; this does not)."""
        return self.read_real("power_watts")

    @property
    def energy_joules(self) -> float:
        """True energy since the last reboot."""
        return self.read_real("energy_joules")

    @property
    def die(self) -> Die:
        """How this card departs from its type."""
        return Die(self.read_real("die_power_factor"), self.read_real("die_idle_factor"), self.read_real("sensor_gain"))

    @property
    def event_reasons(self) -> int:
        """NVML's clocks event reason bits."""
        return self.read("event_reasons")

    # -- what was asked ------------------------------------------------------------------------------------

    @property
    def cap_watts(self) -> float:
        """The power limit last accepted by a setter."""
        return self.read("cap_requested_mw") / _MILLI

    @property
    def enforced_cap_watts(self) -> float:
        """The limit the firmware works to: lower than `cap_watts` where an out-of-band limit is."""
        in_force, out_of_band = self.read("cap_in_force_mw"), self.read("out_of_band_limit_mw")
        return (min(in_force, out_of_band) if out_of_band else in_force) / _MILLI

    @property
    def locked_sm_mhz(self) -> tuple[int, int] | None:
        """The (lowest, highest) SM clock last accepted by a setter, or None without a lock."""
        return layout.unpack_lock(self.read("lock_requested"))

    @property
    def lock_in_force_sm_mhz(self) -> tuple[int, int] | None:
        """The lock the firmware works to; differs from `locked_sm_mhz` only under an injected fault."""
        return layout.unpack_lock(self.read("lock_in_force"))

    @property
    def cap_set_calls(self) -> int:
        """Calls of either power limit setter that passed the permission check, refused ones included."""
        return self.read("cap_set_calls")

    @property
    def lock_set_calls(self) -> int:
        """Calls of SetGpuLockedClocks that passed the permission check, refused ones included."""
        return self.read("lock_set_calls")

    @property
    def lock_reset_calls(self) -> int:
        """Calls of ResetGpuLockedClocks that passed the permission check, refused ones included."""
        return self.read("lock_reset_calls")

    # -- the engine's side ---------------------------------------------------------------------------------

    def write_load(self, memory_use: float, compute_use: float, busy: float, monotonic_ns: int, pid: int) -> None:
        """Report what runs on the card; it holds for one second, or until process `pid` is gone.

        Args:
            memory_use: memory traffic over peak bandwidth, 0 to 1, averaged over idle gaps too.
            compute_use: dense bf16 work over peak, 0 to 1, averaged likewise.
            busy: share of time in which a kernel ran, 0 to 1.
            monotonic_ns: CLOCK_MONOTONIC now.
            pid: the process that holds the CUDA context.

        Raises:
            ValueError: a share is outside 0 to 1.
        """
        for name, share in (("memory_use", memory_use), ("compute_use", compute_use), ("busy", busy)):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} of GPU {self.uuid} is {share!r}: give a share between 0 and 1")
        self.write_real("load_memory_use", memory_use)
        self.write_real("load_compute_use", compute_use)
        self.write_real("load_busy", busy)
        self.write("load_pid", pid)
        self.write("load_stamp_ns", monotonic_ns)

    # -- faults --------------------------------------------------------------------------------------------

    def set_fault(self, call: str, return_code: int, remaining: int = -1) -> None:
        """Make the next `remaining` uses of NVML function `call` on this GPU return `return_code` (-1: all).

        A process that may not write the file counts its own uses.

        Raises:
            StateFileError: `call` is not in `layout.CALLS`.
        """
        cell = self._fault_cell(call)
        self._cells.signed[cell] = return_code
        self._cells.signed[cell + 1] = remaining
        self._cells.unsigned[cell + 3] += 1

    def fault_uses_left(self, call: str) -> int:
        """How often `call` will still fail (-1: always)."""
        return self._cells.signed[self._fault_cell(call) + 1]

    def set_slow(self, call: str, milliseconds: int) -> None:
        """Make every use of NVML function `call` on this GPU take `milliseconds` longer (0: normal again)."""
        self._cells.unsigned[self._fault_cell(call) + 2] = milliseconds

    def clear_faults(self) -> None:
        """Undo every injected fault; what was accepted and not in force stays so until it is set again."""
        start = self._base + layout.GPU_OFFSETS["faults"]
        for cell in range(start, start + layout.FAULT_CELLS * len(layout.CALLS), layout.FAULT_CELLS):
            self._cells.signed[cell + 1] = 0
            self._cells.unsigned[cell + 2] = 0
        for field in ("lost", "cap_not_in_force", "lock_not_in_force", "out_of_band_limit_mw"):
            self.write(field, 0)

    @property
    def lost(self) -> bool:
        """Whether the card has fallen off the bus: every call on it returns GPU_IS_LOST."""
        return bool(self.read("lost"))

    @lost.setter
    def lost(self, value: bool) -> None:
        self.write("lost", int(value))

    @property
    def cap_not_in_force(self) -> bool:
        """Whether power limits are accepted, read back as requested, and not enforced."""
        return bool(self.read("cap_not_in_force"))

    @cap_not_in_force.setter
    def cap_not_in_force(self, value: bool) -> None:
        self.write("cap_not_in_force", int(value))

    @property
    def lock_not_in_force(self) -> bool:
        """Whether clock locks are accepted and have no effect."""
        return bool(self.read("lock_not_in_force"))

    @lock_not_in_force.setter
    def lock_not_in_force(self, value: bool) -> None:
        self.write("lock_not_in_force", int(value))

    def set_out_of_band_limit(self, watts: float | None) -> None:
        """Enforce a limit from outside NVML (a BMC's), under whatever was requested; None takes it away."""
        self.write("out_of_band_limit_mw", 0 if watts is None else round(watts * _MILLI))

    def change_cap_externally(self, watts: float, monotonic_ns: int) -> None:
        """Set the power limit as somebody else with root would, not counted as one of our setter calls."""
        self.write("cap_requested_mw", round(watts * _MILLI))
        self.write("cap_in_force_mw", round(watts * _MILLI))
        self.write("cap_stamp_ns", monotonic_ns)
        self.write("cap_sequence", self.read("cap_sequence") + 1)

    def reboot(self) -> None:
        """Back to driver defaults: no lock, the default limit, energy counter at 0 (lost cards come back)."""
        self.write("cap_requested_mw", self.read("cap_default_mw"))
        self.write("cap_in_force_mw", self.read("cap_default_mw"))
        for field in (
            "lock_requested",
            "lock_in_force",
            "memory_lock_requested",
            "load_pid",  # no process outlives a reboot, and its stamp is of another clock
            "lost",
            "energy_joules",
            "energy_mj",
            "power_cap_violation_ns",
        ):
            self.write(field, 0)
        self.write("reboot_sequence", self.read("reboot_sequence") + 1)

    def _fault_cell(self, call: str) -> int:
        if call not in layout.CALL_INDEX:
            raise StateFileError(f"NVML call {call!r} cannot be made to fail: use one of {', '.join(layout.CALLS)}")
        return self._base + layout.GPU_OFFSETS["faults"] + layout.FAULT_CELLS * layout.CALL_INDEX[call]

    # -- making --------------------------------------------------------------------------------------------

    @classmethod
    def initialise(
        cls, cells: Cells, base: int, index: int, kind: GpuType, *, identity: bytes, die: Die | None
    ) -> None:
        """Fill an all-zero block for a card of type `kind`; `identity` is 32 bytes its names and die are made of."""
        offsets = layout.GPU_OFFSETS
        random_state = int.from_bytes(identity[24:32], "little")
        own = draw_die(random.Random(random_state)) if die is None else die  # noqa: S311
        idle_watts = kind.idle_watts * own.idle_factor
        texts = {
            "uuid": (6, f"GPU-{uuid.UUID(bytes=identity[:16])}"),
            "serial": (4, str(int.from_bytes(identity[16:22], "big") % 10**13).zfill(13)),
            "product_name": (12, kind.product_name),
            "type_name": (4, kind.name),
        }
        for field, (size, value) in texts.items():
            cells.put_text(base + offsets[field], size, value)
        wholes = {
            "index": index,
            "brand": _BRAND_NVIDIA,
            "architecture": kind.architecture,
            "compute_major": kind.compute_capability[0],
            "compute_minor": kind.compute_capability[1],
            "pci_bus": _FIRST_PCI_BUS + 0x10 * index,
            "pci_device_id": kind.pci_device_id,
            "memory_bytes": kind.memory_bytes,
            "memory_mhz": kind.memory_mhz,
            "sm_min_mhz": kind.sm_min_mhz,
            "sm_max_mhz": kind.sm_max_mhz,
            "sm_step_mhz": kind.sm_step_mhz,
            "cap_min_mw": round(kind.cap_min_watts * _MILLI),
            "cap_max_mw": round(kind.cap_max_watts * _MILLI),
            "cap_default_mw": round(kind.cap_default_watts * _MILLI),
            "cap_requested_mw": round(kind.cap_default_watts * _MILLI),
            "cap_in_force_mw": round(kind.cap_default_watts * _MILLI),
            "power_usage_is_averaged": int(kind.power_usage_is_averaged),
            "persistence_mode": 1,
            "sm_mhz": kind.sm_min_mhz,
            "event_reasons": 1,
            "power_average_mw": round(idle_watts * own.sensor_gain * _MILLI),
            "power_instant_mw": round(idle_watts * own.sensor_gain * _MILLI),
            "temperature_celsius": 30,
            "memory_temperature_celsius": 38,
            "random_state": random_state,
        }
        for field, number in wholes.items():
            cells.unsigned[base + offsets[field]] = number
        reals = {
            "power_watts": idle_watts,
            "cap_lagged_watts": kind.cap_default_watts,
            "die_power_factor": own.power_factor,
            "die_idle_factor": own.idle_factor,
            "sensor_gain": own.sensor_gain,
        }
        for field, real in reals.items():
            cells.real[base + offsets[field]] = real
