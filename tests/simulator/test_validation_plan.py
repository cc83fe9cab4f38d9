"""The validation plan: what is compared with what, and what the command says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from flyball_sim.validation import clocks, plan, table
from flyball_sim.validation.rows import NEEDS_DATA, Row

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FLYBALL_DATA") or ROOT.parent / "shared" / "data")
PAGE = ROOT / "docs" / "validation.md"


@cache
def rows_of(data: Path | None) -> tuple[Row, ...]:
    return tuple(row for _, work in plan.parts(data) for row in work())


def validate(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flyball_sim.cli", "validate", *options], capture_output=True, text=True, check=False
    )


def cells(text: str) -> dict[str, list[str]]:
    """The lines of a table, by what they are about."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {f"{line[0]} {line[1]}": line for line in lines[2:]}


def printed_table() -> str:
    page = PAGE.read_text(encoding="utf-8")
    return page.partition(plan.BEGIN)[2].partition(plan.END)[0]


def test_every_row_of_the_plan_is_there_and_says_whether_it_was_fitted() -> None:
    numbers = {row.subject.number for row in rows_of(None)}
    assert {str(number) for number in range(1, 20)} <= numbers
    assert {row.subject.standing for row in rows_of(None)} == {"fitted", "not fitted"}


def test_every_row_that_is_not_run_says_why() -> None:
    idle = [row for row in rows_of(None) if row.verdict == "not run"]
    assert {"4", "5"} <= {row.subject.number for row in idle}
    assert all(row.note and row.ours is None for row in idle)


def test_the_rows_that_are_kept_out_of_everything_have_no_number_here() -> None:
    (row,) = [row for row in rows_of(None) if row.subject.number == "4"]
    assert row.note == "not evaluated here: the rows are the hold-out"


def test_no_gate_is_missed() -> None:
    assert not [row.subject.what for row in rows_of(None) if row.fails]


def test_a_lock_saves_decode_energy_on_an_h200_as_published_and_not_more() -> None:
    gates = [row for row in clocks.h200_decode_lock() if row.subject.gated]
    assert len(gates) == 4
    assert all(row.verdict == "pass" for row in gates)


def test_a_card_left_alone_is_the_standard_a_lock_is_measured_against() -> None:
    model = clocks.step_model(clocks.gpu_type("H200-SXM"), "llama-3.1-8b", 1)
    highest = clocks.lock_saving(model, 8, 1980)
    assert highest.sm_mhz == 1830  # locks end there, free boost does not
    assert 0 < highest.saving_percent < clocks.lock_saving(model, 8, 1155).saving_percent
    assert clocks.lock_saving(model, 8, 345).longer_percent > 100


def test_a_data_directory_that_is_not_there_ends_with_2_and_the_mend(tmp_path: Path) -> None:
    missing, empty, file = tmp_path / "no", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    for directory, said in (
        (missing, "does not exist"),
        (empty, "holds no calibration/"),
        (file, "is not a directory"),
    ):
        answer = validate("--data", str(directory))
        assert answer.returncode == 2
        assert said in answer.stderr
        assert "leave the option out" in answer.stderr
        assert not answer.stdout


def test_a_data_directory_that_lacks_a_file_ends_with_2_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "calibration").mkdir()
    answer = validate("--data", str(tmp_path))
    assert answer.returncode == 2
    assert "latency_coeffs.csv" in answer.stderr


def test_without_data_the_rows_that_need_it_say_so_and_the_others_are_judged() -> None:
    answer = validate("--json")
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert answer.returncode == 0
    assert len(rows) == len(rows_of(None))
    needing = [row for row in rows if NEEDS_DATA in row["note"]]
    assert {row["number"] for row in needing} == {"6", "7", "8", "6-8", "16", "17", "V100"}
    assert all(row["verdict"] == "not run" for row in needing)


def test_the_documentation_carries_what_the_command_prints() -> None:
    data = DATA if (DATA / plan.CALIBRATION).is_dir() else None
    rows = rows_of(data)
    if data is not None:
        assert printed_table().strip() == plan.report(rows)
        return
    printed, made_cells = cells(printed_table()), cells(table.markdown(rows))
    waiting = [what for what, line in made_cells.items() if NEEDS_DATA in line[-1]]
    assert printed.keys() == made_cells.keys()
    assert all(printed[what] == line for what, line in made_cells.items() if what not in waiting)
    pytest.skip(f"no measured data at {DATA} (FLYBALL_DATA names it): {len(waiting)} rows were not remade")


def test_a_page_keeps_everything_but_the_report_between_its_markers() -> None:
    page = f"before\n{plan.BEGIN}\nan earlier report\n{plan.END}\nafter\n"
    made = plan.rewritten(page, rows_of(None))
    assert made.startswith("before\n")
    assert made.endswith(f"{plan.END}\nafter\n")
    assert plan.report(rows_of(None)) in made
    assert "an earlier report" not in made
    with pytest.raises(plan.DataError, match="put both where the report is to stand"):
        plan.rewritten("no markers", rows_of(None))


def test_the_documentation_keeps_to_the_wording_that_survives_review() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert "modelled, not measured, on H100 and H200" in text
    assert "k in [1.8, 2.5], A_hbm in [80, 200] W and phi in its range" in text
    assert "No claim of absolute savings on hardware we have not measured" in text
    assert "blind" not in text
