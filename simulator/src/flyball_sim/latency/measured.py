"""A row fitted to measured steps of an engine: `flyball-sim calibrate steps` and `metrics`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from flyball_sim.gpu.types import GpuType
from flyball_sim.latency.cards import ModelCard
from flyball_sim.latency.rows import DECODE_KNOTS, KNOTS, StepRow
from flyball_sim.latency.steps import HOST_SECONDS_PER_SEQUENCE, HOST_SECONDS_PER_STEP

COLUMNS = ("batch", "held_tokens", "prefill_tokens", "seconds")
BEFORE = "prefill_before"
_FEWEST = 8
_MODELLED_PEAK_SHARE = 0.7  # what large products reach of the dense peak when they last: 0.70 on H200
_TENSOR_RATE = {"bf16": 1.0, "fp8": 2.0}


class MeasuredError(ValueError):
    """Measured steps that no row can be fitted to; the message says which line or what is missing, and the mend."""


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step, or the mean of several that are alike.

    Args:
        batch: sequences in decode.
        held_tokens: tokens in the KV cache of those sequences together.
        prefill_tokens: tokens of prompts computed in the step.
        seconds: from the end of the step before to its end.
        prefill_before: tokens of those prompts that were computed before.
    """

    batch: float
    held_tokens: float
    prefill_tokens: float
    seconds: float
    prefill_before: float = 0.0


def read_steps(text: str) -> list[MeasuredStep]:
    """The steps of a CSV file's text with the columns of `COLUMNS`, and `prefill_before` if it is there.

    Raises:
        MeasuredError: a column is missing or a value is not one.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), skipinitialspace=True)
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise MeasuredError(f"line 1: no column {', '.join(missing)}: the columns are {','.join(COLUMNS)}[,{BEFORE}]")
    steps = []
    for row in reader:
        values = {}
        for name in (*COLUMNS, BEFORE):
            held = row.get(name)
            if held is None and name == BEFORE:
                continue
            try:
                values[name] = float(held or "")
            except ValueError:
                raise MeasuredError(f"line {reader.line_num}: {name} is {held!r}: give a number") from None
            if not math.isfinite(values[name]) or values[name] < 0.0:
                raise MeasuredError(f"line {reader.line_num}: {name} is {held}: give a finite number, 0 or more")
        step = MeasuredStep(**values)
        if step.seconds <= 0.0:
            raise MeasuredError(
                f"line {reader.line_num}: seconds is {step.seconds:g}: a step takes time, drop the line"
            )
        if step.batch + step.prefill_tokens <= 0.0:
            raise MeasuredError(f"line {reader.line_num}: batch and prefill_tokens are 0: drop the line, no step ran")
        steps.append(step)
    return steps


def _check(steps: Sequence[MeasuredStep], averaged: bool) -> None:
    decodes = [step for step in steps if step.batch > 0 and (averaged or not step.prefill_tokens)]
    which = "steps" if averaged else "steps without prefill"
    if len(decodes) < _FEWEST:
        raise MeasuredError(f"there are {len(decodes)} {which}: give {_FEWEST} or more, at several batches")
    if len({round(step.batch) for step in decodes}) < 3:
        raise MeasuredError(f"the {which} have fewer than 3 batches: measure at more, e.g. 1, 8 and 64")
    per_sequence = [step.held_tokens / step.batch for step in decodes]
    if max(per_sequence) < 1.5 * min(per_sequence):
        raise MeasuredError("held_tokens per sequence hardly varies: measure at short and at long contexts")


def _columns(steps: Sequence[MeasuredStep]) -> tuple[NDArray[np.float64], ...]:
    batch, held, new, seconds, before = (
        np.array([getattr(step, name) for step in steps], dtype=float)
        for name in ("batch", "held_tokens", "prefill_tokens", "seconds", BEFORE)
    )
    return batch, held, new, seconds, new * (before + 0.5 * new)


def fit_row(
    steps: Sequence[MeasuredStep], gpu: GpuType, card: ModelCard, tp: int, dtype: str, *, averaged: bool = False
) -> StepRow:
    """The row nearest to `steps` in relative error, a few wild steps pulling little.

    ``dense(M) = (floor^4 + (p*M)^4)^(1/4)`` with two coefficients, then one each for the batch, the tokens held and
    the pairs of tokens in a prompt; the host's part is taken off first. Without steps that prefill, p is what 70 %
    of the GPU's dense peak gives, and the row is modelled.

    Raises:
        MeasuredError: the steps do not say enough; the message says what to measure.
    """
    _check(steps, averaged)
    batch, held, new, seconds, pairs = _columns(steps)
    prefills = bool((new > 0).any())
    host = HOST_SECONDS_PER_STEP + HOST_SECONDS_PER_SEQUENCE * (batch + (new > 0))
    on_gpu = np.maximum(seconds - host, 0.25 * seconds)
    rate = gpu.dense_bf16_flops * _TENSOR_RATE[dtype] * _MODELLED_PEAK_SHARE
    per_token = 2.0 * card.active_parameters / tp / rate
    floor = float(np.min(on_gpu))
    start = np.log([floor, per_token, 1e-3 * floor, floor / 1e6, 1e-13])
    free = np.array([True, prefills, True, True, bool((pairs > 0).any())])

    def predicted(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        full = start.copy()
        full[free] = logs
        base, token, row, line, pair = np.exp(full)
        if not free[4]:
            pair = 0.0
        dense = (base**4 + (token * (batch + (0.0 if averaged else new))) ** 4) ** 0.25
        dense = dense + token * new if averaged else dense
        return np.asarray(dense + row * batch + line * held + pair * pairs + host)

    found = least_squares(lambda logs: predicted(logs) / seconds - 1.0, start[free], loss="soft_l1", f_scale=0.02)
    errors = np.abs(predicted(found.x) / seconds - 1.0)
    full = start.copy()
    full[free] = found.x
    base, token, row, line, pair = (float(value) * 1e6 for value in np.exp(full))
    return StepRow(
        dense=tuple((base**4 + (token * tokens) ** 4) ** 0.25 for tokens in KNOTS),
        communication=(0.0,) * len(KNOTS),
        head=0.0,
        head_row=0.0,
        decode_attention=tuple(row * decodes for decodes in DECODE_KNOTS),
        decode_attention_token=(line,) * len(DECODE_KNOTS),
        prefill_attention=0.0,
        prefill_attention_token=0.0,
        prefill_attention_pair=pair if free[4] else 0.0,
        provenance="measured" if prefills else "modelled",
        fit_percent=100.0 * float(errors.mean()),
        fit_worst_percent=100.0 * float(errors.max()),
    )
