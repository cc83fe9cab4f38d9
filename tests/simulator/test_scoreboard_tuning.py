"""Tuning: what is searched, how, and that a stopped search goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_api.controllers.union import PARAMETERS
from flyball_sim.cli import main
from flyball_sim.scoreboard import tuning
from flyball_sim.scoreboard.cells import TRACES, WORLDS
from flyball_sim.scoreboard.rivals import CONTENDERS, PRIOR_OFF, wrong_by
from flyball_sim.scoreboard.spaces import SPACES, Choice, Number
from flyball_sim.scoreboard.store import Store
from flyball_sim.scoreboard.tuned import tuned, write_tuned
from flyball_sim.scoreboard.warmup import WARM_SECONDS, warm_up


def played(_: Any, parameters: Any, number: int) -> tuning.Trial:
    """A valley at an offered share of 200 %."""
    offered = parameters.get("offered_percent", 115)
    return tuning.Trial(number, dict(parameters), abs(offered - 200) / 100.0, (0.5,), (1.0,))


@given(place=st.floats(0.0, 1.0), name=st.sampled_from(sorted(SPACES)))
def test_every_point_of_a_space_is_a_set_of_parameters_the_api_takes(place: float, name: str) -> None:
    space = SPACES[name]
    parameters = space.at([place] * len(space.knobs))
    contender = CONTENDERS[name].with_parameters(parameters)
    PARAMETERS[contender.kind][1](**contender.parameters)
    assert space.at(space.places(parameters)) == parameters


def test_a_number_on_a_logarithmic_scale_is_halved_as_easily_as_doubled() -> None:
    knob = Number(1, 100, log=True)
    assert [knob.at(place) for place in (0.0, 0.5, 1.0)] == [1, 10, 100]
    assert Choice(("a", "b")).at(1.0) == "b"


def test_tuning_plays_no_trace_of_the_board_and_never_the_measured_hour() -> None:
    kinds = {text.partition(":")[0] for text in TRACES.values()}
    for cell in tuning.CELLS:
        assert cell.trace.partition(":")[0] not in kinds
        assert cell.world in WORLDS
    assert tuning.SEED != 1


def test_trials_begin_with_the_defaults_and_close_in_on_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "evaluate", played)
    with Store(None) as store:
        trials = tuning.tune(CONTENDERS["pals"], SPACES["pals"], store, trials=30, watch=lambda _: None)
    assert [trial.number for trial in trials] == list(range(30))
    assert trials[0].parameters == {}
    best = tuning.best_of(trials)
    assert best.objective < trials[0].objective
    offered = [trial.parameters["offered_percent"] for trial in trials[-5:]]
    assert max(offered) < 300
    assert tuning.entry_of(trials)["parameters"] == dict(best.parameters)


def test_a_stopped_search_plays_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(contender: Any, parameters: Any, number: int) -> tuning.Trial:
        asked.append(number)
        return played(contender, parameters, number)

    monkeypatch.setattr(tuning, "evaluate", counted)
    path = tmp_path / "trials.jsonl"

    def search() -> list[tuning.Trial]:
        with Store(path) as store:
            return tuning.tune(CONTENDERS["pals"], SPACES["pals"], store, trials=20, watch=lambda _: None)

    whole = search()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:15]))
    asked.clear()
    assert search() == whole
    assert asked == list(range(15, 20))


def test_what_tuning_found_is_what_the_api_takes() -> None:
    for name, entry in tuned().items():
        contender = CONTENDERS[name].with_parameters(entry["parameters"])
        PARAMETERS[contender.kind][1](**contender.parameters)
        assert entry["trials"] == tuning.TRIALS


def test_one_controllers_tuning_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    write_tuned(path, "pals", {"trials": 1})
    write_tuned(path, "agft", {"trials": 2})
    assert path.read_text().index("agft") < path.read_text().index("pals")


def test_a_controller_that_is_not_tuned_is_told_which_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scoreboard", "tune", "--controller", "fixed"]) == 2
    assert "--controller 'fixed' is not tuned: give one of agft" in capsys.readouterr().err


def test_a_wrong_prior_is_wrong_by_at_most_its_share_and_the_same_for_the_same_seed() -> None:
    names = tuple(f"n{number}" for number in range(200))
    factors = wrong_by(names, 3)
    assert factors == wrong_by(names, 3) != wrong_by(names, 4)
    assert 1 - PRIOR_OFF <= min(factors.values()) < 0.8
    assert 1.2 < max(factors.values()) <= 1 + PRIOR_OFF


@pytest.mark.parametrize(("trace", "multiplier"), [("conversation", 0.3), ("step", 3.0), ("idle-heavy", 3.0)])
def test_the_warm_up_is_half_an_hour_of_the_cells_rate_and_ends_before_the_scored_run(
    trace: str, multiplier: float
) -> None:
    requests = warm_up(trace, multiplier, seed=1, data=None)
    arrivals = [request.arrival_seconds for request in requests]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0.0
    assert WARM_SECONDS - 300.0 < arrivals[-1] < WARM_SECONDS
    assert len(requests) == pytest.approx(5.0 * multiplier * WARM_SECONDS, rel=0.35)
