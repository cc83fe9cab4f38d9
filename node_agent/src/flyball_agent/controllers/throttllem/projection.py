"""What batch and KV cache of an engine will be, iteration by iteration, if nobody comes (paper, section IV-B).

Iterations are counted from the next one, which is 0. A request that holds h tokens and has r tokens to come is in
iterations 0 to r - 1, and in iteration j it takes ``ceil((h + j) / N)`` blocks of N tokens: what an engine holds that
takes the block of a token in the step before the one that writes it. The paper gives the vectors B and KV; where its
ones go is not in it, and these are the engine's.

`project` writes the vectors out, for whoever wants to look at them. Decisions use `segments_of`: between two
completions the batch stands still and the tokens grow by the batch in every iteration, so a handful of segments says
the same, at a cost that goes with the requests and not with the iterations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple


class Entry(NamedTuple):
    """A request of the scoreboard.

    Attributes:
        name: the engine's id.
        held_tokens: prompt and generated tokens so far.
        left_tokens: predicted tokens to come, at least 1.
        due_seconds: until its deadline, from now; negative when it is over.
        lost: its deadline is not looked at any more.
    """

    name: str
    held_tokens: int
    left_tokens: int
    due_seconds: float
    lost: bool = False


class Segment(NamedTuple):
    """Iterations between two completions.

    Attributes:
        batch: requests in each of them.
        held_tokens: that they hold in the first of them.
        steps: how many iterations.
        due_seconds: the earliest deadline of those that end with the last one; infinite: none is looked at.
    """

    batch: int
    held_tokens: int
    steps: int
    due_seconds: float


def project(entries: Sequence[Entry], block_tokens: int) -> tuple[list[int], list[int]]:
    """Batch and KV blocks of every iteration to come, by difference arrays.

    Args:
        entries: the scoreboard.
        block_tokens: N.
    """
    horizon = max((entry.left_tokens for entry in entries), default=0)
    batch, blocks = [0] * (horizon + 1), [0] * (horizon + 1)
    for _, held, left, _, _ in entries:
        batch[0] += 1
        batch[left] -= 1
        blocks[0] += -(-held // block_tokens)
        # One more block whenever the tokens pass a multiple of N.
        first = -held % block_tokens + 1
        for step in range(first, left, block_tokens):
            blocks[step] += 1
        blocks[left] -= -(-(held + left - 1) // block_tokens)
    return list(accumulate(batch))[:horizon], list(accumulate(blocks))[:horizon]


def segments_of(entries: Iterable[Entry]) -> list[Segment]:
    """The same in segments, the next one first."""
    ordered = sorted(entries, key=_left)
    batch, held, before = len(ordered), sum([entry[1] for entry in ordered]), 0
    segments: list[Segment] = []
    index = 0
    while index < len(ordered):
        left = ordered[index][2]
        due, gone, gone_held = float("inf"), 0, 0
        while index < len(ordered) and ordered[index][2] == left:
            _, tokens, _, due_seconds, lost = ordered[index]
            if not lost and due_seconds < due:
                due = due_seconds
            gone += 1
            gone_held += tokens
            index += 1
        segments.append(Segment(batch, held + batch * before, left - before, due))
        batch, held, before = batch - gone, held - gone_held, left
    return segments


def fits(entries: Sequence[Entry], segments: Iterable[Segment], block_tokens: int, kv_blocks: int) -> bool:
    """Whether the KV cache holds all of them to their end (check 1 of the paper: nothing is ever swapped out).

    Args:
        entries: the scoreboard.
        segments: its own.
        block_tokens: of a KV block.
        kv_blocks: of the engine.
    """
    step = -1
    for batch, held, steps, _ in segments:
        step += steps
        tokens = held + batch * (steps - 1)
        if tokens + batch * (block_tokens - 1) <= kv_blocks * block_tokens:
            continue  # it does, however the tokens lie in their blocks
        needed = sum([-(-(entry[1] + step) // block_tokens) for entry in entries if entry[2] > step])
        if needed > kv_blocks:
            return False
    return True


def _left(entry: Entry) -> int:
    return entry[2]
