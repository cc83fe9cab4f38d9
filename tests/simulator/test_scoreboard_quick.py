"""The quick scoreboard as CI runs it: whole, through the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

KEYS = {
    "world", "trace", "load", "slo", "controller", "energy_joules", "energy_joules_low", "energy_joules_high",
    "attainment", "requests_offered", "requests_completed", "output_tokens", "seconds", "drawn", "ranked",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    kept = tmp_path_factory.mktemp("scoreboard") / "cells"
    command = [sys.executable, "-m", "flyball_sim.cli", "scoreboard", "--quick", "--json", "--out", str(kept)]
    command += ["--draws", "1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


@pytest.fixture(scope="module")
def cells(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        found[row["world"], row["trace"], row["load"], row["slo"]][row["controller"]] = row
    return found


@pytest.mark.timeout(1800)
def test_every_row_has_every_key_and_an_energy_inside_its_band(rows: list[dict[str, Any]]) -> None:
    assert rows
    for row in rows:
        assert row.keys() >= KEYS
        assert row["energy_joules_low"] <= row["energy_joules"] <= row["energy_joules_high"]
        assert row["requests_completed"] <= row["requests_offered"]


@pytest.mark.timeout(1800)
def test_nobody_is_below_the_proved_bound(cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]]) -> None:
    for cell, controllers in cells.items():
        bound = controllers["bound"]["energy_joules"]
        for name, row in controllers.items():
            if row["attainment"] >= 0.99:
                assert row["energy_joules"] >= bound * (1 - 1e-6), (cell, name)


@pytest.mark.timeout(1800)
def test_who_knows_the_future_is_never_behind_the_best_static_value(
    cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]],
) -> None:
    for cell, controllers in cells.items():
        clairvoyant = controllers["clairvoyant"]
        assert clairvoyant["attainment"] >= 0.99, cell
        for name in ("static-clock", "unlocked"):
            if controllers[name]["attainment"] >= 0.99:
                assert clairvoyant["energy_joules"] <= controllers[name]["energy_joules"] * (1 + 1e-6), (cell, name)


RIVALS = ("agft-improved/tuned", "voltanallm/tuned", "throttllem/tuned", "pals/tuned")
BEHIND = {
    (("70b-h100-tp4", "conversation", 90, "mid"), "throttllem/tuned"),
    (("8b-h100", "idle-heavy", 30, "loose"), "throttllem/tuned"),
}
"""Where Flyball is behind in every draw: a cold start is a large part of so short a run, and this rival reads the
engine's scheduler, holds requests back and was profiled beforehand."""


@pytest.mark.timeout(1800)
def test_flyball_is_ahead_of_every_rival_wherever_the_draws_agree_on_who_is(
    cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]],
) -> None:
    behind = []
    for cell, controllers in cells.items():
        ours = controllers["flyball"]
        for name in RIVALS:
            rival = controllers[name]
            nominal = _ahead(ours["energy_joules"], ours["attainment"], rival["energy_joules"], rival["attainment"])
            drawn = [_ahead(*mine, *its) for mine, its in zip(ours["drawn"], rival["drawn"], strict=True)]
            if nominal is False and not any(drawn):
                behind.append((cell, name))
    assert set(behind) <= BEHIND


def _ahead(joules: float, share: float, its_joules: float, its_share: float) -> bool | None:
    """Less energy where both attain 99 %, else who attains it; None where neither does."""
    if share < 0.99 and its_share < 0.99:
        return None
    if share < 0.99 or its_share < 0.99:
        return share >= 0.99
    return joules < its_joules
