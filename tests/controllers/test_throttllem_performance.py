"""throttLL'eM's performance model: how well it learns, and that the table that is read is the fitted trees."""

from __future__ import annotations

import json
import random
from functools import cache
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from flyball_agent.controllers.throttllem import fit as fitting
from flyball_agent.controllers.throttllem.performance import Performance
from flyball_agent.controllers.throttllem.projection import Segment
from flyball_agent.profiles import DecodePoint, PrefillPoint
from flyball_agent.profiling.plan import DecodeTask
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.profiling import VirtualRig

A100 = GPU_TYPES["A100-SXM4-40GB"]
FAR = float("inf")
BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64)
PROMPTS = (64, 256, 512, 768, 1024, 1536, 2048)


@cache
def samples(gpus: int) -> tuple[fitting.Sample, ...]:
    """Llama-2-13B as the paper profiled it: every second clock of the A100, many batches and contexts."""
    model = step_model(A100, "llama-2-13b", gpus)
    rig = VirtualRig(model, EngineLimits(4096), seed=3)
    clocks = tuple(A100.supported_sm_mhz())[::2]
    points = [
        point
        for running in BATCHES
        for prompt in PROMPTS
        if running * (prompt + 64) <= model.kv_blocks * 16
        for point in rig.decode(DecodeTask(running, prompt, clocks))
    ]
    return tuple(
        fitting.Sample(gpus, point.running, point.kv_tokens, point.sm_mhz, 1.0 / point.tpot_seconds) for point in points
    )


@cache
def trained(share: float, gpus: tuple[int, ...]) -> tuple[dict, list[fitting.Sample]]:
    drawn = [sample for size in gpus for sample in samples(size)]
    random.Random(5).shuffle(drawn)
    known = round(share * len(drawn))
    return fitting.train(drawn[:known]), drawn[known:]


@pytest.mark.parametrize("share", [0.9, 0.1])
@pytest.mark.parametrize("gpus", [(1,), (2,)])
def test_it_learns_nine_tenths_from_one_and_one_tenth_from_nine_as_well_as_the_paper_says(share, gpus):
    learnt, others = trained(share, gpus)
    model = Performance(learnt, gpus[0])
    true = [sample.iterations_per_second for sample in others]
    guessed = [
        model.iterations_per_second(model.clocks_mhz.index(sample.sm_mhz), sample.running, sample.kv_tokens)
        for sample in others
    ]
    mean = fmean(true)
    unexplained = sum((one - other) ** 2 for one, other in zip(true, guessed, strict=True))
    assert 1.0 - unexplained / sum((value - mean) ** 2 for value in true) >= 0.97
    assert fmean(abs(one - other) for one, other in zip(true, guessed, strict=True)) < 1.0


def test_one_model_holds_engine_sizes_apart_and_the_table_is_the_trees(monkeypatch):
    seen = []
    fit = HistGradientBoostingRegressor.fit
    monkeypatch.setattr(HistGradientBoostingRegressor, "fit", lambda self, *data: seen.append(fit(self, *data)) or self)
    drawn = [*samples(1)[::20], *samples(2)[::20]]
    learnt = json.loads(json.dumps(fitting.train(drawn)))
    tables = {gpus: Performance(learnt, gpus) for gpus in (1, 2)}
    with threadpool_limits(1):
        logs = seen[0].predict([sample[:4] for sample in drawn])
    for sample, log in zip(drawn, logs, strict=True):
        table = tables[sample.gpus]
        clock = table.clocks_mhz.index(sample.sm_mhz)
        assert table.seconds(clock, sample.running, sample.kv_tokens) == pytest.approx(2.718281828**-log, rel=1e-4)


@cache
def model() -> Performance:
    return Performance(trained(0.1, (2,))[0], 2)


@given(batch=st.integers(1, 100), held=st.floats(1, 60_000))
@settings(deadline=None)
def test_a_higher_clock_is_never_slower(batch, held):
    seconds = [model().seconds(clock, batch, held) for clock in range(len(model().clocks_mhz))]
    assert seconds == sorted(seconds, reverse=True)


@given(
    shape=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3000), st.integers(1, 300)), min_size=1, max_size=5),
    clock=st.integers(0, 40),
)
@settings(deadline=None)
def test_a_walk_in_pieces_adds_up_every_iteration(shape, clock):
    clock = min(clock, len(model().clocks_mhz) - 1)
    segments = [
        Segment(batch, batch * tokens, steps, float(index)) for index, (batch, tokens, steps) in enumerate(shape)
    ]
    time, done, slowest, mean, late = 0.0, 0, 0.0, 0.0, -FAR
    for segment in segments:
        for step in range(segment.steps):
            each = 2.0 * model().seconds(clock, segment.batch, segment.held_tokens + step * segment.batch)
            time, done, slowest = time + each, done + 1, max(slowest, each)
            mean = max(mean, time / done)
        late = max(late, time + 1.0 - segment.due_seconds)
    pace = model().walk(clock, model().pieces(segments), first_seconds=0.5, slower=2.0)
    assert pace.seconds == pytest.approx(time + 1.0)
    assert (pace.slowest_seconds, pace.mean_seconds) == (pytest.approx(slowest), pytest.approx(mean))
    assert pace.late_seconds == pytest.approx(late)
    assert model().ends(clock, segments, slower=2.0)[-1] == pytest.approx(time)


def test_prompts_cost_what_the_profile_says_at_the_nearest_clock():
    points = [
        DecodePoint(mhz, running, 100.0 * running, 0.01, 200.0) for mhz in (600, 1200) for running in range(1, 12)
    ]
    drawn = [fitting.Sample(1, point.running, point.kv_tokens, point.sm_mhz, 100.0) for point in points]
    learnt = fitting.train(drawn, [PrefillPoint(600, 1000, 0.2, 300.0), PrefillPoint(1300, 1000, 0.1, 300.0)])
    assert learnt["prefill_seconds_per_token"] == pytest.approx([2e-4, 1e-4])
    assert fitting.train(drawn)["prefill_seconds_per_token"] == [0.0, 0.0]


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="3 decode points: at least 20 are needed"):
        fitting.train([fitting.Sample(1, 1, 1.0, 1000, 50.0)] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version is 9, this agent reads 1: profile again"),
        ({"trees": [[[1, 2.0]]]}, "damaged"),
        ({"trees": None}, "damaged"),
        ({"trees": [[[7, 2.0, 1, 2], [0.0], [1.0]]]}, "damaged"),
        ({"trees": [[[1, 2.0, 0, 9], [0.0]]]}, "damaged"),
        ({"clocks": [900, 300]}, r"clocks \(900, 300\): give them ascending"),
        ({"clocks": []}, "clocks"),
        ({"prefill_seconds_per_token": [0.0]}, "1 prefill times for"),
    ],
)
def test_a_fit_that_cannot_be_read_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        Performance({**trained(0.1, (2,))[0], **change}, 2)
