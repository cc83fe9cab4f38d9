"""What the status says, and when it is worth a write."""

from datetime import UTC, datetime

import pytest

from flyball_agent.controllers.registry import make_controller
from flyball_agent.facts import Allocation, Holder
from flyball_agent.node import NodeControl
from flyball_agent.status import DrawMeter, build_status, due
from flyball_api.nodeenergyplan import (
    Acknowledgement,
    Fault,
    GpuStatus,
    NodeEnergyPlanStatus,
    PodReference,
    PolicyCounters,
    Setpoint,
)

NOW = datetime(2026, 11, 21, tzinfo=UTC)
GPU = GpuStatus(uuid="GPU-1", cap_max_watts=700, draw_watts=300, enforced_cap_watts=400)


def status(gpu=GPU, tokens=100.0, session="s", **policy):
    counters = PolicyCounters(name="chat", uid="u", since="s/1", generated_tokens=tokens, **policy)
    return NodeEnergyPlanStatus(agent_session=session, gpus=(gpu,), policies=(counters,))


def with_(**changes):
    return status(GPU.model_copy(update=changes))


@pytest.mark.parametrize(
    "changed",
    [
        with_(acknowledged=Acknowledgement(leader_epoch=1, grant=2)),
        with_(faults=(Fault(code="MetricsStale", message="x"),)),
        with_(enforced_cap_watts=500),
        with_(pod=PodReference(namespace="n", name="p", container="c")),
        status(session="t"),
        status(engines_stale=1),
    ],
)
def test_an_acknowledgement_a_fault_a_cap_or_an_allocation_is_written_at_once(changed):
    assert due(changed, status(), 0.0)


@pytest.mark.parametrize(
    "changed",
    [with_(draw_watts=350), status(tokens=101.0), with_(requested=Setpoint(cap_watts=300)), with_(draw_watts=None)],
)
def test_measurements_are_written_after_ten_quiet_seconds(changed):
    assert not due(changed, status(), 9.9)
    assert due(changed, status(), 10.0)


@pytest.mark.parametrize(
    "changed",
    [status(), with_(draw_watts=310), with_(sm_megahertz=1200), with_(cap_limited=True), status(seconds=50.0)],
)
def test_an_idle_node_and_noise_write_nothing(changed):
    assert not due(changed, status(), 1e6)


def test_a_fault_whose_numbers_move_is_not_a_new_fault():
    before = with_(faults=(Fault(code="NvmlHung", message="for 3 s"),))
    assert not due(with_(faults=(Fault(code="NvmlHung", message="for 4 s"),)), before, 1e6)


def test_the_first_status_is_written():
    assert due(status(), None, 0.0)


@pytest.fixture
def control(clock):
    made = NodeControl("session", make_controller, clock)
    made.take_actuator("life", "boot-1")
    card = {
        "uuid": "GPU-1",
        "index": 0,
        "product": "NVIDIA H100 80GB HBM3",
        "cap_min_watts": 200.0,
        "cap_max_watts": 700.0,
        "cap_default_watts": 700.0,
        "sm_min_mhz": 345,
        "sm_max_mhz": 1980,
        "mig_enabled": False,
    }
    made.take_cards({"driver_version": "580.1", "error": "", "gpus": [card]})
    return made


def report(energy=1000.0, enforced=400.0):
    sample = {
        "power_average_watts": 310.4,
        "power_instant_watts": 300.0,
        "energy_joules": energy,
        "sm_mhz": 1100,
        "utilisation_percent": 90,
    }
    return {
        "uuid": "GPU-1",
        "lock_mhz": [900, 1200],
        "lock_verified": "True",
        "cap_watts": 400,
        "enforced_cap_watts": enforced,
        "cap_in_force": True,
        "cap_limited": True,
        "reloads": 0,
        "armed": True,
        "faults": [{"code": "ForeignCap", "message": "x" * 2000}],
        "writes": {},
        "sample": sample,
    }


def build(control, meter=None, earlier=None, now=0.0):
    return build_status(
        control,
        {},
        meter or DrawMeter(),
        now=now,
        wall_time=NOW,
        version="0.1",
        earlier=earlier,
    )


def condition(status, name):
    return next((each.status, each.reason) for each in status.conditions if each.type == name)


def test_a_status_carries_card_read_back_and_holder(control):
    control.take_switch(None)
    control.take_reports([report(enforced=400.0005)])
    control.take_allocation(Allocation({"GPU-1": Holder("prod", "llama", "engine")}))
    made = build(control)
    (gpu,) = made.gpus
    assert (made.agent_session, made.boot_id, made.driver_version) == ("session", "boot-1", "580.1")
    assert (gpu.enforced_cap_watts, gpu.clock_verified, gpu.sm_megahertz, gpu.cap_limited) == (400, "True", 1100, True)
    assert (gpu.requested.sm_clock.min, gpu.requested.sm_clock.max, gpu.requested.cap_watts) == (900, 1200, 400)
    assert gpu.pod.name == "llama"
    assert len(gpu.faults[0].message) == 512
    assert condition(made, "Ready") == ("True", "Controlling")


def test_a_cap_is_never_told_lower_than_it_is(control):
    control.take_reports([report(enforced=400.4)])
    assert build(control).gpus[0].enforced_cap_watts == 401


def test_draw_is_the_mean_since_the_last_write(control):
    meter = DrawMeter()
    control.take_reports([report(energy=1000.0)])
    assert build(control, meter, now=10.0).gpus[0].draw_watts == 310  # the card's own average at first
    control.take_reports([report(energy=1500.0)])
    assert build(control, meter, now=12.0).gpus[0].draw_watts == 250
    meter.restart()
    assert build(control, meter, now=12.0).gpus[0].draw_watts == 310


def test_conditions_say_what_keeps_the_agent_from_controlling(control):
    assert condition(build(control), "Ready") == ("False", "Stopped")
    control.take_switch(None)
    assert condition(build(control), "Ready") == ("False", "NoAllocation")
    control.take_allocation(Allocation())
    assert condition(build(control), "Ready") == ("True", "Controlling")
    control.lose_actuator("killed")
    made = build(control)
    assert (condition(made, "ActuatorReady"), condition(made, "Ready")) == (
        ("False", "ActuatorLost"),
        ("False", "ActuatorNotReady"),
    )


def test_a_condition_keeps_its_time_until_it_changes(control):
    first = build(control)
    later = build_status(
        control,
        {},
        DrawMeter(),
        now=1.0,
        wall_time=datetime(2026, 11, 22, tzinfo=UTC),
        version="0.1",
        earlier=first,
    )
    assert later.conditions == first.conditions


def test_a_status_is_what_the_schema_takes(control):
    control.take_reports([report()])
    made = build(control)
    assert NodeEnergyPlanStatus.model_validate(made.to_json()) == made
