"""What became of every request, in arrays: a day of a thousand engines has tens of millions of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

State = Literal["finished", "rejected", "lost", "unfinished"]
STATES: Final[tuple[State, ...]] = ("finished", "rejected", "lost", "unfinished")
FINISHED, REJECTED, LOST, UNFINISHED = range(4)

NOWHERE: Final = -1
"""Index of the engine of a request that no engine ever had."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; None where it never came to that.

    Attributes:
        arrival_seconds: from the trace's start.
        prompt_tokens: of the prompt.
        output_tokens: asked for.
        engine: name of the engine that gave its tokens, or had it last.
        state: how it ended.
        ttft_seconds: from arrival to the first output token.
        tpot_seconds: mean time per output token after the first; None also for a single one.
        finished_seconds: when its last token came, from the trace's start.
    """

    arrival_seconds: float
    prompt_tokens: int
    output_tokens: int
    engine: str
    state: State
    ttft_seconds: float | None
    tpot_seconds: float | None
    finished_seconds: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """All requests in order of arrival; NaN where there is no time.

    Attributes:
        arrival_seconds: from the trace's start.
        first_token_seconds: likewise.
        decided_seconds: when it finished, was rejected or was lost; NaN: unfinished.
        prompt_tokens: of the prompt.
        output_tokens: asked for.
        state: index into `STATES`.
        engine: index into `engines`; `NOWHERE`: none ever had it.
        engines: names.
    """

    arrival_seconds: Floats
    first_token_seconds: Floats
    decided_seconds: Floats
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    state: NDArray[np.int8]
    engine: NDArray[np.int32]
    engines: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.arrival_seconds)

    @property
    def ttft_seconds(self) -> Floats:
        """From arrival to the first output token."""
        return self.first_token_seconds - self.arrival_seconds

    @property
    def finished_seconds(self) -> Floats:
        """When the last token came."""
        return np.where(self.state == FINISHED, self.decided_seconds, np.nan)

    @property
    def tpot_seconds(self) -> Floats:
        """Mean time per output token after the first; NaN for unfinished requests and for a single token."""
        later = np.where(self.output_tokens > 1, self.output_tokens - 1, 1).astype(np.float64)
        span = (self.finished_seconds - self.first_token_seconds) / later
        return np.where(self.output_tokens > 1, span, np.nan)

    def count(self, state: State) -> int:
        """How many ended so."""
        return int(np.count_nonzero(self.state == STATES.index(state)))

    def __getitem__(self, index: int) -> Outcome:
        engine = int(self.engine[index])
        return Outcome(
            arrival_seconds=float(self.arrival_seconds[index]),
            prompt_tokens=int(self.prompt_tokens[index]),
            output_tokens=int(self.output_tokens[index]),
            engine="" if engine == NOWHERE else self.engines[engine],
            state=STATES[int(self.state[index])],
            ttft_seconds=_known(self.first_token_seconds[index] - self.arrival_seconds[index]),
            tpot_seconds=self._tpot(index),
            finished_seconds=_known(self.decided_seconds[index]) if self.state[index] == FINISHED else None,
        )

    def __iter__(self) -> Iterator[Outcome]:
        return (self[index] for index in range(len(self)))

    def _tpot(self, index: int) -> float | None:
        later = int(self.output_tokens[index]) - 1
        if self.state[index] != FINISHED or later < 1:
            return None
        return float(self.decided_seconds[index] - self.first_token_seconds[index]) / later


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


_NAN: Final = float("nan")


class OutcomeBook:
    """Outcomes while a world runs. A request is known by its number, the order of arrival."""

    __slots__ = ("_arrival", "_decided", "_engine", "_first", "_output", "_prompt", "_state", "open")

    def __init__(self) -> None:
        self._arrival = array("d")
        self._first = array("d")
        self._decided = array("d")
        self._prompt = array("i")
        self._output = array("i")
        self._state = array("b")
        self._engine = array("i")
        self.open = 0
        """Requests that came and are not decided."""

    def __len__(self) -> int:
        return len(self._arrival)

    def offer(self, arrival_seconds: float, prompt_tokens: int, output_tokens: int) -> int:
        """A request came; its number."""
        self._arrival.append(arrival_seconds)
        self._first.append(_NAN)
        self._decided.append(_NAN)
        self._prompt.append(prompt_tokens)
        self._output.append(output_tokens)
        self._state.append(UNFINISHED)
        self._engine.append(NOWHERE)
        self.open += 1
        return len(self._arrival) - 1

    def sizes(self, number: int) -> tuple[int, int]:
        """(prompt tokens, output tokens)."""
        return self._prompt[number], self._output[number]

    def send(self, number: int, engine: int) -> None:
        """An engine has it."""
        self._engine[number] = engine

    def finish(self, number: int, first_token_seconds: float, finished_seconds: float) -> None:
        """Its last token came."""
        self._first[number] = first_token_seconds
        self._decide(number, FINISHED, finished_seconds)

    def reject(self, number: int, now_seconds: float) -> None:
        """No engine took it."""
        self._decide(number, REJECTED, now_seconds)

    def lose(self, number: int, now_seconds: float) -> None:
        """Its engine died."""
        self._decide(number, LOST, now_seconds)

    def _decide(self, number: int, state: int, now_seconds: float) -> None:
        if self._state[number] != UNFINISHED:
            raise ValueError(f"request {number} is {STATES[self._state[number]]} already: a request ends once")
        self._state[number] = state
        self._decided[number] = now_seconds
        self.open -= 1

    def outcomes(self, engines: tuple[str, ...]) -> Outcomes:
        """All of it so far."""
        return Outcomes(
            arrival_seconds=np.array(self._arrival, dtype=np.float64),
            first_token_seconds=np.array(self._first, dtype=np.float64),
            decided_seconds=np.array(self._decided, dtype=np.float64),
            prompt_tokens=np.array(self._prompt, dtype=np.int32),
            output_tokens=np.array(self._output, dtype=np.int32),
            state=np.array(self._state, dtype=np.int8),
            engine=np.array(self._engine, dtype=np.int32),
            engines=engines,
        )
