"""The thread that makes NVML calls, and what happens when one does not return."""

import threading
import time

import pytest

from flyball_agent.actuator.worker import HungError, Worker


class Loop:
    """The caller's side: polls when woken."""

    def __init__(self, clock, patience=60.0):
        self.woken = threading.Event()
        self.recovered = []
        self.worker = Worker(self.woken.set, clock, patience)

    def until(self, condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            self.woken.wait(0.01)
            self.woken.clear()
            self.worker.poll(self.recovered.append)


@pytest.fixture
def loop(clock):
    return Loop(clock)


def test_jobs_run_in_order_and_are_delivered_in_the_callers_thread(loop):
    delivered = []
    for number in range(5):
        loop.worker.submit(
            "g", "job", lambda _, n=number: n, lambda result, _: delivered.append((result, threading.current_thread()))
        )
    loop.until(lambda: len(delivered) == 5)
    assert delivered == [(number, threading.main_thread()) for number in range(5)]


def test_an_error_of_a_job_is_delivered(loop):
    delivered = []

    def fail(_):
        raise ValueError("x")

    loop.worker.submit("g", "job", fail, lambda result, error: delivered.append((result, type(error))))
    loop.until(lambda: delivered)
    assert delivered == [(None, ValueError)]


def test_a_hanging_job_is_given_up_and_other_gpus_are_served(loop, clock):
    release, started, done = threading.Event(), threading.Event(), []

    def hang(_):
        started.set()
        release.wait(10)

    def note(result, error):
        done.append(error if error else result)

    loop.worker.submit("bad", "set", hang, note)
    loop.worker.submit("bad", "read", lambda _: "never", note)
    loop.worker.submit("good", "read", lambda _: "served", note)
    assert started.wait(10)
    clock.step(61)
    loop.until(lambda: "served" in done)
    assert [type(entry) for entry in done] == [HungError, HungError, str]
    loop.worker.submit("bad", "read", lambda _: "never", note)
    assert isinstance(done[-1], HungError)
    release.set()
    loop.until(lambda: loop.recovered == ["bad"])
    loop.worker.submit("bad", "read", lambda _: "again", note)
    loop.until(lambda: done[-1] == "again")


def test_a_given_up_job_knows_that_it_is(loop, clock):
    release, tickets = threading.Event(), []

    def hang(ticket):
        tickets.append(ticket)
        release.wait(10)

    loop.worker.submit("bad", "set", hang, lambda *_: None)
    loop.until(lambda: tickets)
    assert not tickets[0].cancelled
    clock.step(61)
    loop.until(lambda: tickets[0].cancelled)
    release.set()
    loop.until(lambda: loop.recovered)
    assert loop.worker.idle()
