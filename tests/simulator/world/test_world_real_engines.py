"""The simulator's own engines and cards under the real control plane, in short runs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from world_parts import policy, steady

from flyball_agent.controllers.registry import make_controller
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cluster import parse_cluster, uniform_cluster
from flyball_sim.world.direct import run_engine
from flyball_sim.world.faults import parse_fault
from flyball_sim.world.layout import lay_out
from flyball_sim.world.machines import make_machine
from flyball_sim.world.simulate import Simulation, run

TWO = uniform_cluster(engines=2)
TRACE = steady(60, seconds=20, prompt=1000, output=150)


def run_real(policies, trace=TRACE, cluster=TWO, **options):
    return run(cluster, policies, trace, **{"sample_seconds": 1, "end_seconds": 30, **options})


def test_a_lower_clock_takes_less_energy_and_nothing_is_lost():
    free, held = run_real([]), run_real([policy(clock=1200)])
    assert free.outcomes.count("finished") == held.outcomes.count("finished") == len(TRACE)
    assert held.energy_joules < 0.9 * free.energy_joules
    assert np.mean(held.outcomes.tpot_seconds) > np.mean(free.outcomes.tpot_seconds)
    assert set(held.series.engine_sm_mhz.ravel()) == {1200.0}


def test_observe_changes_nothing():
    alone, watched = run_real([]), run_real([policy(clock=1200, watts=900)], mode="Observe")
    assert watched.energy_joules == pytest.approx(alone.energy_joules, rel=1e-6)
    assert watched.outcomes.finished_seconds == pytest.approx(alone.outcomes.finished_seconds, rel=1e-6)


def test_a_budget_cut_lowers_power_and_is_never_broken():
    cut = parse_fault("budget:at=10,watts=500")
    result = run_real([policy(watts=1400, reserve=0)], faults=[cut])
    watts = result.series.watts
    assert watts[5:10].mean() > 600
    assert watts[13:19].mean() < 520
    assert result.breaches == ()
    assert result.overshoot.seconds < 2


def test_energy_adds_up_with_real_cards():
    result = run_real([policy(clock=1500, watts=1000)])
    assert result.energy_joules == pytest.approx((result.series.watts * result.series.lengths).sum(), rel=1e-9)
    assert result.totals.offered_tokens == result.totals.finished_tokens == 60 * 150


def test_prompts_and_answers_on_different_engines():
    cluster = parse_cluster(
        "nodes: [{name: n, gpu: H100-SXM5, gpus: 2}]\n"
        "engines: [{name: pre, model: llama-3.1-8b, role: prefill}, {name: dec, model: llama-3.1-8b, role: decode}]\n"
        "pools: [{name: pd, prefill: [pre], decode: [dec]}]"
    )
    result = run_real([], cluster=cluster)
    assert result.outcomes.count("finished") == len(TRACE)
    alone = run_real([], cluster=uniform_cluster(engines=1))
    # Decode steps are not held up by other requests' prompts, and the first token pays the way there.
    assert np.mean(result.outcomes.tpot_seconds) < np.mean(alone.outcomes.tpot_seconds)
    assert result.outcomes.ttft_seconds.min() > alone.outcomes.ttft_seconds.min() + 0.005


def test_a_world_of_one_engine_comes_to_what_the_direct_way_does():
    held = policy(clock=1200)
    engine = lay_out(uniform_cluster()).engines[0]
    machine = make_machine(engine.model, engine.limits, dies=(), seed=1, start_seconds=-60.0, ready_seconds=-60.0)
    controller = make_controller(held.spec.controller, observe=False)
    direct = run_engine(machine, TRACE, controller, model=engine.model, end_seconds=30)
    world = run_real([held], cluster=uniform_cluster())
    assert direct.outcomes.count("finished") == world.outcomes.count("finished")
    assert world.outcomes.tpot_seconds.mean() == pytest.approx(direct.outcomes.tpot_seconds.mean(), rel=0.01)
    assert world.energy_joules == pytest.approx(direct.energy_joules, rel=0.05)  # its die is drawn


def test_an_overloaded_engine_rejects_and_the_end_leaves_some_unfinished():
    cluster = parse_cluster(
        "nodes: [{name: n, gpu: H100-SXM5, gpus: 1}]\n"
        "engines: [{name: a, model: llama-3.1-8b, limits: {max_num_seqs: 4, max_num_queued_reqs: 5}}]"
    )
    result = run_real([], [TraceRequest(1.0, 500, 3000) for _ in range(20)], cluster, end_seconds=10)
    assert result.outcomes.count("rejected") > 0
    assert result.outcomes.count("unfinished") > 0
    assert sum(map(result.outcomes.count, ("finished", "rejected", "lost", "unfinished"))) == 20


def test_a_lost_card_ends_its_tensor_parallel_engine():
    cluster = uniform_cluster("llama-3.1-70b", engines=2, gpus=4)
    fault = parse_fault("gpu-lost:node=node-0,gpu=2,at=5,requests=retried")
    result = run_real([policy(watts=3000)], steady(20, seconds=10, output=50), cluster, faults=[fault], end_seconds=40)
    assert result.outcomes.count("finished") == 20
    assert result.series.engine_watts[10:, 0].max() < 4 * 80
    assert result.breaches == ()


PROGRAM = """
import sys
sys.path.insert(0, {parts!r})
from world_parts import policy, steady
from flyball_sim.world.cluster import uniform_cluster
from flyball_sim.world.simulate import run
trace = steady(30, seconds=10, prompt=1000, output=100)
print(run(uniform_cluster(engines=2), [policy(watts=800)], trace, seed=3, end_seconds=15).digest())
"""


def test_real_engines_too_give_the_same_run_in_any_process():
    program = PROGRAM.format(parts=str(Path(__file__).parent))
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "77")
    }
    assert len(digests) == 1


def test_a_run_can_be_watched_as_it_goes():
    seen = []
    simulation = Simulation(TWO, [], TRACE, end_seconds=20, sample_seconds=5, progress=seen.append)
    simulation.run()
    assert seen == [5.0, 10.0, 15.0, 20.0]
    assert simulation.result().watts_peak == simulation.result().series.watts.max()
