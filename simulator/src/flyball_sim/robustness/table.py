"""The trials as a table and as sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from flyball_sim.robustness.faults import FAULTS
from flyball_sim.robustness.trials import GOAL, Trial

OURS = "Flyball"


def markdown(trials: Sequence[Trial]) -> str:
    """Faults down, controllers across: lowest attainment in percent, mean energy over unlocked; misses in bold."""
    kinds = list(dict.fromkeys(trial.controller for trial in trials))
    faults = list(dict.fromkeys(trial.fault for trial in trials))
    lines = [["fault", "unlocked", *kinds]]
    for fault in faults:
        here = [trial for trial in trials if trial.fault == fault]
        unlocked = min(trial.unlocked_attainment for trial in here)
        cells = [_cell([trial for trial in here if trial.controller == kind]) for kind in kinds]
        lines.append([fault, _percent(unlocked), *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(line, widths) for line in (lines[0], rules, *lines[1:]))


def legend(trials: Sequence[Trial]) -> str:
    """What each fault is, one line of Markdown each."""
    return "\n".join(f"- {name}: {FAULTS[name].about}." for name in dict.fromkeys(trial.fault for trial in trials))


def verdict(trials: Sequence[Trial]) -> str:
    """Whether Flyball holds wherever unlocked clocks do."""
    ours = [trial for trial in trials if trial.controller == OURS]
    missed = misses(trials)
    if not ours:
        return f"{OURS} was not played."
    if not missed:
        return f"{OURS} attains {GOAL:.0%} in each of its {len(ours)} runs in which unlocked clocks do."
    named = "; ".join(f"{one.fault} (seed {one.seed}): {_percent(one.attainment)} %" for one in missed)
    return f"{OURS} misses {GOAL:.0%} in {len(missed)} of {len(ours)} runs: {named}."


def misses(trials: Sequence[Trial]) -> list[Trial]:
    """Runs of Flyball that do not attain the goal although unlocked clocks do."""
    return [trial for trial in trials if trial.controller == OURS and not trial.holds]


def json_lines(trials: Sequence[Trial]) -> str:
    """One JSON object a line for each run."""
    return "\n".join(json.dumps(asdict(trial), allow_nan=False) for trial in trials)


def _cell(trials: Sequence[Trial]) -> str:
    if not trials:
        return ""
    attained = _percent(min(trial.attainment for trial in trials))
    bold = attained if all(trial.holds for trial in trials) else f"**{attained}**"
    return f"{bold} / {fmean(trial.energy for trial in trials):.2f}"


def _percent(share: float) -> str:
    # Not rounded up: 98.96 % is no 99.0.
    return f"{int(share * 1000.0 + 1e-9) / 10.0:.1f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = cells
    padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"
