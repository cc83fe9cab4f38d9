"""What a decision of each controller costs: CPU microseconds per engine, on a simulated one that it drives.

All get the same requests and see their engine as the agent shows it: at the period each wants, with the board where it
wants that, asked when `flyball_agent.asking` would ask it. What they answer takes effect, for a controller whose clocks
never came would spend its time on that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, get_args

from flyball_agent.asking import Asked, period_of
from flyball_agent.controllers.base import ControlLimits, Decision, GroupController, Observation, Targets
from flyball_agent.controllers.registry import make_controller
from flyball_agent.facts import LEAST_SCRAPE_SECONDS, EngineState
from flyball_agent.profiles import Profile
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
from flyball_sim.world.direct import Hand, control_limits, setup_of

DRIVEN_SECONDS: Final = 600.0
TARGETS: Final = Targets(ttft_seconds=0.5, tpot_seconds=0.05, e2e_seconds=30.0)
ENGINE_LIMITS: Final = EngineLimits(max_model_len=32_768)
FLYBALL_GOAL_US: Final = 500.0
FIXED: Final = {"clocks": [{"role": "unified", "minMegahertz": 1410, "maxMegahertz": 1410}]}


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


def cost(kind: ControllerType, model: StepModel, profile: Profile, *, seed: int, seconds: float) -> DecisionCost:
    """Let one controller drive an engine that serves the generated conversation."""
    setup = setup_of(model, seed=seed, profile=profile)
    spec = Controller.model_validate({"type": kind, **({"fixed": FIXED} if kind == "Fixed" else {})})
    controller = make_controller(spec, observe=False, setup=setup)
    limits = control_limits(model, int(model.gpu.cap_max_watts), TARGETS)
    asked, state = Asked(controller, setup, period_of(controller)), EngineState(0.0)
    requests = iter(generate(seconds, seed=seed))
    machine = Machine(model, ENGINE_LIMITS, seed=seed)
    hand = Hand(machine, model, limits, machine)
    coming = next(requests, None)
    microseconds: list[float] = []
    page_at = 0.0
    for tick in range(int(seconds / LEAST_SCRAPE_SECONDS)):
        now = tick * LEAST_SCRAPE_SECONDS
        while coming is not None and coming.arrival_seconds <= now:
            request = EngineRequest(str(coming.arrival_seconds), coming.prompt_tokens, coming.output_tokens)
            machine.submit(request, coming.arrival_seconds)
            coming = next(requests, None)
        machine.advance(now)
        machine.take_finished()
        if now >= page_at - LEAST_SCRAPE_SECONDS / 2:
            page_at += asked.period_seconds
            state.take(machine.page(), now, machine.board() if controller.wants_board else None)
        due, event = asked.due(limits, state, now)
        if due and state.sample is not None:
            page = state.sample
            gpus, age = machine.readings(), state.age_seconds(now)
            seen = Observation("unified", gpus, page, age, page.missing, state.board, event)
            decision, spent = _decide(controller, seen, limits, now)
            microseconds.append(spent)
            asked.note(decision, limits, state, now)
            hand.hold(decision.setpoint, now)
    degraded = () if asked.decision is None else asked.decision.degraded
    return DecisionCost(kind, tuple(microseconds), degraded)


def _decide(
    controller: GroupController, seen: Observation, limits: ControlLimits, now: float
) -> tuple[Decision, float]:
    """A decision, and its CPU microseconds; of this thread, so that waiting for a busy machine does not count."""
    began = time.thread_time_ns()
    decision = controller.decide(seen, limits, now)
    return decision, (time.thread_time_ns() - began) / 1e3


def measure(seed: int, seconds: float = DRIVEN_SECONDS) -> Iterator[Row]:
    """Two rows for each controller: median and 99th percentile."""
    model = step_model(gpu_type(GPU), MODEL, 1)
    profile = profile_engine(model, ENGINE_LIMITS, seed=seed)
    under = f"{seconds:.0f} s of one engine"
    for kind in get_args(ControllerType):
        spent = cost(kind, model, profile, seed=seed, seconds=seconds)
        sample = f"{len(spent.microseconds)} decisions"
        if spent.degraded:
            sample += f"; degraded: {spent.degraded[0][:60]}"
        goal = FLYBALL_GOAL_US if kind == "Flyball" else None
        yield Row(f"{kind}, p50", under, percentile(spent.microseconds, 50), None, "µs", sample)
        yield Row(f"{kind}, p99", under, percentile(spent.microseconds, 99), goal, "µs", sample)
