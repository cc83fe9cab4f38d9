"""The answer on a terminal: a sentence, a table of ten lines, what to know."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flyball_sim.replay import verdict
from flyball_sim.replay.answer import Answer
from flyball_sim.replay.bands import Band
from flyball_sim.replay.measures import Measures
from flyball_sim.replay.question import Question
from flyball_sim.replay.result import AnswerPart
from flyball_sim.replay.wording import ABSENT, change, count, digits, joules, latency, percent, seconds, signed, watts

Row = tuple[str, str, str, str]


def rows(observe: Measures, enforce: Measures, saving: Band) -> list[Row]:
    """The table's rows: what, today, with the policy, and the difference."""

    def compared(label: str, of: Callable[[Measures], float], text: Callable[[float], str]) -> Row:
        before, after = of(observe), of(enforce)
        return (label, text(before), text(after), change(before, after))

    def latencies(label: str, percentiles: Callable[[Measures], dict[int, float]], key: int) -> Row:
        return compared(label, lambda run: percentiles(run).get(key, math.nan), latency)

    points = 100 * (enforce.attainment - observe.attainment)
    longer = enforce.outside_seconds - observe.outside_seconds
    finished = [f"{run.outcomes['finished']:,}" for run in (observe, enforce)]
    return [
        compared("GPU energy", lambda run: run.energy_joules, joules),
        *_band(saving),
        compared("GPU energy per output token", lambda run: run.joules_per_token, lambda value: f"{digits(value)} J"),
        compared("GPU draw, mean", lambda run: run.mean_watts, watts),
        compared("GPU draw, peak", lambda run: run.peak_watts, watts),
        (
            "requests that hold the SLO",
            percent(observe.attainment),
            percent(enforce.attainment),
            signed(points, "points", 2),
        ),
        (
            "time outside the SLO",
            seconds(observe.outside_seconds),
            seconds(enforce.outside_seconds),
            signed(longer, "s", 0),
        ),
        latencies("time to first token, median", lambda run: run.ttft, 50),
        latencies("time to first token, p99", lambda run: run.ttft, 99),
        latencies("time per output token, median", lambda run: run.tpot, 50),
        latencies("time per output token, p99", lambda run: run.tpot, 99),
        ("requests finished", finished[0], finished[1], f"of {observe.requests:,}"),
        compared("SM clock, mean", lambda run: run.mean_sm_mhz, lambda value: f"{value:,.0f} MHz"),
        ("budget breaches", ABSENT, f"{enforce.breaches}", "must be 0"),
    ]


def _band(saving: Band) -> list[Row]:
    if saving.low is None or saving.high is None:
        return []
    low, high = (signed(-100 * bound, "%") for bound in (saving.high, saving.low))
    return [(f"  band over {count(saving.draws, 'draw')}", "", "", f"{low} to {high}")]


def asked(question: Question) -> str:
    """What was replayed, in one line."""
    policies = ", ".join(f"{policy.name} ({policy.spec.controller.type})" for policy in question.policies)
    trace = question.trace
    cut = f" ({trace.cut})" if trace.cut else ""
    return (
        f"{policies}; {trace.name}{cut}: {count(len(trace.requests), 'request')} in {seconds(trace.seconds)}; "
        f"{question.view.summary}"
    )


def render(question: Question, answer: Answer, part: AnswerPart) -> RenderableType:
    """All of it."""
    enforce = answer.nominal.enforce
    style = "green" if enforce.keeps_slo and part.saving.nominal > 0 else "yellow"
    grid = Table(show_edge=False, pad_edge=False)
    for label in ("", "Observe\n(today)", "Enforce\n(policy)", "difference"):
        grid.add_column(label, justify="left" if not label else "right", no_wrap=not label)
    for row in rows(answer.nominal.observe, enforce, answer.saving):
        grid.add_row(*row)
    lines: list[RenderableType] = [
        Text(part.headline, style=f"bold {style}"),
        Text(verdict.certainty(answer.draws)),
        Text(asked(question), style="dim"),
        Text(f"SLO: {'; '.join(dict.fromkeys(objective.sentence() for objective in question.judges))}", style="dim"),
        Text(""),
        grid,
        Text(""),
        *(Text(f"* {note}") for note in part.notes),
        Text("Watts and joules are modelled, not measured; docs/replay.md says what that means.", style="dim"),
    ]
    return Group(*lines)
