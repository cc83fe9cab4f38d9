"""The agent and the actuator as processes: from a plan to the cards and back to the status, through faults."""

import json
import signal
import time

import pytest


def codes(gpu):
    return {fault["code"] for fault in gpu.get("faults", ())}


@pytest.fixture
def running(node, eventually):
    """Actuator and agent with one engine on GPU 0, held by a plan at 1200-1400 MHz and 500 W."""
    engine = node.add_engine()
    node.kubelet.pods = [("prod", "llama-0", "engine", "nvidia.com/gpu", [node.gpus[0].uuid])]
    node.start_actuator()
    node.api.put_plan({"leaderEpoch": 1})
    node.start_agent()
    eventually("capabilities told", lambda: len(node.api.status.get("gpus", ())) == 2, 20)
    node.api.put_plan(node.spec())
    eventually("grant acknowledged", lambda: node.api.gpu(0).get("acknowledged") == {"leaderEpoch": 1, "grant": 1})
    node.engine = engine
    return node


def locked(node, gpu=0):
    return node.gpus[gpu].locked_sm_mhz


def test_a_grant_is_carried_out_and_acknowledged_after_read_back(running):
    gpu = running.api.gpu(0)
    assert (locked(running), running.gpus[0].cap_watts) == ((1200, 1395), 500)
    assert gpu["enforcedCapWatts"] == 500
    assert gpu["requested"] == {"smClock": {"min": 1200, "max": 1395}, "capWatts": 500}
    assert gpu["product"] == "NVIDIA H100 80GB HBM3"
    assert (gpu["capMinWatts"], gpu["capMaxWatts"], gpu["capDefaultWatts"]) == (200, 700, 700)


def test_the_status_says_which_pod_holds_a_gpu(running, eventually):
    held = {"namespace": "prod", "name": "llama-0", "container": "engine"}
    eventually("allocation told", lambda: running.api.gpu(0).get("pod") == held)
    assert "pod" not in running.api.gpu(1)


def test_a_new_grant_is_enforced_and_told_within_a_second(running, eventually):
    began = time.monotonic()
    running.api.put_plan(running.spec(grant=2, cap=300, clocks=(900, 900)))
    eventually("acknowledged", lambda: running.api.gpu(0)["acknowledged"]["grant"] == 2, 5)
    assert time.monotonic() - began < 1.5
    assert (locked(running), running.gpus[0].cap_watts) == ((900, 900), 300)
    assert running.api.gpu(0)["enforcedCapWatts"] == 300


def test_a_plan_of_an_older_leader_is_ignored(running, eventually):
    running.api.put_plan(running.spec(epoch=5, grant=2, cap=400))
    eventually("acknowledged", lambda: running.api.gpu(0)["acknowledged"] == {"leaderEpoch": 5, "grant": 2})
    running.api.put_plan(running.spec(epoch=4, grant=3, cap=600))
    eventually("said so", lambda: "plan of an older leader ignored" in running.log())
    assert running.gpus[0].cap_watts == 400


def test_release_restores_the_card_and_is_acknowledged_after_that(running, eventually):
    running.api.put_plan(running.spec(grant=2, action="Release"))
    eventually("acknowledged", lambda: running.api.gpu(0)["acknowledged"]["grant"] == 2, 5)
    assert (locked(running), running.gpus[0].cap_watts) == (None, 700)
    assert running.api.gpu(0)["enforcedCapWatts"] == 700


def test_observe_writes_nothing_and_says_what_it_would_write(node, eventually):
    node.add_engine()
    node.start_actuator()
    node.api.put_plan(node.spec(action="Observe"))
    node.start_agent()
    would = {"smClock": {"min": 1200, "max": 1400}, "capWatts": 500}
    eventually("told", lambda: node.api.gpu(0).get("would") == would, 20)
    assert node.api.gpu(0)["acknowledged"]["grant"] == 1
    assert (node.gpus[0].lock_set_calls, node.gpus[0].cap_set_calls, node.gpus[0].lock_reset_calls) == (0, 0, 0)


def test_a_killed_agent_unlocks_the_clocks_and_keeps_the_caps(running, eventually):
    agent = running.processes[-1]
    agent.kill()
    began = time.monotonic()
    eventually("unlocked", lambda: locked(running) is None, 5)
    assert time.monotonic() - began < 1
    assert running.gpus[0].cap_watts == 500


def test_a_new_agent_takes_up_the_plan_in_a_new_session(running, eventually):
    session = running.api.status["agentSession"]
    running.processes[-1].kill()
    eventually("unlocked", lambda: locked(running) is None, 5)
    running.start_agent()
    eventually("locked again", lambda: locked(running) == (1200, 1395), 15)
    eventually("new session", lambda: running.api.status["agentSession"] != session)
    eventually("acknowledged anew", lambda: running.api.gpu(0).get("acknowledged", {}).get("grant") == 1)


def test_a_hanging_agent_loses_its_locks_at_the_end_of_the_lease(running, eventually):
    running.processes[-1].send_signal(signal.SIGSTOP)
    eventually("unlocked", lambda: locked(running) is None, 5)
    assert running.gpus[0].cap_watts == 500
    running.processes[-1].send_signal(signal.SIGCONT)
    eventually("locked again", lambda: locked(running) == (1200, 1395), 10)


def test_a_killed_actuator_is_reported_and_told_everything_again(running, eventually):
    running.processes[0].kill()
    running.processes[0].wait()
    eventually("fault told", lambda: "ActuatorLost" in codes(running.api.gpu(0)), 5)
    assert running.get("/readyz")[0] == 503
    assert running.get("/healthz")[0] == 200
    running.start_actuator()
    eventually("locked again", lambda: locked(running) == (1200, 1395), 10)
    eventually("fault cleared", lambda: not codes(running.api.gpu(0)), 5)
    assert running.gpus[0].cap_watts == 500


def test_term_unlocks_and_ends_in_order(running, eventually):
    running.processes[-1].terminate()
    assert running.processes[-1].wait(10) == 0
    eventually("unlocked", lambda: locked(running) is None, 5)
    assert running.gpus[0].cap_watts == 500


def test_metrics_that_fail_unlock_the_clocks_until_they_are_back(running, eventually):
    running.engine.status = 500
    eventually("unlocked", lambda: locked(running) is None, 6)
    eventually("fault told", lambda: "MetricsStale" in codes(running.api.gpu(0)), 3)
    message = running.api.gpu(0)["faults"][0]["message"]
    assert f"http://127.0.0.1:{running.engine.port}/metrics" in message
    assert "HTTP 500" in message
    assert running.gpus[0].cap_watts == 500
    running.engine.status = 200
    eventually("locked again", lambda: locked(running) == (1200, 1395), 5)
    eventually("fault cleared", lambda: not codes(running.api.gpu(0)), 3)


def test_a_missing_metric_is_named_and_nothing_is_controlled_by_it(running, eventually):
    running.engine.without = ("generation_tokens_total",)
    eventually("unlocked", lambda: locked(running) is None, 6)
    eventually("named", lambda: "vllm:generation_tokens_total" in json.dumps(running.api.gpu(0).get("faults", "")))
    assert codes(running.api.gpu(0)) == {"MetricMissing"}
    assert running.gpus[0].cap_watts == 500


def test_counters_go_on_over_an_engine_restart(running, eventually):
    def told():
        return running.api.status["policies"][0].get("generatedTokens", 0)

    eventually("first page read", lambda: running.engine.requests >= 2)
    running.engine.generated = 1000.0
    seen = running.engine.requests
    eventually("second page read", lambda: running.engine.requests >= seen + 2)
    running.engine.generated = 200.0  # restarted
    eventually("counted on", lambda: told() == 1200, 25)


def test_slo_counters_say_how_many_were_within_and_whether_that_is_exact(node, eventually):
    engine = node.add_engine()
    node.start_actuator()
    slo = {"timeToFirstToken": {"thresholdMilliseconds": 250}, "endToEnd": {"thresholdMilliseconds": 375}}
    node.api.put_plan(node.spec(slo=slo))
    node.start_agent()
    eventually("acknowledged", lambda: node.api.gpu(0).get("acknowledged"), 20)
    eventually("first page read", lambda: engine.requests >= 2)
    engine.first_tokens = {0.25: 60, 0.5: 100, float("inf"): 120}
    engine.generated = 10.0
    eventually("told", lambda: node.api.status["policies"][0].get("timeToFirstToken", {}).get("total"), 20)
    policy = node.api.status["policies"][0]
    assert policy["timeToFirstToken"] == {"total": 120, "within": 60, "interpolated": False}
    assert policy["endToEnd"] == {"total": 120, "within": 80, "interpolated": True}


def test_the_stopped_switch_stops_all_writing_but_not_the_leases(running, eventually):
    running.api.put_switch("stopped")
    eventually("told", lambda: any(c["reason"] == "Stopped" for c in running.api.status["conditions"]), 5)
    calls = (running.gpus[0].lock_set_calls, running.gpus[0].cap_set_calls)
    running.api.put_plan(running.spec(grant=2, cap=300))
    running.gpus[0].change_cap_externally(650, 1)
    eventually("two lease lengths passed", lambda: running.engine.requests > 12, 15)
    assert locked(running) == (1200, 1395)
    assert (running.gpus[0].lock_set_calls, running.gpus[0].cap_set_calls) == calls
    running.api.put_switch("enabled")
    eventually("carried on", lambda: running.gpus[0].cap_watts == 300, 5)


def test_an_unknown_switch_value_stops_all_writing(running, eventually):
    running.api.put_switch("perhaps")
    eventually("told", lambda: "'perhaps'" in json.dumps(running.api.status["conditions"]), 5)
    running.api.put_plan(running.spec(grant=2, cap=300))
    eventually("plan seen", lambda: "flyball_gpu_granted_cap_watts" in running.get("/metrics")[1])
    assert running.gpus[0].cap_watts == 500


def test_with_the_api_server_failing_the_last_plan_is_kept(running, eventually):
    running.api.failing = True
    writes = len(running.api.statuses)
    running.processes[0].kill()
    running.processes[0].wait()
    running.start_actuator()
    eventually("locked again", lambda: locked(running) == (1200, 1395), 10)
    running.engine.status = 500
    eventually("fail-safe still works", lambda: locked(running) is None, 6)
    running.api.failing = False
    eventually("told when it is back", lambda: "MetricsStale" in codes(running.api.gpu(0)), 15)
    assert len(running.api.statuses) > writes


def test_a_plan_that_names_a_gpu_the_node_does_not_have_is_a_fault(running, eventually):
    spec = running.spec(grant=2)
    spec["gpus"].append({"uuid": "GPU-gone", "grant": 1, "action": "Enforce", "policy": "p0", "podIp": "127.0.0.1"})
    running.api.put_plan(spec)
    eventually(
        "told",
        lambda: any(gpu["uuid"] == "GPU-gone" and "UnknownGpu" in codes(gpu) for gpu in running.api.status["gpus"]),
        5,
    )


def test_a_shared_gpu_is_not_driven(node, eventually):
    node.add_engine()
    uuid = node.gpus[0].uuid
    node.kubelet.pods = [
        ("prod", "a", "engine", "nvidia.com/gpu", [f"{uuid}::0"]),
        ("prod", "b", "engine", "nvidia.com/gpu", [f"{uuid}::1"]),
    ]
    node.start_actuator()
    node.api.put_plan({"leaderEpoch": 1})
    node.start_agent()
    eventually("allocation told", lambda: "Shared" in codes(node.api.gpu(0)), 20)
    node.api.put_plan(node.spec())
    eventually("plan seen", lambda: "flyball_gpu_granted_cap_watts{" in node.get("/metrics")[1])
    assert "acknowledged" not in node.api.gpu(0)
    assert (node.gpus[0].lock_set_calls, node.gpus[0].cap_set_calls) == (0, 0)


def test_a_tensor_parallel_group_gets_one_setpoint(node, eventually):
    node.engines = [node.add_engine()] * 2
    node.start_actuator()
    spec = node.spec(group="pod-1")
    spec["policies"] = spec["policies"][:1]
    spec["gpus"][1] |= {"policy": "p0", "capWatts": 450}
    node.api.put_plan(spec)
    node.start_agent()
    eventually("both locked", lambda: locked(node, 0) == locked(node, 1) == (1200, 1395), 20)
    eventually("caps as granted", lambda: (node.gpus[0].cap_watts, node.gpus[1].cap_watts) == (500, 450))


def test_an_idle_node_writes_no_status(running, eventually):
    eventually("allocation told", lambda: running.api.gpu(0).get("pod"))
    eventually("settled", lambda: running.engine.requests >= 8, 15)
    writes = len(running.api.statuses)
    seen = running.engine.requests
    eventually("time passes", lambda: running.engine.requests >= seen + 25, 30)
    assert len(running.api.statuses) <= writes + 1


def test_metrics_are_served_in_base_units(running, eventually):
    eventually("scraped", lambda: "flyball_agent_scrapes_total" in running.get("/metrics")[1])
    page = running.get("/metrics")[1]
    uuid = running.gpus[0].uuid
    assert f'flyball_gpu_cap_watts{{gpu="{uuid}",index="0"}} 500.0' in page
    assert f'flyball_gpu_locked_sm_clock_hertz{{bound="max",gpu="{uuid}",index="0"}} 1.395e+09' in page
    assert f'flyball_gpu_energy_joules_total{{gpu="{uuid}",index="0"}}' in page
    assert "flyball_agent_actuator_connected 1.0" in page


def test_engines_are_asked_for_plain_prometheus_text(running, eventually):
    eventually("scraped", lambda: running.engine.requests >= 1)
    assert set(running.engine.accepts) == {"text/plain;version=0.0.4"}


def test_the_heartbeat_lease_carries_the_session(running, eventually):
    eventually("lease written", lambda: running.api.lease is not None)
    assert running.api.lease["spec"]["holderIdentity"] == running.api.status["agentSession"]
