"""The rows no controller makes: unlocked clocks, the best static settings, the best schedule found, the bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from flyball_sim.scoreboard.contest import BLOCKS, Contest, Row, Trial, parked_joules
from flyball_sim.scoreboard.runs import Outcomes, Schedule
from flyball_sim.scoreboard.slo import ATTAINMENT


def _static(contest: Contest, trial: Trial, **details: str | float | int | None) -> Row:
    outcomes = trial.outcomes
    return _row(contest, outcomes, outcomes.energy_joules, [(0.0, trial.setting)], details)


def _row(
    contest: Contest,
    outcomes: Outcomes,
    energy: float,
    schedule: Schedule,
    details: Mapping[str, str | float | int | None],
    *,
    parked: bool = False,
) -> Row:
    met = outcomes.met(contest.slo)
    done = ~np.isnan(outcomes.finished_seconds)
    tokens = np.array([request.output_tokens for request in contest.trace])
    spread = np.diff(outcomes.marks_joules, prepend=0.0) if len(outcomes.marks_joules) == BLOCKS else np.empty(0)
    itl = outcomes.itl_p99_seconds
    return Row(
        energy_joules=energy,
        attainment=float(met.mean()),
        completed=outcomes.completed,
        output_tokens=int(tokens[done].sum()),
        # The run of a parked schedule is cut as it ran, then parked as a whole.
        blocks_joules=spread * (energy / float(spread.sum())) if len(spread) else spread,
        met=met,
        drawn=contest.drawn(schedule, outcomes, parked=parked),
        details={
            "itl_p99_seconds": None if np.isnan(itl) else round(itl, 6),
            "refused": outcomes.refused,
            "preemptions": outcomes.preemptions,
            **details,
        },
    )


def _unlocked(contest: Contest) -> Row:
    return _static(contest, contest.unlocked)


def _static_clock(contest: Contest) -> Row:
    best = contest.static_clock
    lowest = best.trial.setting.sm_mhz == contest.clocks[0]
    return _static(contest, best.trial, sm_mhz=best.trial.setting.sm_mhz, lowest_clock=int(lowest), runs=best.runs)


def _static_cap(contest: Contest) -> Row:
    best = contest.static_cap
    return _static(contest, best.trial, cap_watts=best.trial.setting.cap_watts, runs=best.runs)


def _clairvoyant(contest: Contest) -> Row:
    found, cap = contest.best_schedule, contest.static_cap
    if found is None:
        return _static(contest, contest.unlocked, why="no static clock holds the SLO")
    capped = parked_joules(contest.engine, cap.trial.outcomes)
    if cap.feasible and capped < found.energy_joules:
        whole = [(0.0, cap.trial.setting)]
        details = {"cap_watts": cap.trial.setting.cap_watts, "runs": found.runs}
        return _row(contest, cap.trial.outcomes, capped, whole, details, parked=True)
    schedule = contest.slot_schedule(found.clocks)
    outcomes = contest.serve(schedule)
    return _row(contest, outcomes, found.energy_joules, schedule, {"runs": found.runs}, parked=True)


def _bound(contest: Contest) -> Row:
    outcomes = contest.unlocked.outcomes
    done = ~np.isnan(outcomes.finished_seconds)
    tokens = np.array([request.output_tokens for request in contest.trace])
    return Row(
        energy_joules=contest.bound.energy_joules,
        attainment=ATTAINMENT,
        completed=int(done.sum()),
        output_tokens=int(tokens[done].sum()),
    )


MODEL_ROWS: Mapping[str, Callable[[Contest], Row]] = MappingProxyType(
    {
        "unlocked": _unlocked,
        "static-clock": _static_clock,
        "static-cap": _static_cap,
        "clairvoyant": _clairvoyant,
        "bound": _bound,
    }
)
"""By the row's name. None of them depends on a controller's code."""
