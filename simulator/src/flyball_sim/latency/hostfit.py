"""What a real server adds to the steps put together from kernels: ML.ENERGY's vLLM runs on H100.

Their median inter-token latency less the composed decode step is a time per step and a time per sequence. The
latter goes with the model's vocabulary: these runs sample by nucleus, and vLLM 0.11 sorts the whole vocabulary for
each sequence to do it. Benchmarks that decode greedily do not, so no row and no default here contains it.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np

from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency.cards import UnknownEngineError
from flyball_sim.latency.fitting import nonnegative
from flyball_sim.latency.steps import step_model

FILE = "calibration/mlenergy_v3_llm_h100_b200.csv"
PROMPT_TOKENS = 350
"""Mean prompt of the chat task: with it the gap between mean and median latency is the prompts' prefill."""
_MEAN_AGE = 0.75  # of an output length: at a random instant long answers are seen more often than short ones
_LARGEST_BATCH = 128  # above, the power cap lowers the clock


@dataclass(frozen=True, slots=True)
class HostFit:
    """Milliseconds per step, and nanoseconds per sequence and entry of the vocabulary, fitted to `runs` runs."""

    step_milliseconds: float
    entry_nanoseconds: float
    runs: int
    mean_error_percent: float
    worst_error_percent: float


def fit_host(text: str) -> HostFit:
    """The fit to the dense models in bf16 of ML.ENERGY's file, chat task, H100, batch 128 and less.

    Raises:
        ValueError: there is no such run in it.
    """
    columns, times, medians, steps = [], [], [], []
    for row in csv.DictReader(io.StringIO(text)):
        if row.get("gpu") != "H100" or row.get("task") != "lm-arena-chat" or row.get("weight_precision") != "bfloat16":
            continue
        batch = round(float(row["avg_batch"]))
        if batch > _LARGEST_BATCH:
            continue
        try:
            model = step_model(GPU_TYPES["H100-SXM5"], row["model_id"], int(row["num_gpus"]))
        except UnknownEngineError:
            continue
        if model.model.experts:
            continue
        context = PROMPT_TOKENS + _MEAN_AGE * float(row["avg_output_len"])
        cost = model.cost(batch, round(batch * context), [])
        medians.append(float(row["itl_p50_ms"]))
        steps.append(1e3 * (cost.fixed_seconds + cost.clocked_seconds))
        times.append(medians[-1] - steps[-1])
        columns.append((1.0, 1e-6 * batch * model.model.vocabulary))
    if not times:
        raise ValueError("there is no H100 run of a known dense model in it: give ML.ENERGY's table")
    found = nonnegative(np.array(columns), np.array(times), 1.0 / np.array(medians))
    errors = 100.0 * np.abs((np.array(columns) @ found + steps) / medians - 1.0)
    return HostFit(float(found[0]), float(found[1]), len(times), float(errors.mean()), float(errors.max()))
