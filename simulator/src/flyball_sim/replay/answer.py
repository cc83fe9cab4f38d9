"""From runs to the document: pair them, take the band, and write down everything a reader may ask for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flyball_sim.gpu.parameters import EVERY_GPU, PARAMETERS
from flyball_sim.replay import verdict
from flyball_sim.replay.bands import Band, Pair, band
from flyball_sim.replay.measures import Measures, holds, judge_of, measure, windowed
from flyball_sim.replay.objectives import Objective
from flyball_sim.replay.question import Question
from flyball_sim.replay.record import Floats, Record
from flyball_sim.replay.result import (
    AnswerPart,
    BandPart,
    ClusterPart,
    DrawPart,
    LatencyPart,
    ParameterPart,
    PolicyPart,
    QuestionPart,
    RunPart,
    StatementPart,
    TracePart,
)

BINS = 240
"""Latency percentiles over time are drawn in about as many bins, none shorter than `SHORTEST_BIN_SECONDS`."""
SHORTEST_BIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the runs came to: the two nominal records, and a pair of measures per draw."""

    observe: Record
    enforce: Record
    nominal: Pair
    draws: tuple[Pair, ...]

    @property
    def saving(self) -> Band:
        """The saving with its band."""
        return band(self.nominal.saving, [pair.saving for pair in self.draws])


def pair_up(measures: Sequence[Measures]) -> tuple[Pair, tuple[Pair, ...]]:
    """The nominal pair and those of the draws, from measures in the order of `pool.jobs_of`."""
    pairs = [
        Pair(None if index == 0 else index - 1, observe, enforce)
        for index, (observe, enforce) in enumerate(zip(measures[::2], measures[1::2], strict=True))
    ]
    return pairs[0], tuple(pairs[1:])


def question_part(question: Question) -> QuestionPart:
    """The question as the document says it."""
    trace = question.trace
    return QuestionPart(
        policies=[
            PolicyPart(
                name=policy.name,
                controller=policy.spec.controller.type,
                budget_watts=policy.spec.power_budget.watts if policy.spec.power_budget else None,
                objective=f"{objective.sentence()} ({objective.source})",
                ttft_seconds=_bound(objective.ttft_seconds),
                tpot_seconds=_bound(objective.tpot_seconds),
                e2e_seconds=_bound(objective.e2e_seconds),
                target_percent=objective.target_percent,
                window_seconds=objective.window_seconds,
                minimum_requests=objective.minimum_requests,
                spec=policy.spec.to_json(),
            )
            for policy, objective in zip(question.policies, question.objectives, strict=True)
        ],
        trace=TracePart(
            name=trace.name,
            requests=len(trace.requests),
            seconds=trace.seconds,
            prompt_tokens=trace.prompt_tokens,
            output_tokens=trace.output_tokens,
            slice=trace.cut,
            sha256=trace.sha256(),
        ),
        cluster=ClusterPart(
            assumed=question.view.assumed,
            summary=question.view.summary,
            gpus=question.view.gpus,
            spec=dict(question.view.document),
        ),
        seed=question.seed,
        router=question.router,
        faults=list(question.faults),
        end_seconds=question.end_seconds,
        draws=question.draws,
    )


def answer_part(question: Question, answer: Answer) -> AnswerPart:
    """The answer as the document says it."""
    saving = answer.saving
    return AnswerPart(
        headline=verdict.headline(saving, answer.nominal),
        saving=BandPart(nominal=saving.nominal, low=saving.low, high=saving.high, draws=saving.draws),
        saves_in_draws=sum(pair.saving > 0 for pair in answer.draws),
        keeps_slo_in_draws=sum(pair.enforce.keeps_slo for pair in answer.draws),
        keeps_slo=answer.nominal.enforce.keeps_slo,
        observe=_run_part(answer.observe, answer.nominal.observe, question.judges),
        enforce=_run_part(answer.enforce, answer.nominal.enforce, question.judges),
        draws=[
            DrawPart(
                draw=pair.draw or 0,
                saving=pair.saving,
                observe_joules=pair.observe.energy_joules,
                enforce_joules=pair.enforce.energy_joules,
                observe_attainment=pair.observe.attainment,
                enforce_attainment=pair.enforce.attainment,
                observe_outside_slo_seconds=pair.observe.outside_seconds,
                enforce_outside_slo_seconds=pair.enforce.outside_seconds,
            )
            for pair in answer.draws
        ],
        parameters=[
            ParameterPart(
                name=parameter.name,
                gpu=parameter.gpu,
                nominal=parameter.nominal,
                low=parameter.low,
                high=parameter.high,
                unit=parameter.unit,
                why=parameter.why,
            )
            for parameter in PARAMETERS
            if parameter.gpu in {EVERY_GPU, *question.view.gpu_types}
        ],
        notes=verdict.notes(question, answer.observe, answer.enforce, answer.nominal),
    )


def run_measures(record: Record, question: Question) -> Measures:
    """A record in numbers, by the question's objectives."""
    return measure(record, question.judges)


def series_of(record: Record, objectives: Sequence[Objective]) -> Mapping[str, Floats]:
    """The record's own series and, by sample, what the requests that arrived around it saw."""
    requests = record.requests
    held = holds(requests, objectives)
    which = judge_of(requests, objectives)
    seconds = record.series["seconds"]
    worst = np.full(len(seconds), np.nan)
    for index, objective in enumerate(objectives):
        mine = which == index
        count, share = windowed(requests.arrival_seconds[mine], held[mine], seconds, objective.window_seconds)
        worst = np.fmin(worst, np.where(count >= objective.minimum_requests, share, np.nan))
    return {**record.series, "attainment": worst}


def latency_bins(record: Record) -> Mapping[str, Floats]:
    """Median and 99th percentile of latencies by time of arrival: `seconds` is the middle of each bin."""
    requests = record.requests
    last = float(requests.arrival_seconds[-1])
    width = max(SHORTEST_BIN_SECONDS, last / BINS)
    which = np.floor_divide(requests.arrival_seconds, width).astype(int)
    bins = np.arange(which[-1] + 1)
    edges = np.searchsorted(which, np.append(bins, which[-1] + 1))
    found: dict[str, Floats] = {"latency_seconds": (bins + 0.5) * width, "arrivals_per_second": np.diff(edges) / width}
    for name, values in (("ttft", requests.ttft_seconds), ("tpot", requests.tpot_seconds)):
        middle, high = np.full(len(bins), np.nan), np.full(len(bins), np.nan)
        for index, (start, end) in enumerate(itertools.pairwise(edges)):
            part = values[start:end][~np.isnan(values[start:end])]
            if len(part):
                middle[index], high[index] = np.percentile(part, (50, 99))
        found[f"{name}_p50_seconds"], found[f"{name}_p99_seconds"] = middle, high
    return found


def _run_part(record: Record, found: Measures, objectives: Sequence[Objective]) -> RunPart:
    series = {**series_of(record, objectives), **latency_bins(record)}
    return RunPart(
        requests=found.requests,
        finished=found.outcomes["finished"],
        rejected=found.outcomes["rejected"],
        lost=found.outcomes["lost"],
        unfinished=found.outcomes["unfinished"],
        output_tokens=found.output_tokens,
        energy_joules=found.energy_joules,
        mean_watts=found.mean_watts,
        peak_watts=found.peak_watts,
        joules_per_output_token=_number(found.joules_per_token),
        attainment=found.attainment,
        missed=found.missed,
        outside_slo_seconds=found.outside_seconds,
        judged_seconds=found.judged_seconds,
        ttft=_latency(found.ttft),
        tpot=_latency(found.tpot),
        e2e=_latency(found.e2e),
        mean_sm_mhz=_number(found.mean_sm_mhz),
        budget_breaches=found.breaches,
        overshoot_gpu_seconds=found.overshoot_seconds,
        overshoot_joules=found.overshoot_joules,
        series={name: [_number(value) for value in values.tolist()] for name, values in series.items()},
        statements=[
            StatementPart(
                seconds=statement.seconds,
                policy=statement.policy,
                type=statement.type,
                status=statement.status,
                reason=statement.reason,
                message=statement.message,
            )
            for statement in record.statements
        ],
    )


def _latency(found: Mapping[int, float]) -> LatencyPart:
    return LatencyPart(p50=found.get(50), p90=found.get(90), p95=found.get(95), p99=found.get(99))


def _bound(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
