"""What steps ask of a card, in seconds: one step's, and a straight line of decode steps'."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from flyball_sim.engine.models import StepModel

Work = tuple[float, float, float, float, float]
"""What a step asks of each card, seconds: host, fixed, clocked, memory, compute.

`host` is without kernels; `fixed` stretches with memory bandwidth only; `clocked` is at the reference clock. `memory`
is bytes over peak bandwidth, `compute` operations over the dense peak.
"""


class WorkLine(NamedTuple):
    """The `Work` of decode steps of one batch: straight lines in the tokens held, up to `until_tokens`."""

    host: float
    fixed: float
    fixed_per_token: float
    clocked: float
    clocked_per_token: float
    memory: float
    memory_per_token: float
    compute: float
    compute_per_token: float
    until_tokens: float

    def at(self, held_tokens: int) -> Work:
        """The step that starts with this many tokens."""
        host, fixed, fixed_k, clocked, clocked_k, memory, memory_k, compute, compute_k, _ = self
        return (
            host,
            fixed + fixed_k * held_tokens,
            clocked + clocked_k * held_tokens,
            memory + memory_k * held_tokens,
            compute + compute_k * held_tokens,
        )


NO_WORK: Work = (0.0, 0.0, 0.0, 0.0, 0.0)
NO_LINE = WorkLine(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class WorkTable:
    """The work of a step model's steps; what was worked out is kept, for all engines of the model.

    Args:
        model: the steps' times, bytes and operations.
    """

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._bandwidth = model.gpu.memory_bandwidth_bytes_per_second
        self._flops = model.gpu.dense_bf16_flops
        self._lines: dict[int, list[WorkLine]] = {}

    def line(self, decodes: int, held_tokens: int) -> WorkLine:
        """The piece of a batch's line that holds at this many tokens."""
        for line in self._lines.get(decodes, ()):
            if held_tokens < line.until_tokens:
                return line
        return self._next_piece(decodes, held_tokens)

    def straight_line(self, decodes: int) -> WorkLine | None:
        """The work of a batch where one piece holds for any number of tokens."""
        pieces = self._lines.get(decodes) or [self._next_piece(decodes, 0)]
        return pieces[0] if pieces[0].until_tokens == math.inf else None

    def step(self, decodes: int, held_tokens: int, chunks: list[tuple[int, int]]) -> Work:
        """One step, as `StepModel.cost` has it."""
        host, fixed, clocked, memory, flops = self._model.cost(decodes, held_tokens, chunks)
        return host, fixed, clocked, memory / self._bandwidth, flops / self._flops

    def _next_piece(self, decodes: int, held_tokens: int) -> WorkLine:
        pieces = self._lines.setdefault(decodes, [])
        while not pieces or held_tokens >= pieces[-1].until_tokens:
            piece = self._model.decode_line(decodes, pieces[-1].until_tokens if pieces else 0.0)
            pieces.append(
                WorkLine(
                    piece.host_seconds,
                    piece.fixed_seconds,
                    piece.fixed_seconds_per_token,
                    piece.clocked_seconds,
                    piece.clocked_seconds_per_token,
                    piece.memory_bytes / self._bandwidth,
                    piece.memory_bytes_per_token / self._bandwidth,
                    piece.flops / self._flops,
                    piece.flops_per_token / self._flops,
                    piece.until_tokens,
                )
            )
        return pieces[-1]


@lru_cache(maxsize=1024)
def work_table(model: StepModel) -> WorkTable:
    """The table of a model; the same one for all who ask."""
    return WorkTable(model)
