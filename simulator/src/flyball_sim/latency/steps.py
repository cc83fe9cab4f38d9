"""How long an engine's step takes, and how much of a GPU it uses, by GPU, model and tensor parallelism.

Times are the composed kernel tables of NVIDIA AIConfigurator (Apache-2.0; vLLM 0.24.0, A100: 0.14.0) at default
clocks in bf16, fitted per row as

* decode of B sequences that hold C tokens together: ``a + b*B + c*C`` milliseconds;
* prefill of n tokens alone: ``(floor^4 + (p*n)^4)^(1/4) + q*n^2`` milliseconds;
* a chunk of n tokens after s others, in a step that also decodes: ``p*n + q*((s+n)^2 - s^2)`` on top of decode.

With the host's share of each step these predict 105 public vLLM measurements within 4.6-5.3 % on average. How a
step stretches with the SM clock is modelled, not measured: ``T(f) = T_host + T_gpu*((1-phi) + phi*f_ref/f)``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from flyball_sim.gpu.types import GpuType

DECODE_CLOCK_SHARE = 0.15
"""phi of decode where the GPU type has none: 0.05-0.2 above the memory knee."""
PREFILL_CLOCK_SHARE = 0.95
"""phi of prefill where the GPU type has none: 0.9-1.0 for its matrix products."""
HOST_SECONDS_PER_STEP = 0.126e-3
HOST_SECONDS_PER_SEQUENCE = 4.4e-6
"""What the scheduler adds to each step: the terms of the closed-loop check against the 105 measurements."""
GPU_MEMORY_UTILIZATION = 0.9
"""vLLM's default `--gpu-memory-utilization`."""
ACTIVATION_BYTES = 2 * 2**30
"""Kept free of KV blocks for activations and CUDA graphs; a round figure, not a measurement."""
BLOCK_TOKENS = 16
_BYTES_PER_PARAMETER = 2  # bf16
_FLOPS_PER_PARAMETER = 2  # one multiply and one add per parameter and token


class UnknownEngineError(LookupError):
    """No coefficients for this model, GPU or number of GPUs; the message names the nearest that exist."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What does not depend on the GPU: size of the weights and of one token's keys and values, both in bytes."""

    name: str
    weight_bytes: float
    kv_bytes_per_token: int
    context_tokens: int

    @property
    def flops_per_token(self) -> float:
        """Floating point operations of one token's forward pass, without attention over the context."""
        return self.weight_bytes / _BYTES_PER_PARAMETER * _FLOPS_PER_PARAMETER


MODELS: Mapping[str, ModelCard] = MappingProxyType(
    {
        card.name: card
        for card in (
            ModelCard("llama-3.1-8b", 16.06e9, 131_072, 131_072),
            ModelCard("llama-3.1-70b", 141.1e9, 327_680, 131_072),
            ModelCard("qwen3-8b", 16.38e9, 147_456, 40_960),
            ModelCard("qwen3-14b", 29.54e9, 163_840, 40_960),
            ModelCard("qwen3-32b", 65.52e9, 262_144, 40_960),
        )
    }
)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One row of the table: a (ms), b (ms per sequence), c (us per 1,000 tokens held), floor (ms), p, q (ns)."""

    a_ms: float
    b_ms: float
    c_us_per_1k: float
    floor_ms: float
    p_ms: float
    q_ns: float


_H100, _H200, _A100 = "H100-SXM5", "H200-SXM", "A100-SXM4-80GB"
STEP_TIMES: Mapping[tuple[str, str, int], StepTimes] = MappingProxyType(
    {
        (_H100, "llama-3.1-8b", 1): StepTimes(6.4884, 0.010022, 42.0798, 8.111, 0.021153, 0.3713),
        (_H100, "llama-3.1-8b", 2): StepTimes(4.0492, 0.007592, 20.9007, 4.662, 0.014192, 0.1049),
        (_H100, "qwen3-8b", 1): StepTimes(6.7337, 0.009909, 47.9696, 8.417, 0.02155, 0.3963),
        (_H100, "qwen3-14b", 1): StepTimes(11.2484, 0.014234, 55.8003, 14.061, 0.038363, 0.7109),
        (_H100, "qwen3-14b", 2): StepTimes(6.6526, 0.012239, 26.7102, 8.316, 0.024377, 0.1771),
        (_H100, "qwen3-32b", 1): StepTimes(24.569, 0.029498, 122.154, 30.711, 0.089031, 1.8596),
        (_H100, "qwen3-32b", 2): StepTimes(13.869, 0.024025, 44.7703, 17.336, 0.052358, 0.6975),
        (_H100, "qwen3-32b", 4): StepTimes(8.4552, 0.020234, 21.714, 10.569, 0.033129, 0.1198),
        (_H100, "llama-3.1-70b", 4): StepTimes(15.4478, 0.03176, 28.2089, 19.297, 0.065773, 0.2446),
        (_H100, "llama-3.1-70b", 8): StepTimes(10.1824, 0.026462, 13.6007, 12.209, 0.043483, 0.0),
        (_H200, "llama-3.1-8b", 1): StepTimes(5.0039, 0.011633, 29.7166, 5.497, 0.020929, 0.4072),
        (_H200, "llama-3.1-8b", 2): StepTimes(3.4057, 0.008178, 14.668, 3.814, 0.013826, 0.0899),
        (_H200, "qwen3-8b", 1): StepTimes(5.174, 0.012464, 33.7826, 5.68, 0.020909, 0.4402),
        (_H200, "qwen3-14b", 1): StepTimes(8.7114, 0.016352, 36.7638, 9.51, 0.038165, 0.6695),
        (_H200, "qwen3-14b", 2): StepTimes(5.3892, 0.012213, 18.566, 6.736, 0.023911, 0.2273),
        (_H200, "qwen3-32b", 1): StepTimes(19.1225, 0.034522, 61.2361, 20.634, 0.08875, 1.6608),
        (_H200, "qwen3-32b", 2): StepTimes(11.0684, 0.024989, 29.5325, 13.836, 0.05142, 0.7351),
        (_H200, "qwen3-32b", 4): StepTimes(7.0935, 0.018299, 15.0882, 8.867, 0.032288, 0.2127),
        (_H200, "llama-3.1-70b", 2): StepTimes(21.289, 0.037715, 34.1438, 21.947, 0.107091, 1.3),
        (_H200, "llama-3.1-70b", 4): StepTimes(12.4279, 0.032577, 18.3643, 15.535, 0.064479, 0.4764),
        (_H200, "llama-3.1-70b", 8): StepTimes(8.3852, 0.026615, 9.5966, 10.159, 0.042258, 0.0),
        (_A100, "llama-3.1-8b", 1): StepTimes(11.0733, 0.031497, 82.2193, 11.896, 0.062655, 0.946),
        (_A100, "llama-3.1-8b", 2): StepTimes(6.7038, 0.022055, 43.4066, 8.38, 0.038685, 0.3235),
        (_A100, "qwen3-8b", 1): StepTimes(11.3236, 0.034304, 91.172, 12.235, 0.063837, 1.0442),
        (_A100, "qwen3-14b", 1): StepTimes(20.1921, 0.053974, 103.4326, 25.24, 0.111915, 1.0251),
        (_A100, "qwen3-32b", 1): StepTimes(44.8776, 0.092029, 172.2798, 48.199, 0.249361, 3.6568),
        (_A100, "qwen3-32b", 2): StepTimes(24.6514, 0.082458, 80.472, 30.814, 0.144822, 1.2227),
        (_A100, "qwen3-32b", 4): StepTimes(14.6302, 0.050546, 43.9558, 18.284, 0.087267, 0.3478),
        (_A100, "llama-3.1-70b", 4): StepTimes(27.8283, 0.101274, 56.1365, 33.26, 0.171513, 0.1928),
        (_A100, "llama-3.1-70b", 8): StepTimes(17.2945, 0.072077, 27.0244, 21.516, 0.113857, 0.0),
    }
)
"""By GPU type, model and GPUs per engine. Rows whose weights leave no room for keys and values are left out."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step asks of each GPU of the group.

    At SM clock f it takes ``host_seconds + fixed_seconds / bandwidth_factor(f) + clocked_seconds * f_ref / f``; the
    last two are on the GPU. `memory_bytes` and `flops` are one GPU's share.
    """

    host_seconds: float
    fixed_seconds: float
    clocked_seconds: float
    memory_bytes: float
    flops: float


@dataclass(frozen=True, slots=True)
class DecodeLine:
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


@dataclass(frozen=True)
class StepModel:
    """Step times and GPU use of one model on one group of GPUs.

    `reference_mhz` is the clock the times hold at; `kv_blocks` is how many blocks of `BLOCK_TOKENS` tokens fit
    beside the weights.
    """

    model: ModelCard
    gpu: GpuType
    gpus: int
    times: StepTimes
    reference_mhz: float
    kv_blocks: int
    dtype: str = "bf16"
    provenance: Literal["measured", "modelled"] = "measured"
    _lines: dict[int, DecodeLine] = field(default_factory=dict, repr=False, compare=False)

    @property
    def decode_clock_share(self) -> float:
        """Phi of decode."""
        return float(getattr(self.gpu, "decode_clock_share", DECODE_CLOCK_SHARE))

    @property
    def prefill_clock_share(self) -> float:
        """Phi of prefill."""
        return float(getattr(self.gpu, "prefill_clock_share", PREFILL_CLOCK_SHARE))

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
        t, phi = self.times, self.decode_clock_share
        base, slope = (t.a_ms + t.b_ms * decodes) * 1e-3, t.c_us_per_1k * 1e-9
        kv_bytes = self.model.kv_bytes_per_token / self.gpus
        return DecodeLine(
            host_seconds=HOST_SECONDS_PER_STEP + HOST_SECONDS_PER_SEQUENCE * decodes,
            fixed_seconds=base * (1 - phi),
            fixed_seconds_per_token=slope * (1 - phi),
            clocked_seconds=base * phi,
            clocked_seconds_per_token=slope * phi,
            memory_bytes=self.model.weight_bytes / self.gpus + kv_bytes * decodes,
            memory_bytes_per_token=kv_bytes,
            flops=self.model.flops_per_token * decodes / self.gpus,
            flops_per_token=0.0,
        )

    def cost(self, decodes: int, held_tokens: int, chunks: Sequence[tuple[int, int]]) -> StepCost:
        """The cost of a step that decodes `decodes` sequences and prefills `chunks`.

        Args:
            decodes: sequences that get one more token.
            held_tokens: tokens in the KV cache of those sequences together.
            chunks: (tokens already computed, tokens computed in this step) of each sequence in prefill.
        """
        t, phi = self.times, self.decode_clock_share
        decode_ms = t.a_ms + t.b_ms * decodes + t.c_us_per_1k * 1e-6 * held_tokens if decodes else 0.0
        fixed_ms = decode_ms * (1 - phi)
        clocked_ms = decode_ms * phi
        chunk_tokens = 0
        read_tokens = held_tokens
        if chunks:
            attention_ms = 0.0
            for start, count in chunks:
                chunk_tokens += count
                read_tokens += start
                attention_ms += t.q_ns * 1e-6 * ((start + count) ** 2 - start**2)
            dense_ms = t.p_ms * chunk_tokens
            share = self.prefill_clock_share
            if not decodes:
                # A short prompt waits for the weights as decode does: blend phi as the floor blends the time.
                floor4, dense4 = t.floor_ms**4, dense_ms**4
                compute_bound = dense4 / (floor4 + dense4)
                share = share * compute_bound + phi * (1 - compute_bound)
                dense_ms = (floor4 + dense4) ** 0.25
            prefill_ms = dense_ms + attention_ms
            fixed_ms += prefill_ms * (1 - share)
            clocked_ms += prefill_ms * share
        tokens = decodes + chunk_tokens
        kv_bytes = self.model.kv_bytes_per_token * (read_tokens + tokens)
        return StepCost(
            host_seconds=HOST_SECONDS_PER_STEP + HOST_SECONDS_PER_SEQUENCE * (decodes + len(chunks)),
            fixed_seconds=fixed_ms * 1e-3,
            clocked_seconds=clocked_ms * 1e-3,
            memory_bytes=(self.model.weight_bytes + kv_bytes) / self.gpus,
            flops=self.model.flops_per_token * tokens / self.gpus,
        )


def _nearest(name: str, known: list[str]) -> str:
    return difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]


def step_model(gpu: GpuType, model: str, gpus: int, *, dtype: str = "bf16") -> StepModel:
    """The coefficients of `model` on `gpus` GPUs of one type, as one tensor-parallel group.

    Raises:
        UnknownEngineError: there is no such model, or no measured row for it on this GPU at this group size.
    """
    if dtype not in ("bf16", "bfloat16"):
        raise UnknownEngineError(f"dtype {dtype!r} of model {model!r} has no step times: give bf16")
    card = MODELS.get(model)
    if card is None:
        raise UnknownEngineError(
            f"model {model!r} is unknown: did you mean {_nearest(model, list(MODELS))!r}? "
            f"Known models: {', '.join(MODELS)}"
        )
    times = STEP_TIMES.get((gpu.name, model, gpus))
    if times is None:
        sizes = [str(tp) for kind, name, tp in STEP_TIMES if (kind, name) == (gpu.name, model)]
        if sizes:
            mend = f"give the engine {' or '.join(sizes)} GPUs"
        else:
            mend = f"known GPU types: {', '.join(sorted({kind for kind, _, _ in STEP_TIMES}))}"
        raise UnknownEngineError(f"no step times for model {model!r} on {gpus} x {gpu.name}: {mend}")
    budget = (gpu.memory_bytes * GPU_MEMORY_UTILIZATION - ACTIVATION_BYTES) * gpus - card.weight_bytes
    return StepModel(
        model=card,
        gpu=gpu,
        gpus=gpus,
        times=times,
        reference_mhz=float(gpu.sm_max_mhz),
        kv_blocks=int(budget // (card.kv_bytes_per_token * BLOCK_TOKENS)),
    )
