"""A process with unmodified nvidia-ml-py over the C library, for the tests of simulated GPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flyball_sim.gpu.dies import NOMINAL_DIE
from flyball_sim.gpu.library import LIBRARY_NAME, STATE_FILE_NAME, build_library
from flyball_sim.gpu.statefile import GpuSlot, GpuStateFile
from flyball_sim.gpu.types import GPU_TYPES

STRANGER_UID = 65532

CLIENT = textwrap.dedent(
    """
    import ctypes, json, os, sys
    import pynvml

    def plain(value):
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, (ctypes.Structure, ctypes.Union)):
            return {name: plain(getattr(value, name)) for name, *_ in value._fields_}
        if isinstance(value, ctypes.Array) or isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, ctypes._SimpleCData):
            return value.value
        if hasattr(value, "__dict__"):
            return {name: plain(item) for name, item in vars(value).items()}
        return value

    def argument(item, handles, buffer):
        if item == "handle":
            return handles[0]
        if item == "buffer":
            return buffer
        return item.encode() if isinstance(item, str) else item

    handles = []
    for line in sys.stdin:
        request = json.loads(line)
        try:
            match request["do"]:
                case "init":
                    os.environ["FLYBALL_NVML_STATE"] = request["path"]
                    if not request["path"]:
                        del os.environ["FLYBALL_NVML_STATE"]
                    pynvml.nvmlInit()
                    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
                    answer = len(handles)
                case "become":
                    os.setresgid(request["uid"], request["uid"], request["uid"])
                    os.setresuid(request["uid"], request["uid"], request["uid"])
                    answer = os.geteuid()
                case "call":
                    arguments = [argument(item, handles, None) for item in request["arguments"]]
                    answer = plain(getattr(pynvml, request["name"])(*arguments))
                case "find":
                    found = getattr(pynvml, request["name"])(*request["arguments"])
                    answer = pynvml.nvmlDeviceGetIndex(found)
                case "raw":
                    buffer = ctypes.create_string_buffer(bytes.fromhex(request["buffer"]), 4096)
                    arguments = [argument(item, handles, buffer) for item in request["arguments"]]
                    answer = getattr(pynvml.nvmlLib, request["name"])(*arguments)
            reply = {"answer": answer}
        except pynvml.NVMLError as error:
            reply = {"error": error.value}
        print(json.dumps(reply), flush=True)
    """
)


class NvmlError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"NVML return code {code}")
        self.code = code


class Client:
    """A process that imports pynvml and does as it is told, one line of JSON at a time."""

    def __init__(self, library_directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LD_LIBRARY_PATH": str(library_directory)},
        )

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        if "error" in reply:
            raise NvmlError(reply["error"])
        return reply["answer"]

    def init(self, path: Path | str) -> int:
        return self._ask(do="init", path=str(path))

    def become(self, uid: int) -> None:
        self._ask(do="become", uid=uid)

    def call(self, name: str, *arguments: Any) -> Any:
        return self._ask(do="call", name=name, arguments=arguments)

    def get(self, name: str, *arguments: Any) -> Any:
        """nvmlDevice<name> of GPU 0."""
        return self.call(f"nvmlDevice{name}", "handle", *arguments)

    def find(self, name: str, *arguments: Any) -> int:
        return self._ask(do="find", name=name, arguments=arguments)

    def raw(self, name: str, *arguments: Any, buffer: bytes = b"") -> int:
        """The return code of the C function itself; "handle" and "buffer" stand for pointers."""
        return self._ask(do="raw", name=name, arguments=arguments, buffer=buffer.hex())

    def code(self, name: str, *arguments: Any) -> int:
        """The error code pynvml raises for nvmlDevice<name> of GPU 0."""
        return self.refusal(self.get, name, *arguments)

    def refusal(self, act: Callable[..., Any], *arguments: Any) -> int:
        """The error code `act`, one of the methods above, ends in."""
        with pytest.raises(NvmlError) as caught:
            act(*arguments)
        return caught.value.code

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()


@pytest.fixture
def driver_root() -> Iterator[Path]:
    """A directory as a simulated node has it, open to other uids (pytest's own temporary ones are not)."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        shutil.copy(build_library(), directory / LIBRARY_NAME)
        yield directory


@pytest.fixture
def gpu_state(driver_root: Path) -> Iterator[GpuStateFile]:
    kinds = [GPU_TYPES["H100-SXM5"], GPU_TYPES["A100-SXM4-80GB"]]
    with GpuStateFile.create(
        driver_root / STATE_FILE_NAME, kinds, seed=7, node_name="node-0", dies=[NOMINAL_DIE] * 2
    ) as made:
        yield made


@pytest.fixture
def gpu(gpu_state: GpuStateFile) -> GpuSlot:
    return gpu_state.gpus[0]


@pytest.fixture
def blank_client(driver_root: Path) -> Iterator[Client]:
    client = Client(driver_root)
    yield client
    client.close()


@pytest.fixture
def nvml(blank_client: Client, gpu_state: GpuStateFile) -> Client:
    blank_client.init(gpu_state.path)
    return blank_client


@pytest.fixture
def stranger(nvml: Client, gpu_state: GpuStateFile) -> Client:
    """A client of no privilege. Where the tests do not run as root nobody can change uid, nor needs to."""
    if os.geteuid() == 0:
        nvml.call("nvmlShutdown")
        nvml.become(STRANGER_UID)
    else:
        nvml.call("nvmlShutdown")
        GpuStateFile.create(
            gpu_state.path,
            [slot.gpu_type for slot in gpu_state.gpus],
            seed=7,
            node_name="node-0",
            admin_uid=0,
            dies=[NOMINAL_DIE] * 2,
        ).close()
    nvml.init(gpu_state.path)
    return nvml
