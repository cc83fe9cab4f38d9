"""Row 16: the paper's saving, its acceptance checks and the shape of its main figure.

The figure is read from `validation/voltanallm_main_figure.csv` of the data directory, where it stays. One model and
data set of it are played, Llama-3.1-8B on ShareGPT, at its lightest, a middle and its heaviest rate. The
paper's Ministral-3B is not in the catalogue; Qwen3-32B on two GPUs is, and is left out to keep this short.

Energies at 1005 MHz over those at 1410 MHz took part in fitting the A100's power, and the objectives are those that
suit the statics' attainments best, so that rows of energy, and distances from the figure, count as fitted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Final

from flyball_sim.validation.rows import NEEDS_DATA, Row, Standing, Subject, at_most, difference, not_run, within
from flyball_sim.validation.voltanallm import (
    OBJECTIVE,
    POLICIES,
    STATIC_HIGH,
    STATIC_LOW,
    Objective,
    Played,
    Policy,
    paper_engine,
    play,
)

NUMBER: Final = "16"
SOURCE: Final = "arXiv 2509.04827, abstract and main figure (digitised, 0.6 points and 0.5 % of reading)"
FIGURE: Final = "validation/voltanallm_main_figure.csv"
NEEDS_FIGURE: Final = f"{NEEDS_DATA} and {FIGURE}"
SETTING: Final = "8B, 2P2D A100"
LIGHT, MIDDLE, HEAVY = 50.0, 75.0, 100.0
"""Requests a second."""
VOLTANA: Final = POLICIES["EcoFreq + fadr"]
ROUND_ROBIN: Final = POLICIES["EcoFreq"]
WINDOWED: Final = Policy(window_milliseconds=5000, router="fadr")
POINTS: Final = "points"
AHEAD: Final = (0.0, 100.0)
IN_WORDS: Final = "the paper says so without a number"


@dataclass(frozen=True, slots=True)
class Point:
    """One rate of the figure; None where a marker is hidden under another.

    Attributes:
        rate: requests a second.
        ttft_percent: attainment of time to first token, by "f1410", "f1005" and "voltana".
        itl_percent: likewise, of time between tokens.
        joules: likewise.
    """

    rate: float
    ttft_percent: Mapping[str, float | None]
    itl_percent: Mapping[str, float | None]
    joules: Mapping[str, float | None]


def read_figure(path: Path, model: str = "Llama-3.1-8B", dataset: str = "ShareGPT") -> tuple[Point, ...]:
    """The figure's points of one model and data set."""
    keys = ("f1410", "f1005", "voltana")

    def values(row: Mapping[str, str], column: str, factor: float = 1.0) -> dict[str, float | None]:
        return {key: factor * float(row[column + key]) if row[column + key] else None for key in keys}

    with path.open(encoding="utf-8", newline="") as file:
        chosen = [row for row in csv.DictReader(file) if (row["model"], row["dataset"]) == (model, dataset)]
    return tuple(
        Point(
            float(row["rps"]),
            values(row, "ttft_attain_pct_"),
            values(row, "itl_attain_pct_"),
            values(row, "energy_1e5J_", 1e5),
        )
        for row in chosen
    )


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is judged; percent, points or ratios.

    Attributes:
        saved_light: energy saved beside 1410 MHz at the lightest rate.
        beside_low: how far that is from what 1005 MHz saves.
        saved_heavy: energy saved at the heaviest rate.
        low_over_high: energy at 1005 MHz over that at 1410 MHz at the middle rate.
        itl_loss: most attainment of time between tokens lost beside 1410 MHz.
        ttft_over_itl_loss: how much more of time to first token.
        share_light: energy between the statics', 0 the low one's, at the lightest rate.
        share_heavy: likewise at the heaviest.
        window_loss: attainment of time to first token that a window of 5 s loses at the middle rate.
        fadr_gain: attainment of time between tokens that `fadr` wins over round robin at the heaviest rate.
        energy_distance: mean distance of energies from the figure.
        attainment_distance: mean distance of attainments from it.
        kept: attainments behind `saved_light`.
    """

    saved_light: float = math.nan
    beside_low: float = math.nan
    saved_heavy: float = math.nan
    low_over_high: float = math.nan
    itl_loss: float = math.nan
    ttft_over_itl_loss: float = math.nan
    share_light: float = math.nan
    share_heavy: float = math.nan
    window_loss: float = math.nan
    fadr_gain: float = math.nan
    energy_distance: float = math.nan
    attainment_distance: float = math.nan
    kept: str = ""


@cache
def rows(data: Path | None) -> tuple[Row, ...]:
    """Row 16; not run without the figure, which some of them are compared with: a minute of CPU."""
    if data is None or not (data / FIGURE).is_file():
        return tuple(not_run(row.subject, NEEDS_FIGURE, row.published) for row in judged(Numbers()))
    return judged(measured({point.rate: point for point in read_figure(data / FIGURE)}))


def measured(figure: Mapping[float, Point]) -> Numbers:
    """Play the policies at the three rates."""
    model = paper_engine()

    def at(policy: Policy, rate: float) -> Played:
        return play(policy, rate, model=model)

    rates = (LIGHT, MIDDLE, HEAVY)
    high, low, voltana = ({rate: at(policy, rate) for rate in rates} for policy in (STATIC_HIGH, STATIC_LOW, VOLTANA))
    saved = {rate: saved_percent(voltana[rate], high[rate]) for rate in rates}
    windowed, round_robin = at(WINDOWED, MIDDLE), at(ROUND_ROBIN, HEAVY)
    ttft, tpot = OBJECTIVE.ttft_seconds, OBJECTIVE.tpot_seconds
    itl_loss = max(high[rate].itl_percent(tpot) - voltana[rate].itl_percent(tpot) for rate in rates)
    ttft_loss = max(high[rate].ttft_percent(ttft) - voltana[rate].ttft_percent(ttft) for rate in rates)
    energy, attainment = _distances({"f1410": high, "f1005": low, "voltana": voltana}, figure)
    light = voltana[LIGHT]
    return Numbers(
        saved_light=saved[LIGHT],
        beside_low=abs(saved[LIGHT] - saved_percent(low[LIGHT], high[LIGHT])),
        saved_heavy=saved[HEAVY],
        low_over_high=low[MIDDLE].joules / high[MIDDLE].joules,
        itl_loss=itl_loss,
        ttft_over_itl_loss=ttft_loss - itl_loss,
        share_light=high_clock_share(light, high[LIGHT], low[LIGHT]),
        share_heavy=high_clock_share(voltana[HEAVY], high[HEAVY], low[HEAVY]),
        window_loss=voltana[MIDDLE].ttft_percent(ttft) - windowed.ttft_percent(ttft),
        fadr_gain=voltana[HEAVY].itl_percent(tpot) - round_robin.itl_percent(tpot),
        energy_distance=fmean(energy),
        attainment_distance=fmean(attainment),
        kept=f"TTFT {light.ttft_percent(ttft):.0f} %, ITL {light.itl_percent(tpot):.0f} % in time",
    )


def judged(numbers: Numbers) -> tuple[Row, ...]:
    """The rows."""
    light, middle, heavy = (f"{rate:g} requests/s" for rate in (LIGHT, MIDDLE, HEAVY))
    return (
        difference(
            _subject(f"energy saved, {light}", "%", "fitted"),
            numbers.saved_light,
            36.3,
            tolerance=8.0,
            note=numbers.kept,
            error_unit=POINTS,
        ),
        at_most(_subject(f"beside what static 1005 MHz saves, {light}", "points"), numbers.beside_low, bound=3.0),
        within(_subject(f"energy saved, {heavy}", "%", "fitted"), numbers.saved_heavy, (7.0, 16.0), error_unit=POINTS),
        within(_subject(f"energy at 1005 over 1410 MHz, {middle}", "", "fitted"), numbers.low_over_high, (0.64, 0.72)),
        at_most(_subject("ITL attainment lost beside 1410 MHz", "points"), numbers.itl_loss, bound=5.0),
        within(
            _subject("TTFT attainment lost beside 1410 MHz, beyond ITL's", "points"),
            numbers.ttft_over_itl_loss,
            AHEAD,
            note=IN_WORDS,
            error_unit=POINTS,
        ),
        within(_subject(f"share at the high clock, {light}", "", "fitted"), numbers.share_light, (0.0, 0.1)),
        within(_subject(f"share at the high clock, {heavy}", "", "fitted"), numbers.share_heavy, (0.43, 0.79)),
        within(
            _subject(f"TTFT attainment lost by a 5 s window, {middle}", "points"),
            numbers.window_loss,
            AHEAD,
            note=IN_WORDS,
            error_unit=POINTS,
        ),
        within(
            _subject(f"ITL attainment won by fadr over round robin, {heavy}", "points"),
            numbers.fadr_gain,
            AHEAD,
            note=IN_WORDS,
            error_unit=POINTS,
        ),
        at_most(
            _subject("mean distance of energies from the figure", "%", "fitted"), numbers.energy_distance, bound=10.0
        ),
        at_most(
            _subject("mean distance of attainments from the figure", "points", "fitted"),
            numbers.attainment_distance,
            bound=15.0,
        ),
    )


def _distances(
    played: Mapping[str, Mapping[float, Played]], figure: Mapping[float, Point]
) -> tuple[list[float], list[float]]:
    """Of energies in percent and of attainments in points, where the figure shows a marker."""
    energy: list[float] = []
    attainment: list[float] = []
    for key, by_rate in played.items():
        for rate, ours in by_rate.items():
            point = figure[rate]
            joules = point.joules[key]
            if joules is not None:
                energy.append(abs(100.0 * (ours.joules / joules - 1.0)))
            attainment += distances(ours, point, key, OBJECTIVE)
    return energy, attainment


def distances(ours: Played, point: Point, key: str, objective: Objective) -> list[float]:
    """How far both attainments are from the figure's, where it shows them, in points."""
    pairs = (
        (ours.ttft_percent(objective.ttft_seconds), point.ttft_percent[key]),
        (ours.itl_percent(objective.tpot_seconds), point.itl_percent[key]),
    )
    return [abs(mine - theirs) for mine, theirs in pairs if theirs is not None]


def saved_percent(ours: Played, high: Played) -> float:
    """Energy saved beside the highest clock."""
    return 100.0 * (1.0 - ours.joules / high.joules)


def high_clock_share(ours: Played, high: Played, low: Played) -> float:
    """Where the energy lies between the two statics': 0 is the low clock's, 1 the high one's."""
    return (ours.joules - low.joules) / (high.joules - low.joules)


def _subject(what: str, unit: str, standing: Standing = "not fitted") -> Subject:
    return Subject(NUMBER, f"VoltanaLLM, {SETTING}: {what}", unit, SOURCE, standing)
