"""Nothing is lost or made up: requests, tokens, joules; the same arguments give the same run."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world_parts import PlainEngine, plain, policy, run_plain, steady

from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cluster import parse_cluster, uniform_cluster
from flyball_sim.world.faults import parse_fault
from flyball_sim.world.routers import ROUTERS
from flyball_sim.world.simulate import run_together

TWO_NODES = uniform_cluster(engines=4, gpus_per_node=2)

traces = st.lists(
    st.tuples(st.floats(0.0, 40.0), st.integers(1, 400), st.integers(1, 60)), min_size=1, max_size=40
).map(lambda rows: [TraceRequest(*row) for row in sorted(rows)])


def tokens_add_up(result):
    totals, outcomes = result.totals, result.outcomes
    unfinished = outcomes.output_tokens[outcomes.state == 3].sum()
    assert totals.offered_tokens == outcomes.output_tokens.sum()
    assert totals.offered_tokens == totals.finished_tokens + totals.dropped_tokens + unfinished


def energy_adds_up(result):
    series = result.series
    assert result.energy_joules == pytest.approx((series.watts * series.lengths).sum(), rel=1e-9)
    assert result.energy_joules == pytest.approx(
        sum(result.energy_by_engine_joules.values()) + result.idle_joules, rel=1e-9
    )
    engines = (series.engine_watts.astype(float) * series.lengths[:, None]).sum(axis=0)
    assert engines == pytest.approx(list(result.energy_by_engine_joules.values()), rel=1e-5)


@given(
    trace=traces,
    router=st.sampled_from(["round-robin", "least-requests", "weighted"]),
    lost_at=st.none() | st.floats(0.0, 40.0),
    requests=st.sampled_from(["lost", "retried"]),
    end=st.none() | st.floats(1.0, 60.0),
)
@settings(max_examples=40, deadline=None)
def test_every_request_and_every_joule_is_accounted_for(trace, router, lost_at, requests, end):
    faults = []
    if lost_at is not None:
        faults.append(parse_fault(f"gpu-lost:node=node-0,gpu=0,at={lost_at},requests={requests}"))
    result = run_plain(TWO_NODES, [], trace, router=router, faults=faults, end_seconds=end)
    arrived = [request for request in trace if end is None or request.arrival_seconds <= end]
    assert len(result.outcomes) == len(arrived)
    assert sum(map(result.outcomes.count, ("finished", "rejected", "lost", "unfinished"))) == len(arrived)
    if end is None:
        assert result.outcomes.count("unfinished") == 0
    tokens_add_up(result)
    energy_adds_up(result)
    for outcome in result.outcomes:
        assert outcome.ttft_seconds is None or outcome.ttft_seconds >= 0
        assert outcome.finished_seconds is None or outcome.finished_seconds <= result.end_seconds


def test_energy_is_that_of_every_machine_from_second_0_and_of_idle_cards():
    machines = []

    def make_engine(*arguments, **options):
        machines.append(PlainEngine(*arguments, **options))
        return machines[-1]

    cluster = parse_cluster(
        "nodes: [{name: node, gpu: H100-SXM5, gpus: 3}]\nengines: [{name: llm, model: llama-3.1-8b, replicas: 2}]"
    )
    simulation = plain(cluster, [], steady(20, seconds=30), end_seconds=50, make_engine=make_engine)
    simulation.run()
    result = simulation.result()
    warm_up = 60.0 * 100.0
    for machine, joules in zip(machines, result.energy_by_engine_joules.values(), strict=True):
        assert joules == pytest.approx(machine.energy_joules - warm_up, rel=1e-9)
    assert result.idle_joules == pytest.approx(50 * 72, rel=0.2)


@pytest.mark.parametrize("router", ROUTERS)
def test_a_run_without_an_end_ends_with_its_last_request(router):
    result = run_plain(requests=[TraceRequest(1.0, 100, 11)], router=router)
    assert result.end_seconds == pytest.approx(1.0 + 0.01 + 0.1)
    assert result.outcomes[0].ttft_seconds == pytest.approx(0.01)
    assert result.outcomes[0].tpot_seconds == pytest.approx(0.01)


def test_a_single_output_token_has_no_time_per_output_token():
    (outcome,) = run_plain(requests=[TraceRequest(1.0, 100, 1)]).outcomes
    assert outcome.state == "finished"
    assert outcome.tpot_seconds is None


def test_requests_are_taken_from_a_generator_one_by_one():
    taken = []

    def arrivals():
        for request in steady(50, seconds=50):
            taken.append(request)
            yield request

    simulation = plain(requests=arrivals(), end_seconds=10)
    assert taken == []
    simulation.run()
    assert len(taken) == 11
    assert len(simulation.result().outcomes) == 10


def test_a_trace_out_of_order_is_refused():
    with pytest.raises(ValueError, match="sort them"):
        run_plain(requests=[TraceRequest(5.0, 10, 10), TraceRequest(4.0, 10, 10)])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["sample_seconds", "end_seconds"])
def test_times_that_are_none_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*: give a number above 0"):
        plain(**{name: value})


PROGRAM = """
import sys
sys.path.insert(0, {parts!r})
from world_parts import policy, run_plain, steady
from flyball_sim.world.cluster import uniform_cluster
from flyball_sim.world.faults import parse_fault
faults = [parse_fault(text) for text in (
    "agent-gone:node=node-1,at=10,for=8", "operator-gone:at=20,for=20", "budget:policy=chat,at=30,watts=1500",
    "gpu-lost:node=node-0,gpu=1,at=35,requests=retried", "stale-metrics:at=5,for=12",
)]
policies = [policy(watts=2000, clock=1500), policy("other", mode="Observe", labels={{"app": "none"}})]
result = run_plain(
    uniform_cluster(engines=4, gpus_per_node=2), policies, steady(200, seconds=60), faults=faults, seed=7,
    end_seconds=80, sample_seconds=2,
)
print(result.digest())
"""


def test_the_same_arguments_give_the_same_run_in_any_process():
    program = PROGRAM.format(parts=str(Path(__file__).parent))
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(digests) == 1


def test_another_seed_draws_other_delays():
    def digest(seed):
        return run_plain(TWO_NODES, [policy(clock=1200)], steady(20, seconds=20), seed=seed, end_seconds=30).digest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_a_result_travels_between_processes():
    result = run_plain(TWO_NODES, [policy(clock=1200, watts=2000)], steady(20, seconds=20), end_seconds=30)
    assert pickle.loads(pickle.dumps(result)).digest() == result.digest()


def test_compared_runs_end_together():
    fast, slow = run_together([plain(policies=p, requests=steady(20, seconds=20)) for p in ([], [policy(clock=600)])])
    assert fast.end_seconds == slow.end_seconds
    assert fast.outcomes.count("finished") == slow.outcomes.count("finished") == 20
    assert np.nanmax(fast.outcomes.finished_seconds) < fast.end_seconds
