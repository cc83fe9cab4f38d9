"""What the simulator costs: seconds of a core and memory for an hour of requests in virtual time.

Each measurement runs in a process of its own, so that its peak memory is its own too.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flyball_agent.controllers.base import GpuReading
from flyball_agent.scanner import EngineSample
from flyball_sim.bench.rows import Row
from flyball_sim.engine.core import EngineLimits, EngineRequest, QueueFullError
from flyball_sim.engine.machine import Machine
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import step_model
from flyball_sim.load.conversation import generate
from flyball_sim.load.traces import TraceRequest, read_azure_csv

MODEL, GPU = "llama-3.1-8b", "H100-SXM5"
HOUR_SECONDS = 3502.0
"""As long as the Azure conversation trace."""
CONTROL_PERIOD_SECONDS = 0.5
AZURE_FILE = Path("traces") / "azure2023_conv.csv"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took of this machine."""

    requests: int
    engine_seconds: float
    controller_seconds: float
    peak_mebibytes: float


class TwoLevels:
    """A stand-in for a controller: the high clock while anything waits or the batch is large, else the low one.

    It switches as often as a real one, which is what makes a run expensive.
    """

    def __init__(self, low_mhz: int, high_mhz: int, large_batch: int) -> None:
        self._levels = (low_mhz, high_mhz)
        self._large_batch = large_batch
        self.lock_mhz: int | None = None

    def decide(self, page: EngineSample, readings: tuple[GpuReading, ...]) -> int | None:
        """The clock to lock from now on; None: as it is."""
        waits = page.values["requests_waiting"] > 0 or any(reading.cap_limited for reading in readings)
        wanted = self._levels[waits or page.values["requests_running"] > self._large_batch]
        if wanted == self.lock_mhz:
            return None
        self.lock_mhz = wanted
        return wanted


def trace_of_an_hour(data: Path | None, seed: int) -> tuple[TraceRequest, ...]:
    """The Azure conversation trace where the data is at hand, else the generated conversation of the same length.

    Raises:
        TraceError: the data directory has no such trace.
    """
    return generate(HOUR_SECONDS, seed=seed) if data is None else read_azure_csv(data / AZURE_FILE)


def one_engine(data: Path | None, seed: int) -> Cost:
    """An hour of requests on one engine with a controller at 2 Hz."""
    requests = trace_of_an_hour(data, seed)
    machine = Machine(step_model(gpu_type(GPU), MODEL, 1), EngineLimits(max_model_len=32_768), seed=seed)
    controller = TwoLevels(1200, 1980, 24)
    engine_seconds = controller_seconds = 0.0
    position, now, end = 0, 0.0, requests[-1].arrival_seconds + 60.0
    while now < end:
        now += CONTROL_PERIOD_SECONDS
        began = time.perf_counter()
        while position < len(requests) and requests[position].arrival_seconds <= now:
            request = requests[position]
            _submit(machine, position, request)
            position += 1
        machine.advance(now)
        advanced = time.perf_counter()
        engine_seconds += advanced - began
        lock = controller.decide(machine.page(), machine.readings())
        decided = time.perf_counter()
        controller_seconds += decided - advanced
        if lock is not None:
            machine.set_lock(now, (lock, lock))
            engine_seconds += time.perf_counter() - decided
    machine.take_finished()
    return Cost(len(requests), engine_seconds, controller_seconds, peak_mebibytes())


def _submit(machine: Machine, number: int, request: TraceRequest) -> None:
    try:
        machine.submit(
            EngineRequest(str(number), request.prompt_tokens, request.output_tokens), request.arrival_seconds
        )
    except QueueFullError:
        return


def peak_mebibytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(work: Callable[[Path | None, int], Cost], data: Path | None, seed: int) -> Cost:
    """Do `work` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, data, seed).result()


def measure(data: Path | None, seed: int) -> list[Row]:
    """Every row of the simulator's part."""
    source = "generated conversation" if data is None else "Azure conversation 2023"
    single = apart(one_engine, data, seed)
    under = f"{single.requests} requests ({source}), 1 engine, {MODEL} on {GPU}"
    return [
        Row("an hour of one engine: engine", under, single.engine_seconds, 0.4, "s"),
        Row(
            "an hour of one engine: controller at 2 Hz", under, single.controller_seconds, None, "s", "scrapes included"
        ),
        Row("an hour of one engine: peak memory", under, single.peak_mebibytes, 150, "MiB"),
    ]
