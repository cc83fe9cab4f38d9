"""Cards that a profiler has for itself: refused to others, and given back as they were found whatever happens."""

import json

import pytest

from flyball_agent.actuator.core import Actuator
from flyball_agent.actuator.device import Cards
from flyball_agent.actuator.record import EMPTY

AGENT, PROFILER = 1, 2


class AtOnce:
    cancelled = False

    def submit(self, _key, _name, work, done):
        try:
            result, error = work(self), None
        except Exception as raised:  # noqa: BLE001
            result, error = None, raised
        done(result, error)


class Bench:
    def __init__(self, cards, record, clock, log):
        self.answers = {}
        self.actuator = Actuator(
            life="life",
            boot_id="boot-1",
            jobs=AtOnce(),
            open_cards=lambda: Cards("580", tuple(cards)),
            record=record,
            clock=clock,
            log=log,
            send=lambda connection, answer: self.answers.setdefault(connection, []).append(answer),
            close=lambda _: None,
        )
        self.actuator.start()

    def ask(self, op, connection=AGENT, **fields):
        self.actuator.line(connection, json.dumps({"op": op, "id": 1, **fields}).encode())
        return self.answers[connection][-1]

    def hold(self, gpu="GPU-1", seconds=3):
        return self.ask("hold", PROFILER, gpu=gpu, lease_seconds=seconds)

    def set(self, connection, gpu="GPU-1", **fields):
        return self.ask("set", connection, gpu=gpu, lease_seconds=3, **fields)


@pytest.fixture
def cards(make_card):
    return [make_card("GPU-1"), make_card("GPU-2")]


@pytest.fixture
def bench(cards, record, clock, quiet_log):
    made = Bench(cards, record, clock, quiet_log)
    assert made.ask("hello", session="s")["ok"]
    return made


def test_a_held_card_is_the_holders_and_the_agent_is_refused(bench, cards):
    assert bench.hold()["ok"]
    assert bench.set(PROFILER, sm_mhz=[900, 900], cap_watts=300)["ok"]
    assert (cards[0].locked, cards[0].requested) == ((900, 900), 300)
    refused = bench.set(AGENT, sm_mhz=[1200, 1200])
    assert refused["code"] == "Held"
    assert "flyball profile" in refused["error"]
    assert bench.set(AGENT, "GPU-2", sm_mhz=[1200, 1200])["ok"]
    assert bench.ask("capabilities")["gpus"][0]["held"]


def test_without_a_hold_a_second_connection_changes_nothing(bench, cards):
    assert bench.set(PROFILER, sm_mhz=[900, 900])["code"] == "NoSession"
    assert cards[0].writes == []


@pytest.mark.parametrize("governed", [{"sm_mhz": [900, 1200]}, {"cap_watts": 400, "ceiling_watts": 400}])
def test_a_card_that_the_agent_governs_is_not_given(bench, cards, governed):
    bench.set(AGENT, **governed)
    before = list(cards[0].writes)
    assert bench.hold()["code"] == "Governed"
    assert bench.set(PROFILER, sm_mhz=[1500, 1500])["code"] == "NoSession"
    assert cards[0].writes == before


def test_after_a_release_by_the_agent_it_is_given(bench):
    bench.set(AGENT, cap_watts=400, ceiling_watts=400)
    bench.ask("release", gpu="GPU-1")
    assert bench.hold()["ok"]


@pytest.mark.parametrize(
    "end",
    [
        lambda bench, _: bench.actuator.gone(PROFILER),
        lambda bench, _: bench.ask("release", PROFILER, gpu="GPU-1"),
        lambda bench, _: bench.actuator.line(PROFILER, b"what"),
        lambda bench, clock: (clock.step(4), bench.actuator.tick()),
        lambda bench, _: bench.actuator.shut_down(),
    ],
    ids=["connection closed", "released", "not understood", "silent", "actuator ends"],
)
def test_however_a_hold_ends_clocks_and_cap_are_as_they_were_found(bench, cards, clock, record, end):
    cards[0].requested = 650
    bench.hold()
    bench.set(PROFILER, sm_mhz=[900, 900], cap_watts=300)
    bench.set(PROFILER, sm_mhz=[900, 900], cap_watts=250)
    end(bench, clock)
    assert (cards[0].locked, cards[0].requested) == (None, 650)
    assert record.entry("GPU-1") == EMPTY


def test_signs_of_life_keep_a_hold_and_those_of_the_agent_do_not(bench, cards, clock):
    bench.hold()
    bench.set(PROFILER, sm_mhz=[900, 900])
    for _ in range(4):
        clock.step(2)
        bench.ask("renew", PROFILER)
        bench.actuator.tick()
    assert cards[0].locked == (900, 900)
    for _ in range(2):
        clock.step(2)
        bench.ask("renew", AGENT)
        bench.actuator.tick()
    assert cards[0].locked is None


def test_an_agent_that_connects_anew_does_not_unlock_a_held_card(bench, cards):
    bench.hold()
    bench.set(PROFILER, sm_mhz=[900, 900])
    bench.actuator.gone(AGENT)
    bench.ask("hello", 3, session="t")
    assert cards[0].locked == (900, 900)


def test_only_one_connection_holds_a_card(bench):
    bench.hold()
    assert bench.ask("hold", 3, gpu="GPU-1", lease_seconds=3)["code"] == "Held"


def test_giving_back_is_tried_until_it_works(bench, cards, clock):
    bench.hold()
    bench.set(PROFILER, cap_watts=300)
    cards[0].fail["set_cap"] = 999
    bench.actuator.gone(PROFILER)
    assert cards[0].requested == 300
    cards[0].fail.clear()
    clock.step(1.5)
    bench.actuator.tick()
    assert cards[0].requested == 700


def test_an_actuator_that_died_during_a_hold_gives_the_card_back_when_it_starts(bench, cards, clock, quiet_log, record):
    bench.hold()
    bench.set(PROFILER, sm_mhz=[900, 900], cap_watts=300)
    Bench(cards, record, clock, quiet_log)
    assert (cards[0].locked, cards[0].requested) == (None, 700)
    assert record.entry("GPU-1") == EMPTY


def test_with_writing_switched_off_nothing_is_held_and_a_hold_still_ends(bench, cards):
    bench.hold()
    bench.set(PROFILER, sm_mhz=[900, 900])
    bench.ask("renew", AGENT, writes=False)
    assert bench.hold("GPU-2")["code"] == "Stopped"
    assert bench.set(PROFILER, sm_mhz=[1200, 1200])["code"] == "Stopped"
    bench.actuator.gone(PROFILER)
    assert cards[0].locked is None


def test_a_card_that_is_lost_refuses_its_holder(bench, cards):
    cards[0].fail["lock"] = 15
    bench.hold()
    assert bench.set(PROFILER, sm_mhz=[900, 900])["code"] == "GpuLost"
    assert cards[0].locked is None
