"""The demo's own arithmetic and pictures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from flyball_sim.demo.engines import LATENESS, SERVED, EngineSeconds, parse
from flyball_sim.demo.report import Phase, Served, draw, rows, write_html
from flyball_sim.demo.sampling import Sample


def phase(name: str = "Enforce", lag_percent: float = 1.0, tokens: int = 1000) -> Phase:
    return Phase(
        name=name,
        begin_seconds=0.0,
        end_seconds=10.0,
        requests=5,
        errors=1,
        output_tokens=tokens,
        attainment_percent=80.0,
        percentiles={"ttft": (0.03, 0.1), "tpot": (0.007, 0.0085), "e2e": (1.0, 2.0)},
        budgets=[(0.0, 6000), (5.0, 4600)],
        client_lag_seconds=0.004,
        energy_joules=500.0,
        peak_draw_watts=70.0,
        peak_cap_watts=100.0,
        end_cap_watts=80.0,
        engine_lag_percent=lag_percent,
        served=[Served(1.0, 0.03, 0.007), Served(2.0, None, None)],
    )


def test_joules_per_token_are_energy_over_output_tokens_and_not_a_number_without_any() -> None:
    assert phase().joules_per_token == pytest.approx(0.5)
    assert math.isnan(phase(tokens=0).joules_per_token)


def test_a_run_is_void_when_the_engines_are_more_than_five_percent_behind() -> None:
    assert not phase(lag_percent=5.0).void
    assert phase(lag_percent=5.1).void


def test_the_lag_is_the_share_of_the_seconds_served_between_two_readings() -> None:
    before, after = EngineSeconds(served=100.0, late=1.0), EngineSeconds(served=300.0, late=5.0)
    assert after.lag_percent_since(before) == pytest.approx(2.0)
    assert before.lag_percent_since(before) == 0.0


def test_the_counters_of_all_engines_are_summed() -> None:
    page = f'{SERVED}{{engine="0"}} 2.0\n{LATENESS}{{engine="0"}} 0.5\nother_total 9\n'
    assert parse([page, page]) == EngineSeconds(served=4.0, late=1.0)


def test_every_row_has_a_text_for_every_phase() -> None:
    assert all(len(texts) == 2 for _, texts in rows([phase("Observe"), phase()]))


def test_the_page_needs_nothing_but_itself_and_says_that_power_is_modelled(tmp_path: Path) -> None:
    samples = [Sample(float(t), 50.0, 100.0, (1200.0, 1300.0, 1400.0), 5.0 * t) for t in range(10)]
    picture, page = tmp_path / "demo.png", tmp_path / "demo.html"
    draw(picture, samples, [phase("Observe"), phase(lag_percent=9)], "a <title>")
    write_html(page, picture, [phase(lag_percent=9)], "a <title>", {"Remake": "make demo"})
    text = page.read_text(encoding="utf-8")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "a &lt;title&gt;" in text
    assert "VOID" in text
    assert "modelled, not measured" in text
    assert "http" not in text.split("base64,")[0]
