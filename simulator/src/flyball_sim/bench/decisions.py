"""What a decision of each controller costs: CPU microseconds per engine, on the recorded pages of a simulated one.

All controllers see one and the same recording, as the agent shows it: at the period each wants, with the board where
it wants that, asked when `flyball_agent.asking` would ask it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from flyball_agent.asking import Asked, period_of
from flyball_agent.controllers.base import Board, ControlLimits, GpuReading, GroupController, Observation, Targets
from flyball_agent.controllers.registry import make_controller
from flyball_agent.facts import LEAST_SCRAPE_SECONDS, EngineState
from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample
from flyball_api.controllers.union import Controller, ControllerType
from flyball_sim.bench.figures import percentile
from flyball_sim.bench.rows import Row
from flyball_sim.bench.simulator import GPU, MODEL
from flyball_sim.engine.core import EngineLimits, EngineRequest
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import step_model
from flyball_sim.load.conversation import generate
from flyball_sim.profiling import profile_engine
from flyball_sim.world.direct import control_limits, setup_of

RECORDED_SECONDS: Final = 600.0
CHANGE_SECONDS: Final = 15.0
"""The recorded engine's clock is another one after so long: a controller that learns has something to learn from."""
TARGETS: Final = Targets(ttft_seconds=0.5, tpot_seconds=0.05, e2e_seconds=30.0)
ENGINE_LIMITS: Final = EngineLimits(max_model_len=32_768)
FLYBALL_GOAL_US: Final = 500.0
FIXED: Final = {"clocks": [{"role": "unified", "minMegahertz": 1410, "maxMegahertz": 1410}]}


@dataclass(frozen=True, slots=True)
class Recorded:
    """What could be seen of the engine at one moment."""

    now_seconds: float
    page: EngineSample
    board: Board
    gpus: tuple[GpuReading, ...]


@dataclass(frozen=True, slots=True)
class DecisionCost:
    """What one controller's decisions took.

    Attributes:
        kind: its type.
        microseconds: CPU time of each.
        degraded: sentences of its last.
    """

    kind: ControllerType
    microseconds: tuple[float, ...]
    degraded: tuple[str, ...]


def record(model: StepModel, seed: int, seconds: float = RECORDED_SECONDS) -> tuple[Recorded, ...]:
    """An engine that serves the generated conversation, looked at as often as an agent ever would."""
    requests = iter(generate(seconds, seed=seed))
    machine = Machine(model, ENGINE_LIMITS, seed=seed)
    clocks = model.gpu.supported_sm_mhz()
    coming = next(requests, None)
    seen = []
    for tick in range(int(seconds / LEAST_SCRAPE_SECONDS)):
        now = tick * LEAST_SCRAPE_SECONDS
        while coming is not None and coming.arrival_seconds <= now:
            request = EngineRequest(str(coming.arrival_seconds), coming.prompt_tokens, coming.output_tokens)
            machine.submit(request, coming.arrival_seconds)
            coming = next(requests, None)
        turn = int(now / CHANGE_SECONDS)
        mhz = clocks[-1 - (turn * 7) % (len(clocks) // 2)]
        machine.set_lock(now, (mhz, mhz))
        machine.take_finished()
        seen.append(Recorded(now, machine.page(), machine.board(), machine.readings()))
    return tuple(seen)


def cost(
    kind: ControllerType, model: StepModel, profile: Profile, recording: Sequence[Recorded], *, seed: int
) -> DecisionCost:
    """Let one controller decide over the recording."""
    setup = setup_of(model, seed=seed, profile=profile)
    spec = Controller.model_validate({"type": kind, **({"fixed": FIXED} if kind == "Fixed" else {})})
    controller = make_controller(spec, observe=False, setup=setup)
    limits = control_limits(model, int(model.gpu.cap_max_watts), TARGETS)
    asked, state = Asked(controller, setup, period_of(controller)), EngineState(0.0)
    microseconds: list[float] = []
    page_at = 0.0
    for moment in recording:
        now = moment.now_seconds
        if now >= page_at - LEAST_SCRAPE_SECONDS / 2:
            page_at += asked.period_seconds
            state.take(moment.page, now, moment.board if controller.wants_board else None)
        due, event = asked.due(limits, state, now)
        if due and state.sample is not None:
            age = state.age_seconds(now)
            page = state.sample
            seen = Observation("unified", moment.gpus, page, age, page.missing, state.board, event)
            microseconds.append(_decide(asked, controller, seen, limits, state=state, now=now))
    degraded = () if asked.decision is None else asked.decision.degraded
    return DecisionCost(kind, tuple(microseconds), degraded)


def _decide(
    asked: Asked,
    controller: GroupController,
    seen: Observation,
    limits: ControlLimits,
    *,
    state: EngineState,
    now: float,
) -> float:
    """CPU microseconds of one decision; of this thread, so that a busy machine does not count."""
    began = time.thread_time_ns()
    decision = controller.decide(seen, limits, now)
    spent = time.thread_time_ns() - began
    asked.note(decision, limits, state, now)
    return spent / 1e3


def measure(seed: int, seconds: float = RECORDED_SECONDS) -> Iterator[Row]:
    """Two rows for each controller: median and 99th percentile."""
    model = step_model(gpu_type(GPU), MODEL, 1)
    profile = profile_engine(model, ENGINE_LIMITS, seed=seed)
    recording = record(model, seed, seconds)
    under = f"{seconds:.0f} s of one engine"
    for kind in get_args(ControllerType):
        spent = cost(kind, model, profile, recording, seed=seed)
        sample = f"{len(spent.microseconds)} decisions"
        if spent.degraded:
            sample += f"; degraded: {spent.degraded[0][:60]}"
        goal = FLYBALL_GOAL_US if kind == "Flyball" else None
        yield Row(f"{kind}, p50", under, percentile(spent.microseconds, 50), None, "µs", sample)
        yield Row(f"{kind}, p99", under, percentile(spent.microseconds, 99), goal, "µs", sample)
