"""What asks for work now: rates, lengths and the batch, from the increases of an engine's counters."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.controllers.flyball.memory import number
from flyball_agent.controllers.signals import Look, Window

SPANS_LOOKS: Final = (6, 12, 24, 48, 96)
"""Windows of 3 to 48 s at two looks a second."""
_HIGHER_SIGMAS: Final = 1.5
_LOWER_SIGMAS: Final = 2.5
"""A shorter window speaks for a rate that has changed where it is off by more than chance; up is believed sooner."""
_DISPERSION_MEMORY: Final = 0.99
_LENGTHS_MEMORY: Final = 200.0
"""Requests over which mean lengths are taken."""
_QUEUE_LOOKS: Final = 120
_RUSH_MEMORY_SECONDS: Final = 1800.0
_FIRST_PROMPT, _FIRST_ANSWER = 1000.0, 200.0
"""Tokens, until some were seen."""


@dataclass(frozen=True, slots=True)
class Load:
    """What asks for work.

    Attributes:
        batch: sequences running.
        cache: share of the KV cache in use.
        waiting: sequences in the queue.
        prompt_rate: prompt tokens per second to be reckoned with.
        output_rate: output tokens per second to be reckoned with.
        arrival_rate: requests per second to be reckoned with.
        prompt_tokens: of a prompt, on average.
        answer_tokens: of an answer, on average.
        cache_per_sequence: share of the KV cache that a sequence holds, on average.
        queued_tokens: prompt tokens in the queue.
        queued_seconds: how long the oldest of them may have waited.
        rush_rate: prompt tokens per second of the busiest seconds lately.
        dispersion: variance of arrivals over their mean, in the time between looks; 1 for chance alone.
    """

    batch: float
    cache: float
    waiting: float
    prompt_rate: float
    output_rate: float
    arrival_rate: float
    prompt_tokens: float
    answer_tokens: float
    cache_per_sequence: float
    queued_tokens: float
    queued_seconds: float
    rush_rate: float
    dispersion: float

    @property
    def idle(self) -> bool:
        """Nothing to do at the moment."""
        return self.batch <= 0.0 and self.waiting <= 0.0


class LoadMeter:
    """Keeps rates and lengths."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=SPANS_LOOKS[-1])
        self._mean_came = self._square_came = 0.0
        self._prompts = Window(3.0)
        self._clock = self._came = 0.0
        self._arrived: deque[tuple[float, float]] = deque(maxlen=_QUEUE_LOOKS)
        self.prompt_tokens = _FIRST_PROMPT
        self.answer_tokens = _FIRST_ANSWER
        self.cache_per_sequence = 0.0
        self.rush_rate = 0.0
        self._seen = self._answered = 0.0

    def forget_now(self) -> None:
        """The engine restarted: what is under way is gone; lengths stay."""
        self._recent.clear()
        self._prompts.clear()
        self._arrived.clear()
        self._came = 0.0

    def see(self, look: Look, *, growth: float = 1.0) -> Load:
        """The load after one more look.

        Args:
            look: what happened.
            growth: by how much the rates are expected to be higher soon.
        """
        firsts = look.increase("time_to_first_token").count
        self._lengths(look, firsts)
        came = max(0.0, firsts + look.waiting - look.waiting_before)
        self._recent.append((came, look.seconds))
        self._prompts.add(look.prompt_tokens, look.seconds)
        dispersion = self._dispersion(came)
        arrivals = self._rate(dispersion)
        fade = math.exp(-look.seconds / _RUSH_MEMORY_SECONDS)
        self.rush_rate = max(self.rush_rate * fade, self._prompts.rate)
        prompt, output = arrivals * self.prompt_tokens, arrivals * self.answer_tokens
        return Load(
            batch=look.running,
            cache=look.kv_share,
            waiting=look.waiting,
            prompt_rate=prompt * growth,
            output_rate=output * growth,
            arrival_rate=arrivals * growth,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            cache_per_sequence=self.cache_per_sequence,
            queued_tokens=look.waiting * self.prompt_tokens,
            queued_seconds=min(self._oldest(look, came), look.waiting / max(arrivals, 0.1)),
            rush_rate=self.rush_rate,
            dispersion=dispersion,
        )

    def _dispersion(self, came: float) -> float:
        self._mean_came += (1.0 - _DISPERSION_MEMORY) * (came - self._mean_came)
        self._square_came += (1.0 - _DISPERSION_MEMORY) * (came * came - self._square_came)
        mean = max(self._mean_came, 0.02)
        return min(max((self._square_came - mean * mean) / mean, 1.0), 12.0)

    def _rate(self, dispersion: float) -> float:
        """Requests per second: the longest window's, unless a shorter one shows that it has changed."""
        came = seconds = 0.0
        spans = []
        for looks, (one, length) in enumerate(reversed(self._recent), 1):
            came += one
            seconds += length
            if looks in SPANS_LOOKS:
                spans.append((came / seconds, seconds))
        if not spans or len(self._recent) > SPANS_LOOKS[len(spans) - 1]:
            spans.append((came / seconds, seconds))
        rate = spans[-1][0]
        for shorter, length in reversed(spans[:-1]):
            chance = math.sqrt(dispersion * max(rate, 1.0 / length) / length)
            if shorter > rate + _HIGHER_SIGMAS * chance:
                rate = shorter - 0.5 * chance
            elif shorter < rate - _LOWER_SIGMAS * chance:
                rate = shorter + 0.5 * chance
        return rate

    def _oldest(self, look: Look, came: float) -> float:
        """How long the oldest request of the queue may have waited: queues are served in order of arrival."""
        self._arrived.append((self._clock, self._came))
        self._clock += look.seconds
        self._came += came
        if look.waiting <= 0.0:
            return 0.0
        served = self._came - look.waiting
        since = self._clock - look.seconds
        for seconds, before in reversed(self._arrived):
            if before <= served:
                since = seconds
                break
            since = seconds
        return self._clock - since

    def _lengths(self, look: Look, firsts: float) -> None:
        if firsts > 0.0 and look.prompt_tokens > 0.0:
            self._seen += firsts
            weight = firsts / min(self._seen, _LENGTHS_MEMORY)
            self.prompt_tokens += min(1.0, weight) * (look.prompt_tokens / firsts - self.prompt_tokens)
        done = look.increase("end_to_end").count
        if done > 0.0 and look.output_tokens > 0.0:
            # Tokens and completions of one look are of different requests; over many they are of the same.
            self._answered += done
            weight = min(1.0, done / min(self._answered, _LENGTHS_MEMORY))
            self.answer_tokens += weight * (look.output_tokens / done - self.answer_tokens)
        elif look.output_tokens > 0.0 and self._answered > 0.0:
            self.answer_tokens += look.output_tokens / min(self._answered, _LENGTHS_MEMORY)
        if look.running >= 1.0 and look.kv_share > 0.0:
            held = look.kv_share / look.running
            weight = 0.02 if self.cache_per_sequence > 0.0 else 1.0
            self.cache_per_sequence += weight * (held - self.cache_per_sequence)

    def state(self) -> dict[str, float]:
        """As JSON."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            "cache_per_sequence": self.cache_per_sequence,
            "rush_rate": self.rush_rate,
            "seen": self._seen,
            "answered": self._answered,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it is damaged.
        """
        most = 1e9
        prompt, answer = (number(state, name, 0.0, most) for name in ("prompt_tokens", "answer_tokens"))
        held, rush = number(state, "cache_per_sequence", 0.0, 1.0), number(state, "rush_rate", 0.0, most)
        seen, answered = (number(state, name, 0.0, 1e15) for name in ("seen", "answered"))
        self.prompt_tokens, self.answer_tokens = prompt, answer
        self.cache_per_sequence, self.rush_rate = held, rush
        self._seen, self._answered = seen, answered
