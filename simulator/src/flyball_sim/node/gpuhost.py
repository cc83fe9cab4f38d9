"""The simulated GPUs of a node: driver root in its file system, state file, and the driver's tick."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from flyball_sim.gpu.driver import GpuDriver
from flyball_sim.gpu.library import LIBRARY_NAME, STATE_FILE_NAME, build_library
from flyball_sim.gpu.statefile import GpuStateFile, StateFileError
from flyball_sim.gpu.types import gpu_type
from flyball_sim.node.clock import Clock

DRIVER_DIRECTORY = "run/nvidia/driver/usr/lib/x86_64-linux-gnu"
TICK_SECONDS = 0.05
STATE_ENV = "FLYBALL_SIM_GPU_STATE"


class GpuHost:
    """The node's GPUs; the driver's settings live in the state file and outlive the node process.

    Args:
        rootfs: Root of the node's file system.
        type_name: A GPU type, for example `H100-SXM5`.
        count: How many of them, 1 to 8.
        node_name: The node; its name makes their UUIDs.
        rebooted: Whether the node boots now: the driver's settings are at their defaults again.
    """

    def __init__(self, rootfs: Path, type_name: str, count: int, node_name: str, *, rebooted: bool) -> None:
        kind = gpu_type(type_name)
        self.product = kind.product_name
        directory = rootfs / DRIVER_DIRECTORY
        directory.mkdir(parents=True, exist_ok=True)
        library = directory / LIBRARY_NAME
        temporary = library.with_suffix(".new")
        shutil.copy2(build_library(), temporary)
        # Programs that have the library mapped keep the old file.
        temporary.replace(library)
        self.state_path = directory / STATE_FILE_NAME
        earlier = _opened(self.state_path, type_name, count)
        if earlier is not None and rebooted:
            for gpu in earlier.gpus:
                gpu.reboot()
        self._state = earlier or GpuStateFile.create(self.state_path, [kind] * count, 0, node_name)
        self._driver = GpuDriver(self._state)
        self.uuids = tuple(gpu.uuid for gpu in self._state.gpus)

    def env(self) -> Mapping[str, str]:
        """What a container with GPUs is told besides their ids."""
        return {STATE_ENV: str(self.state_path)}

    async def tick_forever(self, clock: Clock) -> None:
        """Advance the GPUs 20 times a second."""
        while True:
            self._driver.tick()
            await clock.sleep(TICK_SECONDS)

    def close(self) -> None:
        """Unmap the state file; nothing may tick afterwards."""
        self._state.close()


def _opened(path: Path, type_name: str, count: int) -> GpuStateFile | None:
    """The state file of an earlier life of the node, if it holds the same cards."""
    if not path.exists():
        return None
    try:
        state = GpuStateFile.open(path)
    except StateFileError:
        # Of another version of the layout: new cards are put in.
        return None
    if [gpu.gpu_type.name for gpu in state.gpus] == [type_name] * count:
        return state
    state.close()
    return None
