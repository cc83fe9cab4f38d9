"""Models by name: the shapes that decide what a step moves and computes, from their published configurations."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "bf16": "bf16",
        "bfloat16": "bf16",
        "fp16": "bf16",
        "float16": "bf16",
        "half": "bf16",
        "auto": "bf16",
        "fp8": "fp8",
        "float8": "fp8",
        "fp8_e4m3": "fp8",
        "w8a8": "fp8",
    }
)
"""Ways to write a precision; float16 and bfloat16 weigh and compute alike."""


class UnknownEngineError(LookupError):
    """No coefficients for this model, GPU, precision or number of GPUs; the message names the nearest that exist."""


class UnknownModelError(UnknownEngineError):
    """No such model; the message names the nearest that exist."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A decoder-only transformer with gated feed-forward layers and grouped-query attention.

    Args:
        intermediate: width of the feed-forward layer, of one expert where `experts` is not 0.
        tied: whether input embedding and output head are one matrix.
        architecture: the name of its class in the model's own configuration.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context_tokens: int
    architecture: str = "LlamaForCausalLM"
    tied: bool = False
    experts: int = 0
    experts_per_token: int = 0

    @property
    def attention_parameters(self) -> int:
        """Parameters of the attention's matrix products, of all layers."""
        return self.layers * self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def expert_parameters(self) -> int:
        """Parameters of one feed-forward layer (or one expert) times the layers."""
        return self.layers * 3 * self.hidden * self.intermediate

    @property
    def embedding_parameters(self) -> int:
        """Parameters of input embedding and output head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def linear_parameters(self) -> int:
        """Parameters that FP8 weights halve: all but embedding and output head."""
        routers = self.layers * self.hidden * self.experts
        return self.attention_parameters + self.expert_parameters * max(self.experts, 1) + routers

    @property
    def active_parameters(self) -> int:
        """Parameters one token's forward pass multiplies with."""
        return (
            self.attention_parameters
            + self.expert_parameters * max(self.experts_per_token, 1)
            + (self.embedding_parameters)
        )

    def weight_bytes(self, dtype: str) -> float:
        """Bytes of all weights; embedding and output head stay in 16 bit."""
        return self.linear_parameters * (1.0 if dtype == "fp8" else 2.0) + 2.0 * self.embedding_parameters

    def streamed_bytes(self, dtype: str, tokens: int) -> float:
        """Bytes of weights a step of `tokens` tokens reads: of the experts only those some token is sent to.

        Tokens are taken to choose their experts evenly, which reads the most.
        """
        if not self.experts:
            return self.weight_bytes(dtype)
        idle = (1.0 - self.experts_per_token / self.experts) ** tokens
        width = 1.0 if dtype == "fp8" else 2.0
        return self.weight_bytes(dtype) - idle * self.expert_parameters * self.experts * width

    def kv_bytes_per_token(self, gpus: int = 1) -> int:
        """Bytes of one token's keys and values on each of `gpus` GPUs: 16 bit; heads are not cut in parts."""
        return 4 * self.layers * self.head_dim * -(-self.kv_heads // gpus)


_CARDS = (
    ModelCard("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128_256, 131_072),
    ModelCard("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128_256, 131_072),
    ModelCard("llama-3.1-405b", 126, 16384, 128, 8, 128, 53248, 128_256, 131_072),
    ModelCard("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128_256, 131_072, tied=True),
    ModelCard("llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 128_256, 131_072, tied=True),
    ModelCard("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32_000, 4096),
    ModelCard("llama-2-13b", 40, 5120, 40, 40, 128, 13824, 32_000, 4096),
    ModelCard("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32_000, 4096),
    ModelCard("mistral-7b", 32, 4096, 32, 8, 128, 14336, 32_768, 32_768),
    ModelCard("mistral-nemo-12b", 40, 5120, 32, 8, 128, 14336, 131_072, 131_072),
    ModelCard("mistral-small-24b", 40, 5120, 32, 8, 128, 32768, 131_072, 32_768),
    ModelCard("mistral-large-123b", 88, 12288, 96, 8, 128, 28672, 32_768, 131_072),
    ModelCard("ministral-8b", 36, 4096, 32, 8, 128, 12288, 131_072, 32_768),
    ModelCard("ministral-3-3b", 26, 3072, 32, 8, 128, 9216, 131_072, 262_144, tied=True),
    ModelCard("ministral-3-8b", 34, 4096, 32, 8, 128, 14336, 131_072, 262_144),
    ModelCard("ministral-3-14b", 40, 5120, 32, 8, 128, 16384, 131_072, 262_144),
    ModelCard("mixtral-8x7b", 32, 4096, 32, 8, 128, 14336, 32_000, 32_768, "MixtralForCausalLM", False, 8, 2),
    ModelCard("mixtral-8x22b", 56, 6144, 48, 8, 128, 16384, 32_768, 65_536, "MixtralForCausalLM", False, 8, 2),
    ModelCard("qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152_064, 32_768, "Qwen2ForCausalLM"),
    ModelCard("qwen2.5-14b", 48, 5120, 40, 8, 128, 13824, 152_064, 32_768, "Qwen2ForCausalLM"),
    ModelCard("qwen2.5-32b", 64, 5120, 40, 8, 128, 27648, 152_064, 32_768, "Qwen2ForCausalLM"),
    ModelCard("qwen2.5-72b", 80, 8192, 64, 8, 128, 29568, 152_064, 32_768, "Qwen2ForCausalLM"),
    ModelCard("qwen3-0.6b", 28, 1024, 16, 8, 128, 3072, 151_936, 40_960, "Qwen3ForCausalLM", tied=True),
    ModelCard("qwen3-1.7b", 28, 2048, 16, 8, 128, 6144, 151_936, 40_960, "Qwen3ForCausalLM", tied=True),
    ModelCard("qwen3-4b", 36, 2560, 32, 8, 128, 9728, 151_936, 40_960, "Qwen3ForCausalLM", tied=True),
    ModelCard("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151_936, 40_960, "Qwen3ForCausalLM"),
    ModelCard("qwen3-14b", 40, 5120, 40, 8, 128, 17408, 151_936, 40_960, "Qwen3ForCausalLM"),
    ModelCard("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151_936, 40_960, "Qwen3ForCausalLM"),
    ModelCard("qwen3-30b-a3b", 48, 2048, 32, 4, 128, 768, 151_936, 40_960, "Qwen3MoeForCausalLM", False, 128, 8),
    ModelCard("qwen3-235b-a22b", 94, 4096, 64, 4, 128, 1536, 151_936, 40_960, "Qwen3MoeForCausalLM", False, 128, 8),
)

MODELS: Mapping[str, ModelCard] = MappingProxyType({card.name: card for card in _CARDS})

_SAME_SHAPE = {
    "llama-3-8b": "llama-3.1-8b",
    "llama-3-70b": "llama-3.1-70b",
    "llama-3.3-70b": "llama-3.1-70b",
    "deepseek-r1-distill-llama-8b": "llama-3.1-8b",
    "deepseek-r1-distill-llama-70b": "llama-3.1-70b",
    "deepseek-r1-distill-qwen-14b": "qwen2.5-14b",
    "deepseek-r1-distill-qwen-32b": "qwen2.5-32b",
    "qwq-32b": "qwen2.5-32b",
    "qwen2.5-coder-7b": "qwen2.5-7b",
    "qwen2.5-coder-32b": "qwen2.5-32b",
    "qwen2-72b": "qwen2.5-72b",
    "mistral-nemo": "mistral-nemo-12b",
    "mistral-large": "mistral-large-123b",
    "ministral-3b": "ministral-3-3b",
    "ministral-14b": "ministral-3-14b",
    "qwen3-coder-30b-a3b": "qwen3-30b-a3b",
}
_NO_SHAPE = re.compile(
    r"(?<![a-z0-9])(meta|instruct|chat|hf|it|base|thinking|fp8|bf16|fp16|dynamic|static|pertensor|block|fbgemm|kv"
    r"|w8a8|v0\.\d|2407|2410|2411|2501|2503|2506|2507|2512)(?![a-z0-9.])"
)


def _key(name: str) -> str:
    tail = name.strip().lower().rsplit("/", 1)[-1].replace("_", "-").replace(" ", "-")
    return re.sub(r"-+", "", _NO_SHAPE.sub("", tail))


SHIPPED_NAMES: Mapping[str, ModelCard] = MappingProxyType(
    dict(MODELS) | {name: MODELS[same] for name, same in _SAME_SHAPE.items()}
)
"""Every name a model goes by; those of the same shape share a card."""


def find_card(name: str, names: Mapping[str, ModelCard]) -> ModelCard:
    """The card of the model called `name`: case, organisation, tuning and precision in the name do not matter.

    Raises:
        UnknownModelError: there is none; the message names the nearest ones.
    """
    by_key = {_key(known): known for known in names}
    found = by_key.get(_key(name))
    if found is None:
        near = difflib.get_close_matches(_key(name), by_key, n=3, cutoff=0.0)
        nearest = ", ".join(repr(by_key[key]) for key in near)
        known = ", ".join(dict.fromkeys(model.name for model in names.values()))
        raise UnknownModelError(f"model {name!r} is unknown: did you mean {nearest}? Known models: {known}")
    return names[found]


def precision(name: str) -> str:
    """`bf16` or `fp8`.

    Raises:
        ValueError: it is neither.
    """
    found = DTYPES.get(name.strip().lower())
    if found is None:
        raise ValueError(f"dtype {name!r} is unknown: give bf16 or fp8")
    return found
