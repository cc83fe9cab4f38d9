"""Which engine gets what, and requests that go from a prefill to a decode engine."""

from collections import Counter

import numpy as np
import pytest
from world_parts import PlainEngine, policy, run_plain, steady

from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cluster import parse_cluster, uniform_cluster
from flyball_sim.world.faults import parse_fault
from flyball_sim.world.routers import ROUTERS, make_router

THREE = uniform_cluster(engines=3)


def shares(result):
    return Counter(outcome.engine for outcome in result.outcomes)


def test_round_robin_takes_each_in_turn():
    result = run_plain(THREE, [], steady(7, seconds=7), router="round-robin")
    assert [outcome.engine for outcome in result.outcomes] == [f"llm-{index % 3}" for index in range(7)]


def test_least_requests_avoids_the_busy_engine():
    long, short = TraceRequest(0.1, 100, 3000), [TraceRequest(1.0 + second, 100, 10) for second in range(20)]
    result = run_plain(THREE, [], [long, *short])
    assert shares(result)["llm-0"] == 1


def test_least_requests_counts_what_is_in_flight_exactly():
    seen = []

    class Spy:
        def __init__(self):
            self.inner, self.engines = ROUTERS["least-requests"](), []

        def join(self, engine):
            self.engines.append(engine)
            self.inner.join(engine)

        def leave(self, engine):
            self.inner.leave(engine)

        def choose(self, request, now_seconds):
            chosen = self.inner.choose(request, now_seconds)
            seen.append((chosen.in_flight, [engine.running for engine in self.engines]))
            return chosen

        def counted(self, engine):
            self.inner.counted(engine)

    run_plain(THREE, [], steady(200, seconds=20), router=Spy)
    assert len(seen) == 200
    for count, running in seen:
        assert count == min(running)


def test_weights_share_requests_in_proportion():
    cluster = parse_cluster(
        "nodes: [{name: n, gpu: H100-SXM5, gpus: 2}]\n"
        "engines: [{name: a, model: llama-3.1-8b, weight: 3}, {name: b, model: llama-3.1-8b}]"
    )
    result = run_plain(cluster, [], steady(80, seconds=40), router="weighted")
    assert shares(result) == {"a-0": 60, "b-0": 20}


@pytest.mark.parametrize("router", ROUTERS)
def test_an_engine_that_starts_later_or_dies_gets_nothing_meanwhile(router):
    cluster = parse_cluster(
        "nodes: [{name: n, gpu: H100-SXM5, gpus: 3}]\n"
        "engines: [{name: a, model: llama-3.1-8b, replicas: 2}, {name: late, model: llama-3.1-8b, ready_seconds: 10}]"
    )
    faults = [parse_fault("gpu-lost:node=n,gpu=1,at=20")]
    result = run_plain(cluster, [], steady(60, seconds=30), router=router, faults=faults)
    for outcome in result.outcomes:
        if outcome.engine == "late-0":
            assert outcome.arrival_seconds >= 10
        if outcome.engine == "a-1":
            assert outcome.arrival_seconds <= 20
    assert {outcome.engine for outcome in result.outcomes if outcome.arrival_seconds > 21} == {"a-0", "late-0"}


def test_an_unknown_router_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'least-requests'"):
        make_router("least-request")


def test_a_router_of_ones_own_sees_what_engines_are_doing():
    class Coolest:
        def __init__(self):
            self.engines = []

        def join(self, engine):
            self.engines.append(engine)

        def leave(self, engine):
            self.engines.remove(engine)

        def choose(self, _request, _now_seconds):
            return min(
                self.engines, key=lambda engine: (engine.sm_mhz, engine.kv_usage, engine.running, engine.waiting)
            )

        def counted(self, engine):
            assert engine.page().values["requests_running"] == engine.running

    slow = policy(clock=900, labels={"pace": "slow"})
    cluster = parse_cluster(
        "nodes: [{name: n, gpu: H100-SXM5, gpus: 2}]\nengines:\n"
        "- {name: fast, model: llama-3.1-8b, labels: {pace: fast}}\n"
        "- {name: slow, model: llama-3.1-8b, labels: {pace: slow}}"
    )
    result = run_plain(cluster, [slow], steady(20, seconds=10), router=Coolest)
    assert shares(result) == {"slow-0": 20}


def test_cached_prefixes_need_no_prefill():
    cluster = "nodes: [{{name: n, gpu: H100-SXM5, gpus: 1}}]\nengines: [{{name: a, model: llama-3.1-8b{}}}]"
    without, half, nearly = (
        run_plain(parse_cluster(cluster.format(more)), [], [TraceRequest(1.0, 1000, 5)]).outcomes[0].ttft_seconds
        for more in ("", ", prefix_cache_share: 0.5", ", prefix_cache_share: 0.9999")
    )
    assert without == pytest.approx(0.1)
    assert half == pytest.approx(1e-4 * (1000 - 496))  # whole blocks of 16
    assert nearly == pytest.approx(1e-4 * (1000 - 992))


DISAGGREGATED = """
nodes: [{name: n, gpu: H100-SXM5, gpus: 4}]
engines:
- {name: pre, model: llama-3.1-8b, replicas: 2, role: prefill}
- {name: dec, model: llama-3.1-8b, replicas: 2, role: decode}
pools: [{name: pd, prefill: [pre], decode: [dec], transfer_gigabytes_per_second: 10, transfer_latency_seconds: 0.02}]
"""


def test_decode_begins_when_keys_and_values_have_travelled():
    cluster = parse_cluster(DISAGGREGATED)
    (outcome,) = run_plain(cluster, [], [TraceRequest(1.0, 1000, 11)]).outcomes
    travel = 0.02 + 1000 * 131_072 / 1e9 / 10
    last_prompt_token = 1e-4
    assert outcome.engine.startswith("dec-")
    assert outcome.ttft_seconds == pytest.approx(0.1 + travel + last_prompt_token)
    assert outcome.tpot_seconds == pytest.approx(0.01)


@pytest.mark.parametrize("router", ROUTERS)
def test_both_sides_of_a_pool_share_the_work_and_nothing_is_lost(router):
    result = run_plain(parse_cluster(DISAGGREGATED), [], steady(60, seconds=20, prompt=300), router=router)
    assert result.outcomes.count("finished") == 60
    assert result.totals.finished_tokens == result.totals.offered_tokens
    assert set(shares(result)) == {"dec-0", "dec-1"}
    busy = (result.series.engine_watts > 101).any(axis=0)
    assert busy.all()


@pytest.mark.parametrize("gpu", [0, 2])
@pytest.mark.parametrize("requests", ["lost", "retried"])
def test_a_pool_loses_an_engine_and_accounts_for_its_requests(gpu, requests):
    faults = [parse_fault(f"gpu-lost:node=n,gpu={gpu},at=5,requests={requests}")]
    result = run_plain(parse_cluster(DISAGGREGATED), [], steady(200, seconds=20, prompt=3000), faults=faults)
    assert result.outcomes.count("finished") + result.outcomes.count("lost") == 200
    assert (result.outcomes.count("lost") > 0) == (requests == "lost")


def test_roles_reach_the_controllers():
    labels = "labels: {app: llm, llm-d.ai/role: "
    text = DISAGGREGATED.replace("role: prefill}", "role: prefill, " + labels + "prefill}}")
    text = text.replace("role: decode}", "role: decode, " + labels + "decode}}")
    held = policy(
        controller={
            "type": "Fixed",
            "fixed": {
                "clocks": [
                    {"role": "prefill", "minMegahertz": 1500, "maxMegahertz": 1500},
                    {"role": "decode", "minMegahertz": 900, "maxMegahertz": 900},
                ]
            },
        }
    )
    result = run_plain(parse_cluster(text), [held], steady(20, seconds=10), end_seconds=15)
    assert result.series.engine_sm_mhz[-1].tolist() == [1500, 1500, 900, 900]


def test_a_tensor_parallel_group_runs_as_its_slowest_card_lets_it():
    machines = []

    def make_engine(*arguments, **options):
        machines.append(PlainEngine(*arguments, **options))
        return machines[-1]

    cluster = uniform_cluster("llama-3.1-70b", engines=1, gpus=4)
    result = run_plain(
        cluster,
        [policy(clock=1200, watts=2000, reserve=0)],
        steady(5, seconds=5),
        make_engine=make_engine,
        end_seconds=9,
    )
    locks = [entry for entry in machines[0].told if entry[1] == "lock"]
    assert [lock for _, _, lock in locks] == [(1200, 1200)]
    assert {entry[2] for entry in machines[0].told if entry[1] == "cap"} == {500.0}
    assert np.all(result.series.engine_cap_watts == 500)
