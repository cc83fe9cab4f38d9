"""Rows 1 to 5: mean time per output token of public serving runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.predict import predict_closed_loop
from flyball_sim.latency.steps import step_model
from flyball_sim.validation.rows import Row, Subject, at_most, not_run, relative

SERVING_RUNS = "vLLM run in NVIDIA AIConfigurator's table of end-to-end measurements (Apache-2.0)"
REQUEST_LOG = "LLMServingSim's log of 300 ShareGPT requests"


@dataclass(frozen=True, slots=True)
class ServingRun:
    """A closed-loop run of Llama-3.1-70B FP8 on four GPUs, and its published time per output token."""

    number: str
    gpu: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    tpot_milliseconds: float


PUBLISHED_RUNS = (
    ServingRun("1", "H100-SXM5", 1024, 1024, 4, 11.78),
    ServingRun("1", "H100-SXM5", 1024, 1024, 16, 13.19),
    ServingRun("1", "H100-SXM5", 1024, 1024, 64, 19.52),
    ServingRun("2", "H200-SXM", 1024, 1024, 4, 9.85),
    ServingRun("2", "H200-SXM", 1024, 1024, 16, 10.94),
    ServingRun("2", "H200-SXM", 1024, 1024, 64, 16.07),
    ServingRun("3", "H100-SXM5", 8192, 1024, 4, 13.27),
    ServingRun("3", "H100-SXM5", 8192, 1024, 8, 15.77),
    ServingRun("3", "H100-SXM5", 8192, 1024, 32, 32.82),
)


def time_per_output_token(run: ServingRun) -> Row:
    """One published run beside the closed-loop prediction; 10 % is the plan's target."""
    model = step_model(gpu_type(run.gpu), "llama-3.1-70b", 4, dtype="fp8")
    predicted = predict_closed_loop(model, isl=run.prompt_tokens, osl=run.output_tokens, concurrency=run.concurrency)
    lengths = f"{run.prompt_tokens // 1024}k/{run.output_tokens // 1024}k"
    what = f"TPOT, Llama-3.1-70B FP8, 4x{run.gpu}, {lengths}, {run.concurrency} at once"
    subject = Subject(run.number, what, "ms", SERVING_RUNS, "not fitted")
    return relative(subject, 1e3 * predicted.tpot_seconds, run.tpot_milliseconds, tolerance_percent=10.0)


def printed_runs(rows: Sequence[Row]) -> tuple[Row, Row]:
    """The mean and the worst absolute error of the published runs, held to the bounds for all such runs."""
    errors = [abs(row.error) for row in rows if row.error is not None]
    mean = Subject(
        "1-3", f"TPOT, mean absolute error of these {len(errors)}", "%", SERVING_RUNS, "not fitted", gated=True
    )
    worst = Subject("1-3", f"TPOT, worst of these {len(errors)}", "%", SERVING_RUNS, "not fitted", gated=True)
    return at_most(mean, fmean(errors), bound=5.0), at_most(worst, max(errors), bound=15.0)


def all_serving_runs() -> Row:
    """Row 4: the whole table those runs are from, which nothing here may read."""
    subject = Subject("4", "TPOT, all 105 vLLM runs of Llama-3.1-70B FP8", "%", SERVING_RUNS, "not fitted")
    return not_run(subject, "not evaluated here: the rows are the hold-out")


def request_log() -> Row:
    """Row 5: times of single requests."""
    what = "single requests of Llama-3.1-8B on RTX PRO 6000 and RTX 4090"
    subject = Subject("5", what, "s", REQUEST_LOG, "not fitted")
    return not_run(subject, "neither the log nor these cards' step times are at hand")


def rows() -> tuple[Row, ...]:
    """Rows 1 to 5."""
    runs = [time_per_output_token(run) for run in PUBLISHED_RUNS]
    return (*runs, *printed_runs(runs), all_serving_runs(), request_log())
