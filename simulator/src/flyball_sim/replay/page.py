"""`report.html`: one page that needs nothing but itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml

from flyball_sim.replay import figures, table, verdict
from flyball_sim.replay.answer import Answer, latency_bins, series_of
from flyball_sim.replay.figures import Plotted
from flyball_sim.replay.question import Question
from flyball_sim.replay.result import ParameterPart, Result
from flyball_sim.replay.wording import digits, percent, seconds, signed

CURSOR_POINTS = 600
"""Most samples per series that the page's cursor reads from; more would only make the page heavy."""


@dataclass(frozen=True, slots=True)
class Range:
    """A parameter of the draws for the reader."""

    name: str
    nominal: str
    low: str
    high: str
    why: str


@dataclass(frozen=True, slots=True)
class Dot:
    """One draw on the strip: where, in percent of its width, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Strip:
    """The savings of all draws on one line, in percent of its width."""

    dots: list[Dot]
    low: float
    high: float
    nominal: float
    ticks: list[Dot]


def render(question: Question, answer: Answer, result: Result) -> str:
    """The page."""
    loader = jinja2.PackageLoader("flyball_sim.replay", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    observe = {**series_of(answer.observe, question.judges), **latency_bins(answer.observe)}
    enforce = {**series_of(answer.enforce, question.judges), **latency_bins(answer.enforce)}
    plotted = Plotted(observe, enforce, question.judges, question.end_seconds)
    part, nominal = result.answer, answer.nominal
    template = environment.get_template("report.html.j2")
    return template.render(
        title=f"Replay of {', '.join(policy.name for policy in question.policies)}",
        headline=part.headline.replace(" %", "\N{NO-BREAK SPACE}%"),
        asked=table.asked(question),
        result=result,
        part=part,
        nominal=nominal,
        good=nominal.enforce.keeps_slo and part.saving.nominal > 0,
        saving=signed(-100 * part.saving.nominal, "%", 0 if abs(part.saving.nominal) >= 0.0995 else 1),
        band=verdict.band_text(answer.saving),
        held=(percent(nominal.enforce.attainment), percent(nominal.observe.attainment)),
        outside=(seconds(nominal.enforce.outside_seconds), seconds(nominal.observe.outside_seconds)),
        certainty=verdict.certainty(answer.draws),
        objectives=list(dict.fromkeys(f"{o.sentence()} ({o.source})" for o in question.judges)),
        rows=table.rows(nominal.observe, nominal.enforce, answer.saving),
        strip=strip(answer),
        at=seconds,
        panels=figures.panels(plotted),
        has_budget="budget_watts" in enforce and any(policy.spec.power_budget for policy in question.policies),
        ranges=[_range(parameter) for parameter in part.parameters],
        policies="---\n".join(_yaml(dict(policy.document)) for policy in question.policies),
        cluster=_yaml(dict(question.view.document)),
        cursor=_cursor(plotted),
        ledger=[(label, colour) for _, label, colour in figures.LEDGER],
    )


def strip(answer: Answer) -> Strip | None:
    """The strip of draws; None without draws."""
    saving = answer.saving
    if saving.low is None or saving.high is None:
        return None
    values = [100 * pair.saving for pair in answer.draws]
    least, most = min(0.0, *values, 100 * saving.nominal), max(0.0, *values, 100 * saving.nominal)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 1e9) if (most - least) / step <= 8)
    begin, end = step * (least // step), step * -(-most // step) or step

    def at(value: float) -> float:
        return 100 * (value - begin) / (end - begin)

    ticks = [begin + step * index for index in range(round((end - begin) / step) + 1)]
    return Strip(
        dots=[
            Dot(at(value), f"draw {pair.draw}: {value:.1f} %") for value, pair in zip(values, answer.draws, strict=True)
        ],
        low=at(100 * saving.low),
        high=at(100 * saving.high),
        nominal=at(100 * saving.nominal),
        ticks=[Dot(at(tick), f"{tick:g} %") for tick in ticks],
    )


def _range(parameter: ParameterPart) -> Range:
    unit = "" if parameter.unit == "1" else f" {parameter.unit}"
    name = parameter.name if parameter.gpu == "*" else f"{parameter.gpu}: {parameter.name}"
    low, high, nominal = (f"{digits(value)}{unit}" for value in (parameter.low, parameter.high, parameter.nominal))
    return Range(name.replace("_", " "), nominal, low, high, parameter.why)


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


def _cursor(plotted: Plotted) -> str:
    """What the page's cursor shows, as JSON that cannot end a script element."""

    def thin(values: Any, places: int) -> list[float | None]:
        step = max(1, -(-len(values) // CURSOR_POINTS))
        return [None if math.isnan(value) else round(float(value), places) for value in values[::step]]

    document: dict[str, Any] = {"end": plotted.end_seconds, "left": figures.LEFT, "right": figures.RIGHT}
    for mode, series in (("observe", plotted.observe), ("enforce", plotted.enforce)):
        document[mode] = {
            "seconds": thin(series["seconds"], 1),
            "power": thin(series["watts"], 0),
            "clocks": thin(series["sm_mhz_mean"], 0),
            "attainment": thin(100 * series["attainment"], 2),
            "load": thin(series["running"] + series["waiting"], 0),
            "latencySeconds": thin(series["latency_seconds"], 1),
            "ttft": thin(1000 * series["ttft_p99_seconds"], 1),
            "tpot": thin(1000 * series["tpot_p99_seconds"], 2),
        }
    return json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")
