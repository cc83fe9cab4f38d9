"""Remaking the power coefficients from the measured data of `calibration/`: least squares, leave-one-out, cap line.

The catalogue carries what these functions give; `flyball-sim validate --data DIR` calls them to see that it still
does, and how far predictions for models that were left out are off.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flyball_sim.gpu.catalogue import CATALOGUE

_H100 = next(kind for kind in CATALOGUE if kind.name == "H100-SXM5")
SATURATED_WATTS = _H100.cap_held_share * _H100.cap_max_watts
_NEARLY_SATURATED_WATTS = 680.0
_PROMPT_TOKENS = np.arange(50.0, 2000.0, 10.0)
_EXTRA_HOST_MS = np.arange(0.0, 1.6, 0.1)
_SMALLEST_MEMORY_USE = 0.65

_TABLES: Mapping[str, tuple[str, str]] = {
    "Qwen/Qwen3-8B": ("qwen3-8b", "Qwen3-8B"),
    "Qwen/Qwen3-14B": ("qwen3-14b", "Qwen3-14B"),
    "Qwen/Qwen3-32B": ("qwen3-32b", "Qwen3-32B"),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama3.1-8b", "Llama-3.1-8B"),
    "meta-llama/Llama-3.1-70B-Instruct": ("llama3.1-70b", "Llama-3-70B"),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama3.1-70b", "Llama-3-70B"),
}
"""By ML.ENERGY's model: the model's name in the latency tables, and the group that is left out together."""


class CalibrationDataError(Exception):
    """A file of the calibration data is missing or not what it should be; the message says which."""


@dataclass(frozen=True, slots=True)
class ServingPoint:
    """One measured run: mean use of each card's memory and compute (shares of peak), and its mean watts."""

    model: str
    group: str
    gpus: int
    batch: float
    memory_use: float
    compute_use: float
    watts: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class PowerFit:
    """``watts = static + memory*mu + tensor*cu`` at the highest clock, up to what the power limit holds."""

    static_watts: float
    memory_watts: float
    tensor_watts: float

    def watts(self, memory_use: float, compute_use: float) -> float:
        """Mean watts of a card of this use."""
        free = self.static_watts + self.memory_watts * memory_use + self.tensor_watts * compute_use
        return min(free, SATURATED_WATTS)


@dataclass(frozen=True, slots=True)
class PowerPoint:
    """A measured run beside the fit of all runs and the fit that left its model out; watts of one card."""

    model: str
    group: str
    gpus: int
    batch: float
    measured_watts: float
    in_sample_watts: float
    predicted_watts: float
    tokens_per_second: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of the measured watts, signed."""
        return self.predicted_watts / self.measured_watts - 1.0


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises:
        CalibrationDataError: it is missing or empty.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise CalibrationDataError(
            f"no calibration data at {path}: give --data the directory that holds calibration/"
        ) from error
    if not rows:
        raise CalibrationDataError(f"{path} holds no rows: fetch the calibration data anew")
    return rows


# -- H100: 64 serving runs ---------------------------------------------------------------------------------------


def serving_points(directory: Path) -> tuple[ServingPoint, ...]:
    """The H100 runs of dense bf16 models on lm-arena-chat (ML.ENERGY v3), with what each card did.

    The benchmark does not give the length of prompts. It is fitted per model and number of GPUs to the measured step
    times, through the latency tables; watts play no part in that.

    Args:
        directory: holds `mlenergy_v3_llm_h100_b200.csv` and `latency_coeffs.csv`.
    """
    tables = {
        (row["model"], int(row["tp"])): row
        for row in read_rows(directory / "latency_coeffs.csv")
        if row["gpu"] == "h100" and row["dtype"] == "bfloat16"
    }
    runs = [
        row
        for row in read_rows(directory / "mlenergy_v3_llm_h100_b200.csv")
        if (row["gpu"], row["task"]) == ("H100", "lm-arena-chat") and row["model_id"] in _TABLES
    ]
    runs.sort(key=lambda row: (row["model_id"], int(row["num_gpus"]), float(row["avg_batch"])))
    points: list[ServingPoint] = []
    for (model, gpus), same in itertools.groupby(runs, key=lambda row: (row["model_id"], int(row["num_gpus"]))):
        table, group = _TABLES[model]
        points.extend(_points(list(same), tables[table, gpus], model, group))
    return tuple(points)


def _points(runs: list[dict[str, str]], table: Mapping[str, str], model: str, group: str) -> Iterable[ServingPoint]:
    gpus = int(runs[0]["num_gpus"])
    batch = np.array([float(run["avg_batch"]) for run in runs])
    rate = np.array([float(run["out_tok_s"]) for run in runs])
    output = np.array([float(run["avg_output_len"]) for run in runs])
    step_seconds = batch / rate
    prompt = _prompt_tokens(table, batch, output, step_seconds * 1e3)
    weight_bytes, kv_bytes = float(table["weight_gb_per_gpu"]) * 1e9, float(table["kv_bytes_per_token_total"]) / gpus
    read_bytes = weight_bytes + batch * (prompt + output / 2.0) * kv_bytes
    flops_per_second = weight_bytes * rate * (1.0 + prompt / output)  # two a parameter, of two bytes each
    memory_use = read_bytes / step_seconds / _H100.memory_bandwidth_bytes_per_second
    compute_use = flops_per_second / _H100.dense_bf16_flops
    for index, run in enumerate(runs):
        yield ServingPoint(
            model=model.partition("/")[2],
            group=group,
            gpus=gpus,
            batch=float(batch[index]),
            memory_use=float(memory_use[index]),
            compute_use=float(compute_use[index]),
            watts=float(run["power_per_gpu_w"]),
            tokens_per_second=float(rate[index]),
        )


def _prompt_tokens(
    table: Mapping[str, str], batch: NDArray[np.float64], output: NDArray[np.float64], step_ms: NDArray[np.float64]
) -> float:
    """The mean prompt with which the latency tables come nearest to the measured steps."""
    prompt, extra = (grid[..., None] for grid in np.meshgrid(_PROMPT_TOKENS, _EXTRA_HOST_MS, indexing="ij"))
    decode = (
        float(table["dec_a_ms"])
        + float(table["dec_b_ms_per_seq"]) * batch
        + float(table["dec_c_us_per_1k_kvtok"]) * 1e-6 * batch * (prompt + output / 2.0)
    )
    prefill = float(table["pre_ms_per_tok"]) * prompt + float(table["pre_ns_per_tok2"]) * 1e-6 * prompt**2
    predicted = decode + batch / output * prefill + 0.126 + 0.0044 * batch + extra
    error = np.abs(predicted / step_ms - 1.0).mean(axis=-1)
    return float(_PROMPT_TOKENS[int(np.unravel_index(error.argmin(), error.shape)[0])])


def fit_power(points: Sequence[ServingPoint], static_watts: float | None = None) -> PowerFit:
    """Least squares of relative error over the runs that the power limit does not hold down.

    Args:
        points: at least three runs.
        static_watts: where this coefficient is to stay; fitted by default.
    """
    use = np.array([(1.0, point.memory_use, point.compute_use) for point in points])
    watts = np.array([point.watts for point in points])
    free = np.ones(len(points), dtype=bool)
    coefficients = np.zeros(3)
    for _ in range(20):  # which runs the limit holds down depends on the fit; settles in a few rounds
        rows, weights = use[free], 1.0 / watts[free]
        known = 0.0 if static_watts is None else static_watts
        columns = slice(0, 3) if static_watts is None else slice(1, 3)
        solution, *_ = np.linalg.lstsq(rows[:, columns] * weights[:, None], 1.0 - known * weights, rcond=None)
        coefficients[columns] = solution
        if static_watts is not None:
            coefficients[0] = static_watts
        now_free = ~((use @ coefficients > SATURATED_WATTS) & (watts > _NEARLY_SATURATED_WATTS))
        if (now_free == free).all():
            break
        free = now_free
    return PowerFit(*(float(value) for value in coefficients))


def leave_one_model_out(points: Sequence[ServingPoint], static_watts: float | None = None) -> tuple[PowerPoint, ...]:
    """Each run predicted by the fit of the other models' runs; all sizes and versions of one model go together."""
    whole = fit_power(points, static_watts)
    without = {
        group: fit_power([point for point in points if point.group != group], static_watts)
        for group in dict.fromkeys(point.group for point in points)
    }
    return tuple(
        PowerPoint(
            model=point.model,
            group=point.group,
            gpus=point.gpus,
            batch=point.batch,
            measured_watts=point.watts,
            in_sample_watts=whole.watts(point.memory_use, point.compute_use),
            predicted_watts=without[point.group].watts(point.memory_use, point.compute_use),
            tokens_per_second=point.tokens_per_second,
        )
        for point in points
    )


# -- H200: kernels that stream memory --------------------------------------------------------------------------------


def fit_kernel_memory_watts(directory: Path, static_watts: float, tensor_watts: float) -> float:
    """Watts of full memory bandwidth on an H200, from medians of kernels that stream weights or keys and values.

    Args:
        directory: holds `h200_op_power_by_regime.csv`.
        static_watts: of the power law; the card's measured active floor.
        tensor_watts: of the power law; the same silicon as H100's.
    """
    memory, rest = [], []
    for row in read_rows(directory / "h200_op_power_by_regime.csv"):
        if row["hbm_util_p50"] and float(row["hbm_util_p50"]) >= _SMALLEST_MEMORY_USE:
            watts = float(row["power_p50"])
            compute_watts = tensor_watts * float(row["tc_util_p50"] or 0.0)
            memory.append(float(row["hbm_util_p50"]) / watts)
            rest.append((watts - static_watts - compute_watts) / watts)
    return float(np.dot(memory, rest) / np.dot(memory, memory))


# -- the line of exponent and static power ------------------------------------------------------------------------


def cap_ratio(cap_watts: float, exponent: float, static_watts: float, full_watts: float = 700.0) -> float:
    """Throughput of compute-bound work under a cap over that at `full_watts`, where both caps bind.

    ``((cap - P_s) / (full - P_s))**(1/k)``: work as fast as its clock, power ``P_s + D*(f/f0)**k``.
    """
    return float(((cap_watts - static_watts) / (full_watts - static_watts)) ** (1.0 / exponent))


def fit_cap_exponent(static_watts: float, ratios: Sequence[tuple[float, float]], full_watts: float = 700.0) -> float:
    """The exponent k that goes with this static power.

    Args:
        static_watts: P_s.
        ratios: (cap in watts, measured throughput over that at `full_watts`).
        full_watts: the higher cap.
    """
    shares = np.log([(cap - static_watts) / (full_watts - static_watts) for cap, _ in ratios])
    speeds = np.log([ratio for _, ratio in ratios])
    return float(np.dot(shares, shares) / np.dot(shares, speeds))


def gptj_ratios(directory: Path) -> tuple[tuple[float, float], ...]:
    """(cap, throughput over that at 700 W) of the two GPT-J pairs of MLPerf v4.1, eight H200."""
    rows = read_rows(directory / "mlperf_v41_h200_gptj_cap350.csv")
    return tuple((float(row["maxq_power_limit_w"]), float(row["throughput_ratio"])) for row in rows)
