from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.scoreboard.cells import Case, Cell
from flyball_sim.scoreboard.contest import Contest, Options, capacity, parked_joules
from flyball_sim.scoreboard.runs import UNLOCKED, Setting
from flyball_sim.scoreboard.search import best_static
from flyball_sim.scoreboard.search import capacity as find_capacity
from flyball_sim.scoreboard.slo import ATTAINMENT, Slo

SMALL = Options(requests=300, search_runs=60)


@dataclass(frozen=True)
class Made:
    attainment: float
    energy_joules: float


@cache
def contest() -> Contest:
    case = Case("8b-h100", "conversation", "tight")
    multiplier = capacity(case, SMALL).multiplier
    assert multiplier is not None
    return Contest(Cell(case, 60), multiplier, SMALL)


@given(points=st.integers(1, 120), least=st.integers(0, 119), valley=st.integers(0, 119))
def test_the_search_finds_the_least_energy_that_is_feasible_in_few_runs(points: int, least: int, valley: int) -> None:
    least = min(least, points - 1)
    made = [Made(1.0 if index >= least else 0.5, 100.0 + abs(index - valley) ** 1.5) for index in range(points)]
    best = best_static(points, made.__getitem__, 0.99)
    assert best.feasible
    assert best.trial.energy_joules == min(trial.energy_joules for trial in made[least:])
    assert best.runs <= 26


def test_where_nothing_is_feasible_the_highest_setting_stands() -> None:
    best = best_static(10, lambda index: Made(0.5, 10.0 - index), 0.99)
    assert (best.index, best.feasible, best.runs) == (9, False, 1)


def test_the_search_agrees_with_every_clock_of_a_small_cell() -> None:
    found = contest().static_clock
    trials = [contest().trial(Setting(sm_mhz=clock)) for clock in contest().clocks] + [contest().unlocked]
    feasible = [trial for trial in trials if trial.attainment >= ATTAINMENT]
    assert found.trial.energy_joules == min(trial.energy_joules for trial in feasible)
    assert found.runs <= 20


def test_the_search_agrees_with_every_cap_of_a_small_cell() -> None:
    found = contest().static_cap
    trials = [contest().trial(Setting(cap_watts=float(cap))) for cap in contest().caps]
    feasible = [trial for trial in trials if trial.attainment >= ATTAINMENT]
    assert found.trial.energy_joules == min(trial.energy_joules for trial in feasible)


@given(edge=st.floats(0.02, 900.0), tolerance=st.floats(0.005, 0.2))
def test_capacity_is_found_within_its_tolerance(edge: float, tolerance: float) -> None:
    found = find_capacity(lambda multiplier: multiplier <= edge, tolerance=tolerance)
    assert found.multiplier is not None
    assert found.multiplier <= edge <= found.multiplier * (1.0 + tolerance) * (1.0 + 1e-9)


def test_what_never_holds_has_no_capacity_and_what_always_does_an_end() -> None:
    assert find_capacity(lambda _: False, tolerance=0.1).multiplier is None
    assert find_capacity(lambda _: True, tolerance=0.1).multiplier == 8192.0


def test_a_cell_is_played_at_its_share_of_capacity() -> None:
    unlocked = contest().unlocked
    assert unlocked.attainment >= ATTAINMENT
    assert contest().multiplier == pytest.approx(0.6 * (capacity(contest().cell.case, SMALL).multiplier or 0.0))


def test_the_schedule_that_knows_the_future_is_never_above_the_best_static_clock() -> None:
    found = contest().best_schedule
    assert found is not None
    assert found.outcomes.met(contest().slo).mean() >= ATTAINMENT
    assert found.energy_joules <= contest().static_clock.trial.energy_joules
    assert found.energy_joules >= contest().bound.energy_joules
    assert found.runs <= SMALL.search_runs


def test_its_energy_is_that_of_a_run_that_parks_while_nobody_is_served() -> None:
    where = contest()
    plain = where.serve([(0.0, Setting(sm_mhz=1200))])
    busy: list[tuple[float, float]] = []
    for request, finished in zip(where.trace, plain.finished_seconds.tolist(), strict=True):
        if busy and request.arrival_seconds <= busy[-1][1]:
            busy[-1] = (busy[-1][0], max(busy[-1][1], finished))
        else:
            busy.append((request.arrival_seconds, finished))
    lowest = where.clocks[0]
    schedule = [(0.0, Setting(sm_mhz=lowest))]
    for begin, end in busy:
        schedule += [(begin, Setting(sm_mhz=1200)), (end, Setting(sm_mhz=lowest))]
    parked = where.serve(schedule)
    assert parked.finished_seconds.tolist() == pytest.approx(plain.finished_seconds.tolist(), rel=1e-9)
    assert parked.energy_joules == pytest.approx(parked_joules(where.engine, plain), rel=1e-6)


def test_one_clock_that_no_cap_lowers_is_weighed_again_for_a_draw_and_anything_else_runs_again() -> None:
    case = contest().cell.case
    drawn = Contest(Cell(case, 60), contest().multiplier / 0.6, Options(requests=300, draws=2))
    weighed, again = ([(0.0, setting)] for setting in (Setting(sm_mhz=900), Setting(cap_watts=300.0)))
    runs = []
    serve = drawn.serve

    def counting(*args: object, **kwargs: object) -> object:
        runs.append(args)
        return serve(*args, **kwargs)  # type: ignore[arg-type]

    outcomes = [serve(weighed), serve(again)]
    drawn.serve = counting  # type: ignore[method-assign, assignment]
    assert len(set(drawn.drawn(weighed, outcomes[0]))) == 2
    assert not runs
    assert len(set(drawn.drawn(again, outcomes[1]))) == 2
    assert len(runs) == 2


def test_refused_and_unfinished_requests_miss_and_one_token_answers_have_no_time_per_token() -> None:
    slo = Slo("any", 1.0, 0.05)
    nan = math.nan
    met = slo.met(np.array([0.5, nan, 0.5, 1.5, 0.5]), np.array([0.04, nan, nan, 0.04, 0.06]))
    assert met.tolist() == [True, False, True, False, False]
    where = contest()
    cut = where.trace[-1].arrival_seconds + 1e-3
    short = Contest(where.cell, where.multiplier / 0.6, SMALL)
    short.end_seconds = cut
    short.blocks = short.blocks[:0]
    run = short.serve([(0.0, UNLOCKED)])
    assert run.completed < len(where.trace)
    assert run.met(where.slo)[-1] == 0.0
