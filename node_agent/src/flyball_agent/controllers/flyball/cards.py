"""What Flyball believes of an engine before it has seen it work: rough numbers from public data sheets.

Sources: NVIDIA's data sheets of each card (memory, bandwidth, dense bf16 FLOPS, board power, highest SM clock). Shares
of the board's power and the shape over clocks are round figures after public measurements of serving (ML.ENERGY's H100
runs; MLPerf v4.1 under caps). All of it is learnt over; a wrong prior costs time, not objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

PRIOR_NAMES: Final = (
    "step_seconds",
    "sequence_seconds",
    "cache_seconds",
    "prefill_seconds",
    "knee_share",
    "decode_clock_share",
    "idle_watts",
    "clock_watts",
    "busy_watts",
    "memory_watts",
    "decode_watts",
    "prefill_watts",
)
"""Names of the numbers of a `Prior`: what `prior_factors` may scale."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of one card of a group; times are at the highest clock, watts of one card.

    Attributes:
        step_seconds: of a decode step with one sequence.
        sequence_seconds: each sequence adds to it.
        cache_seconds: a full KV cache adds to it.
        prefill_seconds: of a prompt token.
        knee_share: of the highest clock; below it memory is slower in proportion to the clock.
        decode_clock_share: of a decode step's time goes with the clock above the knee.
        idle_watts: an engine that waits, less what the clock adds.
        clock_watts: that the highest clock adds to it.
        busy_watts: that kernels add whatever they do and whatever the clock is.
        memory_watts: that decode adds whatever the clock is.
        decode_watts: that decode adds at the highest clock.
        prefill_watts: that prefill adds at the highest clock.
    """

    step_seconds: float
    sequence_seconds: float
    cache_seconds: float
    prefill_seconds: float
    knee_share: float
    decode_clock_share: float
    idle_watts: float
    clock_watts: float
    busy_watts: float
    memory_watts: float
    decode_watts: float
    prefill_watts: float

    def scaled(self, factors: Mapping[str, float]) -> Prior:
        """The same with these numbers multiplied.

        Raises:
            ValueError: a name is none of `PRIOR_NAMES`, or a factor is not above 0.
        """
        for name, factor in factors.items():
            if name not in PRIOR_NAMES or not factor > 0.0:
                raise ValueError(f"prior factor {name} is {factor}: give a factor above 0 of one of {PRIOR_NAMES}")
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})


class Card(NamedTuple):
    """Data sheet: what its product name contains, bytes, bytes/s, dense bf16 FLOPS, watts."""

    words: tuple[str, ...]
    memory_bytes: float
    bandwidth: float
    flops: float
    watts: float


_CARDS: Final = (
    Card(("B200",), 180e9, 8.0e12, 2250e12, 1000.0),
    Card(("H200", "NVL"), 141e9, 4.8e12, 836e12, 600.0),
    Card(("GH200",), 96e9, 4.0e12, 989e12, 700.0),
    Card(("H200",), 141e9, 4.8e12, 989e12, 700.0),
    Card(("H100", "NVL"), 94e9, 3.9e12, 836e12, 400.0),
    Card(("H100", "PCIe"), 80e9, 2.0e12, 756e12, 350.0),
    Card(("H100",), 80e9, 3.35e12, 989e12, 700.0),
    Card(("A100", "80GB"), 80e9, 2.0e12, 312e12, 400.0),
    Card(("A100",), 40e9, 1.555e12, 312e12, 400.0),
    Card(("L40S",), 48e9, 0.864e12, 362e12, 350.0),
    Card(("L4",), 24e9, 0.3e12, 121e12, 72.0),
    Card(("A6000",), 48e9, 0.768e12, 155e12, 300.0),
    Card(("A10",), 24e9, 0.6e12, 125e12, 150.0),
    Card(("V100",), 32e9, 0.9e12, 125e12, 300.0),
)
"""The first whose words are all in the product name is it."""
_UNKNOWN: Final = Card((), 80e9, 2.0e12, 312e12, 400.0)

_MEMORY_USED = 0.9
"""vLLM's `--gpu-memory-utilization`."""
_BANDWIDTH_REACHED = 0.85
_FLOPS_REACHED = 0.7
_WEIGHTS_SHARE = 0.35
"""Of the memory in use, weights; the rest is KV cache. A step reads the weights, and the KV cache that is in use."""
_SEQUENCE_OF_PREFILL = 0.6
"""A sequence in decode costs less than a prompt token: it fits beside the reading of weights."""


def card_of(product: str, cap_max_watts: float = 0.0) -> Card:
    """The card of a product name; a middling one, with the watts of its highest cap, where it is not known."""
    for card in _CARDS:
        if all(word.lower() in product.lower() for word in card.words):
            return card
    return _UNKNOWN._replace(watts=cap_max_watts) if cap_max_watts > 0.0 else _UNKNOWN


def prior_of(product: str, cap_max_watts: float = 0.0) -> Prior:
    """What is believed of an engine on cards with this product name."""
    card = card_of(product, cap_max_watts)
    used = _MEMORY_USED * card.memory_bytes
    reach = _BANDWIDTH_REACHED * card.bandwidth
    step = _WEIGHTS_SHARE * used / reach
    # Two bytes and two operations for each parameter and token, whatever the model is: what a step reads tells what a
    # prompt token costs. FP8 halves the one and doubles the rate of the other.
    prefill = step * reach / (_FLOPS_REACHED * card.flops)
    return Prior(
        step_seconds=step,
        sequence_seconds=_SEQUENCE_OF_PREFILL * prefill,
        cache_seconds=(1.0 - _WEIGHTS_SHARE) * used / reach,
        prefill_seconds=prefill,
        knee_share=0.55,
        decode_clock_share=0.05,
        idle_watts=0.13 * card.watts,
        clock_watts=0.04 * card.watts,
        busy_watts=0.05 * card.watts,
        memory_watts=0.18 * card.watts,
        decode_watts=0.27 * card.watts,
        prefill_watts=0.75 * card.watts,
    )
