"""Controllers of a cluster in virtual time, run by the agents' own code: knobs of engines, failures, restarts."""

import numpy as np
import pytest
from world_parts import policy, steady

from flyball_agent.controllers.base import UNLOCKED, Decision, GroupSetpoint
from flyball_sim.world.cluster import uniform_cluster
from flyball_sim.world.faults import parse_fault
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
