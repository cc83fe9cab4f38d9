"""A stand-in for the engine's board, made from standard metrics; what throttLL'eM does on engines without the board.

A page says how many requests run and wait and how full the KV cache is, and its counters say how long prompts and
answers were on average, and how fast tokens come. It does not say which request is how far. So all running requests
are taken to have the mean prompt and answer, spread evenly over their lives, their tokens scaled to what the KV cache
holds; those that wait came at the mean rate, one after the other. Projections are then right on average and wrong for
each single request, and nobody's admission can be steered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.controllers.base import Board, RequestView
from flyball_agent.scanner import METRIC_NAMES, EngineSample

NEEDED: Final = ("requests_running", "requests_waiting", "kv_cache_usage", "prompt_tokens", "generation_tokens")
NEEDED_COUNTS: Final = ("time_to_first_token", "end_to_end")
MOST_REQUESTS: Final = 1024
"""Of each kind: a page can name any number, and each is worked through."""
_FORGET_SECONDS: Final = 300.0
_FEWEST: Final = 3.0


class MissingMetricError(ValueError):
    """The page lacks what the approximation needs, or says no number; the message names the metric."""


@dataclass(frozen=True, slots=True)
class _Counters:
    at_seconds: float
    prompt_tokens: float
    generation_tokens: float
    firsts: float
    ends: float


@dataclass(slots=True)
class _Sums:
    """Of the last minutes, older ones counting less and less."""

    seconds: float = 0.0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    firsts: float = 0.0
    ends: float = 0.0

    def fade(self, share: float) -> None:
        self.seconds *= share
        self.prompt_tokens *= share
        self.generation_tokens *= share
        self.firsts *= share
        self.ends *= share


class Approximation:
    """Keeps the means and makes boards of them."""

    def __init__(self) -> None:
        self._last: _Counters | None = None
        self._sums = _Sums()

    def see(self, page: EngineSample, now_seconds: float) -> None:
        """Count what happened since the last page; a counter that fell says that the engine began anew.

        Raises:
            MissingMetricError: the page lacks a metric.
        """
        for name in (*NEEDED, *NEEDED_COUNTS):
            if name not in page.values and name not in page.histograms:
                raise MissingMetricError(f"metric {METRIC_NAMES[name]} is not on the engine's page")
            value = page.values[name] if name in page.values else page.histograms[name].count
            if not 0.0 <= value < math.inf:
                raise MissingMetricError(f"metric {METRIC_NAMES[name]} is {value} on the engine's page")
        counters = _Counters(
            now_seconds,
            page.values["prompt_tokens"],
            page.values["generation_tokens"],
            page.histograms["time_to_first_token"].count,
            page.histograms["end_to_end"].count,
        )
        last, self._last = self._last, counters
        if last is None or counters.at_seconds <= last.at_seconds:
            return
        deltas = (
            counters.prompt_tokens - last.prompt_tokens,
            counters.generation_tokens - last.generation_tokens,
            counters.firsts - last.firsts,
            counters.ends - last.ends,
        )
        if min(deltas) < 0.0:
            return
        sums, seconds = self._sums, counters.at_seconds - last.at_seconds
        sums.fade(max(0.0, 1.0 - seconds / _FORGET_SECONDS))
        sums.seconds += seconds
        sums.prompt_tokens += deltas[0]
        sums.generation_tokens += deltas[1]
        sums.firsts += deltas[2]
        sums.ends += deltas[3]

    @property
    def knows(self) -> bool:
        """Whether enough requests ended to say how long they are."""
        return self._sums.ends >= _FEWEST and self._sums.firsts >= _FEWEST

    def board(self, page: EngineSample, *, kv_blocks: int, block_tokens: int, max_batch: int) -> Board:
        """The board that would look like this page; `knows` first."""
        sums, values = self._sums, page.values
        prompt = max(1.0, sums.prompt_tokens / sums.firsts)
        answer = max(1.0, sums.generation_tokens / sums.ends)
        running = round(min(values["requests_running"], MOST_REQUESTS))
        waiting = round(min(values["requests_waiting"], MOST_REQUESTS))
        held = values["kv_cache_usage"] * kv_blocks * block_tokens
        usual = running * (prompt + answer / 2.0)
        scale = held / usual if held and usual else 1.0
        # A sequence's share of the tokens that come is the rate at which it gets on.
        rate = sums.generation_tokens / sums.seconds / max(1, running) if sums.seconds else 0.0
        arrivals = sums.firsts / sums.seconds if sums.seconds else 0.0
        views = []
        for number in range(running):
            generated = int((number + 0.5) / running * answer)
            views.append(
                RequestView(
                    f"running-{number}",
                    generated / rate if rate else 0.0,
                    max(1, round(scale * (prompt + generated)) - generated),
                    generated,
                    running=True,
                    output_tokens=max(generated + 1, round(answer)),
                    computed_tokens=max(1, round(scale * (prompt + generated)) - generated),
                )
            )
        for number in range(waiting):
            age = (waiting - number) / arrivals if arrivals else 0.0
            views.append(
                RequestView(
                    f"waiting-{number}", age, round(prompt), 0, running=False, output_tokens=max(1, round(answer))
                )
            )
        return Board(0, tuple(views), block_tokens, kv_blocks, max_batch, max_batch)

    def state(self) -> dict[str, Any]:
        """The means, as JSON."""
        sums = self._sums
        return {
            "seconds": sums.seconds,
            "promptTokens": sums.prompt_tokens,
            "generationTokens": sums.generation_tokens,
            "firsts": sums.firsts,
            "ends": sums.ends,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Approximation:
        """What `state` gave.

        Raises:
            ValueError: it is damaged.
        """
        names = ("seconds", "promptTokens", "generationTokens", "firsts", "ends")
        try:
            numbers = [float(state[name]) for name in names]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the state's means cannot be read: {error!r}") from error
        if not all(0.0 <= number < 1e15 for number in numbers):
            raise ValueError("the state's means are out of bounds")
        made = cls()
        made._sums = _Sums(*numbers)
        return made
