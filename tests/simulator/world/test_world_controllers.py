"""Controllers of a cluster in virtual time, run by the agents' own code: knobs of engines, failures, restarts."""

import json
import subprocess
import sys

import numpy as np
import pytest
from world_parts import policy, steady

from flyball_agent.controllers.base import UNLOCKED, Decision, GroupSetpoint
from flyball_sim.engine.core import EngineLimits
from flyball_sim.profiling import profile_engine
from flyball_sim.world.cluster import uniform_cluster
from flyball_sim.world.faults import parse_fault
from flyball_sim.world.layout import lay_out
from flyball_sim.world.machines import make_machine
from flyball_sim.world.simulate import Simulation

TRACE = steady(240, seconds=20, prompt=500, output=150)


class Own:
    """A controller of a test's own: does what a function of its number of decisions says."""

    requires = frozenset()
    events = frozenset()
    wants_board = True
    period_seconds = 0.5

    def __init__(self, answer, setup):
        self.answer, self.setup, self.count, self.boards = answer, setup, 0, []

    def decide(self, observation, _limits, _now):
        self.count += 1
        self.boards.append(observation.board)
        return Decision(self.answer(self.count), next_wake_seconds=self.period_seconds, because=f"turn {self.count}")

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]


class World:
    """One engine under a controller of a test's own."""

    def __init__(self, answer, *, faults=(), end=30.0, **attributes):
        self.made, self.machines = [], []

        def make(_spec, *, observe, setup):
            assert not observe
            made = Own(answer, setup)
            for name, value in attributes.items():
                setattr(made, name, value)
            self.made.append(made)
            return made

        def make_engine(*arguments, **options):
            self.machines.append(make_machine(*arguments, **options))
            return self.machines[-1]

        self.simulation = Simulation(
            uniform_cluster(),
            [policy()],
            TRACE,
            faults=[parse_fault(text) for text in faults],
            make=make,
            make_engine=make_engine,
            sample_seconds=1.0,
            end_seconds=end,
        )

    def run(self):
        self.simulation.run()
        return self.simulation.result()

    @property
    def batch_limit(self):
        return self.machines[0].board().batch_limit


def test_a_controller_sees_the_board_and_limits_the_batch():
    world = World(lambda _: GroupSetpoint(batch_limit=4))
    result = world.run()
    assert world.batch_limit == 4
    seen = [board for board in world.made[0].boards if board is not None]
    assert max(sum(request.running for request in board.requests) for board in seen) == 4
    assert {board.batch_limit for board in seen[20:]} == {4}
    assert np.nanmax(result.outcomes.ttft_seconds) > 5


def test_a_gate_that_is_opened_lets_everything_through():
    world = World(lambda turn: GroupSetpoint(admit=0 if turn < 150 else None), end=60.0)
    result = world.run()
    assert result.outcomes.count("finished") == len(TRACE)
    assert result.outcomes.ttft_seconds.max() > 5


def test_an_engine_whose_agent_died_has_its_own_limits_when_the_lease_is_over():
    faults = ["agent-gone:at=5,for=100,node=node-0,how=killed"]
    dead = World(lambda _: GroupSetpoint(batch_limit=4), faults=faults, end=15.0)
    dead.run()
    assert dead.batch_limit == 4
    dead.simulation.extend(25.0)
    assert dead.batch_limit == dead.machines[0].board().max_batch_limit


def test_a_restarted_agent_goes_on_with_what_its_controller_knew():
    world = World(lambda _: UNLOCKED, faults=["agent-gone:at=10,for=2,node=node-0,how=killed"])
    world.run()
    first, second = world.made
    assert first.setup == second.setup
    assert second.count > first.count > 100


def test_a_controller_that_fails_costs_no_request_and_begins_afresh():
    def answer(turn):
        if turn == 160:
            raise RuntimeError("lost the thread")
        return GroupSetpoint((1200, 1200))

    world = World(answer)
    result = world.run()
    assert result.outcomes.count("finished") == len(TRACE)
    assert len(world.made) == 2
    assert max(result.series.engine_sm_mhz.ravel()) == 1980
    assert result.series.engine_sm_mhz.ravel()[-1] == 1200
    said = {condition["message"] for shot in result.statuses for condition in shot.status["conditions"]}
    assert any("lost the thread" in message for message in said)


@pytest.mark.parametrize(("period", "seconds"), [(0.1, 0.1), (2.0, 2.0)])
def test_pages_come_as_often_as_the_controller_wants_them(period, seconds):
    world = World(lambda _: UNLOCKED, end=10.0, period_seconds=period)
    world.run()
    assert world.made[0].count == pytest.approx(70 / seconds, rel=0.05)


SLO = {
    "timeToFirstToken": {"thresholdMilliseconds": 500},
    "interTokenLatency": {"thresholdMilliseconds": 60},
    "endToEnd": {"thresholdMilliseconds": 30_000},
}
CONTROLLERS = {
    "Fixed": {"type": "Fixed", "fixed": {"clocks": [{"role": "unified", "minMegahertz": 900, "maxMegahertz": 900}]}},
    "Flyball": {"type": "Flyball"},
    "AGFT": {"type": "AGFT"},
    "VoltanaLLM": {"type": "VoltanaLLM", "voltanaLLM": {"profile": "llama"}},
    "ThrottLLeM": {"type": "ThrottLLeM", "throttLLeM": {"profile": "llama"}},
    "PALS": {"type": "PALS", "pals": {"profile": "llama"}},
}


@pytest.fixture(scope="module")
def profile():
    model = lay_out(uniform_cluster()).engines[0].model
    return profile_engine(model, EngineLimits(32_768), seed=1)


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_each_controller_drives_the_cards_by_the_agents_own_code(kind, profile):
    simulation = Simulation(
        uniform_cluster(),
        [policy(watts=700, reserve=0, slo=SLO, controller=CONTROLLERS[kind])],
        steady(480, seconds=120, prompt=500, output=150),
        profiles={"llama": profile},
        sample_seconds=1.0,
        end_seconds=150.0,
    )
    simulation.run()
    result = simulation.result()
    assert result.outcomes.count("finished") == 480
    assert result.series.engine_sm_mhz.min() < 1980
    (explained,) = next(iter(simulation._agents.values())).control.explain()
    assert explained["controller"] == kind
    assert set(explained["faults"]) <= {"Degraded"}
    assert explained["because"] or kind == "Fixed"


HEAVY = ("numpy", "scipy", "sklearn", "lightgbm", "pandas")
ALONE = """
import json, sys
from flyball_agent.controllers.base import ControlLimits, Observation, Setup
from flyball_agent.controllers.registry import make_controller
from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample
from flyball_api.controllers.union import Controller
profile = Profile.from_json(sys.stdin.read())
setup = Setup(profile.product, 1, tuple(range(345, 1981, 15)), 200.0, 700.0, 1, profile)
for spec in json.loads(sys.argv[1]):
    controller = make_controller(Controller.model_validate(spec), observe=False, setup=setup)
    controller.decide(Observation("unified", (), EngineSample()), ControlLimits(345, 1980, 700), 1.0)
    controller.restore(json.loads(json.dumps(controller.state())))
print(json.dumps(sorted(set(sys.modules) & set(json.loads(sys.argv[2])))))
"""


def test_no_controller_loads_a_numeric_library_into_the_agent(profile):
    said = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(list(CONTROLLERS.values())), json.dumps(HEAVY)],
        input=profile.to_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(said.stdout) == []
