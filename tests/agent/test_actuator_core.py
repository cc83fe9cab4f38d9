"""Sessions, leases and requests of the actuator, over recording cards and a clock that is stepped."""

import json

import pytest

from flyball_agent.actuator.core import Actuator
from flyball_agent.actuator.device import Cards, DeviceError
from flyball_agent.actuator.record import Record
from flyball_agent.actuator.worker import HungError


class AtOnce:
    """Runs jobs when they are submitted, but for GPUs that hang."""

    cancelled = False

    def __init__(self):
        self.hanging = set()
        self.held = None  # a list keeps jobs for later

    def submit(self, key, name, work, done):
        if self.held is not None:
            self.held.append((key, name, work, done))
            return
        if key in self.hanging:
            done(None, HungError(name, 2.0))
            return
        try:
            result, error = work(self), None
        except Exception as raised:  # noqa: BLE001
            result, error = None, raised
        done(result, error)


class Bench:
    def __init__(self, cards, record, clock, log):
        self.answers = {}
        self.closed = []
        self.jobs = AtOnce()
        self.clock = clock
        self.fail_open = False
        self.actuator = Actuator(
            life="life",
            boot_id="boot-1",
            jobs=self.jobs,
            open_cards=lambda: self._open(cards),
            record=record,
            clock=clock,
            log=log,
            send=lambda connection, answer: self.answers.setdefault(connection, []).append(answer),
            close=self.closed.append,
        )

    def _open(self, cards):
        if self.fail_open:
            raise DeviceError(9, "nvmlInit", "Driver Not Loaded")
        return Cards("580", tuple(cards))

    def ask(self, op, connection=1, **fields):
        self.actuator.line(connection, json.dumps({"op": op, "id": 1, **fields}).encode())
        return self.answers[connection][-1]

    def take_control(self, connection=1):
        assert self.ask("hello", connection, session="s")["ok"]

    def set(self, gpu="GPU-1", connection=1, lease=3, **fields):
        return self.ask("set", connection, gpu=gpu, lease_seconds=lease, **fields)


@pytest.fixture
def cards(make_card):
    return [make_card("GPU-1"), make_card("GPU-2")]


@pytest.fixture
def bench(cards, tmp_path, clock, quiet_log):
    record = Record(tmp_path / "actuator.json", "boot-1")
    made = Bench(cards, record, clock, quiet_log)
    made.actuator.start()
    yield made
    record.close()


def test_nothing_is_changed_before_hello(bench, cards):
    assert bench.set(sm_mhz=[900, 1200])["code"] == "NoSession"
    assert bench.ask("release", gpu="GPU-1")["code"] == "NoSession"
    assert cards[0].writes == []


def test_anybody_served_may_read_without_hello(bench):
    assert [gpu["uuid"] for gpu in bench.ask("read")["gpus"]] == ["GPU-1", "GPU-2"]
    assert bench.ask("capabilities")["driver_version"] == "580"


def test_a_lease_that_is_renewed_keeps_its_lock(bench, cards, clock):
    bench.take_control()
    bench.set(sm_mhz=[900, 1200])
    for _ in range(10):
        clock.step(2.9)
        bench.actuator.tick()
        assert bench.ask("renew")["expired"] == []
    assert cards[0].locked == (900, 1200)


def test_a_lease_that_runs_out_resets_its_lock_only(bench, cards, clock):
    bench.take_control()
    bench.set(sm_mhz=[900, 1200], cap_watts=400, ceiling_watts=400)
    bench.set("GPU-2", lease=30, sm_mhz=[900, 1200])
    clock.step(3)
    bench.actuator.tick()
    assert (cards[0].locked, cards[0].requested, cards[1].locked) == (None, 400, (900, 1200))


def test_a_renewal_that_comes_too_late_finds_the_lock_gone(bench, cards, clock):
    bench.take_control()
    bench.set(sm_mhz=[900, 1200])
    clock.step(3)
    assert bench.ask("renew")["expired"] == ["GPU-1"]
    assert cards[0].locked is None


def test_tick_says_when_it_must_be_called_again(bench, clock):
    bench.take_control()
    bench.set(sm_mhz=[900, 1200])
    assert bench.actuator.tick() == clock.now + 3


def test_locks_are_asserted_again_every_minute(bench, cards, clock):
    bench.take_control()
    bench.set(lease=60, sm_mhz=[900, 1200])
    for _ in range(4):
        clock.step(30)
        bench.ask("renew")
        bench.actuator.tick()
    assert [call for call in cards[0].writes if call[0] == "lock"] == [("lock", 900, 1200)] * 3


def test_a_raised_cap_is_put_back_even_with_no_agent_left(bench, cards, clock):
    bench.take_control()
    bench.set(cap_watts=400, ceiling_watts=400)
    bench.actuator.gone(1)
    cards[0].raised_by_somebody(700)
    clock.step(60)
    bench.actuator.tick()
    assert cards[0].requested == 400


def test_the_end_of_the_controlling_connection_resets_locks_and_of_another_one_does_not(bench, cards):
    bench.take_control(1)
    bench.set(sm_mhz=[900, 1200])
    bench.actuator.gone(2)
    assert cards[0].locked == (900, 1200)
    bench.actuator.gone(1)
    assert cards[0].locked is None


def test_a_second_hello_takes_over_and_closes_the_first(bench, cards):
    bench.take_control(1)
    bench.set(sm_mhz=[900, 1200])
    bench.take_control(2)
    assert bench.closed == [1]
    assert cards[0].locked is None
    assert bench.set(connection=1, sm_mhz=[900, 1200])["code"] == "NoSession"


def test_a_reset_that_fails_is_tried_again_every_second(bench, cards, clock):
    bench.take_control()
    bench.set(sm_mhz=[900, 1200])
    cards[0].fail["unlock"] = 999
    bench.actuator.gone(1)
    clock.step(1)
    bench.actuator.tick()
    assert cards[0].locked == (900, 1200)
    cards[0].fail.clear()
    clock.step(1)
    bench.actuator.tick()
    assert cards[0].locked is None


def test_an_unlock_that_fails_is_owed_too(bench, cards, clock):
    bench.take_control()
    bench.set(sm_mhz=[900, 1200])
    cards[0].fail["unlock"] = 999
    assert not bench.set()["ok"]
    cards[0].fail.clear()
    clock.step(1)
    bench.actuator.tick()
    assert cards[0].locked is None


def test_a_gpu_that_hangs_is_in_every_reading_with_its_fault(bench):
    bench.jobs.hanging.add("GPU-1")
    gpus = bench.ask("read")["gpus"]
    assert [fault["code"] for fault in gpus[0]["faults"]] == ["NvmlHung"]
    assert gpus[0]["sample"] is None
    assert gpus[1]["sample"] is not None


def test_a_call_that_returns_after_all_leaves_no_lock_without_a_lease(bench, cards, clock):
    bench.take_control()
    bench.jobs.hanging.add("GPU-1")
    assert bench.set(sm_mhz=[900, 1200])["code"] == "NvmlHung"
    clock.step(3)
    bench.actuator.tick()
    cards[0].locked = (900, 1200)  # what the late call did
    bench.jobs.hanging.clear()
    bench.actuator.recovered("GPU-1")
    assert cards[0].locked is None


def test_requests_that_come_while_the_gpus_are_being_opened_are_answered_afterwards(cards, tmp_path, clock, quiet_log):
    record = Record(tmp_path / "other.json", "boot-1")
    bench = Bench(cards, record, clock, quiet_log)
    bench.jobs.held = []
    bench.actuator.start()
    bench.actuator.line(1, b'{"op":"capabilities","id":5}')
    assert bench.answers == {}
    ((_, _, work, done),), bench.jobs.held = bench.jobs.held, None
    done(work(bench.jobs), None)
    assert len(bench.answers[1][0]["gpus"]) == 2
    record.close()


def test_without_a_driver_the_reason_is_said_and_it_is_tried_again(cards, tmp_path, clock, quiet_log):
    record = Record(tmp_path / "other.json", "boot-1")
    bench = Bench(cards, record, clock, quiet_log)
    bench.fail_open = True
    bench.actuator.start()
    assert "Driver Not Loaded" in bench.ask("capabilities")["error"]
    assert bench.ask("read")["gpus"] == []
    bench.fail_open = False
    clock.step(10)
    bench.actuator.tick()
    assert len(bench.ask("capabilities")["gpus"]) == 2
    record.close()


def test_with_writing_off_only_the_fail_safe_writes(bench, cards):
    bench.take_control()
    bench.set(sm_mhz=[900, 1200])
    bench.ask("renew", writes=False)
    assert bench.set(sm_mhz=[600, 600])["code"] == "Stopped"
    assert cards[0].locked == (900, 1200)
    bench.actuator.gone(1)
    assert cards[0].locked is None


def test_a_new_agent_may_write_again(bench):
    bench.take_control(1)
    bench.ask("renew", writes=False)
    bench.take_control(2)
    assert bench.set(connection=2, sm_mhz=[600, 600])["ok"]
