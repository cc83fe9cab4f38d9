"""Pools of prefill and decode engines under controllers, and VoltanaLLM on one."""

import math
from itertools import pairwise

import numpy as np
import pytest

from flyball_agent.controllers.base import UNLOCKED, Decision, GroupSetpoint
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.load.traces import TraceRequest
from flyball_sim.validation import voltanallm as paper
from flyball_sim.validation import voltanallm_rows
from flyball_sim.validation.rows import NEEDS_DATA
from flyball_sim.world.pair import Handover, run_pair
from flyball_sim.world.routers import ROUTERS

MODEL = paper.paper_engine()
LIMITS = EngineLimits(8192)
SHORT = 8.0
RATE = 40.0


class Answering:
    """Answers what it is told to, and keeps what it saw."""

    requires = frozenset()
    wants_board = True
    period_seconds = 0.5

    def __init__(self, setpoint=UNLOCKED, events=()):
        self.setpoint, self.events, self.seen = setpoint, frozenset(events), []

    def decide(self, observation, _limits, now_seconds):
        self.seen.append((now_seconds, observation))
        return Decision(self.setpoint)


def run(requests=None, *, make=lambda *_: Answering(), limits=LIMITS, engines=(2, 2), **options):
    machines = [[Machine(MODEL, limits, seed=number) for number in range(count)] for count in engines]
    trace = paper.requests(RATE, seconds=SHORT) if requests is None else requests
    return run_pair(*machines, trace, controllers=make, **options)


@pytest.mark.parametrize("router", [*ROUTERS])
@pytest.mark.parametrize("at_arrival", [False, True])
def test_every_request_is_answered_once_by_a_decode_engine(router, at_arrival):
    ran = run(router=router, prefill_router=router, decode_at_arrival=at_arrival)
    assert ran.outcomes.count("finished") == len(ran.outcomes) == len(paper.requests(RATE, seconds=SHORT))
    assert set(np.unique(ran.outcomes.engine)) == {2, 3}
    assert ran.outcomes.engines == ("prefill-0", "prefill-1", "decode-0", "decode-1")


def test_a_first_token_comes_after_prefill_and_the_way_over_the_link():
    slow = Handover(gigabytes_per_second=1.0, latency_seconds=0.2)
    request = [TraceRequest(1.0, 1000, 10)]
    near, far = run(request), run(request, handover=slow)
    gigabytes = 1000 * MODEL.model.kv_bytes_per_token() / 1e9
    more = far.outcomes.ttft_seconds[0] - near.outcomes.ttft_seconds[0]
    assert more == pytest.approx(0.195 + gigabytes * (1.0 - 1.0 / 50.0))
    assert far.outcomes.tpot_seconds[0] == pytest.approx(near.outcomes.tpot_seconds[0], rel=1e-3)


def test_energy_is_of_all_cards_and_adds_up_over_marks():
    ran = run(end_seconds=20.0, marks=(5.0, 20.0))
    assert 0 < ran.marks_joules[0] < ran.marks_joules[1] == pytest.approx(ran.energy_joules)
    assert 0 < ran.prefill_joules < ran.energy_joules
    assert 0 < ran.serving_joules < ran.energy_joules
    late = run(end_seconds=20.0, score_seconds=5.0)
    assert late.energy_joules == pytest.approx(ran.energy_joules - ran.marks_joules[0])


def test_a_request_that_no_engine_takes_is_rejected_and_the_others_go_on():
    ran = run([TraceRequest(0.0, 9000, 5), TraceRequest(0.1, 100, 5)])
    assert (ran.outcomes.count("rejected"), ran.outcomes.count("finished")) == (1, 1)


def test_without_requests_only_idle_energy_is_left():
    ran = run([], end_seconds=10.0)
    assert ran.energy_joules == pytest.approx(4 * 10.0 * MODEL.gpu.waiting_watts(1410.0), rel=0.05)
    assert ran.serving_joules == 0.0
    assert len(run([]).outcomes) == 0


def test_a_pool_lacks_nothing_or_says_so():
    with pytest.raises(ValueError, match="2 prefill and 0 decode engines: give at least one of each"):
        run([], engines=(2, 0))


def test_each_engine_has_a_controller_of_its_own_whose_lock_it_takes():
    made = {}

    def make(role, number):
        clock = 1005 if role == "prefill" else 1410
        made[role, number] = Answering(GroupSetpoint((clock, clock)))
        return made[role, number]

    ran = run(make=make)
    assert sorted(made) == [("decode", 0), ("decode", 1), ("prefill", 0), ("prefill", 1)]
    assert all(observation.role == role for (role, _), each in made.items() for _, observation in each.seen)
    assert ran.changes == 4


def test_a_native_controller_sees_a_board_each_10_ms_while_its_engine_works():
    made = []

    def make(*_):
        made.append(Answering(events=("iteration",)))
        return made[-1]

    run([TraceRequest(1.0, 2000, 50)], make=make, engines=(1, 1), native=True)
    times = [now for now, _ in made[1].seen]
    busy = [now for now, observation in made[1].seen if observation.board.requests]
    assert len(busy) > 30
    assert max(b - a for a, b in pairwise(busy)) < 0.0101
    assert sum(now < 1.0 for now in times) == 1


def test_the_same_run_gives_the_same_result():
    runs = [run(router="ecoroute") for _ in range(2)]
    assert runs[0].energy_joules == runs[1].energy_joules
    assert np.array_equal(runs[0].outcomes.decided_seconds, runs[1].outcomes.decided_seconds)


def played(policy, rate=RATE, seconds=SHORT):
    return paper.play(policy, rate, model=MODEL, seconds=seconds)


def test_at_light_load_voltanallm_draws_little_more_than_the_low_clock_and_keeps_the_objectives():
    high, low, ours = (played(policy) for policy in (paper.STATIC_HIGH, paper.STATIC_LOW, paper.ECOFREQ))
    assert ours.joules < 0.8 * high.joules
    assert ours.joules < 1.1 * low.joules
    bounds = paper.OBJECTIVE
    assert ours.itl_percent(bounds.tpot_seconds) == 100.0
    assert ours.ttft_percent(bounds.ttft_seconds) >= low.ttft_percent(bounds.ttft_seconds)


def test_drawn_requests_are_as_many_and_as_long_as_said():
    trace = paper.requests(60.0)
    assert len(trace) == pytest.approx(7200, rel=0.05)
    assert max(request.prompt_tokens + request.output_tokens for request in trace) <= paper.MOST_TOKENS
    assert trace == paper.requests(60.0)


def test_without_the_figure_each_row_says_what_it_needs():
    rows = voltanallm_rows.rows(None)
    assert len(rows) == 12
    assert all(row.verdict == "not run" and NEEDS_DATA in row.note for row in rows)


def test_the_rows_are_judged_by_the_briefs_bounds():
    good = voltanallm_rows.Numbers(31.0, 1.0, 12.0, 0.68, 0.0, 10.0, 0.03, 0.6, 5.0, 1.0, 5.0, 10.0, "kept")
    bad = voltanallm_rows.Numbers(20.0, 5.0, 20.0, 0.8, 9.0, -1.0, 0.5, 0.1, -1.0, -1.0, 20.0, 30.0)
    assert [row.verdict for row in voltanallm_rows.judged(good)] == ["pass"] * 12
    assert [row.verdict for row in voltanallm_rows.judged(bad)] == ["miss"] * 12
    assert all(row.verdict == "miss" for row in voltanallm_rows.judged(voltanallm_rows.Numbers()))
    assert math.isnan(voltanallm_rows.Numbers().saved_light)
