"""Container states become the pod status that controllers and kubectl act on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flyball_sim.node.restarts import Backoff
from flyball_sim.node.status import (
    ContainerRecord,
    Kind,
    PodSituation,
    Running,
    Terminated,
    Waiting,
    first_records,
    phase_of,
    pod_status,
    restarts_after,
)

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def pod(policy="Always", init=(), status=None):
    return {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {
            "restartPolicy": policy,
            "initContainers": list(init),
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}],
        },
        "status": status or {},
    }


def record(name="a", kind=Kind.MAIN, state=None, **changes):
    return ContainerRecord(name, "i", kind, state or Waiting("ContainerCreating"), **changes)


def ended(code):
    return Terminated(code, "Completed" if code == 0 else "Error", NOW, NOW)


def situation(*records, **changes):
    return PodSituation(records, "127.1.1.1", "127.1.0.1", NOW, **changes)


def condition(status, kind):
    return next(entry for entry in status["conditions"] if entry["type"] == kind)


UP = {"state": Running(NOW), "started": True, "ready": True}


def test_a_pod_is_ready_when_every_container_is():
    status = pod_status(pod(), situation(record(**UP), record("b", **UP)), NOW)
    assert status["phase"] == "Running"
    assert condition(status, "Ready")["status"] == "True"
    assert status["podIPs"] == [{"ip": "127.1.1.1"}]


def test_an_unready_container_is_named():
    status = pod_status(pod(), situation(record(**UP), record("b", state=Running(NOW), started=True)), NOW)
    ready = condition(status, "Ready")
    assert (ready["status"], ready["message"]) == ("False", "containers with unready status: [b]")


def test_a_pod_that_has_not_started_is_pending():
    assert phase_of(pod(), situation(record(), record("b"))) == "Pending"


def test_a_crash_looping_pod_is_running():
    crashing = record(state=Waiting("CrashLoopBackOff"), last=ended(1), restarts=3)
    status = pod_status(pod(), situation(crashing, record("b", **UP)), NOW)
    assert status["phase"] == "Running"
    entry = status["containerStatuses"][0]
    assert entry["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert (entry["lastState"]["terminated"]["exitCode"], entry["restartCount"]) == (1, 3)


@pytest.mark.parametrize(
    ("policy", "codes", "phase"),
    [
        ("Never", (0, 0), "Succeeded"),
        ("Never", (0, 2), "Failed"),
        ("OnFailure", (0, 0), "Succeeded"),
        ("OnFailure", (0, 2), "Running"),
        ("Always", (0, 0), "Running"),
    ],
)
def test_the_phase_at_the_end_follows_the_restart_policy(policy, codes, phase):
    assert phase_of(pod(policy), situation(*(record(state=ended(code)) for code in codes))) == phase


def test_a_deleted_pod_has_ended_whatever_its_restart_policy():
    assert phase_of(pod(), situation(record(state=ended(143)), record("b", state=ended(0)), stopping=True)) == "Failed"


def test_a_completed_pod_says_so_in_its_conditions():
    status = pod_status(pod("Never"), situation(record(state=ended(0)), record("b", state=ended(0))), NOW)
    assert condition(status, "Ready")["reason"] == "PodCompleted"
    assert condition(status, "Initialized")["status"] == "True"


def test_a_failed_init_container_fails_the_pod_that_never_restarts():
    init = record("i", Kind.INIT, state=ended(1))
    assert phase_of(pod("Never"), situation(init, record(), record("b"))) == "Failed"
    assert phase_of(pod("Always"), situation(init, record(), record("b"))) == "Pending"


def test_a_sidecar_does_not_keep_a_job_from_succeeding():
    sidecar = record("s", Kind.SIDECAR, **UP)
    mains = (record(state=ended(0)), record("b", state=ended(0)))
    assert phase_of(pod("Never"), situation(sidecar, *mains)) == "Succeeded"


def test_a_pod_the_node_refuses_is_failed_with_the_reason():
    status = pod_status(pod(), situation(record(), record("b"), failure=("UnexpectedAdmissionError", "no GPU")), NOW)
    assert (status["phase"], status["reason"], status["message"]) == ("Failed", "UnexpectedAdmissionError", "no GPU")


def test_the_status_is_the_same_again_when_nothing_changed():
    here = situation(record(**UP), record("b", **UP))
    first = pod_status(pod(), here, NOW)
    again = pod_status(pod(status=first), here, NOW + timedelta(hours=1))
    assert again == first


def test_a_condition_keeps_its_transition_time_until_it_changes():
    here = situation(record(**UP), record("b", **UP))
    first = pod_status(pod(), here, NOW)
    later = NOW + timedelta(minutes=1)
    down = situation(record(**(UP | {"ready": False})), record("b", **UP))
    second = pod_status(pod(status=first), down, later)
    assert condition(second, "Ready")["lastTransitionTime"] == "2026-11-21T10:01:00Z"
    assert condition(second, "Initialized")["lastTransitionTime"] == "2026-11-21T10:00:00Z"


def test_what_ran_in_an_earlier_life_of_the_node_is_reported_as_lost():
    status = pod_status(pod(), situation(record(**UP, restarts=2), record("b", **UP)), NOW)
    records = first_records(pod(status=status), NOW)
    lost = records[0]
    assert isinstance(lost.state, Terminated)
    assert (lost.state.exit_code, lost.state.reason, lost.restarts) == (137, "ContainerStatusUnknown", 2)


def test_a_container_that_had_completed_stays_completed():
    status = pod_status(pod("OnFailure"), situation(record(state=ended(0)), record("b", **UP)), NOW)
    first = first_records(pod("OnFailure", status=status), NOW)[0]
    assert isinstance(first.state, Terminated)
    assert first.state.exit_code == 0


def test_a_fresh_pod_waits_for_its_init_containers():
    records = first_records(pod(init=[{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]), NOW)
    assert [entry.kind for entry in records] == [Kind.INIT, Kind.SIDECAR, Kind.MAIN, Kind.MAIN]
    assert {entry.state.reason for entry in records if isinstance(entry.state, Waiting)} == {"PodInitializing"}


@pytest.mark.parametrize(
    ("policy", "kind", "code", "again"),
    [
        ("Always", Kind.MAIN, 0, True),
        ("OnFailure", Kind.MAIN, 0, False),
        ("OnFailure", Kind.MAIN, 1, True),
        ("Never", Kind.MAIN, 1, False),
        ("Always", Kind.INIT, 0, False),
        ("Always", Kind.INIT, 1, True),
        ("Never", Kind.SIDECAR, 0, True),
    ],
)
def test_restarts_follow_policy_and_kind(policy, kind, code, again):
    assert restarts_after(policy, kind, code) is again


def test_the_back_off_doubles_to_half_a_minute_and_is_forgiven():
    backoff, delays = Backoff(), []
    for _ in range(7):
        backoff = backoff.after_run(0.1)
        delays.append(backoff.delay_seconds)
    assert delays == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.after_run(60.0).delay_seconds == 1


def test_others_conditions_are_not_the_nodes_to_write():
    disrupted = {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}
    status = pod_status(pod(status=disrupted), situation(record(), record("b")), NOW)
    assert "DisruptionTarget" not in {entry["type"] for entry in status["conditions"]}
