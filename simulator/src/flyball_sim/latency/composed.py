"""Rows from the measured kernels of NVIDIA's `aiconfigurator` package (Apache-2.0), an optional extra.

A step is put together kernel by kernel as vLLM runs it: matrix products at the step's tokens, attention of the
sequences in decode, attention of the chunks, communication between GPUs, norms and activations. FP8 is what
`vllm serve --quantization fp8` does: weights of one scale, activations scaled as they come, keys and values,
embedding and output head in 16 bit; experts are scaled in blocks, because the package's kernels for experts of
one scale are slower than those in 16 bit.

Only the kernel tables are read, through the package's own engine. Its table of end-to-end measurements is never
opened: those rows are held out.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency.cards import ModelCard
from flyball_sim.latency.fitting import line, nondecreasing, nonnegative
from flyball_sim.latency.rows import DECODE_KNOTS, KNOTS, StepRow

SYSTEMS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "H100-SXM5": ("h100_sxm", "0.24.0"),
        "H200-SXM": ("h200_sxm", "0.24.0"),
        "A100-SXM4-80GB": ("a100_sxm", "0.14.0"),
        "L40S": ("l40s", "0.24.0"),
    }
)
"""The package's name of a GPU type, and the vLLM version whose kernels it measured there."""
REMARKS = (
    "Coefficients fitted to steps that were put together from the kernel tables of NVIDIA AIConfigurator 0.12.0",
    "(https://github.com/ai-dynamo/aiconfigurator, Apache-2.0): vLLM 0.24.0, on A100 0.14.0. Microseconds.",
    "flyball_sim/latency/rows.py gives the formula, docs/models.md says what they rest on.",
    "Remade byte for byte, with aiconfigurator-core 0.12.0 installed, by: flyball-sim calibrate kernels --out rows.csv",
)
INSTALL = "install it with: pip install 'flyball-sim[aiconfigurator]'"
_COMPOSED_AS = {"Qwen3ForCausalLM": "LlamaForCausalLM"}
"""Without the package's norms of queries and keys, timed outside a CUDA graph at 25 us a layer: vLLM fuses them."""
_SMALL_KERNEL_MICROSECONDS = 3.0
_SMALL_KERNEL_BANDWIDTH = 0.8
"""A kernel that only moves data: the package's own constants for them."""
_ADDED_MICROSECONDS = 13.2
"""What the package adds to attention of prompts in each layer, on every GPU and at every size: it is no kernel."""
_FP8_BLOCK = 128
_LARGEST_DECODE = 512
_BATCHES = DECODE_KNOTS
_SHORTEST = 128
_CONTEXTS = (_SHORTEST, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_LARGEST_HELD = 2**21
_CHUNKS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_BEFORE = (0, 1024, 2048, 4096, 8192, 16384)
_L2_BYTES = 64e6
_TIMED_WEIGHT = 5.0
_BETWEEN = re.compile(r"(^|_)(ar|dispatch)(_|$)")

_Kernels = dict[str, float]


class NotComposedError(RuntimeError):
    """The package is not there, or has no kernels for this model on this GPU; the message says which."""


def check_installed() -> None:
    """Nothing, if the package is there.

    Raises:
        NotComposedError: it is not.
    """
    if importlib.util.find_spec("aiconfigurator_core") is None:
        raise NotComposedError(f"the package aiconfigurator is not installed: {INSTALL}")


def _configuration(card: ModelCard) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "architectures": [_COMPOSED_AS.get(card.architecture, card.architecture)],
        "num_hidden_layers": card.layers,
        "hidden_size": card.hidden,
        "num_attention_heads": card.heads,
        "num_key_value_heads": card.kv_heads,
        "head_dim": card.head_dim,
        "intermediate_size": card.intermediate,
        "vocab_size": card.vocabulary,
        "max_position_embeddings": card.context_tokens,
        "tie_word_embeddings": card.tied,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    shape["model_type"] = shape["architectures"][0].removesuffix("ForCausalLM").lower()
    if card.experts:
        count = "num_local_experts" if card.architecture.startswith("Mixtral") else "num_experts"
        shape |= {count: card.experts, "num_experts_per_tok": card.experts_per_token}
        shape["moe_intermediate_size"] = card.intermediate
    return shape


def _even_experts(engine: ModuleType, card: ModelCard, options: Mapping[str, Any]) -> str:
    operations = importlib.import_module("aiconfigurator_core.sdk.operations")
    widths = importlib.import_module("aiconfigurator_core.sdk.common").MoEQuantMode
    shape = (card.layers, card.hidden, card.intermediate, card.experts_per_token, card.experts)
    group = (options["moe_tp_size"], options["moe_ep_size"], widths[options["moe_quant_mode"]])
    return str(engine.build_ops_json([operations.MoE("moe", *shape, *group, "balanced", 1)]))


class Kernels:
    """The kernels of one model on one group of GPUs, timed in microseconds by the package's engine.

    Raises:
        NotComposedError: the package is missing or has no kernels for it.
    """

    def __init__(self, gpu: str, card: ModelCard, tp: int, dtype: str) -> None:
        check_installed()
        if gpu not in SYSTEMS:
            raise NotComposedError(f"aiconfigurator has no vLLM kernels for {gpu}: it has {', '.join(SYSTEMS)}")
        if card.heads % tp:
            raise NotComposedError(f"{card.heads} heads of {card.name} cannot be shared by {tp} GPUs: give a divisor")
        engine = importlib.import_module("aiconfigurator_core.sdk.engine")
        logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)
        system, version = SYSTEMS[gpu]
        options: dict[str, Any] = {
            "gemm_quant_mode": "fp8" if dtype == "fp8" else "bfloat16",
            "kvcache_quant_mode": "bfloat16",
        }
        if card.experts:
            whole_blocks = card.intermediate % (_FP8_BLOCK * tp) == 0
            by_expert = dtype == "fp8" and not whole_blocks
            options["moe_quant_mode"] = "fp8_block" if dtype == "fp8" else "bfloat16"
            options |= {"moe_tp_size": 1 if by_expert else tp, "moe_ep_size": tp if by_expert else 1}
        self._card = card
        self._even_experts = _even_experts(engine, card, options) if card.experts else ""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(_configuration(card)), "utf-8")
            try:
                self._engine = engine.EngineHandle.compile(
                    folder, system, "vllm", backend_version=version, tp_size=tp, **options
                )
                names = [kernel[0] for kernel in self._engine.decode_step_per_op(1, 128, 2)]
                later = self._engine.run_static_per_op(batch_size=1, isl=128, osl=2, mode="static_ctx")[0]
            except Exception as error:
                raise NotComposedError(
                    f"aiconfigurator cannot compose {card.name} in {dtype} on {tp} x {gpu}: {error}"
                ) from error
        # vLLM turns queries and keys in a kernel of their own (rotary embedding), which the package leaves out.
        self._layers = card.layers
        self._turned_bytes = 4.0 * card.head_dim * (card.heads // tp + -(-card.kv_heads // tp))
        self._bandwidth = GPU_TYPES[gpu].memory_bandwidth_bytes_per_second * _SMALL_KERNEL_BANDWIDTH
        self._decode = {name.removeprefix("generation_"): index for index, name in enumerate(names)}
        self._prefill = {kernel[0].removeprefix("context_"): index for index, kernel in enumerate(later)}

    def _timed(self, evaluate: Callable[..., Any], indices: Sequence[int], **shape: int) -> _Kernels:
        return {kernel[0].split("_", 1)[1]: kernel[1] * 1e3 for kernel in evaluate(list(indices), **shape)}

    def dense(self, tokens: int) -> tuple[float, float]:
        """All kernels of a step of `tokens` but attention and output head, and the part between the GPUs."""
        table, evaluate = self._decode, self._engine.evaluate_generation_ops
        shape = {"batch_size": tokens, "s": 1}
        if tokens > _LARGEST_DECODE:
            table, evaluate = self._prefill, self._engine.evaluate_context_ops
            shape = {"batch_size": 1, "s": tokens}
        wanted = [index for name, index in table.items() if name not in ("attention", "logits_gemm")]
        timed = self._timed(evaluate, wanted, **shape)
        if self._card.experts:
            timed["moe"] = max(timed["moe"], self._chosen_evenly(tokens))
        between = [time for name, time in timed.items() if _BETWEEN.search(name)]
        small = _SMALL_KERNEL_MICROSECONDS + 1e6 * tokens * self._turned_bytes / self._bandwidth
        return sum(timed.values()) + self._layers * small, sum(between)

    def _chosen_evenly(self, tokens: int) -> float:
        """The experts of a step whose tokens choose theirs independently and evenly; 0 where that was not timed.

        The package timed tokens that share the experts out without overlap. Tokens that choose by themselves meet at
        some experts and read fewer: as many as fewer tokens without overlap, and that much time less.
        """
        card = self._card
        apart = card.experts / card.experts_per_token
        touched = apart * (1.0 - (1.0 - 1.0 / apart) ** tokens)
        try:
            most = self._shared_out(min(tokens, apart))
            return self._shared_out(tokens) - most + self._shared_out(touched)
        except RuntimeError:  # the package's error where a GPU has no such table
            return 0.0

    def _shared_out(self, tokens: float) -> float:
        whole = math.floor(tokens)
        low, high = (
            self._engine.evaluate_ops_json(self._even_experts, is_context=False, batch_size=count, s=1)[0][1] * 1e3
            for count in (whole, whole + 1)
        )
        return float(low + (tokens - whole) * (high - low))

    def head(self, rows: int) -> float:
        """The output head for `rows` sequences."""
        index = self._decode["logits_gemm"]
        return sum(self._timed(self._engine.evaluate_generation_ops, [index], batch_size=rows, s=1).values())

    def decode_attention(self, batch: int, context: int) -> float:
        """Attention of one token of each of `batch` sequences over `context` tokens."""
        index = self._decode["attention"]
        return sum(self._timed(self._engine.evaluate_generation_ops, [index], batch_size=batch, s=context).values())

    def prefill_attention(self, before: int, now: int) -> float:
        """Attention of `now` tokens of a prompt after `before` others."""
        index = self._prefill["attention"]
        timed = self._timed(self._engine.evaluate_context_ops, [index], batch_size=1, s=now, prefix=before)
        return sum(timed.values()) - self._layers * _ADDED_MICROSECONDS


def _decode_attention(
    kernels: Kernels, card: ModelCard, tp: int, base: Callable[[int], float]
) -> tuple[list[float], list[float], list[float]]:
    """Attention of decode at each of `DECODE_KNOTS`, once and per token held, and the errors of whole steps.

    For each batch a line in the tokens held; both its start and its rise per token of context do not fall from one
    batch to the next. Keys and values that fit the GPU's second-level cache are read from there when one kernel is
    timed over and over; a server has read all weights in between. Such points are left out, the lines run through.
    """
    per_layer = card.kv_bytes_per_token(tp) / card.layers
    shapes: list[tuple[int, int]] = []
    for batch in _BATCHES:
        for context in _CONTEXTS:
            cached = context > _SHORTEST and batch * context * per_layer < _L2_BYTES
            if context <= card.context_tokens and batch * context <= _LARGEST_HELD and not cached:
                shapes.append((batch, context))
    times = np.array([kernels.decode_attention(batch, context) for batch, context in shapes])
    steps = np.array([base(batch) for batch, _ in shapes]) + times
    risen = sorted({batch for batch, context in shapes if context > _SHORTEST})
    like = {batch: min(risen, key=lambda other: abs(math.log(other / batch))) for batch in _BATCHES}
    knots = np.array(_BATCHES)
    started = np.array([knots <= batch for batch, _ in shapes], dtype=float)
    rising = np.array([(knots <= like[batch]) * batch * context / like[batch] for batch, context in shapes])
    columns = np.hstack([started, rising])
    found = nonnegative(columns, times, 1.0 / steps)
    once, by_context = np.cumsum(found[: len(knots)]), np.cumsum(found[len(knots) :])
    per_token = [float(by_context[_BATCHES.index(like[batch])]) / like[batch] for batch in _BATCHES]
    errors = np.abs(columns @ found - times) / steps
    return once.tolist(), per_token, errors.tolist()


def _prefill_attention(kernels: Kernels, base: Callable[[int], float]) -> tuple[NDArray[np.float64], list[float]]:
    """Attention of prompts as ``a + b*n + c*(n*s + n*n/2)``, and the errors of whole steps.

    Prompts were timed from their beginning; a chunk after others the package works out from two of those. So what
    was timed counts for more.
    """
    shapes, times, steps, pull = [], [], [], []
    for now in _CHUNKS:
        for before in _BEFORE:
            shapes.append((1.0, float(now), now * (before + 0.5 * now)))
            times.append(kernels.prefill_attention(before, now))
            steps.append(times[-1] + base(now))
            pull.append(1.0 if before else _TIMED_WEIGHT)
    found = nonnegative(np.array(shapes), np.array(times), np.array(pull) / np.array(steps))
    errors = np.abs(np.array(shapes) @ found - times) / np.array(steps)
    return found, [float(error) for error in errors]


def compose(gpu: str, card: ModelCard, tp: int, dtype: str) -> StepRow:
    """The row of `card` on `tp` GPUs of type `gpu`.

    Raises:
        NotComposedError: the package is missing or has no kernels for it.
    """
    kernels = Kernels(gpu, card, tp, dtype)
    try:
        timed = [kernels.dense(tokens) for tokens in KNOTS]
        heads = [kernels.head(rows) for rows in _BATCHES]
        head, head_row = line(_BATCHES, heads, [1.0 / time for time in heads])
        dense = nondecreasing([total for total, _ in timed])
        communication = [min(part, total) for (_, part), total in zip(timed, dense, strict=True)]

        def base(tokens: int) -> float:
            return float(np.interp(tokens, KNOTS, dense)) + head + head_row * min(tokens, _LARGEST_DECODE)

        once, per_token, decode_errors = _decode_attention(kernels, card, tp, base)
        prefill, prefill_errors = _prefill_attention(kernels, base)
    except Exception as error:
        raise NotComposedError(
            f"aiconfigurator has no kernels for {card.name} in {dtype} on {tp} x {gpu}: {error}"
        ) from error
    smoothed = [abs(new / old - 1.0) for new, (old, _) in zip(dense, timed, strict=True)]
    errors = [*smoothed, *decode_errors, *prefill_errors]
    return StepRow(
        dense=tuple(dense),
        communication=tuple(nondecreasing(communication)) if any(communication) else (0.0,) * len(KNOTS),
        head=head,
        head_row=head_row,
        decode_attention=tuple(once),
        decode_attention_token=tuple(per_token),
        prefill_attention=float(prefill[0]),
        prefill_attention_token=float(prefill[1]),
        prefill_attention_pair=float(prefill[2]),
        provenance="modelled" if card.experts else "measured",  # which experts tokens choose is modelled
        fit_percent=100.0 * sum(errors) / len(errors),
        fit_worst_percent=100.0 * max(errors),
    )
