"""Plans that are useful wherever they are cut, sweeps that go on, and the profile of a modelled engine."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.profiles import DecodePoint, LoadPoint, PrefillPoint
from flyball_agent.profiling import fits
from flyball_agent.profiling.plan import DecodeTask, Ground, evenly, make_plan, spread
from flyball_agent.profiling.points import PointsError, PointsFile
from flyball_agent.profiling.rig import RigError
from flyball_agent.profiling.sweep import run_sweep
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.profiling import profile_engine

CLOCKS = tuple(range(345, 1981, 15))
GROUND = Ground(CLOCKS, 200.0, 700.0, 1, 256, 8192, kv_tokens=400_000)
SUBJECT = {"product": "H100", "gpus": 1}


class CountingRig:
    def __init__(self, fail_after=10**9):
        self.measured = []
        self.left = fail_after

    def _one(self, name):
        if self.left == 0:
            raise RigError("the engine is gone")
        self.left -= 1
        self.measured.append(name)

    def decode(self, task):
        for mhz in task.clocks_mhz:
            self._one(task.key(mhz))
            yield DecodePoint(mhz, task.running, 100.0, 0.01, 300.0)

    def prefill(self, task):
        for mhz in task.clocks_mhz:
            self._one(task.key(mhz))
            yield PrefillPoint(mhz, task.prompt_tokens, 0.01, 300.0)

    def load(self, task):
        self._one(task.key())
        return LoadPoint(task.cap_watts, task.batch_limit, 1, 100.0, 300.0, 0.01)


@given(st.lists(st.integers(), unique=True))
def test_spreading_loses_nothing_and_begins_with_both_ends(values):
    order = spread(values)
    assert sorted(order) == sorted(values)
    assert order[:2] == ([values[0], values[-1]] if len(values) > 1 else values)


@given(st.integers(2, 40), st.integers(2, 200))
def test_evenly_spread_clocks_have_both_ends(count, size):
    chosen = evenly(range(size), count)
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, size - 1, min(count, size))


def test_no_batch_is_planned_that_the_kv_cache_or_the_context_does_not_hold():
    plan = make_plan(GROUND)
    for task in plan.tasks:
        if isinstance(task, DecodeTask):
            assert task.running * (task.prompt_tokens + 1024) <= 0.9 * GROUND.kv_tokens
            assert task.prompt_tokens + 1024 <= GROUND.max_model_len


def test_the_first_tenth_of_a_plan_has_all_three_tables_and_both_ends_of_the_clocks():
    names = make_plan(GROUND).names()
    early = list(islice(names, len(names) // 10))
    assert {name.split("/")[0] for name in early} == {"decode", "prefill", "load"}
    assert {"345", "1980"} <= {name.split("/")[-1] for name in early}
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("wish", "named"), [({"clocks": [346]}, "clock 346 MHz"), ({"caps": [100]}, "cap 100 W is outside")]
)
def test_what_the_card_does_not_take_is_refused(wish, named):
    with pytest.raises(ValueError, match=named):
        make_plan(GROUND, **wish)


def test_a_sweep_that_breaks_off_loses_nothing_and_goes_on_with_what_is_missing(tmp_path):
    plan = make_plan(GROUND, clocks=[345, 990, 1980], batches=[1, 8])
    file = PointsFile(tmp_path / "chat.points", SUBJECT)
    first = CountingRig(fail_after=7)
    with pytest.raises(RigError):
        run_sweep(plan, first, measured=file.load(), keep=file.keep, time_left=lambda: True)
    second = CountingRig()
    again = PointsFile(tmp_path / "chat.points", SUBJECT)
    end = run_sweep(plan, second, measured=again.load(), keep=again.keep, time_left=lambda: True)
    assert len(first.measured) == 7
    assert sorted(first.measured + second.measured) == sorted(plan.names())
    assert end.left == 0
    assert set(again.load()) == set(plan.names())


def test_a_sweep_ends_when_its_time_is_up_and_says_what_is_left():
    plan = make_plan(GROUND)
    rig = CountingRig()
    end = run_sweep(plan, rig, measured={}, keep=lambda *_: None, time_left=lambda: len(rig.measured) < 10)
    assert len(end.points) == 10
    assert end.left == len(plan.names()) - 10


def test_points_of_another_engine_are_not_gone_on_from(tmp_path):
    PointsFile(tmp_path / "p", SUBJECT).load()
    with pytest.raises(PointsError, match="give another --points"):
        PointsFile(tmp_path / "p", {**SUBJECT, "gpus": 2}).load()


def test_a_line_cut_short_is_measured_again_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "p"
    file = PointsFile(path, SUBJECT)
    file.load()
    file.keep("load/200/4", LoadPoint(200, 4, 1, 100.0, 190.0, 0.01))
    path.write_text(path.read_text() + '{"key": "lo')
    assert set(file.load()) == {"load/200/4"}
    path.write_text(path.read_text() + '{"key": "load/1/1", "row": [1]}\n')
    with pytest.raises(PointsError, match="line 3 cannot be read"):
        file.load()


def test_a_controller_without_a_fit_is_named_and_costs_nothing_else(monkeypatch):
    monkeypatch.setattr(fits, "FITS", {"PALS": "flyball_agent.controllers.nothing.fit"})
    fitted = fits.with_fits(_small_profile(), ["PALS"])
    assert fitted.profile.fits == {}
    assert "controller PALS has no fit here" in fitted.troubles[0]


def _small_profile(**wish):
    model = step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1)
    limits = EngineLimits(max_model_len=8192)
    return profile_engine(model, limits, clocks=[345, 990, 1980], batches=[1, 32], caps=[300, 700], fits=(), **wish)


def test_a_modelled_profile_slows_and_saves_with_the_clock_and_fills_with_the_batch():
    profile = _small_profile(noise=0.0)
    by_clock = {(p.sm_mhz, p.running): p for p in profile.decode if p.kv_tokens < 200 * p.running}
    assert by_clock[345, 32].tpot_seconds > by_clock[990, 32].tpot_seconds > by_clock[1980, 32].tpot_seconds
    assert by_clock[345, 32].power_watts < by_clock[990, 32].power_watts < by_clock[1980, 32].power_watts
    assert by_clock[1980, 32].tpot_seconds > by_clock[1980, 1].tpot_seconds
    load = {(p.cap_watts, p.batch_limit): p for p in profile.load}
    assert load[300, 64].tokens_per_second < load[700, 64].tokens_per_second
    assert load[700, 4].tokens_per_second < load[700, 64].tokens_per_second
    assert load[300, 64].power_watts < 305


def test_a_modelled_profile_is_drawn_from_its_seed_alone():
    assert _small_profile(seed=3) == _small_profile(seed=3)
    assert _small_profile(seed=3) != _small_profile(seed=4)
