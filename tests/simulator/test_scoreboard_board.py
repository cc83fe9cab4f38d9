from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyball_sim.cli import main
from flyball_sim.scoreboard import digests, published
from flyball_sim.scoreboard.board import run_board
from flyball_sim.scoreboard.catalog import ROWS
from flyball_sim.scoreboard.cells import AZURE, LOADS, QUICK, WORLDS, Case, Cell, all_cells, chosen
from flyball_sim.scoreboard.contest import Options
from flyball_sim.scoreboard.intervals import ratio_interval, share_interval
from flyball_sim.scoreboard.store import Store, StoreError
from flyball_sim.scoreboard.table import table

FIELDS = [
    "world", "trace", "load", "slo", "controller", "energy_joules", "energy_joules_low", "energy_joules_high",
    "attainment", "requests_offered", "requests_completed", "output_tokens", "seconds",
]  # fmt: skip
CELLS = (Cell(Case("8b-h100", "conversation", "mid"), 60), Cell(Case("8b-h100", "conversation", "mid"), 30))
FIXED = ("unlocked", "static-clock", "static-cap", "fixed", "clairvoyant", "bound")
FAST = ("unlocked", "static-clock", "bound")


def play(path: Path | None, rows: tuple[str, ...] = FAST, **options: Any) -> list[dict[str, Any]]:
    with Store(path) as store:
        found = list(run_board(CELLS, Options(**{"requests": 200, **options}), store, jobs=1, rows=rows))
    # What the machine took is no part of a result.
    return [{key: value for key, value in record.items() if key != "controller_seconds"} for record in found]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return play(None, rows=FIXED, search_runs=20, draws=2)


def test_rows_have_the_fields_of_the_scoreboard_first_and_in_order(records: list[dict[str, Any]]) -> None:
    assert len(records) == len(CELLS) * len(FIXED)
    for record in records:
        assert list(record)[: len(FIELDS)] == FIELDS
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["energy_joules_low"] <= record["energy_joules"] <= record["energy_joules_high"]
        assert record["requests_completed"] == record["requests_offered"] == 200


def test_every_row_of_a_cell_does_the_same_work_over_the_same_time(records: list[dict[str, Any]]) -> None:
    for cell in CELLS:
        mine = [record for record in records if record["load"] == cell.load]
        assert {record["controller"] for record in mine} == set(FIXED)
        for field in ("seconds", "requests_offered", "output_tokens"):
            assert len({record[field] for record in mine}) == 1


def test_rows_are_ordered_from_the_bound_to_the_best_static_clock(records: list[dict[str, Any]]) -> None:
    for cell in CELLS:
        energy = {row["controller"]: row["energy_joules"] for row in records if row["load"] == cell.load}
        assert energy["bound"] <= energy["clairvoyant"] <= energy["static-clock"] <= energy["unlocked"]


def test_the_same_seed_gives_the_same_board(records: list[dict[str, Any]]) -> None:
    assert play(None, rows=FIXED, search_runs=20, draws=2) == records


def test_a_row_that_misses_its_slo_shows_no_energy(records: list[dict[str, Any]]) -> None:
    from rich.console import Console  # noqa: PLC0415

    missing = [{**record, "attainment": 0.9, "ranked": record["controller"] == "bound"} for record in records]
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(table(missing, "title"))
    text = console.export_text()
    console.file.close()
    assert text.count("misses SLO") == len(CELLS) * (len(FIXED) - 1)
    assert text.count("kJ") == len(CELLS)


def test_finished_cells_are_not_played_again(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    first = play(path)
    size = path.stat().st_size
    assert sorted(map(str, play(path))) == sorted(map(str, first))
    assert path.stat().st_size == size


def test_a_line_torn_by_a_kill_is_dropped_and_its_cell_played_again(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    first = play(path)
    whole = path.read_bytes()
    for cut in (1, 200, len(whole) - whole.rindex(b"\n", 0, -1) - 2):
        path.write_bytes(whole[:-cut])
        assert sorted(map(str, play(path))) == sorted(map(str, first))
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_other_options_play_every_row_again(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    play(path)
    lines = len(path.read_bytes().splitlines())
    play(path, seed=2)
    assert len(path.read_bytes().splitlines()) == 2 * lines


def test_another_row_is_added_without_playing_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    play(path)
    lines = len(path.read_bytes().splitlines())
    more = play(path, (*FAST, "static-cap"))
    assert len(path.read_bytes().splitlines()) == lines + len(CELLS)
    assert {record["controller"] for record in more} == {*FAST, "static-cap"}


def test_a_row_depends_on_the_code_it_runs_and_on_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "flyball_made"
    package.mkdir()
    sources = {"__init__": "", "used": "X = 1\n", "other": "Y = 1\n", "main": "from flyball_made import used\n"}
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(digests, "OWN", ("flyball_made",))

    def digest(**changed: str) -> str:
        for name, text in {**sources, **changed}.items():
            (package / f"{name}.py").write_text(text)
        for cached in (digests.code_digest, digests._path_of, digests._imported, digests._meaning):
            cached.cache_clear()
        return digests.code_digest(("flyball_made.main",), ("flyball_made",))

    before = digest()
    assert digest(other="Y = 2\n") == before
    assert digest(used='"""What it is."""\nX = 1  # why\n') == before
    assert digest(used="X = 2\n") != before


def test_no_row_of_the_model_depends_on_a_controller() -> None:
    for name in ("unlocked", "static-clock", "static-cap", "clairvoyant", "bound"):
        kind = ROWS[name]
        assert kind.packages == ("flyball_sim",)
        used = digests._closure(kind.roots("8b-h100"), kind.packages)
        assert not {"flyball_sim.scoreboard.rivals", "flyball_sim.scoreboard.catalog", "flyball_sim.world.direct"} & {
            *used
        }


def test_a_file_that_is_no_scoreboard_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(StoreError, match=r"notes.txt, line 1 is no result"):
        play(path)
    assert path.read_text() == "dear diary\n"


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    with Store(path), pytest.raises(StoreError, match="another run"), Store(path):
        pass


def test_a_killed_run_leaves_whole_lines_and_no_process(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    command = [sys.executable, "-m", "flyball_sim.cli", "scoreboard", "--quick", "--jobs", "2", "--out", str(path)]
    command += ["--controller", "unlocked"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 120.0
    while not (path.exists() and b"\n" in path.read_bytes()) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    children = [Path(f"/proc/{pid}") for pid in workers.read_text().split()] if workers.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all(json.loads(line) for line in path.read_bytes().rpartition(b"\n")[0].splitlines())
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(child) for child in children)


def _alive(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_filters_choose_by_field_and_no_value_lets_all_pass() -> None:
    cells = all_cells(data=True)
    assert chosen(cells, {"world": []}) == cells
    some = chosen(cells, {"world": ["8b-a100"], "load": [5, 90], "slo": ["mid"]})
    assert {cell.load for cell in some} == {5, 90}
    assert {(cell.case.world, cell.case.slo) for cell in some} == {("8b-a100", "mid")}


def test_the_measured_trace_is_played_only_where_its_data_is() -> None:
    assert {cell.case.trace for cell in all_cells(data=True)} - {cell.case.trace for cell in all_cells(data=False)} == {
        "azure-conversation"
    }
    assert all(cell.case.trace != "azure-conversation" for cell in QUICK)


def test_cells_cover_every_world_load_and_slo_once() -> None:
    cells = all_cells(data=True)
    assert len(set(cells)) == len(cells)
    assert {cell.load for cell in cells} == set(LOADS)
    assert {cell.case.world for cell in cells} == set(WORLDS)
    assert {cell.case.trace for cell in cells if cell.case.slo == "off-edge"} == {"conversation"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--world", "8b-h10"], "--world '8b-h10' is unknown: give 8b-h100"),
        (["--trace", "convers"], "--trace 'convers' is unknown: give conversation"),
        (["--slo", "tihgt"], "--slo 'tihgt' is unknown: give tight"),
        (["--controller", "statc"], "--controller 'statc' is unknown: give static-"),
        (["--load", "7"], "--load 7 is not played: give one of 5, 30, 60, 90"),
        (["--quick", "--world", "8b-a100"], "no cell of --quick passes the filters"),
        (["--trace", "azure-conversation"], "no cell passes the filters: give --data"),
        (["--data", "/nowhere"], "--data /nowhere is no directory"),
        (["--quick", "--out", "."], "is a directory: give a file as --out"),
    ],
)
def test_a_wrong_command_line_is_told_its_mend(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scoreboard", *arguments]) == 2
    answer = capsys.readouterr()
    assert said in answer.err
    assert not answer.out


def test_a_cell_without_capacity_is_left_out_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flyball_sim.scoreboard.board.find_capacity", lambda *_: None)
    where = ["--quick", "--world", "8b-h100", "--load", "30", "--jobs", "1", "--json"]
    assert main(["scoreboard", *where, "--out", str(tmp_path / "board.jsonl")]) == 0
    answer = capsys.readouterr()
    assert not answer.out
    assert "8b-h100 conversation 30 mid: left out" in answer.err


def test_intervals_hold_the_ratio_and_are_the_same_for_the_same_seed() -> None:
    rng = np.random.default_rng(1)
    reference = rng.uniform(90.0, 110.0, 40)
    joules = reference * 0.8 + rng.normal(0.0, 1.0, 40)
    low, high = ratio_interval(joules, reference, seed=3)
    assert low < joules.sum() / reference.sum() < high
    assert high - low < 0.01
    assert ratio_interval(joules, reference, seed=3) == (low, high)
    assert ratio_interval(joules, reference, seed=4) != (low, high)


def test_a_share_without_misses_has_no_interval_to_speak_of() -> None:
    assert share_interval(np.ones(500), blocks=40, seed=1) == (1.0, 1.0)
    low, high = share_interval(np.r_[np.zeros(5), np.ones(495)], blocks=40, seed=1)
    assert low < 0.99 <= high


def test_what_the_docs_publish_are_cells_and_rows_of_the_board():
    every = set(all_cells(data=True))
    assert set(published.cells(data=True)) <= every
    assert set(published.cells(data=False)) == {c for c in published.cells(data=True) if c.case.trace != AZURE}
    assert set(published.ROWS) <= set(ROWS)


def test_a_row_that_a_world_has_not_is_left_out_of_its_cells():
    found = play(None, ("unlocked", "static-pair"))
    assert {record["controller"] for record in found} == {"unlocked"}
