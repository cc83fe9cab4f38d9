"""How long an engine's step takes, and how much of a GPU it uses, by GPU, model, precision and tensor parallelism.

A row (`rows.StepRow`) gives times at the GPU's highest clock; its formula is there, where the numbers come from in
docs/models.md. How a step stretches with the SM clock is modelled, not measured: a share of each part's time goes
as 1/f. It is the GPU type's `prefill_clock_share` for attention of prompts and for matrix products that compute
binds, `decode_clock_share` for what memory binds and for attention of sequences in decode, and none of the
communication between GPUs. `Dense.compute_bound` says how far compute binds the products of a step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from flyball_sim.gpu.types import GpuType
from flyball_sim.latency.cards import ModelCard, UnknownEngineError, UnknownModelError, precision
from flyball_sim.latency.catalogue import Catalogue, shipped_catalogue
from flyball_sim.latency.rows import DECODE_KNOTS, KNOTS, Provenance, StepRow

__all__ = [
    "BLOCK_TOKENS",
    "GPU_MEMORY_UTILIZATION",
    "DecodeLine",
    "StepCost",
    "StepModel",
    "UnknownEngineError",
    "UnknownModelError",
    "step_model",
]

HOST_SECONDS_PER_STEP = 0.126e-3
HOST_SECONDS_PER_SEQUENCE = 4.4e-6
"""What the scheduler adds to each step while the GPUs wait: BLIS's fit to vLLM (docs/models.md)."""
GPU_MEMORY_UTILIZATION = 0.9
"""vLLM's `--gpu-memory-utilization`, its default until 0.19; later ones use 0.92."""
ACTIVATION_BYTES = 2 * 2**30
"""Kept free of KV blocks on each GPU for activations and CUDA graphs; a round figure, not a measurement."""
BLOCK_TOKENS = 16
_LARGEST_GRAPH = 512
_FLOPS_PER_PARAMETER = 2  # one multiply and one add per parameter and token
_FP8_FLOPS = 0.5
_COMPUTE_SHARPNESS = 4  # how sharply compute takes over from memory: the exponent that fits short prompts best


class StepCost(NamedTuple):
    """What one step asks of each GPU of the group.

    At SM clock f it takes ``host_seconds + fixed_seconds / bandwidth_factor(f) + clocked_seconds * f_ref / f``; the
    last two are on the GPU. `memory_bytes` and `flops` are one GPU's share. `flops` count time on tensor cores in
    terms of the dense bf16 peak: a product in FP8, which runs at twice the rate, counts half.
    """

    host_seconds: float
    fixed_seconds: float
    clocked_seconds: float
    memory_bytes: float
    flops: float


class DecodeLine(NamedTuple):
    """Pure decode steps of a fixed batch, as straight lines in the tokens K that its sequences hold together.

    Each quantity of `StepCost` is ``base + per_token * K`` for ``from_tokens <= K < until_tokens``; from there on
    `StepModel.decode_line(decodes, K)` gives the next piece. Pieces join without a jump.
    """

    host_seconds: float
    fixed_seconds: float
    fixed_seconds_per_token: float
    clocked_seconds: float
    clocked_seconds_per_token: float
    memory_bytes: float
    memory_bytes_per_token: float
    flops: float
    flops_per_token: float
    from_tokens: float = 0.0
    until_tokens: float = math.inf


def padded_tokens(tokens: int) -> int:
    """Tokens a step computes: up to 512 they are filled up to the next size vLLM has a CUDA graph for."""
    if tokens <= 2 or tokens > _LARGEST_GRAPH:
        return tokens
    if tokens <= 4:
        return 4
    return -(-tokens // 8) * 8 if tokens <= 256 else -(-tokens // 16) * 16


class _Piece(NamedTuple):
    """Dense seconds between two knots: at the first, and per token beyond it."""

    tokens: int
    fixed: float
    fixed_slope: float
    clocked: float
    clocked_slope: float


def _dense_pieces(row: StepRow, decode_share: float, prefill_share: float) -> tuple[_Piece, ...]:
    on_gpu = [total - between for total, between in zip(row.dense, row.communication, strict=True)]
    per_token = on_gpu[-1] / KNOTS[-1]
    clocked: list[float] = []
    for tokens, time in zip(KNOTS, on_gpu, strict=True):
        compute_bound = min(1.0, (per_token * tokens / time) ** _COMPUTE_SHARPNESS) if time > 0.0 else 0.0
        part = time * (decode_share + (prefill_share - decode_share) * compute_bound)
        clocked.append(max(part, clocked[-1] if clocked else 0.0))  # or a step could gain by more work at low clocks
    fixed = [total - part for total, part in zip(row.dense, clocked, strict=True)]
    pieces = []
    for left in range(len(KNOTS)):
        low = min(left, len(KNOTS) - 2)
        gap = (KNOTS[low + 1] - KNOTS[low]) * 1e6
        slopes = (fixed[low + 1] - fixed[low]) / gap, (clocked[low + 1] - clocked[low]) / gap
        pieces.append(_Piece(KNOTS[left], fixed[left] * 1e-6, slopes[0], clocked[left] * 1e-6, slopes[1]))
    return tuple(pieces)


class _Rates(NamedTuple):
    """What `StepModel.cost` multiplies with: seconds and bytes of one GPU, split by clock share beforehand."""

    kv_bytes: float
    weight_bytes: float
    flops: float
    pair_flops: float
    other_fixed: float
    other_clocked: float
    row_fixed: float
    row_clocked: float
    token_fixed: float
    token_clocked: float
    pair_fixed: float
    pair_clocked: float
    chunks_fixed: float
    chunks_clocked: float


class _Attention(NamedTuple):
    """Attention of a fixed number of sequences in decode, split by clock share: once, and per token they hold."""

    fixed: float
    clocked: float
    fixed_per_token: float
    clocked_per_token: float


def _split(microseconds: float, share: float) -> tuple[float, float]:
    """Seconds that do not go with the clock, and those that do."""
    return microseconds * 1e-6 * (1.0 - share), microseconds * 1e-6 * share


def _decode_attention(row: StepRow, decodes: int, clock_share: float) -> _Attention:
    by_context = list(
        accumulate((at * time for at, time in zip(DECODE_KNOTS, row.decode_attention_token, strict=True)), max)
    )
    left = min(bisect_right(DECODE_KNOTS, decodes) - 1, len(DECODE_KNOTS) - 2)
    share = (decodes - DECODE_KNOTS[left]) / (DECODE_KNOTS[left + 1] - DECODE_KNOTS[left])
    once = row.decode_attention[left] + share * (row.decode_attention[left + 1] - row.decode_attention[left])
    if decodes >= DECODE_KNOTS[-1]:
        per_token = by_context[-1] / DECODE_KNOTS[-1]
    else:
        per_token = (by_context[left] + share * (by_context[left + 1] - by_context[left])) / decodes
    return _Attention(*_split(once, clock_share), *_split(per_token, clock_share))


def _rates(model: StepModel) -> _Rates:
    row, card_, gpus = model.row, model.model, model.gpus
    decode, prefill = model.gpu.decode_clock_share, model.gpu.prefill_clock_share
    width = _FP8_FLOPS if model.dtype == "fp8" else 1.0
    return _Rates(
        float(card_.kv_bytes_per_token(gpus)),
        card_.weight_bytes(model.dtype) / gpus,
        _FLOPS_PER_PARAMETER * width * card_.active_parameters / gpus,
        4.0 * card_.layers * card_.heads * card_.head_dim / gpus,
        *_split(row.head, decode),
        *_split(row.head_row, decode),
        *_split(row.prefill_attention_token, prefill),
        *_split(row.prefill_attention_pair, prefill),
        *_split(row.prefill_attention, decode),
    )


@dataclass(frozen=True)
class StepModel:
    """Step times and GPU use of one model on one group of GPUs.

    `reference_mhz` is the clock the times hold at; `kv_blocks` is how many blocks of `BLOCK_TOKENS` tokens fit
    beside the weights. Clock shares are read from `gpu`, so a draw of the GPU's parameters is a model with that
    GPU type replaced.
    """

    model: ModelCard
    gpu: GpuType
    gpus: int
    row: StepRow = field(repr=False)
    reference_mhz: float
    kv_blocks: int
    dtype: str = "bf16"
    provenance: Provenance = "measured"
    _pieces: tuple[_Piece, ...] = field(init=False, repr=False, compare=False)
    _rates: _Rates = field(init=False, repr=False, compare=False)
    _lines: dict[int, DecodeLine] = field(init=False, repr=False, compare=False)
    _attention: dict[int, _Attention] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        gpu = self.gpu
        object.__setattr__(self, "_pieces", _dense_pieces(self.row, gpu.decode_clock_share, gpu.prefill_clock_share))
        object.__setattr__(self, "_rates", _rates(self))
        object.__setattr__(self, "_lines", {})
        object.__setattr__(self, "_attention", {})

    def decode_line(self, decodes: int, held_tokens: float = 0.0) -> DecodeLine:
        """The piece of the decode step's line that holds at `held_tokens`; cached.

        Args:
            decodes: sequences that get one more token, at least 1.
            held_tokens: tokens in the KV cache of those sequences together.
        """
        line = self._lines.get(decodes)
        if line is None or held_tokens >= line.until_tokens:
            line = self._lines[decodes] = self._line(decodes)
        return line

    def _line(self, decodes: int) -> DecodeLine:
        at_zero = self._mixed(decodes, 0, ())
        attention = self._attention[decodes]
        return DecodeLine(
            host_seconds=at_zero.host_seconds,
            fixed_seconds=at_zero.fixed_seconds,
            fixed_seconds_per_token=attention.fixed_per_token,
            clocked_seconds=at_zero.clocked_seconds,
            clocked_seconds_per_token=attention.clocked_per_token,
            memory_bytes=at_zero.memory_bytes,
            memory_bytes_per_token=self._rates.kv_bytes,
            flops=at_zero.flops,
            flops_per_token=0.0,
        )

    def cost(self, decodes: int, held_tokens: int, chunks: Sequence[tuple[int, int]]) -> StepCost:
        """The cost of a step that decodes `decodes` sequences and prefills `chunks`; one of both is not nothing.

        Args:
            decodes: sequences that get one more token.
            held_tokens: tokens in the KV cache of those sequences together.
            chunks: (tokens already computed, tokens computed in this step) of each sequence in prefill.
        """
        if chunks:
            return self._mixed(decodes, held_tokens, chunks)
        line = self._lines.get(decodes) or self.decode_line(decodes)
        return StepCost(
            line.host_seconds,
            line.fixed_seconds + line.fixed_seconds_per_token * held_tokens,
            line.clocked_seconds + line.clocked_seconds_per_token * held_tokens,
            line.memory_bytes + line.memory_bytes_per_token * held_tokens,
            line.flops,
        )

    def _attend(self, decodes: int) -> _Attention:
        found = self._attention[decodes] = _decode_attention(self.row, decodes, self.gpu.decode_clock_share)
        return found

    def _mixed(self, decodes: int, held_tokens: int, chunks: Sequence[tuple[int, int]]) -> StepCost:
        rates = self._rates
        new = 0
        read = held_tokens
        pairs = 0.0
        for before, now in chunks:
            new += now
            read += before
            pairs += now * (before + 0.5 * now)
        tokens = decodes + new
        padded = tokens if tokens > _LARGEST_GRAPH else padded_tokens(tokens)
        piece = self._pieces[bisect_right(KNOTS, padded) - 1]
        more = padded - piece.tokens
        rows = decodes + len(chunks)
        fixed = piece.fixed + piece.fixed_slope * more + rates.other_fixed + rates.row_fixed * rows
        clocked = piece.clocked + piece.clocked_slope * more + rates.other_clocked + rates.row_clocked * rows
        if decodes:
            attention = self._attention.get(decodes) or self._attend(decodes)
            fixed += attention[0] + attention[2] * held_tokens
            clocked += attention[1] + attention[3] * held_tokens
        if new:
            fixed += rates.chunks_fixed + rates.token_fixed * new + rates.pair_fixed * pairs
            clocked += rates.chunks_clocked + rates.token_clocked * new + rates.pair_clocked * pairs
        weights = rates.weight_bytes
        if self.model.experts:
            weights = self.model.streamed_bytes(self.dtype, tokens) / self.gpus
        return StepCost(
            HOST_SECONDS_PER_STEP + HOST_SECONDS_PER_SEQUENCE * rows,
            fixed,
            clocked,
            weights + rates.kv_bytes * (read + tokens),
            rates.flops * tokens + rates.pair_flops * pairs,
        )


def kv_blocks(gpu: GpuType, model: ModelCard, gpus: int, dtype: str) -> int:
    """Blocks of `BLOCK_TOKENS` tokens that fit beside the weights; not above 0 if the weights do not fit."""
    budget = gpu.memory_bytes * GPU_MEMORY_UTILIZATION - ACTIVATION_BYTES - model.weight_bytes(dtype) / gpus
    return math.floor(budget / (model.kv_bytes_per_token(gpus) * BLOCK_TOKENS))


@lru_cache(maxsize=1024)
def _built(gpu: GpuType, model: ModelCard, gpus: int, dtype: str, catalogue: Catalogue) -> StepModel:
    row = catalogue.row(gpu, model, gpus, dtype)
    return StepModel(
        model=model,
        gpu=gpu,
        gpus=gpus,
        row=row,
        reference_mhz=float(gpu.sm_max_mhz),
        kv_blocks=kv_blocks(gpu, model, gpus, dtype),
        dtype=dtype,
        provenance=row.provenance,
    )


def step_model(
    gpu: GpuType, model: str, gpus: int, *, dtype: str = "bf16", catalogue: Catalogue | None = None
) -> StepModel:
    """The coefficients of `model` on `gpus` GPUs of one type, as one tensor-parallel group.

    Args:
        gpu: the GPU's type; one with drawn parameters has the step times of its name.
        model: its name; case, organisation and tuning in it do not matter.
        gpus: GPUs of the group.
        dtype: `bf16` or `fp8` weights and matrix products; keys and values are 16 bit in both.
        catalogue: models and rows to look in; those of the package if not given.

    Raises:
        UnknownModelError: there is no such model.
        UnknownEngineError: there are no step times for it on this GPU in this precision and group size.
    """
    known = shipped_catalogue() if catalogue is None else catalogue
    try:
        width = precision(dtype)
    except ValueError as error:
        raise UnknownEngineError(str(error)) from None
    return _built(gpu, known.card(model), gpus, width, known)
