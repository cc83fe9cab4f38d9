"""One run of a replay in the simulated world, and its result as the replay's arrays."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flyball_operator.accepting import accept
from flyball_operator.selection import assign
from flyball_sim.gpu import parameters
from flyball_sim.replay.objectives import Objective, combine
from flyball_sim.replay.policies import ReplayPolicy
from flyball_sim.replay.pool import Job, Tell
from flyball_sim.replay.question import Question
from flyball_sim.replay.record import Breach, Floats, Record, Requests, Statement
from flyball_sim.world.layout import Layout, operator_pods
from flyball_sim.world.outcomes import Outcomes
from flyball_sim.world.result import PolicySeries, RunResult, Series
from flyball_sim.world.simulate import run

UNGOVERNED = -1
LEDGER_SERIES = {
    "enforced": "enforced_watts",
    "inFlight": "in_flight_watts",
    "unknown": "unknown_watts",
    "reserved": "reserved_watts",
    "free": "free_watts",
    "deficit": "deficit_watts",
}


def simulate(question: Question, job: Job, tell: Tell) -> Record:
    """Run one mode at nominal parameters or at one draw of them.

    Raises:
        ValueError: the cluster cannot be, or a fault names what is not there.
    """
    result = run(
        question.cluster,
        [_document(policy) for policy in question.policies],
        question.trace.requests,
        seed=question.seed,
        draw=parameters.nominal() if job.draw is None else parameters.draw(question.seed, job.draw),
        router=question.router,
        catalogue=question.catalogue,
        faults=question.injected,
        mode=job.mode,
        end_seconds=question.end_seconds,
        sample_seconds=question.sample_seconds,
        stopwatch=time.process_time,
        profiles=question.profiles,
        progress=lambda now: tell(now / question.end_seconds),
    )
    return record_of(result, question.judge_of_engine)


def owners(policies: Sequence[ReplayPolicy], layout: Layout) -> dict[str, int]:
    """The index of the policy that governs each engine, by the engine's name; the file's order is that of creation."""
    accepted = []
    for index, policy in enumerate(policies):
        document = _document(policy)
        # Older ones win where priorities are equal; what is compared is text.
        metadata = document["metadata"] | {"creationTimestamp": f"{index:08d}"}
        accepted.append(accept(document | {"metadata": metadata}, None))
    by_pod = assign(accepted, operator_pods(layout).values()).owners
    index_of = {policy.name: index for index, policy in enumerate(policies)}
    return {engine.name: index_of[by_pod[engine.pod.key]] for engine in layout.engines if engine.pod.key in by_pod}


def judges(
    layout: Layout, governed: Mapping[str, int], objectives: Sequence[Objective]
) -> tuple[tuple[Objective, ...], dict[str, int]]:
    """What requests are judged by, and by which of it those of each governed engine are, by the engine's name.

    A request that one engine prefills and another decodes must hold what the policies of both ask for.
    """
    by_pool: dict[str, set[int]] = {}
    for engine in layout.engines:
        if engine.pool is not None and engine.name in governed:
            by_pool.setdefault(engine.pool.name, set()).add(governed[engine.name])
    found: dict[tuple[int, ...], int] = {}
    of_engine = {}
    for engine in layout.engines:
        if engine.name in governed:
            own = {governed[engine.name]}
            key = tuple(sorted(own if engine.pool is None else by_pool[engine.pool.name]))
            of_engine[engine.name] = found.setdefault(key, len(found))
    asked = [combine([objectives[index] for index in key]) for key in found]
    return tuple(asked or objectives[:1]), of_engine


def _document(policy: ReplayPolicy) -> dict[str, Any]:
    return {"metadata": {"name": policy.name}, "spec": policy.spec.to_json()}


def record_of(result: RunResult, judge_of_engine: Mapping[str, int]) -> Record:
    """A world's result as the replay's arrays."""
    return Record(
        end_seconds=result.end_seconds,
        requests=_requests(result.outcomes, judge_of_engine),
        energy_joules=result.energy_joules,
        peak_watts=result.watts_peak,
        gpus=result.gpus,
        series=_series(result.series),
        statements=tuple(_statements(result)),
        breaches=tuple(
            Breach(breach.policy, breach.seconds, breach.duration_seconds, breach.excess_watts)
            for breach in result.breaches
        ),
        overshoot_seconds=result.overshoot.seconds,
        overshoot_joules=result.overshoot.joules,
        controller_seconds=result.controller_cpu_seconds + result.planner_cpu_seconds,
    )


def _requests(outcomes: Outcomes, judge_of_engine: Mapping[str, int]) -> Requests:
    # The last entry is for requests that no engine ever had, whose index is -1.
    judges = np.array(
        [judge_of_engine.get(name, UNGOVERNED) for name in outcomes.engines] + [UNGOVERNED], dtype=np.int16
    )
    return Requests(
        arrival_seconds=outcomes.arrival_seconds,
        ttft_seconds=outcomes.ttft_seconds,
        tpot_seconds=outcomes.tpot_seconds,
        finished_seconds=outcomes.finished_seconds,
        prompt_tokens=outcomes.prompt_tokens.astype(np.int64),
        output_tokens=outcomes.output_tokens.astype(np.int64),
        outcome=outcomes.state,
        judge=judges[outcomes.engine],
    )


def _series(series: Series) -> dict[str, Floats]:
    clocks = series.engine_sm_mhz.astype(np.float64)
    found: dict[str, Floats] = {
        "seconds": series.seconds,
        "watts": series.watts,
        "sm_mhz_low": clocks.min(axis=1),
        "sm_mhz_mean": clocks.mean(axis=1),
        "sm_mhz_high": clocks.max(axis=1),
        "running": series.running.astype(np.float64),
        "waiting": series.waiting.astype(np.float64),
    }
    budgeted = [policy for policy in series.policies.values() if np.isfinite(policy.budget_watts).any()]
    if budgeted:
        found |= {
            "caps_watts": _total([policy.caps_watts for policy in budgeted]),
            "budget_watts": _total([policy.budget_watts for policy in budgeted]),
            **{name: _ledger(budgeted, part) for part, name in LEDGER_SERIES.items()},
        }
    return found


def _ledger(policies: Sequence[PolicySeries], part: str) -> Floats:
    return _total([policy.ledger_watts[part] for policy in policies])


def _total(values: Sequence[Floats]) -> Floats:
    """The sum of what is known; NaN where nothing is."""
    stacked = np.vstack(values)
    total: Floats = np.nansum(stacked, axis=0)
    return np.where(np.isnan(stacked).all(axis=0), np.nan, total)


def _statements(result: RunResult) -> Iterator[Statement]:
    """Every condition when it came to be as it is: another verdict or reason than before.

    Of the warm-up only what it ended with is told, as of second 0.
    """
    last: dict[tuple[str, str], tuple[str, str]] = {}
    begun: dict[tuple[str, str], Statement] = {}
    for snapshot in result.statuses:
        if snapshot.seconds > 0:
            yield from begun.values()
            begun.clear()
        for condition in snapshot.status.get("conditions", ()):
            key, said = (snapshot.policy, condition["type"]), (condition["status"], condition["reason"])
            if last.get(key) == said:
                continue
            last[key] = said
            statement = Statement(
                seconds=max(0.0, snapshot.seconds),
                policy=snapshot.policy,
                type=condition["type"],
                status=condition["status"],
                reason=condition["reason"],
                message=condition.get("message", ""),
            )
            if snapshot.seconds > 0:
                yield statement
            else:
                begun[key] = statement
    yield from begun.values()
