"""EcoRoute, VoltanaLLM's choice of a decode engine (arXiv 2509.04827), after the public code v0.1.

Two rules. `tile_aware` keeps batches off the far side of a multiple of 128 sequences, where the matrix products take
another tile. `fadr` asks what the clock controller of each engine would do with the request, and prefers an engine
whose clock would not rise. Below 128 requests everywhere both take the slowest engine, then the emptiest.

The code's quirks are kept where they decide: 50 tokens of look-ahead for each running request, five clock levels
whatever the controller has, no margin on the objective. Neither rule knows any watts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

TILE: Final = 128
"""Sequences of one tile of the matrix products."""
PAPER_CLOCK_SHARES: Final = (1005 / 1410, 1095 / 1410, 1200 / 1410, 1305 / 1410, 1.0)
"""The paper's clocks of an A100 as shares of its highest."""
_LOOK_BACK_TOKENS: Final = 2
_LOOK_AHEAD_TOKENS: Final = 50

InterTokenSeconds = Callable[[int, float, float], float]
"""Seconds between tokens by SM clock in MHz, sequences and KV tokens."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A decode engine as the router knows it.

    Attributes:
        requests: in flight, counted at the router: those still in prefill for it too.
        kv_tokens: in its cache, and prompt tokens in its queue.
        sm_mhz: its SM clock, as measured.
    """

    requests: int
    kv_tokens: float
    sm_mhz: float


def tile_aware(instances: Sequence[Instance], *, tile: int = TILE) -> int:
    """The index of the engine for a request: fill the started tile of the engine with the fewest tiles.

    Args:
        instances: at least one.
        tile: sequences of a tile.

    Raises:
        ValueError: there is no engine.
    """
    counts = _counts(instances)
    if max(counts) < tile:
        return _balance(instances)
    order = sorted(range(len(counts)), key=lambda index: (-(-counts[index] // tile), -counts[index]))
    return next((index for index in order if counts[index] == 0 or counts[index] % tile), order[0])


def fadr(
    instances: Sequence[Instance],
    prompt_tokens: int,
    *,
    clocks_mhz: Sequence[int],
    seconds: InterTokenSeconds,
    slo_seconds: float,
    tile: int = TILE,
) -> int:
    """The index of the engine for a request: where the least clock that holds the objective need not rise for it.

    Args:
        instances: at least one.
        prompt_tokens: of the request.
        clocks_mhz: levels, ascending; the highest is taken where none holds.
        seconds: predicts the time between tokens.
        slo_seconds: bound of it.
        tile: sequences of a tile.

    Raises:
        ValueError: there is no engine, or no clock.
    """
    counts = _counts(instances)
    if not clocks_mhz:
        raise ValueError("there is no clock level: give at least one")
    if max(counts) < tile:
        return _balance(instances)
    top = clocks_mhz[-1]

    def least(requests: int, kv_tokens: float) -> int:
        return next((mhz for mhz in clocks_mhz if seconds(mhz, requests, kv_tokens) <= slo_seconds), top)

    keys: list[int] = []
    for instance in instances:
        requests, kv_tokens = instance.requests, instance.kv_tokens
        now = least(requests, kv_tokens + _LOOK_BACK_TOKENS * requests)
        then = least(requests + 1, kv_tokens + prompt_tokens + _LOOK_AHEAD_TOKENS * requests)
        # Positive: the request would lift the engine over a boundary.
        keys.append(then if then > now or then == top else -now)
    tiles = [-(-count // tile) for count in counts]
    by_level = sorted(range(len(keys)), key=lambda at: (abs(keys[at]), keys[at], tiles[at], -counts[at]))
    levels = [clocks_mhz.index(abs(keys[at])) for at in (by_level[0], by_level[-1])]
    if levels[1] - levels[0] > 1:
        return by_level[0]
    return min(range(len(keys)), key=lambda at: (keys[at], tiles[at], -counts[at]))


def _counts(instances: Sequence[Instance]) -> list[int]:
    if not instances:
        raise ValueError("there is no engine to choose from: give at least one")
    return [instance.requests for instance in instances]


def _balance(instances: Sequence[Instance]) -> int:
    return min(range(len(instances)), key=lambda index: (instances[index].sm_mhz, instances[index].requests))
