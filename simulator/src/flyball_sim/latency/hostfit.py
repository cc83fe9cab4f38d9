"""What a real server adds to the steps put together from kernels: ML.ENERGY's vLLM runs on H100.

Their median inter-token latency less the composed decode step is a time per step and a time per sequence. The
latter goes with the model's vocabulary: these runs sample by nucleus, and vLLM 0.11 sorts the whole vocabulary for
each sequence to do it. Benchmarks that decode greedily do not, so no row and no default here contains it.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np

from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency.cards import UnknownEngineError
from flyball_sim.latency.fitting import nonnegative
from flyball_sim.latency.steps import StepModel, step_model

FILE = "calibration/mlenergy_v3_llm_h100_b200.csv"
PROMPT_TOKENS = 350
"""Mean prompt of the chat task: with it the gap between mean and median latency is the prompts' prefill."""
_MEAN_AGE = 0.75  # of an output length: at a random instant long answers are seen more often than short ones
_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
_LARGEST_BATCH = 128  # above, the power cap lowers the clock


@dataclass(frozen=True, slots=True)
class HostFit:
    """Milliseconds per step, and nanoseconds per sequence and entry of the vocabulary, fitted to `runs` dense runs."""

    step_milliseconds: float
    entry_nanoseconds: float
    runs: int
    mean_error_percent: float
    worst_error_percent: float
    mixtures: tuple[MixtureCheck, ...]


@dataclass(frozen=True, slots=True)
class MixtureCheck:
    """How the rows of mixtures with the host's time fitted to dense models compare with runs on so many GPUs."""

    gpus: int
    dtype: str
    runs: int
    mean_error_percent: float
    bias_percent: float


class _Run(NamedTuple):
    model: StepModel
    entries: float  # of the vocabulary, in millions, for all sequences of the batch
    step_milliseconds: float
    median_milliseconds: float


def _runs(text: str) -> list[_Run]:
    runs = []
    for row in csv.DictReader(io.StringIO(text)):
        dtype = _DTYPES.get(row.get("weight_precision") or "")
        if row.get("gpu") != "H100" or row.get("task") != "lm-arena-chat" or dtype is None:
            continue
        batch = round(float(row["avg_batch"]))
        if batch > _LARGEST_BATCH:
            continue
        try:
            model = step_model(GPU_TYPES["H100-SXM5"], row["model_id"], int(row["num_gpus"]), dtype=dtype)
        except UnknownEngineError:
            continue
        context = PROMPT_TOKENS + _MEAN_AGE * float(row["avg_output_len"])
        cost = model.cost(batch, round(batch * context), [])
        step = 1e3 * (cost.fixed_seconds + cost.clocked_seconds)
        runs.append(_Run(model, 1e-6 * batch * model.model.vocabulary, step, float(row["itl_p50_ms"])))
    return runs


def _check(runs: list[_Run], per_step: float, per_entry: float) -> tuple[MixtureCheck, ...]:
    checks = []
    for gpus, dtype in sorted({(run.model.gpus, run.model.dtype) for run in runs}):
        errors = [
            100.0 * ((run.step_milliseconds + per_step + per_entry * run.entries) / run.median_milliseconds - 1.0)
            for run in runs
            if (run.model.gpus, run.model.dtype) == (gpus, dtype)
        ]
        checks.append(MixtureCheck(gpus, dtype, len(errors), fmean(map(abs, errors)), fmean(errors)))
    return tuple(checks)


def fit_host(text: str) -> HostFit:
    """The fit to the dense models in bf16 of ML.ENERGY's file, chat task, H100, batch 128 and less.

    Raises:
        ValueError: there is no such run in it.
    """
    runs = _runs(text)
    dense = [run for run in runs if not run.model.model.experts and run.model.dtype == "bf16"]
    if not dense:
        raise ValueError("there is no H100 run of a known dense model in it: give ML.ENERGY's table")
    columns = np.array([(1.0, run.entries) for run in dense])
    steps, medians = (
        np.array([getattr(run, name) for run in dense]) for name in ("step_milliseconds", "median_milliseconds")
    )
    found = nonnegative(columns, medians - steps, 1.0 / medians)
    errors = 100.0 * np.abs((columns @ found + steps) / medians - 1.0)
    mixtures = _check([run for run in runs if run.model.model.experts], float(found[0]), float(found[1]))
    return HostFit(float(found[0]), float(found[1]), len(dense), float(errors.mean()), float(errors.max()), mixtures)
