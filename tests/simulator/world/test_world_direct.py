"""One engine under one controller without a control plane: the same observations, clamps and accounts."""

import numpy as np
import pytest
from world_parts import PlainEngine, policy, run_plain, steady

import flyball_agent.agent
import flyball_agent.engines
import flyball_api.lease
import flyball_operator.applying
import flyball_operator.loop
from flyball_agent.controllers.base import UNLOCKED, ControlLimits, Decision, GroupSetpoint, Targets
from flyball_agent.controllers.registry import make_controller
from flyball_agent.driving import GroupDriver
from flyball_agent.facts import Engine, EngineState
from flyball_agent.groups import groups_of
from flyball_api.nodeenergyplan import PlanGpu, PlanPolicy
from flyball_sim.engine.core import EngineLimits
from flyball_sim.world import delays, injecting
from flyball_sim.world.cluster import uniform_cluster
from flyball_sim.world.direct import control_limits, run_engine
from flyball_sim.world.layout import lay_out
from flyball_sim.world.outcomes import OutcomeBook
from flyball_sim.world.slo import Slo, attainment, attainment_so_far, met, met_all

MODEL = lay_out(uniform_cluster()).engines[0].model
LIMITS = EngineLimits(8192)


class Watching:
    """Answers what it is told to, and keeps what it saw."""

    requires = frozenset()
    events = frozenset()
    wants_board = False
    period_seconds = 0.5

    def __init__(self, setpoint=UNLOCKED, wake=0.5):
        self.setpoint, self.wake, self.seen = setpoint, wake, []

    def decide(self, observation, limits, now_seconds):
        self.seen.append((observation, limits, now_seconds))
        return Decision(self.setpoint, next_wake_seconds=self.wake)

    def state(self):
        return {}

    def restore(self, state):
        pass


def engine(start=0.0):
    return PlainEngine(MODEL, LIMITS, start_seconds=start)


def test_a_controller_is_asked_twice_a_second_and_sees_what_an_agent_would_show_it():
    controller = Watching()
    run = run_engine(engine(), steady(20, seconds=10), controller, model=MODEL, end_seconds=12)
    assert [now for _, _, now in controller.seen] == [0.5 * tick for tick in range(25)]
    observation, limits, now = controller.seen[10]
    assert limits == ControlLimits(345, 1980, None) == control_limits(MODEL)

    policy_ = PlanPolicy(name="p", uid="u", controller=policy(clock=1200).spec.controller)
    (group,) = groups_of({"p": policy_}, [PlanGpu(uuid="G", grant=1, action="Enforce", policy="p", pod_ip="10.0.0.1")])
    inner = Watching()
    reading = observation.gpus[0]
    report = {
        "cap_limited": reading.cap_limited,
        "sample": {
            "power_average_watts": reading.power_watts,
            "power_instant_watts": None,
            "sm_mhz": reading.sm_mhz,
            "utilisation_percent": reading.utilisation_percent,
            "energy_joules": reading.energy_joules,
        },
    }
    state = EngineState(0.0, observation.engine, now)
    assert group.engine == Engine("10.0.0.1", 8000, "/metrics")
    GroupDriver(lambda *_, **__: inner).outcome(group, limits, {"G": report}, state, now)
    assert inner.seen[0] == (observation, limits, now)
    assert run.decisions == 25


def test_a_controller_is_left_alone_until_it_wants_to_be_asked():
    controller = Watching(wake=3.0)
    run_engine(engine(), steady(20, seconds=10), controller, model=MODEL, end_seconds=10)
    assert [now for _, _, now in controller.seen] == [0.0, 3.0, 6.0, 9.0]


def test_setpoints_are_clamped_and_written_once():
    machine = engine()
    run = run_engine(
        machine,
        steady(20, seconds=10),
        Watching(GroupSetpoint((1201, 1209), 100)),
        model=MODEL,
        limits=control_limits(MODEL, 450),
    )
    assert [entry[1:] for entry in machine.told] == [("cap", 200.0), ("lock", (1200, 1200))]
    assert run.changes == 2


def test_a_run_ends_with_its_last_request_or_when_it_is_told_to():
    controller = make_controller(policy(clock=1980).spec.controller, observe=False)
    run = run_engine(engine(-5.0), steady(20, seconds=10), controller, model=MODEL)
    assert run.outcomes.count("finished") == 20
    assert run.end_seconds == pytest.approx(9.75 + 0.02 + 0.49)
    assert run.energy_joules == pytest.approx(run.end_seconds * 100 + (run.end_seconds - 0.25) * 400)
    longer = run_engine(engine(), steady(20, seconds=10), controller, model=MODEL, end_seconds=20)
    assert longer.energy_joules == pytest.approx(run.energy_joules + 100 * (20 - run.end_seconds))


def test_a_world_of_one_engine_comes_to_the_same():
    trace = steady(40, seconds=20)
    held = policy(clock=1200)
    direct = run_engine(
        engine(), trace, make_controller(held.spec.controller, observe=False), model=MODEL, end_seconds=25
    )
    world = run_plain(uniform_cluster(), [held], trace, end_seconds=25)
    assert world.energy_joules == pytest.approx(direct.energy_joules, rel=1e-3)
    assert world.outcomes.ttft_seconds == pytest.approx(direct.outcomes.ttft_seconds, abs=1e-6)


class Eager(Watching):
    """Wants to be woken by what it names."""

    wants_board = False
    period_seconds = 0.5

    def __init__(self, *events, wake=3600.0, setpoint=UNLOCKED):
        super().__init__(setpoint, wake)
        self.events = frozenset(events)

    def asked(self, event):
        return [now for observation, _, now in self.seen if observation.event == event]


def run_eager(controller, trace, **options):
    return run_engine(engine(), trace, controller, model=MODEL, native=True, **options)


def test_a_controller_with_native_signals_is_woken_exactly_when_it_asked_to_be():
    controller = Eager(wake=0.73)
    run_eager(controller, steady(4, seconds=4), end_seconds=4)
    assert [now for _, _, now in controller.seen] == pytest.approx([0.73 * wake for wake in range(6)])


def test_a_controller_with_native_signals_is_woken_by_arrivals_and_completions():
    trace = steady(4, seconds=4)
    controller = Eager("arrival", "completion")
    run = run_eager(controller, trace, end_seconds=6)
    assert controller.asked("arrival") == [request.arrival_seconds for request in trace]
    assert controller.asked("completion") == pytest.approx(run.outcomes.finished_seconds)
    assert controller.asked(None) == [0.0]


def test_iterations_are_shown_every_10_ms_while_the_engine_has_work_and_not_while_it_idles():
    trace = steady(2, seconds=4)
    controller = Eager("iteration")
    run = run_eager(controller, trace, end_seconds=5)
    asked = controller.asked("iteration")
    busy = [(request.arrival_seconds, done) for request, done in zip(trace, run.outcomes.finished_seconds, strict=True)]
    assert all(any(start <= now <= done + 0.0101 for start, done in busy) for now in asked)
    assert len(asked) == pytest.approx(sum(done - start for start, done in busy) / 0.01, abs=4)
    assert asked[0] == trace[0].arrival_seconds


def test_without_native_signals_events_wake_nobody():
    controller = Eager("arrival", "completion", "iteration")
    run_engine(engine(), steady(4, seconds=4), controller, model=MODEL, end_seconds=6)
    assert len(controller.seen) == 1


def test_energy_counts_from_where_it_is_scored_and_is_noted_at_marks():
    trace = steady(20, seconds=10)
    whole = run_engine(engine(), trace, Watching(), model=MODEL, end_seconds=12, marks=[4.0, 12.0])
    late = run_engine(engine(), trace, Watching(), model=MODEL, end_seconds=12, score_seconds=4.0, marks=[12.0])
    assert whole.marks_joules[-1] == pytest.approx(whole.energy_joules)
    assert late.energy_joules == pytest.approx(whole.energy_joules - whole.marks_joules[0])
    assert late.marks_joules == pytest.approx([late.energy_joules])


def test_objectives_reach_the_controller_with_its_limits():
    controller = Watching()
    targets = Targets(ttft_seconds=0.5, tpot_seconds=0.05)
    limits = control_limits(MODEL, 700, targets)
    run_engine(engine(), steady(2, seconds=1), controller, model=MODEL, limits=limits, end_seconds=1)
    assert controller.seen[0][1] == ControlLimits(345, 1980, 700, targets)


def test_an_objective_needs_both_latencies_and_a_finish():
    book = OutcomeBook()
    for _ in range(5):
        book.offer(1.0, 100, 11)
    book.offer(1.0, 100, 1)
    for number in range(4):
        book.send(number, 0)
    book.finish(0, 1.4, 1.9)  # TTFT 0.4, TPOT 0.05
    book.finish(1, 1.6, 2.0)  # late first token
    book.finish(2, 1.4, 3.4)  # slow tokens
    book.lose(3, 2.0)
    book.finish(5, 1.5, 1.5)
    outcomes, slo = book.outcomes(("a",)), Slo(0.5, 0.05 + 1e-9)
    assert met_all(outcomes, slo).tolist() == [True, False, False, False, False, True]
    assert [met(outcome, slo) for outcome in outcomes] == [True, False, False, False, False, True]
    assert attainment(outcomes, slo) == pytest.approx(2 / 6)
    so_far = attainment_so_far(outcomes, slo, np.array([0.5, 1.6, 3.5]))
    assert so_far == pytest.approx([np.nan, 1.0, 2 / 5], nan_ok=True)


def test_a_request_ends_once():
    book = OutcomeBook()
    book.reject(book.offer(0.0, 1, 1), 0.0)
    with pytest.raises(ValueError, match="request 0 is rejected already"):
        book.lose(0, 1.0)


def test_periods_are_those_of_the_real_processes():
    assert delays.AGENT_TICK_SECONDS == flyball_agent.agent.TICK_SECONDS
    assert delays.STATUS_CHECK_SECONDS == flyball_agent.agent.STATUS_CHECK_SECONDS
    assert delays.STATUS_GATHER_SECONDS == flyball_agent.agent.GATHER_SECONDS
    assert delays.SCRAPE_PERIOD_SECONDS == flyball_agent.engines.PERIOD_SECONDS
    assert delays.SCRAPE_TIMEOUT_SECONDS == flyball_agent.engines.TIMEOUT_SECONDS
    assert delays.LOOP_PERIOD_SECONDS == flyball_operator.loop.PERIOD_SECONDS
    assert delays.LOOP_GATHER_SECONDS == flyball_operator.loop.GATHER_SECONDS
    assert delays.WRITES_AT_ONCE == flyball_operator.applying.CONCURRENCY
    timing = flyball_api.lease.LeaseTiming()
    assert timing.duration_seconds == delays.OPERATOR_LEASE_SECONDS
    assert timing.renew_deadline_seconds == injecting.RENEW_DEADLINE_SECONDS
    assert delays.ACQUIRE_SECONDS[1] == timing.retry_seconds


def test_a_delay_range_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"the watch delay is 2\.0 to 1\.0 s: give 0 <= lowest <= highest"):
        delays.Delays(watch=(2.0, 1.0))
