"""Files of a replay come whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from flyball_sim.replay.writing import OutputError, prepare, write_all

FULL_DISK = Path("/dev/full")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_all_files_are_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_all(tmp_path, {"report.html": "<p>", "result.json": "{}"})
    assert names(tmp_path) == ["report.html", "result.json"]
    assert (tmp_path / "report.html").read_text() == "<p>"


def test_a_full_disk_leaves_what_was_there_and_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, {"report.html": "old", "result.json": "old"})
    real = Path.open

    def on_a_full_disk(path: Path, *args: str, **kwargs: str) -> object:
        return real(FULL_DISK if path.name.startswith(".result.json") else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", on_a_full_disk)
    with pytest.raises(OutputError) as refused:
        write_all(tmp_path, {"report.html": "new", "result.json": "new"})
    monkeypatch.undo()
    assert str(refused.value) == (
        f"{tmp_path / 'result.json'}: No space left on device: it was not written; "
        "free some space or give another --out"
    )
    assert names(tmp_path) == ["report.html", "result.json"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["old", "old"]


def test_a_kill_while_files_are_written_leaves_no_half_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path, {"report.html": "<p>", "result.json": "{}"})
    assert names(tmp_path) == []


def test_a_directory_that_cannot_be_made_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as refused:
        prepare(tmp_path / "file" / "report")
    assert str(refused.value) == (
        f"--out {tmp_path / 'file' / 'report'}: {os.strerror(errno.ENOTDIR)}: give a directory that can be written to"
    )
