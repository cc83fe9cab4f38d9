"""Rows of controllers, in cells of one engine and of two, cold and warm."""

from __future__ import annotations

import numpy as np
import pytest

from flyball_sim.scoreboard.catalog import ROWS
from flyball_sim.scoreboard.cells import Case, Cell
from flyball_sim.scoreboard.contest import Contest, Options
from flyball_sim.scoreboard.pool import Pool
from flyball_sim.scoreboard.rivals import CONTENDERS, cell_seed, limits_of, play, prior_factors

SMALL = Options(requests=150)


def one_engine(draws: int = 0) -> Contest:
    return Contest(Cell(Case("8b-h100", "conversation", "mid"), 60), 3.0, Options(requests=150, draws=draws))


def two_engines() -> Pool:
    return Pool(Cell(Case("8b-pd-h100", "conversation", "mid"), 60), 4.0, SMALL)


def test_a_cold_row_is_the_same_each_time_and_has_an_energy_for_each_draw() -> None:
    rows = [ROWS["flyball"].make(one_engine(draws=1)) for _ in range(2)]
    assert rows[0].energy_joules == rows[1].energy_joules
    assert rows[0].completed == len(rows[0].met) == 150
    assert len(rows[0].blocks_joules) == 40
    assert rows[0].blocks_joules.sum() == pytest.approx(rows[0].energy_joules)
    assert rows[0].drawn == rows[1].drawn
    assert len(rows[0].drawn) == 1


def test_a_warm_row_counts_the_same_requests_and_seconds_as_a_cold_one() -> None:
    contest = one_engine()
    cold, warm = (play(contest, CONTENDERS["flyball"], warm=warm) for warm in (False, True))
    assert len(warm.met) == len(cold.met) == 150
    assert warm.completed == cold.completed == 150
    assert warm.tokens == cold.tokens
    assert len(warm.run.outcomes.arrival_seconds) > 10 * 150
    assert warm.run.energy_joules < 2.0 * cold.run.energy_joules


def test_every_controller_is_told_the_same_objectives_and_cap() -> None:
    for ground in (one_engine(), two_engines()):
        limits = limits_of(ground, ground.engine)
        assert limits.cap_watts == ground.engine.model.gpu.cap_default_watts
        assert (limits.targets.ttft_seconds, limits.targets.tpot_seconds, limits.targets.attainment) == (
            1.0,
            0.05,
            0.99,
        )


def test_what_flyball_believes_beforehand_is_wrong_otherwise_in_every_cell_and_nobody_elses_is() -> None:
    other = Contest(Cell(Case("8b-h100", "step", "mid"), 60), 3.0, SMALL)
    factors = [prior_factors(CONTENDERS["flyball"], cell_seed(ground)) for ground in (one_engine(), other)]
    assert factors[0] != factors[1]
    assert factors[0] == prior_factors(CONTENDERS["flyball"], cell_seed(one_engine()))
    assert all(prior_factors(each, 1) is None for name, each in CONTENDERS.items() if name != "flyball")


def test_two_engines_have_unlocked_clocks_a_best_pair_and_controllers_and_neither_schedule_nor_bound() -> None:
    pool = two_engines()
    unlocked, static, flyball = (ROWS[name].make(pool) for name in ("unlocked", "static-pair", "flyball"))
    assert static.energy_joules <= unlocked.energy_joules
    assert static.attainment >= 0.99
    assert flyball.completed == unlocked.completed == 150
    assert np.isclose(flyball.blocks_joules.sum(), flyball.energy_joules)
    for name in ("clairvoyant", "bound", "static-clock"):
        assert not ROWS[name].plays("8b-pd-h100")
        with pytest.raises(ValueError, match=f"cells of 8b-pd-h100 have no row {name}"):
            ROWS[name].make(pool)
    assert not ROWS["static-pair"].plays("8b-h100")
