"""Flyball's goals, their exceptions and the ranking, from rows whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest

from flyball_sim.scoreboard.catalog import HEADLINE, OURS, ROWS, WARM
from flyball_sim.scoreboard.goals import Verdict, judge, tallies
from flyball_sim.scoreboard.page import COLD, page, summary
from flyball_sim.scoreboard.ranking import duels, rank_agreement


def made(controller: str, energy: float, attainment: float = 0.995, **more: Any) -> dict[str, Any]:
    blocks = more.pop("blocks", [energy / 40] * 40)
    return {
        "world": "8b-h100", "trace": "step", "load": 60, "slo": "mid", "controller": controller,
        "energy_joules": energy, "attainment": attainment, "ranked": attainment >= 0.99, "seconds": 400.0,
        "attainment_low": attainment - 0.002, "attainment_high": attainment + 0.002, "requests_offered": 6000,
        "of_unlocked": energy / 1000.0, "blocks_joules": blocks, "drawn": [], **more,
    }  # fmt: skip


def board(ours: dict[str, Any], *others: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        made("unlocked", 1000.0, 1.0),
        made("static-clock", 600.0, 0.991),
        made("clairvoyant", 500.0, 0.99),
        ours,
        *others,
    ]


def verdicts(records: list[dict[str, Any]], rivals: tuple[str, ...] = ()) -> dict[str, Verdict]:
    return {verdict.goal: verdict for verdict in judge(records, ours=OURS, rivals=rivals)}


def test_all_goals_hold_where_every_number_is_within_its_limit() -> None:
    found = verdicts(board(made(OURS, 530.0), made("pals/tuned", 700.0)), ("pals/tuned",))
    assert {name: verdict.holds for name, verdict in found.items()} == {
        "attainment": True, "rivals": True, "changing": True, "clairvoyant": True,
    }  # fmt: skip
    assert found["changing"].value == pytest.approx(530 / 600, abs=1e-4)


def test_a_rival_that_misses_its_slo_need_not_be_beaten_and_one_that_attains_it_must() -> None:
    cheap = made("agft/paper", 400.0, 0.97)
    assert "rivals" not in verdicts(board(made(OURS, 530.0), cheap), ("agft/paper",))
    beaten = verdicts(board(made(OURS, 530.0), made("agft/paper", 520.0)), ("agft/paper",))["rivals"]
    assert not beaten.holds
    assert (beaten.against, beaten.value) == ("agft/paper", pytest.approx(530 / 520, abs=1e-4))


def test_where_unlocked_clocks_fall_short_half_a_point_less_than_theirs_is_enough() -> None:
    records = [made("unlocked", 1000.0, 0.98), made(OURS, 700.0, 0.976)]
    assert verdicts(records)["attainment"].holds
    assert not verdicts([made("unlocked", 1000.0, 0.98), made(OURS, 700.0, 0.974)])["attainment"].holds


def test_energy_is_worth_nothing_where_the_slo_is_missed() -> None:
    found = verdicts(board(made(OURS, 300.0, 0.98)))
    assert not any(verdict.holds for verdict in found.values())
    assert "60 of 6000 requests too many miss" in found["attainment"].reason
    assert found["changing"].reason == "attains 98.00 %"


def test_a_rate_that_does_not_change_is_compared_with_the_best_static_setting() -> None:
    records = [{**record, "trace": "code"} for record in board(made(OURS, 605.0))]
    found = verdicts(records)
    assert found["stationary"].holds
    assert "changing" not in found


def test_a_schedule_that_saves_little_asks_for_nothing() -> None:
    records = [made("unlocked", 1000.0), made("static-clock", 510.0), made("clairvoyant", 500.0), made(OURS, 515.0)]
    assert "changing" not in verdicts(records)


def test_learning_is_named_with_its_seconds_where_the_rest_of_the_run_reaches_the_goal() -> None:
    learning = [40.0] * 4 + [12.0] * 36
    found = verdicts(board(made(OURS, sum(learning), blocks=learning)))["changing"]
    assert not found.holds
    assert "cold learning: the first" in found.reason


def test_no_clock_below_and_unspent_misses_are_named() -> None:
    records = board(made(OURS, 640.0, 0.999))
    records[1]["lowest_clock"] = 1
    found = verdicts(records)
    assert "no clock below the best static one" in found["changing"].reason
    assert "leaves 0.80 points of misses unspent that static-clock spends" in found["changing"].reason
    assert "the best static setting is 1.200 of it" in found["clairvoyant"].reason


def test_exceptions_are_counted_and_kept() -> None:
    tally = {each.goal.name: each for each in tallies(list(verdicts(board(made(OURS, 640.0))).values()))}
    assert (tally["attainment"].cells, tally["attainment"].holds) == (1, 1)
    assert (tally["changing"].cells, tally["changing"].holds) == (1, 0)
    assert tally["changing"].exceptions[0].cell == ("8b-h100", "step", 60, "mid")


def test_draws_in_which_the_ranking_turns_are_named() -> None:
    ours = made(OURS, 530.0, drawn=[[500.0, 0.995], [560.0, 0.995], [500.0, 0.98]])
    rival = made("pals/tuned", 550.0, drawn=[[540.0, 0.995], [540.0, 0.995], [540.0, 0.97]])
    (duel,) = duels([ours, rival], ours=OURS, rivals=["pals/tuned"])
    assert (duel.cells, duel.nominal, duel.draws, duel.won) == (1, 1, 2, 1)
    assert duel.lost == ((("8b-h100", "step", 60, "mid"), 1),)
    assert rank_agreement([ours, rival], [OURS, "pals/tuned"]) == pytest.approx([1.0, -1.0, 1.0])
    text = summary([made("unlocked", 1000.0, drawn=[[1000.0, 1.0]] * 3), ours, rival])
    assert "8b-h100, step, 60 %, mid: 1" in text


def test_the_page_has_every_cell_the_command_and_what_tuning_found() -> None:
    records = board(made(OURS, 530.0, decisions=100, controller_seconds=0.02), made("agft/paper", 900.0, 0.97))
    tuned = {
        "pals": {"trials": 50, "seed": 7, "objective": 0.7, "objective_of_defaults": 0.9, "attainment": [0.99],
                 "parameters": {"offered_percent": 120}},
    }  # fmt: skip
    text = page(records, command="flyball-sim scoreboard --seed 1", machine="a machine", tuned=tuned)
    assert "`flyball-sim scoreboard --seed 1`, a machine" in text
    assert "| step, 60 %, mid | 1.0 | 0.600 | 0.500 | *97.0 %* | **0.530** |" in text
    assert "200 us" in text
    assert "offered_percent 120" in text


def test_each_rival_is_there_with_the_papers_constants_and_tuned_cold_and_warm() -> None:
    for name in ("agft", "agft-improved", "voltanallm", "throttllem", "throttllem-oracle", "pals"):
        for which in ("paper", "tuned"):
            assert f"{name}/{which}" in HEADLINE
            assert f"{name}/{which}/warm" in WARM
    assert OURS in HEADLINE
    assert f"{OURS}/warm" in WARM
    assert not any(ROWS[name].rival for name in ("throttllem-oracle/paper", OURS, "clairvoyant", "fixed"))
    assert set(COLD.rivals) == {
        f"{name}/{which}"
        for name in ("agft", "agft-improved", "voltanallm", "throttllem", "pals")
        for which in ("paper", "tuned")
    }


@pytest.mark.parametrize(
    ("energy", "attainment", "says"),
    [(636.0, 0.995, "on our page it takes 1.200 of ours"), (400.0, 0.875, "on our page it attains 87.5 %")],
)
def test_a_rival_that_wins_by_what_it_sees_is_named_with_what_it_does_without(
    energy: float, attainment: float, says: str
) -> None:
    rows = board(made(OURS, 530.0), made("voltanallm/tuned", 500.0), made("voltanallm/page", energy, attainment))
    assert says in verdicts(rows, ("voltanallm/tuned",))["rivals"].reason
