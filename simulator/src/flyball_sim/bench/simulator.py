"""What the simulator costs: seconds of a core and memory for an hour of requests in virtual time.

Each measurement runs in a process of its own, so that its peak memory is its own too.
"""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flyball_agent.controllers.base import ControlLimits, Decision, Event, GroupSetpoint, Observation
from flyball_sim.bench.rows import Row
from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.machine import Machine
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import step_model
from flyball_sim.load.conversation import generate
from flyball_sim.load.traces import TraceRequest, read_trace
from flyball_sim.world.cluster import uniform_cluster
from flyball_sim.world.direct import run_engine
from flyball_sim.world.simulate import run

MODEL, GPU = "llama-3.1-8b", "H100-SXM5"
HOUR_SECONDS = 3502.0
"""As long as the Azure conversation trace."""
MINUTE_SECONDS = 60.0
CONTROL_PERIOD_SECONDS = 0.5
AZURE_FILE = Path("traces") / "azure2023_conv.csv"
POLICY = {
    "apiVersion": "flyball.dev/v1alpha1",
    "kind": "EnergyPolicy",
    "metadata": {"name": "bench"},
    "spec": {
        "mode": "Enforce",
        "selector": {"matchLabels": {"app": "llm"}},
        "controller": {
            "type": "Fixed",
            "fixed": {"clocks": [{"role": "unified", "minMegahertz": 1410, "maxMegahertz": 1410}]},
        },
    },
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took of this machine: CPU seconds, and peak memory of its process."""

    requests: int
    engine_seconds: float
    controller_seconds: float
    peak_mebibytes: float


class TwoLevels:
    """A stand-in for a controller: the high clock while anything waits or the batch is large, else the low one.

    It switches as often as a real one, which is what makes a run expensive.
    """

    requires: frozenset[str] = frozenset()
    events: frozenset[Event] = frozenset()
    wants_board = False
    period_seconds = CONTROL_PERIOD_SECONDS

    def __init__(self, low_mhz: int, high_mhz: int, large_batch: int) -> None:
        self._low, self._high = (GroupSetpoint(sm_mhz=(mhz, mhz)) for mhz in (low_mhz, high_mhz))
        self._large_batch = large_batch

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:  # noqa: ARG002
        """See `GroupController.decide`."""
        page = {} if observation.engine is None else observation.engine.values
        presses = page.get("requests_waiting", 0.0) > 0 or page.get("requests_running", 0.0) > self._large_batch
        return Decision(self._high if presses else self._low, next_wake_seconds=CONTROL_PERIOD_SECONDS)

    def state(self) -> dict[str, Any]:
        """It learns nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


def trace_of_an_hour(data: Path | None, seed: int, seconds: float) -> tuple[TraceRequest, ...]:
    """The Azure conversation trace where the data is at hand, else the generated conversation, cut to length.

    Raises:
        TraceError: the data directory has no such trace.
    """
    if data is None:
        return generate(seconds, seed=seed)
    return tuple(request for request in read_trace(data / AZURE_FILE) if request.arrival_seconds < seconds)


def copies(trace: Sequence[TraceRequest], count: int) -> Iterator[TraceRequest]:
    """Every request `count` times, spread evenly up to the next one's arrival."""
    for number, request in enumerate(trace):
        last = number + 1 == len(trace)
        gap = 0.0 if last else trace[number + 1].arrival_seconds - request.arrival_seconds
        for copy in range(count):
            arrival = request.arrival_seconds + gap * copy / count
            yield TraceRequest(arrival, request.prompt_tokens, request.output_tokens)


def one_engine(data: Path | None, seed: int, seconds: float = HOUR_SECONDS) -> Cost:
    """An hour of requests on one engine with a controller at 2 Hz."""
    requests = trace_of_an_hour(data, seed, seconds)
    model = step_model(gpu_type(GPU), MODEL, 1)
    machine = Machine(model, EngineLimits(max_model_len=32_768), seed=seed)
    controller = TwoLevels(1200, 1980, 24)
    began = time.process_time()
    ran = run_engine(machine, requests, controller, model=model, stopwatch=time.process_time)
    spent = time.process_time() - began
    return Cost(len(requests), spent - ran.controller_seconds, ran.controller_seconds, peak_mebibytes())


def cluster(trace: Sequence[TraceRequest], seed: int, engines: int, *, requests_each: int, policies: int) -> Cost:
    """A cluster in which every request of the trace comes `requests_each` times.

    With a policy, agents look twice a second and the operator plans; without, there is neither.
    """
    spec = uniform_cluster(MODEL, GPU, engines=engines)
    began = time.process_time()
    ran = run(
        spec,
        [POLICY] * policies,
        copies(trace, requests_each),
        seed=seed,
        sample_seconds=60.0,
        stopwatch=time.process_time,
    )
    spent = time.process_time() - began
    return Cost(len(ran.outcomes), spent - ran.cpu.total, ran.cpu.total, peak_mebibytes())


def sixty_four_engines(data: Path | None, seed: int) -> Cost:
    """The trace once for each of 64 engines under a policy."""
    return cluster(trace_of_an_hour(data, seed, HOUR_SECONDS), seed, 64, requests_each=64, policies=1)


def thousand_engines(data: Path | None, seed: int) -> Cost:
    """One twentieth of the trace for each of 1,000 engines."""
    return cluster(trace_of_an_hour(data, seed, HOUR_SECONDS), seed, 1000, requests_each=50, policies=0)


def thousand_controlled(data: Path | None, seed: int) -> Cost:
    """A minute of the same under a policy."""
    return cluster(trace_of_an_hour(data, seed, MINUTE_SECONDS), seed, 1000, requests_each=50, policies=1)


def peak_mebibytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(work: Callable[[Path | None, int], Cost], data: Path | None, seed: int) -> Cost:
    """Do `work` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, data, seed).result()


def quick_scoreboard() -> float:
    """Wall seconds of `flyball-sim scoreboard --quick`, everything worked out anew.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with TemporaryDirectory(prefix="flyball-bench-") as directory:
        began = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "flyball_sim.cli",
            "scoreboard",
            "--quick",
            "--json",
            "--out",
            f"{directory}/cells",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began


def measure(data: Path | None, seed: int) -> Iterator[Row]:
    """Every row of the simulator's part, as it is measured."""
    source = "generated conversation" if data is None else "Azure conversation 2023"
    single = apart(one_engine, data, seed)
    under = f"{single.requests} requests ({source}), {MODEL} on {GPU}"
    yield Row(
        "an hour of one engine, scraped at 2 Hz",
        under,
        single.engine_seconds,
        0.4,
        "s",
        "pure-Python prototype: 0.1-0.2 s",
    )
    yield Row("  its controller at 2 Hz", "the same", single.controller_seconds, None, "s")
    yield Row("  peak memory", "the same", single.peak_mebibytes, 150, "MiB")
    many = apart(sixty_four_engines, data, seed)
    yield Row("an hour of 64 engines", f"{many.requests} requests", many.engine_seconds, 30, "s")
    yield Row("  agents and planner", "the same, 8 nodes, one policy", many.controller_seconds, None, "s")
    yield Row("  peak memory", "the same", many.peak_mebibytes, None, "MiB")
    thousand = apart(thousand_engines, data, seed)
    yield Row("an hour of 1,000 engines", f"{thousand.requests} requests", thousand.engine_seconds, None, "s")
    yield Row("  peak memory", "the same", thousand.peak_mebibytes, 4096, "MiB")
    minute = apart(thousand_controlled, data, seed)
    yield Row(
        "  agents and planner", "1 minute of it, one policy", minute.controller_seconds, None, "s", "with warm-up"
    )
    yield Row("  peak memory", "the same", minute.peak_mebibytes, 4096, "MiB")
    yield Row("scoreboard --quick", "wall clock, all cores", quick_scoreboard(), 300, "s")
