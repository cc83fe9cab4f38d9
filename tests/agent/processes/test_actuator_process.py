"""The actuator as a process, over the real NVML library: what it leaves on the cards when things die."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest


def controlled(node, gpu=0, *, clocks=(1200, 1400), cap=400, lease=3):
    """A connection that holds a lock and a cap on one GPU."""
    line = node.line()
    assert line.ask("hello", session="s")["ok"]
    answer = line.ask(
        "set", gpu=node.gpus[gpu].uuid, sm_mhz=list(clocks), cap_watts=cap, ceiling_watts=cap, lease_seconds=lease
    )
    assert answer["ok"], answer
    return line, answer["gpu"]


def report(line, gpu=0):
    return line.ask("read")["gpus"][gpu]


def codes(report):
    return {fault["code"] for fault in report["faults"]}


def test_a_lock_and_a_cap_reach_the_card_and_are_read_back(node):
    node.start_actuator()
    _, answer = controlled(node)
    assert node.gpus[0].locked_sm_mhz == (1200, 1395)  # 1400 is no clock of this card
    assert node.gpus[0].cap_watts == 400
    assert (answer["lock_mhz"], answer["enforced_cap_watts"], answer["cap_in_force"]) == ([1200, 1395], 400, True)


def test_the_same_command_again_writes_nothing(node):
    node.start_actuator()
    line, _ = controlled(node)
    calls = (node.gpus[0].lock_set_calls, node.gpus[0].cap_set_calls)
    line.ask("set", gpu=node.gpus[0].uuid, sm_mhz=[1200, 1400], cap_watts=400, ceiling_watts=400, lease_seconds=3)
    assert (node.gpus[0].lock_set_calls, node.gpus[0].cap_set_calls) == calls


def test_a_closed_socket_resets_the_lock_and_keeps_the_cap(node, eventually):
    node.start_actuator()
    line, _ = controlled(node)
    line.close()
    eventually("lock reset", lambda: node.gpus[0].locked_sm_mhz is None, 3)
    assert node.gpus[0].cap_watts == 400


def test_a_silent_agent_loses_its_locks_when_the_lease_ends_and_keeps_the_cap(node, eventually):
    node.start_actuator()
    line, _ = controlled(node, lease=1)
    eventually("lock reset", lambda: node.gpus[0].locked_sm_mhz is None, 3)
    assert node.gpus[0].cap_watts == 400
    assert line.ask("renew")["ok"]
    assert report(line)["lock_mhz"] is None


def test_term_resets_the_locks_and_keeps_the_caps(node):
    actuator = node.start_actuator()
    controlled(node)
    actuator.terminate()
    assert actuator.wait(10) == 0
    assert node.gpus[0].locked_sm_mhz is None
    assert node.gpus[0].cap_watts == 400
    assert not node.socket.exists()


def test_what_a_killed_actuator_left_is_reset_by_the_next_one(node):
    actuator = node.start_actuator()
    controlled(node)
    actuator.kill()
    actuator.wait()
    assert node.gpus[0].locked_sm_mhz == (1200, 1395)
    node.start_actuator()
    assert node.gpus[0].locked_sm_mhz is None
    assert node.gpus[0].cap_watts == 400


def test_a_cap_raised_while_no_actuator_ran_is_put_back_at_the_next_start(node, eventually):
    actuator = node.start_actuator()
    controlled(node)
    actuator.kill()
    actuator.wait()
    node.gpus[0].change_cap_externally(700, 1)
    node.start_actuator()
    eventually("cap put back", lambda: node.gpus[0].cap_watts == 400, 3)


def test_a_record_of_another_boot_is_forgotten(node):
    actuator = node.start_actuator()
    controlled(node)
    actuator.kill()
    actuator.wait()
    written = json.loads(node.record.read_text())
    node.record.write_text(json.dumps(written | {"boot_id": "another"}))
    resets = node.gpus[0].lock_reset_calls
    node.start_actuator()
    assert node.gpus[0].lock_reset_calls == resets


def test_a_damaged_record_resets_every_lock(node):
    node.record.parent.mkdir()
    node.record.write_text('{"version": 1, "boot')
    node.start_actuator()
    assert [gpu.lock_reset_calls for gpu in node.gpus] == [1, 1]


def test_a_second_actuator_on_the_same_record_is_refused(node):
    node.start_actuator()
    second = node.start_actuator(wait=False)
    assert second.wait(10) == 1
    assert "is held by another actuator" in node.log()
    assert node.line().ask("status")["ok"]


def test_a_release_gives_the_default_cap_back_and_forgets_the_gpu(node):
    node.start_actuator()
    line, _ = controlled(node)
    answer = line.ask("release", gpu=node.gpus[0].uuid)
    assert answer["ok"]
    assert answer["gpu"]["enforced_cap_watts"] == 700
    assert (node.gpus[0].locked_sm_mhz, node.gpus[0].cap_watts) == (None, 700)
    assert json.loads(node.record.read_text())["gpus"] == {}


def test_a_message_that_is_not_understood_is_answered_and_resets_the_locks(node, eventually):
    node.start_actuator()
    line, _ = controlled(node)
    line.raw(b'{"op":"set","id":9,"gpu":"x","sm_mhz":[1400,1200],"lease_seconds":3}\n')
    answer = line.hear()
    assert not answer["ok"]
    assert "sm_mhz is [1400, 1200]: give [lowest, highest]" in answer["error"]
    eventually("lock reset", lambda: node.gpus[0].locked_sm_mhz is None, 3)
    assert node.gpus[0].cap_watts == 400


def test_a_line_without_an_end_is_cut_off(node, eventually):
    node.start_actuator()
    line, _ = controlled(node)
    line.raw(b"x" * 5000)
    assert "send at most 4096" in line.hear()["error"]
    assert line.hear() is None
    eventually("lock reset", lambda: node.gpus[0].locked_sm_mhz is None, 3)


def test_a_peer_of_another_uid_is_refused(node, eventually):
    node.start_actuator(wait=False, agent_uid=os.getuid() + 1)
    eventually("socket", node.socket.exists, 10)
    line = node.line()
    answer = line.hear()
    assert answer["code"] == "Refused"
    assert f"uid {os.getuid()} may not use the actuator" in answer["error"]
    assert line.hear() is None


def test_another_agent_takes_over_and_the_earlier_ones_locks_are_reset(node, eventually):
    node.start_actuator()
    line, _ = controlled(node)
    other = node.line()
    assert other.ask("hello", session="t")["ok"]
    eventually("lock reset", lambda: node.gpus[0].locked_sm_mhz is None, 3)
    assert line.hear() is None


def test_a_cap_that_somebody_raised_is_put_back_and_reported(node):
    node.start_actuator()
    line, _ = controlled(node)
    node.gpus[0].change_cap_externally(650, 1)
    seen = report(line)
    assert "CapAboveGrant" in codes(seen)
    assert node.gpus[0].cap_watts == 400


def test_a_cap_that_somebody_lowered_is_kept_and_reported(node):
    node.start_actuator()
    line, _ = controlled(node)
    node.gpus[0].change_cap_externally(300, 1)
    seen = report(line)
    assert "ForeignCap" in codes(seen)
    assert (seen["enforced_cap_watts"], node.gpus[0].cap_watts) == (300, 300)


def test_a_limit_set_out_of_band_is_reported_and_used(node):
    node.start_actuator()
    line, _ = controlled(node)
    node.gpus[0].set_out_of_band_limit(350)
    seen = report(line)
    assert "ForeignCap" in codes(seen)
    assert (seen["enforced_cap_watts"], seen["cap_in_force"]) == (350, True)


def test_with_the_switch_off_nothing_is_written_but_a_dead_agent_still_unlocks(node, eventually):
    node.start_actuator()
    line, _ = controlled(node)
    assert line.ask("renew", writes=False)["ok"]
    node.gpus[0].change_cap_externally(650, 1)
    assert "CapAboveGrant" in codes(report(line))
    assert node.gpus[0].cap_watts == 650
    assert line.ask("release", gpu=node.gpus[0].uuid)["code"] == "Stopped"
    line.close()
    eventually("lock reset", lambda: node.gpus[0].locked_sm_mhz is None, 3)


@pytest.mark.parametrize(
    ("code", "fault"), [(4, "NoPermission"), (3, "NotSupported"), (15, "GpuLost"), (999, "NvmlError"), (2, "NvmlError")]
)
def test_a_setter_that_fails_is_a_fault_of_that_gpu_only(node, code, fault):
    node.start_actuator()
    node.gpus[0].set_fault("nvmlDeviceSetGpuLockedClocks", code)
    line = node.line()
    line.ask("hello", session="s")
    answer = line.ask("set", gpu=node.gpus[0].uuid, sm_mhz=[1200, 1400], lease_seconds=3)
    assert (answer["ok"], answer["code"]) == (False, fault)
    assert node.gpus[0].uuid in answer["error"]
    assert line.ask("set", gpu=node.gpus[1].uuid, sm_mhz=[1200, 1400], lease_seconds=3)["ok"]


@pytest.mark.parametrize("code", [3, 4])
def test_after_no_permission_or_not_supported_a_gpu_is_only_observed(node, code):
    node.start_actuator()
    node.gpus[0].set_fault("nvmlDeviceSetGpuLockedClocks", code)
    line = node.line()
    line.ask("hello", session="s")
    uuid = node.gpus[0].uuid
    line.ask("set", gpu=uuid, sm_mhz=[1200, 1400], lease_seconds=3)
    node.gpus[0].clear_faults()
    calls = (node.gpus[0].lock_set_calls, node.gpus[0].cap_set_calls)
    assert not line.ask("set", gpu=uuid, sm_mhz=[1200, 1400], cap_watts=400, lease_seconds=3)["ok"]
    assert (node.gpus[0].lock_set_calls, node.gpus[0].cap_set_calls) == calls
    assert report(line)["sample"] is not None
    assert not report(line)["armed"]


def test_a_lost_gpu_is_written_to_no_more_and_the_others_go_on(node):
    node.start_actuator()
    line, _ = controlled(node, gpu=1)
    node.gpus[0].lost = True
    assert "GpuLost" in codes(report(line))
    assert line.ask("set", gpu=node.gpus[0].uuid, sm_mhz=[900, 900], lease_seconds=3)["code"] == "GpuLost"
    assert node.gpus[0].lock_set_calls == 0
    assert report(line, 1)["lock_mhz"] == [1200, 1395]


def test_a_cap_accepted_without_effect_is_never_called_in_force(node):
    node.start_actuator()
    node.gpus[0].cap_not_in_force = True
    line = node.line()
    line.ask("hello", session="s")
    uuid = node.gpus[0].uuid
    answer = line.ask("set", gpu=uuid, cap_watts=400, ceiling_watts=400, lease_seconds=3)
    assert answer["gpu"]["cap_in_force"] is False
    assert "CapNotInForce" in codes(answer["gpu"])


def test_a_lock_without_effect_under_load_is_given_up_after_three_looks(node, eventually):
    node.start_actuator()
    node.busy.add(0)
    node.gpus[0].lock_not_in_force = True
    line, _ = controlled(node, clocks=(900, 900), cap=700, lease=60)
    eventually("lock given up", lambda: "ClockNotAchieved" in codes(report(line)), 15)
    assert node.gpus[0].locked_sm_mhz is None
    again = line.ask("set", gpu=node.gpus[0].uuid, sm_mhz=[900, 900], lease_seconds=60)
    assert again["code"] == "ClockNotAchieved"


def test_a_lock_in_force_under_load_is_verified(node, eventually):
    node.start_actuator()
    node.busy.add(0)
    line, _ = controlled(node, clocks=(900, 900), cap=700, lease=60)
    eventually("lock verified", lambda: report(line)["lock_verified"] == "True", 10)


def test_a_driver_reload_is_reported_and_the_cap_put_back(node, eventually):
    node.start_actuator()
    line, _ = controlled(node)
    eventually("energy counted", lambda: report(line)["sample"]["energy_joules"] > 30, 10)
    node.gpus[0].reboot()
    seen = report(line)
    assert "DriverReloaded" in codes(seen)
    assert (seen["reloads"], seen["lock_mhz"]) == (1, None)
    assert node.gpus[0].cap_watts == 400


def test_a_call_that_hangs_holds_up_neither_leases_nor_other_gpus(node, eventually):
    node.start_actuator()
    line, _ = controlled(node, gpu=1, lease=1)
    node.gpus[0].set_slow("nvmlDeviceSetGpuLockedClocks", 6000)
    line.raw(
        json.dumps({"op": "set", "id": 99, "gpu": node.gpus[0].uuid, "sm_mhz": [900, 900], "lease_seconds": 1}).encode()
        + b"\n"
    )
    eventually("the other GPU's lease ends", lambda: node.gpus[1].locked_sm_mhz is None, 4)
    answer = line.hear()
    assert (answer["id"], answer["code"]) == (99, "NvmlHung")
    assert "NvmlHung" in codes(report(line))
    assert line.ask("set", gpu=node.gpus[1].uuid, sm_mhz=[1000, 1000], lease_seconds=30)["ok"]
    # The call returns after all and has set a lock that nobody holds a lease for.
    eventually("late lock reset", lambda: node.gpus[0].lock_reset_calls >= 1 and not node.gpus[0].locked_sm_mhz, 10)
    eventually("GPU answers again", lambda: "NvmlHung" not in codes(report(line)), 5)


def test_on_a_full_disk_nothing_is_written_to_the_card_but_locks_are_reset(node, eventually):
    actuator = node.start_actuator()
    line, _ = controlled(node)
    # No file of this process may grow beyond ten bytes: what a full disk looks like from inside.
    resource.prlimit(actuator.pid, resource.RLIMIT_FSIZE, (10, 10))
    answer = line.ask("set", gpu=node.gpus[1].uuid, sm_mhz=[900, 900], cap_watts=300, lease_seconds=3)
    assert answer["code"] == "RecordFailed"
    assert str(node.record) in answer["error"]
    assert (node.gpus[1].locked_sm_mhz, node.gpus[1].cap_watts) == (None, 700)
    line.close()
    eventually("lock reset", lambda: node.gpus[0].locked_sm_mhz is None, 3)
    assert node.gpus[0].cap_watts == 400


def test_without_a_driver_it_says_so_and_goes_on(node):
    empty = node.directory / "no-such-state"
    node.start_actuator(environment={"FLYBALL_NVML_STATE": str(empty)})
    line = node.line()
    answer = line.ask("capabilities")
    assert answer["gpus"] == []
    assert "NVML cannot be used" in answer["error"]


def test_a_gpu_that_is_not_there_is_named(node):
    node.start_actuator()
    line = node.line()
    line.ask("hello", session="s")
    answer = line.ask("set", gpu="GPU-none", sm_mhz=[900, 900], lease_seconds=3)
    assert answer["code"] == "UnknownGpu"
    assert "'GPU-none'" in answer["error"]
    assert node.gpus[0].uuid in answer["error"]


def test_it_leaves_the_network_or_says_that_it_could_not(node):
    actuator = node.start_actuator()
    ours, theirs = (Path(f"/proc/{who}/ns/net").readlink() for who in ("self", actuator.pid))
    assert (ours != theirs) != ("still in the pod's network" in node.log())


def test_it_imports_nothing_but_the_standard_library_and_nvml():
    program = (
        "import sys, flyball_agent.actuator.main, pynvml;"
        "print([name for name in ('asyncio', 'pydantic', 'aiohttp', 'structlog', 'flyball_api', 'kubernetes')"
        " if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
