from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.models import StepModel, step_model
from flyball_sim.gpu.dies import draw_dies
from flyball_sim.gpu.types import gpu_type
from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard.bound import PROMPT_CLASSES, BoundProgram
from flyball_sim.scoreboard.floors import Floors, cost_array, floors
from flyball_sim.scoreboard.frontier import Clocks, Frontier, lower_hull, simplified
from flyball_sim.scoreboard.runs import UNLOCKED, Engine, Schedule, Setting, run_machine
from flyball_sim.scoreboard.slo import Slo, allowed_misses

LIMITS = EngineLimits(32_768)
ENGINES = {
    "8b-h100": ("H100-SXM5", "llama-3.1-8b", 1),
    "8b-a100": ("A100-SXM4-80GB", "llama-3.1-8b", 1),
    "70b-h200": ("H200-SXM", "llama-3.1-70b", 4),
}


@cache
def model_of(name: str) -> StepModel:
    gpu, model, gpus = ENGINES[name]
    return step_model(gpu_type(gpu), model, gpus)


@cache
def program_of(name: str) -> BoundProgram:
    return BoundProgram(model_of(name), LIMITS)


@cache
def floors_of(name: str) -> Floors:
    return floors(model_of(name), LIMITS, PROMPT_CLASSES)


def random_trace(rng: random.Random, requests: int, rate: float) -> list[TraceRequest]:
    now, trace = 0.0, []
    for _ in range(requests):
        now += rng.expovariate(rate)
        prompt = rng.choice([1, 2, 100, 1000, 2048, 2049, 5000, rng.randint(1, 4000)])
        trace.append(TraceRequest(now, prompt, rng.choice([1, 2, 50, rng.randint(1, 200)])))
    return trace


def random_schedule(rng: random.Random, model: StepModel, until: float) -> Schedule:
    gpu = model.gpu
    clocks, low, high = list(gpu.supported_sm_mhz()), gpu.cap_min_watts, gpu.cap_max_watts
    caps = (None, None, low, low + 50.0, (low + high) / 2.0)
    style = rng.choice(["unlocked", "static", "slots"])
    if style == "unlocked":
        return [(0.0, UNLOCKED)]
    if style == "static":
        return [(0.0, Setting(rng.choice(clocks), rng.choice(caps)))]
    schedule, at = [], 0.0
    while at < until:
        schedule.append((at, Setting(rng.choice(clocks), rng.choice(caps))))
        at += rng.choice([0.3, 1.0, 3.0])
    return schedule


@pytest.mark.parametrize("name", sorted(ENGINES))
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    requests=st.sampled_from([1, 2, 5, 20, 60]),
    rate=st.sampled_from([0.3, 2.0, 10.0, 50.0]),
    slot=st.sampled_from([0.2, 1.0, 5.0]),
)
def test_no_schedule_of_clocks_and_caps_has_less_energy_than_the_bound(
    name: str, seed: int, requests: int, rate: float, slot: float
) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng, requests, rate)
    schedule = random_schedule(rng, model_of(name), trace[-1].arrival_seconds + 5.0)
    slo = Slo("random", rng.choice([0.1, 0.5, 2.0]), rng.choice([0.025, 0.05, 0.2]))
    engine = Engine(model_of(name), LIMITS)
    end = run_machine(engine, trace, schedule, end_seconds=trace[-1].arrival_seconds + 10_000.0).finished_seconds.max()
    run = run_machine(engine, trace, schedule, end_seconds=float(end) + rng.choice([0.001, 2.0]))
    assert run.completed == len(trace)
    assert run.preemptions == 0
    misses = len(trace) - int(run.met(slo).sum())
    bound = program_of(name).bound(
        trace, slo, misses=misses, end_seconds=float(end) + 0.001, slot_seconds=max(slot, float(end) / 200.0)
    )
    assert 0.0 < bound.energy_joules <= run.energy_joules


def test_cards_that_differ_have_their_own_bound() -> None:
    model, dies = model_of("70b-h200"), draw_dies(3, 4)
    trace, slo = random_trace(random.Random(1), 40, 4.0), Slo("mid", 2.5, 0.075)
    end = float(slo.deadlines(trace).max()) + 30.0
    run = run_machine(Engine(model, LIMITS, dies), trace, [(0.0, Setting(900))], end_seconds=end)
    misses = len(trace) - int(run.met(slo).sum())
    bound = BoundProgram(model, LIMITS, dies).bound(trace, slo, misses=misses, end_seconds=end)
    nominal = program_of("70b-h200").bound(trace, slo, misses=misses, end_seconds=end)
    assert bound.energy_joules <= run.energy_joules
    assert bound.energy_joules != pytest.approx(nominal.energy_joules, rel=1e-4)


def test_a_tighter_slo_a_longer_run_and_fewer_misses_never_lower_the_bound() -> None:
    trace = random_trace(random.Random(2), 200, 8.0)
    program = program_of("8b-h100")
    end = trace[-1].arrival_seconds + 60.0
    loose, tight = Slo("loose", 2.0, 0.1), Slo("tight", 0.5, 0.025)
    bounds = [
        program.bound(trace, slo, misses=misses, end_seconds=end).energy_joules
        for slo, misses in ((loose, 20), (loose, 2), (tight, 2))
    ]
    assert bounds == sorted(bounds)
    assert program.bound(trace, tight, misses=2, end_seconds=end + 50.0).energy_joules > bounds[-1]


def test_an_idle_engine_is_bounded_by_its_waiting_cards() -> None:
    trace = [TraceRequest(50.0, 1, 1)]
    bound = program_of("8b-h100").bound(trace, Slo("any", 1.0, 0.05), misses=0, end_seconds=100.0).energy_joules
    gpu = model_of("8b-h100").gpu
    assert bound == pytest.approx(100.0 * gpu.waiting_watts(gpu.sm_min_mhz), rel=1e-3)


@pytest.mark.parametrize("name", sorted(ENGINES))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_step_costs_less_than_its_floor(name: str, data: st.DataObject) -> None:
    model, found = model_of(name), floors_of(name)
    decodes = data.draw(st.integers(1, LIMITS.max_num_seqs))
    held = decodes * data.draw(st.integers(1, 3000))
    band = next(band for band in found.bands if band.fewest <= decodes <= band.most)
    sequences = band.step + decodes * band.decode
    floor = sequences + held * band.held
    cost = cost_array(model, decodes, held)
    assert (cost >= floor * (1.0 - 1e-9)).all()
    left_out = (cost[1:3] - floor[1:3]).sum()
    assert left_out <= band.slack * sequences[1:3].sum() + band.held_slack * held * band.held[1:3].sum() + 1e-12


@pytest.mark.parametrize("name", sorted(ENGINES))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_prompt_token_of_any_step_is_below_the_frontier_of_its_number(name: str, data: st.DataObject) -> None:
    model, found = model_of(name), floors_of(name)
    decodes = data.draw(st.integers(0, LIMITS.max_num_seqs))
    tokens = data.draw(st.integers(1, LIMITS.max_num_batched_tokens - decodes))
    before = data.draw(st.sampled_from([0, 700, 9000]))
    clock = data.draw(st.sampled_from(list(model.gpu.supported_sm_mhz())))
    clocks = Clocks(model)
    at = int(np.searchsorted(clocks.sm_mhz, clock))
    pairs = tokens * (before + tokens / 2.0)
    cost = cost_array(model, decodes, decodes, ((before, tokens),)) - found.pair * pairs
    cost = cost - (cost_array(model, decodes, decodes) if decodes else found.prompt_step)
    each = (cost / tokens)[None, :]
    below = max(edge for edge in PROMPT_CLASSES if edge <= tokens)
    frontier = clocks.frontier(found.prompt[found.prompt_tokens >= below])
    seconds, joules = float(clocks.seconds(each)[0, at]), float(clocks.joules(each)[0, at])
    assert seconds >= frontier.seconds[0] * (1.0 - 1e-9)
    least = float(np.interp(seconds, frontier.seconds, frontier.joules))
    assert joules >= least * (1.0 - 1e-9)


@given(
    points=st.lists(st.tuples(st.floats(1.0, 50.0), st.floats(1.0, 500.0)), min_size=1, max_size=60),
    tolerance=st.sampled_from([0.0, 0.01, 0.2]),
)
def test_a_simpler_frontier_is_nowhere_above_the_points(points: list[tuple[float, float]], tolerance: float) -> None:
    seconds, joules = (np.array(part) for part in zip(*points, strict=True))
    frontier = simplified(lower_hull(seconds, joules), tolerance)
    inside = seconds <= frontier.seconds[-1]
    assert (np.interp(seconds, frontier.seconds, frontier.joules)[inside] <= joules[inside] + 1e-6).all()


def test_one_and_then_the_other_takes_the_sum_of_both() -> None:
    first = Frontier(np.array([1.0, 2.0]), np.array([10.0, 4.0]))
    both = first.then(first.scaled(0.5))
    assert both.seconds.tolist() == [1.5, 3.0]
    assert both.joules.tolist() == [15.0, 6.0]


def test_allowed_misses_are_whole_requests() -> None:
    assert [allowed_misses(requests) for requests in (1, 99, 100, 5000)] == [0, 0, 1, 50]
