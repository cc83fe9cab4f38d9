"""What a closed loop of equal requests sees of an engine: time per output token, power, joules per token."""

from __future__ import annotations

from dataclasses import dataclass

from flyball_sim.gpu.model import unlocked_or_locked_mhz
from flyball_sim.latency.rows import Provenance
from flyball_sim.latency.steady import Bounds, Load, mean_of, run_closed_loop
from flyball_sim.latency.steps import BLOCK_TOKENS, StepModel

_LARGE_MEMORY_BYTES = 70 * 2**30
_RUNS = 4  # with other jitter, because which requests prefill together moves the means by a percent or two


class CaseError(ValueError):
    """A value a prediction cannot be made for: `field` names it, the message says the bound and the mend."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Prediction:
    """Means at steady state; the first six fields first, then what they were found with.

    Args:
        tpot_seconds: mean time per output token of a request after its first, other requests' prefill included.
        ttft_seconds: mean time to first token as a client sees it.
        tokens_per_second: output tokens of the whole engine.
        power_watts_per_gpu: mean power of one GPU.
        joules_per_token: joules of all GPUs of the engine per output token.
        provenance: "measured" if the step times were put together from measured kernels of this GPU, the power law
            was fitted to measurements of it, and it runs at default clocks and cap; otherwise "modelled".
        batch: sequences in decode.
        kv_fits: whether all concurrent requests fit the KV cache to their end.
        sequences_in_kv: how many run at a time; fewer than `concurrency` where KV holds no more, the rest wait.
        sm_mhz: mean SM clock.
        capped_share: share of the time in which the power cap lowers the clock.
    """

    tpot_seconds: float
    ttft_seconds: float
    tokens_per_second: float
    power_watts_per_gpu: float
    joules_per_token: float
    provenance: Provenance
    gpu: str
    model: str
    dtype: str
    tp: int
    isl: int
    osl: int
    concurrency: int
    batch: float
    kv_fits: bool
    kv_tokens: int
    sequences_in_kv: int
    sm_mhz: float
    cap_watts: float
    capped_share: float
    max_num_batched_tokens: int


def default_batched_tokens(model: StepModel) -> int:
    """VLLM's own `max_num_batched_tokens` of a server: 8,192 on GPUs with 70 GiB and more but the A100, else 2,048.

    Source: `EngineArgs.get_batch_defaults` in vllm/engine/arg_utils.py, since vLLM's pull requests 12369 and 17885
    (https://github.com/vllm-project/vllm/pull/17885); 0.28 changed it for 160 GiB and more only.
    """
    large = model.gpu.memory_bytes >= _LARGE_MEMORY_BYTES and "A100" not in model.gpu.name
    return 8192 if large else 2048


def default_sequences(model: StepModel) -> int:
    """VLLM's own `max_num_seqs` of a server, chosen in the same place as `default_batched_tokens`."""
    return 1024 if default_batched_tokens(model) == 8192 else 256


def predict_closed_loop(
    model: StepModel,
    *,
    isl: int,
    osl: int,
    concurrency: int,
    sm_mhz: int | None = None,
    cap_watts: float | None = None,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    seed: int = 0,
) -> Prediction:
    """The steady state of `concurrency` clients that each send one request after the other.

    Args:
        model: the engine's step times.
        isl: prompt tokens of every request.
        osl: output tokens of every request, at least 2.
        concurrency: requests in flight.
        sm_mhz: SM clock lock; none if not given.
        cap_watts: power cap of each GPU; the type's default if not given.
        max_num_batched_tokens: tokens in a step; vLLM's default for the GPU if not given.
        max_num_seqs: sequences in a step; vLLM's default for the GPU if not given.
        seed: the first of those of the jitter of clients and API server.

    Raises:
        CaseError: a value is out of its range, or one request does not fit the context or the KV cache.
    """
    gpu = model.gpu
    budget = default_batched_tokens(model) if max_num_batched_tokens is None else max_num_batched_tokens
    most = default_sequences(model) if max_num_seqs is None else max_num_seqs
    _check_load(model, isl, osl, concurrency)
    _check_card(model, sm_mhz, cap_watts)
    if not 1 <= most <= budget:
        raise CaseError("max_num_seqs", f"is {most}: give 1 to {budget}, the tokens in a step")
    kv_tokens = model.kv_blocks * BLOCK_TOKENS
    held = (isl + osl // 2 + BLOCK_TOKENS // 2, isl + osl + BLOCK_TOKENS - 1)  # of a sequence, on average and at most
    running = min(concurrency, most, max(1, kv_tokens // held[0]))
    cap = gpu.cap_default_watts if cap_watts is None else cap_watts
    lock = None if sm_mhz is None else unlocked_or_locked_mhz(gpu, (sm_mhz, sm_mhz))
    load, bounds = Load(isl, osl, concurrency), Bounds(budget, running, lock, cap)
    steady = mean_of([run_closed_loop(model, load, bounds, seed=seed + run) for run in range(_RUNS)])
    default = sm_mhz is None and cap == gpu.cap_default_watts
    grounded = default and model.provenance == "measured" and gpu.provenance == "measured"
    return Prediction(
        tpot_seconds=steady.tpot_seconds,
        ttft_seconds=steady.ttft_seconds,
        tokens_per_second=steady.tokens_per_second,
        power_watts_per_gpu=steady.watts,
        joules_per_token=steady.joules_per_token,
        provenance="measured" if grounded else "modelled",
        gpu=gpu.name,
        model=model.model.name,
        dtype=model.dtype,
        tp=model.gpus,
        isl=isl,
        osl=osl,
        concurrency=concurrency,
        batch=steady.batch,
        kv_fits=concurrency * held[1] <= kv_tokens,
        kv_tokens=kv_tokens,
        sequences_in_kv=running,
        sm_mhz=round(steady.sm_mhz, 3),
        cap_watts=cap,
        capped_share=steady.capped_share,
        max_num_batched_tokens=budget,
    )


def _check_load(model: StepModel, isl: int, osl: int, concurrency: int) -> None:
    if isl < 1:
        raise CaseError("isl", f"is {isl}: give 1 prompt token or more")
    if osl < 2:
        raise CaseError("osl", f"is {osl}: give 2 output tokens or more, the time between tokens needs two")
    if concurrency < 1:
        raise CaseError("concurrency", f"is {concurrency}: give 1 or more requests at a time")
    if isl + osl > model.model.context_tokens:
        raise CaseError(
            "isl",
            f"{isl} and osl {osl} are {isl + osl} tokens, the context of {model.model.name} has "
            f"{model.model.context_tokens}: shorten one",
        )
    if isl + osl > model.kv_blocks * BLOCK_TOKENS:
        raise CaseError(
            "isl",
            f"{isl} and osl {osl} are {isl + osl} tokens, the KV cache of {model.gpus} x {model.gpu.name} holds "
            f"{model.kv_blocks * BLOCK_TOKENS}: shorten one or give more GPUs",
        )


def _check_card(model: StepModel, sm_mhz: int | None, cap_watts: float | None) -> None:
    gpu = model.gpu
    if sm_mhz is not None and not gpu.sm_min_mhz <= sm_mhz <= gpu.sm_max_mhz:
        raise CaseError("sm_mhz", f"is {sm_mhz}: give {gpu.sm_min_mhz} to {gpu.sm_max_mhz}, the clocks of {gpu.name}")
    if cap_watts is not None and not gpu.cap_min_watts <= cap_watts <= gpu.cap_max_watts:
        raise CaseError(
            "cap_watts",
            f"is {cap_watts:g}: give {gpu.cap_min_watts:g} to {gpu.cap_max_watts:g}, the caps of {gpu.name}",
        )
