"""The same engine in real time and in virtual time; the real one on an event loop whose clock jumps to each timer."""

from __future__ import annotations

import asyncio
import selectors
from pathlib import Path
from statistics import fmean

import pytest

from flyball_agent.scanner import EngineSample, PageScanner
from flyball_sim.engine.gpus import StateFileGpus
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.metrics import EngineMetrics, EngineState
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits, EngineRequest, RequestTiming
from flyball_sim.engine.runtime import EngineRuntime, Tokens
from flyball_sim.gpu.dies import NOMINAL_DIE
from flyball_sim.gpu.driver import GpuDriver
from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.load.conversation import generate

H100 = GPU_TYPES["H100-SXM5"]
MODEL = step_model(H100, "llama-3.1-8b", 1)
LIMITS = EngineLimits(131_072)
SECONDS = 30.0
TAIL_SECONDS = 30.0


class JumpingSelector(selectors.SelectSelector):
    """Never waits: what would have been waited goes to the clock."""

    seconds = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.seconds += timeout or 0.0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.seconds


def requests() -> list[tuple[float, EngineRequest]]:
    trace = generate(SECONDS, seed=3)
    return [
        (request.arrival_seconds, EngineRequest(str(number), request.prompt_tokens, request.output_tokens))
        for number, request in enumerate(trace)
    ]


def tpot(timings: list[RequestTiming]) -> float:
    return fmean(
        (timing.finished_seconds - timing.first_token_seconds) / (timing.output_tokens - 1)
        for timing in timings
        if timing.output_tokens > 1
    )


async def serve_in_real_time(
    node: GpuStateFile, changes: list[tuple[float, tuple[int, int]]]
) -> tuple[list[RequestTiming], EngineSample]:
    loop = asyncio.get_running_loop()
    start = loop.time()

    def clock() -> int:
        return round(loop.time() * 1e9)

    card = node.gpus[0]
    driver = GpuDriver(node, clock, is_alive=lambda _pid: True)

    async def drive() -> None:
        while True:
            driver.tick()
            await asyncio.sleep(0.05)

    async def change() -> None:
        for moment, (low, high) in changes:
            await asyncio.sleep(start + moment - loop.time())
            card.write("lock_in_force", low | high << 32)
            card.write("lock_stamp_ns", clock())

    metrics = EngineMetrics("chat", max_model_len=131_072, kv_blocks=MODEL.kv_blocks, created_seconds=0.0)
    driving = [asyncio.create_task(drive()), asyncio.create_task(change())]
    await asyncio.sleep(0)
    runtime = EngineRuntime(MODEL, LIMITS, StateFileGpus([card], clock), metrics)

    async def ask(moment: float, request: EngineRequest) -> RequestTiming:
        await asyncio.sleep(start + moment - loop.time())
        stream = runtime.submit(request)
        taken = Tokens(0, 0.0, None)
        total = 0
        while taken.finished is None:
            taken = await stream.take()
            total += taken.tokens
            runtime.wrote(stream, taken)
        assert total == request.output_tokens
        runtime.finished(stream, taken.finished, "length", request.output_tokens)
        assert stream.late_seconds < 0.003
        return taken.finished

    timings = await asyncio.gather(*(ask(moment, request) for moment, request in requests()))
    await asyncio.sleep(max(0.0, start + SECONDS + TAIL_SECONDS - loop.time()))
    driver.tick()
    for task in driving:
        task.cancel()
    page = PageScanner().scan(metrics.render(runtime.state()))
    runtime.close()
    return list(timings), page


@pytest.mark.parametrize("changes", [[], [(8.0, (345, 1200)), (20.0, (345, 900))]])
def test_real_time_and_virtual_time_agree_on_time_per_token_and_joules(tmp_path: Path, changes):
    dies = [NOMINAL_DIE]
    with (
        GpuStateFile.create(tmp_path / "gpus.state", [H100], 1, "n0", dies=dies) as node,
        asyncio.Runner(loop_factory=JumpingLoop) as runner,
    ):
        before = node.gpus[0].energy_joules
        real, scraped = runner.run(serve_in_real_time(node, changes))
        real_joules = node.gpus[0].energy_joules - before
    machine = Machine(MODEL, LIMITS, actuation_delays=False)
    commands: list[tuple[float, object]] = [*requests(), *changes]
    for moment, what in sorted(commands, key=lambda command: command[0]):
        if isinstance(what, EngineRequest):
            machine.submit(what, moment)
        else:
            machine.set_lock(moment, what)
    machine.advance(SECONDS + TAIL_SECONDS)
    virtual = machine.take_finished()
    assert len(virtual) == len(real) == len(requests())
    assert tpot(real) == pytest.approx(tpot(virtual), rel=0.03)
    assert real_joules == pytest.approx(machine.energy_joules, rel=0.03)
    page = machine.page()
    assert (page.missing, scraped.missing) == ((), ())
    assert (page.values.keys(), page.histograms.keys()) == (scraped.values.keys(), scraped.histograms.keys())
    assert page.values == scraped.values
    for name in ("time_per_output_token", "iteration_tokens", "inter_token_latency", "end_to_end"):
        shown, there = page.histograms[name], scraped.histograms[name]
        assert there.bounds == shown.bounds
        # Steps end a little apart, so that one may hold the prompts of two.
        assert there.count == pytest.approx(shown.count, rel=0.03)
        assert there.total == pytest.approx(shown.total, rel=0.03)


def test_a_page_in_virtual_time_is_what_the_scanner_reads_of_the_page_the_same_engine_writes():
    machine = Machine(MODEL, EngineLimits(131_072, max_num_seqs=24), actuation_delays=False)
    name = MODEL.model.name
    metrics = EngineMetrics(name, max_model_len=131_072, kv_blocks=MODEL.kv_blocks, created_seconds=0.0)
    for number, (moment, request) in enumerate(requests()):
        machine.submit(request._replace(cached_tokens=number % 3 * request.prompt_tokens // 3), moment)
        core = machine._core
        state = EngineState(
            *(core.running, core.waiting, core.kv_usage(), core.preemptions, core.busy_seconds(), 1980.0),
            core.counted(),
        )
        assert machine.page() == PageScanner().scan(metrics.render(state))
    page = machine.page()
    assert page.values["prefix_cache_queries"] == page.values["prompt_tokens"] > page.values["prefix_cache_hits"] > 0
    steps = page.histograms["iteration_tokens"]
    assert steps.count == machine.board().iteration
    assert steps.total > page.values["generation_tokens"]
    assert page.histograms["time_per_output_token"].count == page.histograms["end_to_end"].count > 0
