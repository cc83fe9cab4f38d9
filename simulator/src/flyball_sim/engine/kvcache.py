"""KV blocks of an engine, exact without looking at each sequence.

All sequences in decode grow by one token a step. One that held c tokens at step s needs `ceil(c/16)` blocks, at step d
`floor((d + c - s + 15) / 16)`: a constant and a phase modulo 16. So sixteen counters say at which step how many blocks
are held.
"""

from __future__ import annotations

from flyball_sim.engine.models import BLOCK_TOKENS

_SLACK = BLOCK_TOKENS - 1
_SHIFT = BLOCK_TOKENS.bit_length() - 1


def blocks_of(tokens: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class KvBlocks:
    """The blocks of one engine; steps are counted by the engine.

    Attributes:
        capacity: blocks in all.
        reserved: blocks of sequences in prefill, which get all they need when they are admitted.
    """

    __slots__ = ("_phases", "_whole", "capacity", "reserved")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.reserved = 0
        self._whole = 0
        self._phases = [0] * BLOCK_TOKENS

    def join(self, offset: int) -> None:
        """A sequence is in decode from now on; it holds `offset` tokens more than the step's number."""
        self._whole += (offset + _SLACK) >> _SHIFT
        self._phases[(offset + _SLACK) & _SLACK] += 1

    def leave(self, offset: int) -> None:
        """The opposite of `join`, with the same offset."""
        self._whole -= (offset + _SLACK) >> _SHIFT
        self._phases[(offset + _SLACK) & _SLACK] -= 1

    def used(self, step: int) -> int:
        """Blocks held when the counter stands at `step`."""
        grown = sum(count * ((step + phase) >> _SHIFT) for phase, count in enumerate(self._phases) if count)
        return self.reserved + self._whole + grown

    def steps_that_fit(self, step: int, most: int) -> int:
        """How many steps from `step` on fit the capacity, at most `most`."""
        phases, decodes = self._phases, sum(self._phases)
        free = self.capacity - self.used(step)
        if free < 0 or not decodes:
            return 0 if free < 0 else most
        steps = free // decodes * BLOCK_TOKENS
        free -= free // decodes * decodes
        while steps < most:
            free -= phases[-(step + steps + 1) & _SLACK]
            if free < 0:
                return steps
            steps += 1
        return most
