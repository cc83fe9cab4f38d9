"""Agents, operators, API servers and cards that fail, and what a budget's promise is worth then."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world_parts import plain, policy, run_plain, steady

from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.apiserver import ApiServer
from flyball_sim.world.cluster import uniform_cluster
from flyball_sim.world.delays import Delays
from flyball_sim.world.events import EventQueue
from flyball_sim.world.faults import (
    AgentGone,
    ApiGone,
    BudgetCut,
    DelayedGrants,
    FaultError,
    GpuLost,
    OperatorGone,
    StaleMetrics,
    parse_fault,
    read_faults,
    text_of,
)

TWO_NODES = uniform_cluster(engines=4, gpus_per_node=2)
TOP_MHZ = 1980.0


def clocks(result, engine=0):
    """SM clock by second (of samples of one second)."""
    return dict(zip(result.series.seconds.round().astype(int), result.series.engine_sm_mhz[:, engine], strict=True))


def caps(result):
    """Sum of the caps in force by second."""
    series = result.series
    return dict(zip(series.seconds.round().astype(int), series.policies["chat"].caps_watts, strict=True))


def run_with(faults, policies=None, end=60, **options):
    texts = [faults] if isinstance(faults, str) else faults
    return run_plain(
        TWO_NODES,
        [policy(clock=1200, watts=2000, reserve=0)] if policies is None else policies,
        steady(4 * end, seconds=end),
        faults=[parse_fault(text) for text in texts],
        end_seconds=end,
        sample_seconds=1,
        **options,
    )


# -- what each fault does --------------------------------------------------------------------------------------


def test_without_faults_clocks_and_caps_are_in_force_from_second_0():
    result = run_with([])
    assert set(clocks(result).values()) == {1200.0}
    assert set(caps(result).values()) == {2000.0}
    assert result.breaches == ()


def test_an_agent_that_hangs_loses_its_lease_so_clocks_unlock_and_caps_stay():
    result = run_with("agent-gone:node=node-0,at=20,for=15")
    seen = clocks(result)
    assert seen[21] == 1200
    assert {seen[second] for second in range(25, 35)} == {TOP_MHZ}
    assert seen[37] == 1200
    assert set(caps(result).values()) == {2000.0}
    assert set(clocks(result, engine=2).values()) == {1200.0}


def test_a_killed_agent_unlocks_at_once_and_another_takes_over():
    result = run_with("agent-gone:node=node-0,at=20,for=10,how=killed")
    seen = clocks(result)
    assert {seen[second] for second in range(21, 30)} == {TOP_MHZ}
    assert seen[32] == 1200
    assert set(caps(result).values()) == {2000.0}
    assert result.breaches == ()


def test_without_an_operator_nodes_go_on_as_they_are_and_its_successor_knows_the_ledger():
    result = run_with("operator-gone:at=10,for=30")
    assert set(clocks(result).values()) == {1200.0}
    assert set(caps(result).values()) == {2000.0}
    (last,) = [snapshot for snapshot in result.statuses if snapshot.seconds == 60]
    assert last.status["ledger"]["deficitWatts"] == 0
    assert result.breaches == ()


def test_a_budget_cut_while_the_operator_is_gone_waits_for_the_next_one():
    result = run_with(["operator-gone:at=10,for=20", "budget:at=15,watts=1200"])
    seen = caps(result)
    assert {seen[second] for second in range(15, 30)} == {2000.0}
    assert seen[50] == 1200.0
    assert result.breaches == ()


def test_a_budget_cut_takes_effect_within_seconds_and_is_said_in_status():
    result = run_with("budget:at=20,watts=1200")
    assert (caps(result)[20], caps(result)[23]) == (2000.0, 1200.0)
    budgets = result.series.policies["chat"].budget_watts
    assert (budgets[18], budgets[30]) == (2000.0, 1200.0)
    assert result.breaches == ()


def test_a_raised_budget_is_used():
    result = run_with("budget:at=20,watts=2600")
    assert caps(result)[40] == 2600.0


def test_a_lost_gpu_ends_its_engine_and_its_watts_stay_charged():
    result = run_with("gpu-lost:node=node-0,gpu=1,at=30")
    assert result.outcomes.count("lost") > 0
    lost = result.outcomes.decided_seconds[result.outcomes.state == 2]
    assert set(lost) == {30.0}
    after = result.series.seconds > 31
    assert set(result.series.engine_running[after, 1]) == {0}
    assert result.series.engine_watts[after, 1].max() < 100
    ledger = result.statuses[-1].status["ledger"]
    assert ledger["enforcedWatts"] + ledger["inFlightWatts"] + ledger["unknownWatts"] <= 2000
    degraded = next(entry for entry in result.statuses[-1].status["conditions"] if entry["type"] == "Degraded")
    assert "GpuLost" in degraded["message"]


def test_clients_may_send_the_requests_of_a_dead_engine_again():
    result = run_with("gpu-lost:node=node-0,gpu=1,at=30,requests=retried", end=70)
    assert result.outcomes.count("lost") == 0
    assert result.totals.retries > 0
    retried = np.nanmax(result.outcomes.ttft_seconds)
    assert retried > 0.1  # counted from when it came first


def test_metrics_that_do_not_come_unlock_clocks_after_the_policys_patience():
    result = run_with("stale-metrics:at=20,for=20,engine=llm-0")
    seen = clocks(result)
    assert seen[23] == 1200
    assert {seen[second] for second in range(27, 40)} == {TOP_MHZ}
    assert seen[45] == 1200
    assert set(clocks(result, engine=1).values()) == {1200.0}


def test_a_frozen_page_looks_fresh():
    result = run_with("stale-metrics:at=20,for=20,how=frozen")
    assert set(clocks(result).values()) == {1200.0}


def test_grants_that_are_late_are_acknowledged_late():
    result = run_with(["delayed-grants:at=10,for=40,delay=15", "budget:at=20,watts=1200"])
    seen = caps(result)
    assert seen[30] > 1200.0
    assert seen[40] == 1200.0
    budget, deficit = (
        result.series.policies["chat"].budget_watts,
        result.series.policies["chat"].ledger_watts["deficit"],
    )
    assert budget[25] == 1200.0
    assert deficit[25] == 800.0
    assert result.breaches == ()


def test_with_the_api_server_gone_nodes_go_on_as_they_are():
    result = run_with(["api-gone:at=10,for=25", "budget:at=36,watts=1200"], end=80)
    assert set(clocks(result).values()) == {1200.0}
    assert caps(result)[75] == 1200.0
    assert result.breaches == ()


def test_faults_that_overlap_last_until_the_last_of_them_ends():
    seen = clocks(run_with(["agent-gone:node=node-0,at=10,for=10", "agent-gone:node=node-0,at=15,for=20"]))
    assert {seen[second] for second in range(15, 34)} == {TOP_MHZ}
    assert seen[40] == 1200
    silent = ["stale-metrics:at=10,for=30,engine=llm-0", "stale-metrics:at=12,for=2,engine=llm-0"]
    seen = clocks(run_with(silent))
    assert {seen[second] for second in range(18, 39)} == {TOP_MHZ}


def test_an_operator_that_is_gone_stays_gone_while_the_api_server_comes_back():
    result = run_with(["operator-gone:at=10,for=60", "api-gone:at=12,for=15", "budget:at=30,watts=1200"], end=100)
    seen = caps(result)
    assert seen[69] == 2000.0
    assert seen[99] == 1200.0
    assert result.breaches == ()


def test_late_news_never_overtakes_newer_news():
    queue = EventQueue()
    api = ApiServer(queue, Delays(), seed=1)
    watch = api.watch("agent")
    watch.extra_seconds = 5.0
    seen = []
    api.follow_policies(watch, lambda raw: seen.append((raw["metadata"]["generation"], queue.now)))
    document = {"metadata": {"name": "p", "finalizers": []}, "spec": {}}
    queue.at(58.0, api.put_policy, document)
    queue.at(62.0, api.put_policy, document)
    queue.run(62.5, lambda: True)
    api.gone_until = 68.0
    queue.run(100.0, lambda: True)
    assert [generation for generation, _ in seen] == [1, 2]
    assert min(at for _, at in seen) >= 68.0


# -- the promise -----------------------------------------------------------------------------------------------

moments = st.floats(0.0, 50.0)
spans = st.sampled_from([0.5, 4.0, 12.0, 40.0])
nodes = st.sampled_from(["node-0", "node-1"])
faults = st.one_of(
    st.builds(AgentGone, node=nodes, at_seconds=moments, for_seconds=spans, how=st.sampled_from(["hung", "killed"])),
    st.builds(OperatorGone, at_seconds=moments, for_seconds=spans),
    st.builds(ApiGone, at_seconds=moments, for_seconds=spans),
    st.builds(GpuLost, node=nodes, gpu=st.integers(0, 1), at_seconds=moments),
    st.builds(StaleMetrics, at_seconds=moments, for_seconds=spans, engine=st.sampled_from(["", "llm-1"])),
    st.builds(
        DelayedGrants,
        at_seconds=moments,
        for_seconds=spans,
        delay_seconds=st.sampled_from([1.0, 10.0]),
        node=st.sampled_from(["", "node-0"]),
    ),
    st.builds(BudgetCut, at_seconds=moments, watts=st.sampled_from([800, 1200, 1700, 2400, 2800])),
)


@given(
    happening=st.lists(faults, max_size=6),
    seed=st.integers(1, 1000),
    watts=st.sampled_from([900, 1600, 2500]),
    reserve=st.sampled_from([None, 0, 150]),
)
@settings(max_examples=40, deadline=None)
def test_caps_in_force_never_exceed_an_acknowledged_budget_under_any_fault_of_software(happening, seed, watts, reserve):
    simulation = plain(
        TWO_NODES,
        [policy(clock=1500, watts=watts, reserve=reserve)],
        steady(60, seconds=60),
        faults=happening,
        seed=seed,
        end_seconds=110,
    )
    simulation.run()
    result = simulation.result()
    assert result.breaches == ()
    budgets = result.series.policies["chat"].budget_watts
    assert not np.isnan(budgets).any(), "the budget was acknowledged before the trace began"


def test_a_cap_above_the_budget_is_found():
    simulation = plain(TWO_NODES, [policy(watts=2000, reserve=0)], steady(10, seconds=10), end_seconds=20)
    simulation.extend(5.0)
    card = min(simulation._cards["node-1"], key=lambda card: card.cap_watts)
    before = card.cap_watts
    card.set_cap(700.0)
    simulation.extend(20.0)
    (breach,) = simulation.result().breaches
    assert (breach.policy, breach.seconds, breach.excess_watts) == ("chat", 5.0, 700.0 - before)
    assert 0 < breach.duration_seconds < 2  # the governor puts it back


# -- words -----------------------------------------------------------------------------------------------------


@given(fault=faults)
def test_a_fault_is_written_as_it_is_read(fault):
    assert parse_fault(text_of(fault)) == fault


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("agent-gon:node=n0,at=1,for=1", "did you mean 'agent-gone'"),
        ("agent-gone:node=n0,at=1", "for is missing: write agent-gone:node=node-0,at=60,for=30"),
        ("agent-gone:node=n0,at=soon,for=1", "at is 'soon': give a number"),
        ("agent-gone:node=n0,at=-1,for=1", "at is -1: give 0 or more"),
        ("agent-gone:node=n0,at=1,for=1,who=me", "has no 'who': did you mean 'how'"),
        ("agent-gone:node=n0,at=1,for=1,how=dead", "give hung or killed"),
        ("gpu-lost:node=n0,gpu=one,at=1", "give a whole number"),
        ("budget:1200", "is no name=value"),
        ("budget:at=1,watts=1_000", "watts is '1_000': give a whole number"),
        ("agent-gone:node=a,node=b,at=1,for=1", "node is given twice: give it once"),
    ],
)
def test_a_fault_that_is_none_is_refused_with_the_mend(text, mend):
    with pytest.raises(FaultError, match=mend.replace("(", "\\(")):
        parse_fault(text)


def test_faults_come_from_a_file_too(tmp_path):
    path = tmp_path / "faults.yaml"
    path.write_text("- agent-gone:node=n0,at=60,for=30\n- gpu-lost: {node: n1, gpu: 2, at: 5}\n")
    assert read_faults(path) == (
        AgentGone(node="n0", at_seconds=60, for_seconds=30),
        GpuLost(node="n1", gpu=2, at_seconds=5),
    )
    path.write_text("agent-gone: 3")
    with pytest.raises(FaultError, match="holds no list"):
        read_faults(path)


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("agent-gone:node=n9,at=1,for=1", "no node 'n9': give one of node-0, node-1"),
        ("gpu-lost:node=node-0,gpu=7,at=1", "has GPUs 0 to 1"),
        ("stale-metrics:at=1,for=1,engine=x", "no engine 'x'"),
        ("budget:at=1,watts=900,policy=x", "no policy 'x'"),
    ],
)
def test_a_fault_of_what_is_not_there_is_refused(text, mend):
    with pytest.raises(FaultError, match=mend):
        run_with(text)


def test_a_budget_below_its_reserve_is_refused_in_the_models_words():
    with pytest.raises(FaultError, match="reserve of 500 W is not below the budget of 400 W"):
        run_with("budget:at=1,watts=400", [policy(watts=2000, reserve=500)])


def test_a_budget_of_a_policy_without_one_is_refused():
    with pytest.raises(FaultError, match="has no powerBudget"):
        run_with("budget:at=1,watts=400", [policy(clock=1200)])


# -- modes -----------------------------------------------------------------------------------------------------


def test_observe_changes_nothing_and_says_what_enforce_would_do():
    trace = steady(100, seconds=60)
    watched = run_plain(TWO_NODES, [policy(clock=1200, watts=2000)], trace, mode="Observe", end_seconds=70)
    alone = run_plain(TWO_NODES, [], trace, end_seconds=70)
    assert watched.energy_joules == pytest.approx(alone.energy_joules, rel=1e-9)
    assert watched.outcomes.ttft_seconds == pytest.approx(alone.outcomes.ttft_seconds, rel=1e-9)
    assert set(watched.series.engine_cap_watts.ravel()) == {700.0}


def test_a_fixed_clock_takes_less_energy_and_more_time():
    trace = steady(100, seconds=60)
    held = run_plain(TWO_NODES, [policy(clock=1200)], trace, end_seconds=70)
    free = run_plain(TWO_NODES, [], trace, end_seconds=70)
    assert held.energy_joules < 0.95 * free.energy_joules
    assert np.nanmean(held.outcomes.tpot_seconds) > 1.5 * np.nanmean(free.outcomes.tpot_seconds)


def test_without_engines_ready_requests_are_rejected():
    result = run_plain(
        uniform_cluster(engines=1),
        [],
        [TraceRequest(2.0, 10, 10)],
        faults=[parse_fault("gpu-lost:node=node-0,gpu=0,at=1")],
    )
    assert result.outcomes[0].state == "rejected"
