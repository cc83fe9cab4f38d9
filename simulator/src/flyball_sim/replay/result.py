"""`result.json`: everything a replay found, in one document with a schema and a digest."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = "flyball.dev/replay/v1"
DIGITS = 9
"""Significant digits of every number in the document."""


class Part(BaseModel):
    """Base of every part: immutable, and nothing in it that the schema does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class PolicyPart(Part):
    """One policy that was replayed."""

    name: str
    controller: str = Field(description="spec.controller.type")
    budget_watts: int | None = Field(description="spec.powerBudget.watts")
    objective: str = Field(description="what its requests are judged by, in words")
    ttft_seconds: float | None = Field(description="bound of the time to first token; null: not judged")
    tpot_seconds: float | None = Field(description="bound of the mean time per output token; null: not judged")
    e2e_seconds: float | None = Field(description="bound of the whole request; null: not judged")
    target_percent: float = Field(description="the share of requests that must hold all bounds")
    window_seconds: float = Field(description="the window of the time outside the SLO")
    minimum_requests: int = Field(description="arrivals in the window without which nothing is judged")
    spec: dict[str, Any] = Field(description="the spec with the API server's defaults")


class TracePart(Part):
    """The requests that were offered."""

    name: str
    requests: int
    seconds: float = Field(description="from 0 to the last arrival")
    prompt_tokens: int
    output_tokens: int
    slice: str = Field(description="how the trace was cut, sped up or thinned; empty: whole")
    sha256: str = Field(description="of the arrivals and lengths as replayed")


class ClusterPart(Part):
    """The cluster it was replayed on."""

    assumed: bool = Field(description="no --cluster was given: the cluster was sized for the trace")
    summary: str
    gpus: int
    spec: dict[str, Any]


class QuestionPart(Part):
    """All that decides the answer."""

    policies: list[PolicyPart]
    trace: TracePart
    cluster: ClusterPart
    seed: int
    router: str
    faults: list[str]
    end_seconds: float = Field(description="both runs end here; energy is from 0 to it")
    draws: int


class LatencyPart(Part):
    """Percentiles in seconds over the requests that have the latency; null: none has."""

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class RunPart(Part):
    """One run at nominal parameters."""

    requests: int
    finished: int
    rejected: int
    lost: int
    unfinished: int
    output_tokens: int
    energy_joules: float = Field(description="all GPUs, idle included (modelled)")
    mean_watts: float
    peak_watts: float = Field(description="highest mean over one sample of the series")
    joules_per_output_token: float | None
    attainment: float = Field(description="share of all offered requests that hold their objective")
    missed: int
    outside_slo_seconds: int = Field(description="whole seconds whose window was below the target")
    judged_seconds: int = Field(description="whole seconds with enough requests in the window to judge")
    ttft: LatencyPart
    tpot: LatencyPart
    e2e: LatencyPart
    mean_sm_mhz: float | None
    budget_breaches: int = Field(description="times the caps added up to more than an acknowledged budget; must be 0")
    overshoot_gpu_seconds: float = Field(description="GPU-seconds above the card's cap (physics)")
    overshoot_joules: float
    series: dict[str, list[float | None]] = Field(description="over time, one value per sample")
    statements: list[StatementPart] = Field(description="conditions of the policies' statuses as they changed")


class StatementPart(Part):
    """A condition of a policy's status when its verdict changed."""

    seconds: float
    policy: str
    type: str
    status: str
    reason: str
    message: str


class BandPart(Part):
    """A quantity at nominal parameters and its band over draws (5th to 95th percentile); null without draws."""

    nominal: float
    low: float | None
    high: float | None
    draws: int


class DrawPart(Part):
    """One parameter draw, run twice on the same requests."""

    draw: int
    saving: float
    observe_joules: float
    enforce_joules: float
    observe_attainment: float
    enforce_attainment: float
    observe_outside_slo_seconds: int
    enforce_outside_slo_seconds: int


class ParameterPart(Part):
    """A parameter that no measurement fixes."""

    name: str
    gpu: str
    nominal: float
    low: float
    high: float
    unit: str
    why: str


class AnswerPart(Part):
    """What the policy would do."""

    headline: str
    saving: BandPart = Field(description="share of Observe's energy that Enforce does not use")
    saves_in_draws: int
    keeps_slo_in_draws: int
    keeps_slo: bool
    observe: RunPart
    enforce: RunPart
    draws: list[DrawPart]
    parameters: list[ParameterPart] = Field(description="what the draws vary")
    notes: list[str] = Field(description="what a reader should know, most important first")


class MadePart(Part):
    """How it was made; not part of the digest."""

    command: str
    versions: dict[str, str]
    seconds: float
    processes: int
    controller_seconds: float = Field(description="CPU time of agents and operator in the two nominal runs")


class Result(Part):
    """The document."""

    schema_name: Literal["flyball.dev/replay/v1"] = Field(default="flyball.dev/replay/v1", alias="schema")
    digest: str = Field(description="sha256 of question and answer; the same question gives the same")
    question: QuestionPart
    answer: AnswerPart
    made: MadePart


def tidy(value: Any) -> Any:
    """The value with numbers at `DIGITS` digits, and null for what is not finite (JSON has no NaN)."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    return value


def digest(question: QuestionPart, answer: AnswerPart) -> str:
    """The digest of a question and its answer, independent of how and when it was made."""
    document = tidy({"question": question.model_dump(mode="json"), "answer": answer.model_dump(mode="json")})
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def to_json(result: Result) -> str:
    """The document as text, one line per array of numbers."""
    return json.dumps(tidy(result.model_dump(mode="json", by_alias=True)), ensure_ascii=False, allow_nan=False)
