"""The agent's loops around its state: engines told and handed back, states kept, decisions logged."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flyball_agent.agent import Agent, AgentSettings, Signals, Surroundings
from flyball_agent.controllers.base import Board, Decision, GroupSetpoint
from flyball_agent.exposition import AgentCounts
from flyball_agent.facts import Engine, EngineState
from flyball_agent.files import ProfileFolder, StateFile
from flyball_agent.node import NodeControl
from flyball_agent.scanner import EngineSample
from flyball_api.nodeenergyplan import NodeEnergyPlan

ENGINE = Engine("10.0.0.1", 8000, "/metrics")
CARD = {"uuid": "GPU-1", "index": 0, "product": "H100", "cap_min_watts": 200.0, "cap_max_watts": 700.0}
CARD |= {"cap_default_watts": 700.0, "sm_min_mhz": 345, "sm_max_mhz": 1980, "sm_mhz": [345, 1980], "mig_enabled": False}
POLICY = {"name": "chat", "uid": "u1", "controller": {"type": "Flyball"}}
ENTRY = {"uuid": "GPU-1", "grant": 1, "action": "Enforce", "policy": "chat", "podIp": "10.0.0.1"}
PLAN = {"metadata": {"name": "n"}, "spec": {"leaderEpoch": 1, "policies": [POLICY], "gpus": [ENTRY]}}


class Limiting:
    """Limits the engine's batch to as many as it was asked times."""

    requires, events, wants_board, period_seconds = frozenset(), frozenset(), True, 0.5

    def __init__(self, *_, **__):
        self.count = 0

    def decide(self, *_):
        self.count += 1
        return Decision(GroupSetpoint((900, 900), None, self.count), next_wake_seconds=0.5, because=f"{self.count}")

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]


class Scraper:
    """Scrapes nothing; its one engine answered a moment ago."""

    def __init__(self, now):
        board = Board(1, (), 16, 100, 256, 256)
        self.states = {ENGINE: EngineState(now)}
        self.states[ENGINE].take(EngineSample({"requests_running": 1.0, "generation_tokens": 1.0}), now, board)
        self.wishes = []

    def want(self, wishes):
        self.wishes.append(wishes)


class Client:
    """An actuator that does what it is told."""

    def __init__(self):
        self.asked = []

    async def ask(self, operation, **fields):
        self.asked.append((operation, fields))
        answer = {"uuid": "GPU-1", "lock_mhz": None, "cap_in_force": True, "armed": True, "faults": [], "sample": None}
        return {"gpu": answer | {"reloads": 0, "lock_mhz": fields.get("sm_mhz")}}


class Around:
    """An agent with everything it reaches for stood in for."""

    def __init__(self, clock, path=None, answer=""):
        self.clock, self.answer, self.told, self.client = clock, answer, [], Client()
        self.control = NodeControl("session", Limiting, clock)
        self.control.take_switch(None)
        self.control.take_actuator("life", "boot")
        self.control.take_cards({"driver_version": "580", "error": "", "gpus": [CARD]})
        self.scraper = Scraper(clock.now)
        self.agent = Agent(
            AgentSettings("n", Path("a"), Path("p"), "1", "boot-1"),
            self.control,
            around=Surroundings(self.scraper, self.tell, ProfileFolder(Path("/none")), StateFile(path)),
            kube=None,
            counts=AgentCounts(),
            signals=Signals(),
            clock=clock,
            utc_now=lambda: datetime.now(UTC),
            sleep=asyncio.sleep,
            uniform=lambda low, _: low,
        )

    async def tell(self, command):
        self.told.append(command.body())
        return self.answer

    async def go(self, times=1):
        """So many passes of the control loop."""
        for _ in range(times):
            self.agent._dispatch(self.client)
            await asyncio.gather(*self.agent._sending)
            self.clock.step(1.0)
            state = self.scraper.states[ENGINE]
            state.take(state.sample, self.clock.now, state.board)

    def plan(self):
        self.agent.on_plan(NodeEnergyPlan.model_validate(PLAN))


def test_engines_are_told_in_the_control_loop_and_handed_back_at_the_end(clock):
    async def run():
        around = Around(clock)
        around.plan()
        await around.go(2)
        await around.agent.farewell()
        return around

    around = asyncio.run(run())
    assert [body["batchLimit"] for body in around.told] == [1, 2, None]
    assert around.client.asked[0][1]["sm_mhz"] == (900, 900)
    assert around.scraper.wishes[-1][ENGINE].board


def test_an_engine_that_hangs_at_the_end_does_not_cost_what_was_learnt(clock, tmp_path, monkeypatch):
    monkeypatch.setattr("flyball_agent.agent.FAREWELL_SECONDS", 0.05)

    async def run():
        around = Around(clock, tmp_path / "states.json")
        around.plan()
        await around.go()
        around.agent._around = replace(around.agent._around, tell=lambda _: asyncio.Event().wait())
        await around.agent.farewell()

    asyncio.run(run())
    assert (tmp_path / "states.json").exists()


def test_an_engine_that_refuses_is_counted_and_told_in_the_status(clock):
    async def run():
        around = Around(clock, answer="HTTP 500")
        around.plan()
        await around.go()
        return around

    around = asyncio.run(run())
    assert "HTTP 500" in around.control.faults(around.control.gpus["GPU-1"])["EngineLimits"]
    assert around.agent._counts.engine_commands_failed == 1


def test_the_next_agent_goes_on_with_what_the_last_one_kept(clock, tmp_path):
    async def run(path):
        around = Around(clock, path)
        around.agent.recall()
        around.plan()
        await around.go(3)
        await around.agent.farewell()
        return around.control.explain()[0]["because"]

    path = tmp_path / "states.json"
    assert [asyncio.run(run(path)), asyncio.run(run(path))] == ["3", "6"]
    path.write_bytes(b"{")
    assert asyncio.run(run(path)) == "3"


@pytest.mark.parametrize("broken", ["unwritable", "a directory"])
def test_a_file_that_cannot_be_used_stops_nothing(clock, tmp_path, broken):
    path = tmp_path / "file" / "states.json"
    if broken == "unwritable":
        path.parent.write_text("no directory")
    else:
        path.mkdir(parents=True)

    async def run():
        around = Around(clock, path)
        around.agent.recall()
        around.plan()
        await around.go(2)
        await around.agent.farewell()
        return around

    around = asyncio.run(run())
    assert around.agent._counts.state_writes_failing
    assert around.control.explain()[0]["because"] == "2"


def test_nothing_is_written_before_there_is_a_plan(clock, tmp_path):
    async def run():
        await Around(clock, tmp_path / "states.json").agent.farewell()

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_a_setpoint_is_logged_when_it_changes_and_once_a_minute_at_most(clock, quiet_log):
    async def run():
        around = Around(clock)
        around.agent._log = quiet_log
        around.plan()
        await around.go(130)

    asyncio.run(run())
    decisions = [fields["because"] for event, fields in quiet_log.events if event == "decision"]
    assert decisions == ["1", "61", "121"]


def test_a_page_that_a_controller_waits_for_wakes_the_control_loop(clock):
    async def run():
        around = Around(clock)
        around.plan()
        await around.go()
        around.agent._signals.control.clear()
        state = around.scraper.states[ENGINE]
        state.take(state.sample, clock.now, state.board)
        around.agent.on_page(ENGINE, state)
        return around.agent._signals.control.is_set()

    assert asyncio.run(run())
