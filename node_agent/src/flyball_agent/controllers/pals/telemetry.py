"""What PALS sees of an engine: measured and offered output, from counters that any vLLM has.

Offered output is not on the page. It is put together from what is: requests that arrive (those that completed, and by
how many more there are in the engine) times the mean output of those that completed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.controllers.base import Observation

OUTPUT_MEMORY_SECONDS: Final = 60.0
"""Over which the mean output of a request is taken; the paper does not say."""
LEAST_COMPLETIONS: Final = 3.0
"""Until so many requests completed nobody knows how long an answer is."""
SAME_PAGE_SECONDS: Final = 0.05
"""Two pages are not read closer together."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters and gauges of one page.

    Attributes:
        generated: output tokens so far.
        completed: requests so far; None: the page does not say.
        running: sequences in the batch.
        waiting: sequences in the queue.
    """

    generated: float
    completed: float | None
    running: float
    waiting: float

    @classmethod
    def of(cls, observation: Observation) -> Counts | None:
        """Those of the observation's page; None without one that has them."""
        sample = observation.engine
        if sample is None:
            return None
        values = sample.values
        try:
            generated, running, waiting = (
                values[name] for name in ("generation_tokens", "requests_running", "requests_waiting")
            )
        except KeyError:
            return None
        histogram = sample.histograms.get("end_to_end")
        completed = None if histogram is None else histogram.count
        if not all(math.isfinite(number) for number in (generated, running, waiting, completed or 0.0)):
            return None
        return cls(generated, completed, running, waiting)


@dataclass(slots=True)
class Telemetry:
    """Means of an engine's output, kept from page to page.

    Args:
        throughput_seconds: time constant of the measured output.
        offered_seconds: time constant of the offered output.
    """

    throughput_seconds: float
    offered_seconds: float
    tokens_per_second: float | None = None
    offered_tokens_per_second: float | None = None
    waiting: float = 0.0
    _arrivals_per_second: float | None = None
    _generated: float = 0.0
    _completed: float = 0.0
    _last: Counts | None = None
    _last_seconds: float = 0.0

    def see(self, counts: Counts, read_seconds: float) -> bool:
        """Take a page in; False if it is the one already seen, or one that counts from another beginning.

        Args:
            counts: of the page.
            read_seconds: when it was read, on the controller's clock.
        """
        last, elapsed = self._last, read_seconds - self._last_seconds
        if last is not None and abs(elapsed) < SAME_PAGE_SECONDS:
            return False
        self._last, self._last_seconds, self.waiting = counts, read_seconds, counts.waiting
        # An engine that started again has lost its requests as well: no difference to the page before means anything.
        if last is None or elapsed <= 0.0 or _restarted(last, counts):
            return False
        grown = counts.generated - last.generated
        self.tokens_per_second = _mean(self.tokens_per_second, grown / elapsed, elapsed / self.throughput_seconds)
        if counts.completed is None or last.completed is None:
            self.offered_tokens_per_second = None
            return True
        done = counts.completed - last.completed
        arrived = max(0.0, done + counts.running + counts.waiting - last.running - last.waiting)
        keep = math.exp(-elapsed / OUTPUT_MEMORY_SECONDS)
        self._generated, self._completed = self._generated * keep + grown, self._completed * keep + done
        self._arrivals_per_second = _mean(self._arrivals_per_second, arrived / elapsed, elapsed / self.offered_seconds)
        if self._completed >= LEAST_COMPLETIONS or (self.offered_tokens_per_second is not None and self._completed > 0):
            self.offered_tokens_per_second = self._arrivals_per_second * self._generated / self._completed
        return True

    def to_json(self) -> dict[str, Any]:
        """What is learnt; not the last page, whose clock another process does not share."""
        return {
            "tokensPerSecond": self.tokens_per_second,
            "offeredTokensPerSecond": self.offered_tokens_per_second,
            "arrivalsPerSecond": self._arrivals_per_second,
            "generated": self._generated,
            "completed": self._completed,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_json`.

        Raises:
            ValueError: a number is none, or negative.
        """
        tokens, offered, arrivals = (
            None if state[name] is None else _amount(state[name])
            for name in ("tokensPerSecond", "offeredTokensPerSecond", "arrivalsPerSecond")
        )
        generated, completed = _amount(state["generated"]), _amount(state["completed"])
        self.tokens_per_second, self.offered_tokens_per_second, self._arrivals_per_second = tokens, offered, arrivals
        self._generated, self._completed = generated, completed


def _restarted(last: Counts, now: Counts) -> bool:
    fewer = last.completed is not None and now.completed is not None and now.completed < last.completed
    return now.generated < last.generated or fewer


def _mean(before: float | None, value: float, elapsed: float) -> float:
    """Exponentially weighted; `elapsed` in time constants."""
    return value if before is None else before + (value - before) * (1.0 - math.exp(-elapsed))


def _amount(value: Any) -> float:
    number = float(value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{value!r} is no amount")
    return number
