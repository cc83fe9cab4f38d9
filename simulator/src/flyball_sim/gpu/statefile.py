"""The GPU state file: what the simulated driver, the engines and `libnvidia-ml.so.1` share, in one mmap.

One file stands for the GPUs of one node. Three kinds of process write it, each its own cells: the C library's
setters (requested caps and locks), the engine on a card (its load), and the node's driver tick (clocks, watts,
joules). Anyone may read it; only its owner may write it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from flyball_sim.gpu import layout
from flyball_sim.gpu.dies import Die
from flyball_sim.gpu.slot import Cells, GpuSlot, StateFileError
from flyball_sim.gpu.types import GpuType

__all__ = ["GpuSlot", "GpuStateFile", "StateFileError"]

_DRIVER_VERSION = "580.105.08"
_FILE_MODE = 0o644


class GpuStateFile:
    """A mapped state file; `gpus` are its cards by index. Close it, or use it as a context manager."""

    def __init__(self, path: Path, memory: mmap.mmap, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._cells = Cells(memory)
        header = layout.HEADER_OFFSETS
        cells = self._cells.unsigned
        if len(cells) <= layout.HEADER_CELLS or cells[header["magic"]] != layout.MAGIC:
            self._cells.close()
            raise StateFileError(f"{path} is not a GPU state file: let GpuStateFile.create write it anew")
        if cells[header["version"]] != layout.VERSION:
            found = cells[header["version"]]
            self._cells.close()
            raise StateFileError(
                f"{path} has layout version {found}, this program reads {layout.VERSION}: restart the simulated node"
            )
        count = cells[header["gpu_count"]]
        self.gpus = [GpuSlot(self._cells, layout.HEADER_CELLS + index * layout.GPU_CELLS) for index in range(count)]

    @classmethod
    def create(
        cls,
        path: Path,
        gpu_types: Sequence[GpuType],
        seed: int,
        node_name: str,
        *,
        admin_uid: int | None = None,
        dies: Sequence[Die] | None = None,
    ) -> GpuStateFile:
        """Write a file of freshly booted GPUs, replacing any at `path` in one step, and map it for writing.

        Args:
            path: where; its directory must exist.
            gpu_types: one per card, by index.
            seed: with `node_name` it makes UUIDs, serials, dies and actuation delays.
            node_name: the node the cards are in.
            admin_uid: the uid, besides 0, whose setters are obeyed; the caller's by default.
            dies: one per card, where they are not to differ as real ones do.

        Raises:
            StateFileError: no GPU, or more than `layout.MAX_GPUS`.
        """
        if not 1 <= len(gpu_types) <= layout.MAX_GPUS:
            raise StateFileError(
                f"node {node_name} asks for {len(gpu_types)} GPUs: a state file holds 1 to {layout.MAX_GPUS}"
            )
        size = (layout.HEADER_CELLS + len(gpu_types) * layout.GPU_CELLS) * layout.CELL_BYTES
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            os.ftruncate(descriptor, size)
            with mmap.mmap(descriptor, size) as memory:
                cells = Cells(memory)
                header = {
                    "magic": layout.MAGIC,
                    "version": layout.VERSION,
                    "file_bytes": size,
                    "gpu_count": len(gpu_types),
                    "header_bytes": layout.HEADER_CELLS * layout.CELL_BYTES,
                    "gpu_bytes": layout.GPU_CELLS * layout.CELL_BYTES,
                    "admin_uid": os.geteuid() if admin_uid is None else admin_uid,
                }
                for field, number in header.items():
                    cells.unsigned[layout.HEADER_OFFSETS[field]] = number
                cells.put_text(layout.HEADER_OFFSETS["driver_version"], 4, _DRIVER_VERSION)
                cells.put_text(layout.HEADER_OFFSETS["node_name"], 32, node_name)
                for index, kind in enumerate(gpu_types):
                    identity = hashlib.sha256(f"{seed}/{node_name}/{index}".encode()).digest()
                    base = layout.HEADER_CELLS + index * layout.GPU_CELLS
                    die = None if dies is None else dies[index]
                    GpuSlot.initialise(cells, base, index, kind, identity=identity, die=die)
                cells.close()
            os.fchmod(descriptor, _FILE_MODE)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, writable: bool = True) -> GpuStateFile:
        """Map an existing file.

        Raises:
            StateFileError: it is missing, may not be opened this way, or is not a state file of this version.
        """
        try:
            with path.open("r+b" if writable else "rb") as file:
                access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                memory = mmap.mmap(file.fileno(), 0, access=access)
        except FileNotFoundError as error:
            raise StateFileError(
                f"no GPU state file at {path}: start the simulated node that owns these GPUs"
            ) from error
        except PermissionError as error:
            raise StateFileError(
                f"uid {os.geteuid()} may not {'write' if writable else 'read'} {path}: "
                "run as its owner, or open it with writable=False"
            ) from error
        except ValueError as error:  # mmap of an empty file
            raise StateFileError(f"{path} is not a GPU state file: let GpuStateFile.create write it anew") from error
        return cls(path, memory, writable=writable)

    @property
    def node_name(self) -> str:
        """The node these GPUs are in."""
        return self._cells.text(layout.HEADER_OFFSETS["node_name"], 32)

    def by_uuid(self, gpu_uuid: str) -> GpuSlot:
        """The GPU with this UUID.

        Raises:
            StateFileError: this node has no such GPU.
        """
        for gpu in self.gpus:
            if gpu.uuid == gpu_uuid:
                return gpu
        raise StateFileError(
            f"node {self.node_name} has no GPU {gpu_uuid!r}: it has {', '.join(gpu.uuid for gpu in self.gpus)}"
        )

    def mark_tick(self, monotonic_ns: int) -> None:
        """Note that the driver has brought every GPU up to `monotonic_ns`."""
        cells = self._cells.unsigned
        cells[layout.HEADER_OFFSETS["tick_stamp_ns"]] = monotonic_ns
        cells[layout.HEADER_OFFSETS["tick_count"]] += 1

    def close(self) -> None:
        """Unmap the file; its slots must not be used afterwards."""
        self._cells.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
