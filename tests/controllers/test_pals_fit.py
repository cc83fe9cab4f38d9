"""The offline model: accurate on configurations it has not seen, the same every time, and a table at run time."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest

from flyball_agent.controllers.pals.fit import fit
from flyball_agent.controllers.pals.table import read_table
from flyball_agent.profiles import Profile
from flyball_agent.profiling.plan import LoadTask, draw_lengths
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import step_model
from flyball_sim.profiling.virtual import VirtualRig

PAPER_CAPS = range(150, 401, 25)
PAPER_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)


@cache
def papers_profile(model, batches=PAPER_BATCHES):
    steps = step_model(gpu_type("A100-SXM4-80GB"), model, 4)
    rig = VirtualRig(steps, EngineLimits(8192))
    lengths = draw_lengths(256, 8192, 0)
    points = tuple(rig.load(LoadTask(cap, batch, lengths)) for cap in PAPER_CAPS for batch in batches)
    return Profile("a100", steps.gpu.product_name, model, 4, "modelled", "modelled", load=points)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_forests_err_no_more_than_the_papers_on_configurations_held_out(model):
    made = fit(papers_profile(model))
    assert made["throughput_error_percent"] <= 6.8
    assert made["power_error_percent"] <= 4.5
    assert made["accepted"]


def test_the_table_follows_the_points_it_was_made_of():
    profile = papers_profile("llama-3.1-8b")
    table = {(one.cap_watts, one.batch_limit): one for one in read_table(fit(profile), 4).candidates}
    errors = [
        abs(table[point.cap_watts, point.batch_limit].tokens_per_second / point.tokens_per_second - 1)
        for point in profile.load
    ]
    assert sum(errors) / len(errors) < 0.05
    assert (155, 64) in table


def test_the_same_profile_gives_the_same_model_and_it_is_json():
    profile = papers_profile("llama-3.1-8b", (1, 16, 64))
    made = fit(profile)
    assert made == fit(profile)
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_a_profile_with_a_coarse_grid_is_not_accepted():
    profile = papers_profile("llama-3.1-8b")
    coarse = [point for point in profile.load if point.cap_watts in {150, 250, 350} and point.batch_limit != 2]
    assert not fit(replace(profile, load=tuple(coarse)))["accepted"]


def test_too_few_points_are_refused_with_the_mend():
    profile = papers_profile("llama-3.1-8b")
    with pytest.raises(ValueError, match="has 9 load points of 4 GPUs and PALS needs 20: let flyball profile run"):
        fit(replace(profile, load=profile.load[:9]))


def test_points_of_another_group_size_are_no_points_of_this_one():
    profile = papers_profile("llama-3.1-8b")
    with pytest.raises(ValueError, match="has 0 load points of 2 GPUs"):
        fit(replace(profile, gpus=2))


def test_an_agent_that_runs_pals_does_not_load_scikit_learn():
    code = "import sys, flyball_agent.controllers.pals.controller; print('sklearn' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
