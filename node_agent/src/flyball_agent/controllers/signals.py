"""What changed between two looks at an engine and its cards: increases of counters, with restarts told apart.

Counters start from 0 again when an engine or a driver restarts. A counter that is lower than before is then taken as
all new, and the look says that something restarted, so that a controller can distrust what it measured across it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flyball_agent.controllers.base import GpuReading
from flyball_agent.scanner import EngineSample, Histogram

LONGEST_GAP_SECONDS: Final = 30.0
"""Increases over a longer time say nothing of now."""


@dataclass(frozen=True, slots=True)
class Increase:
    """What a histogram counted between two looks.

    Attributes:
        bounds: upper bounds in seconds, ascending, the last one infinite.
        counts: new observations at most as large as each bound.
        total: sum of the new observations.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    total: float = 0.0

    @property
    def count(self) -> float:
        """All new observations."""
        return self.counts[-1] if self.counts else 0.0

    @property
    def mean(self) -> float | None:
        """Of the new observations; None without any."""
        return self.total / self.count if self.count > 0.0 else None

    def above(self, threshold_seconds: float) -> float:
        """How many of the new observations were larger; straight within the bucket the threshold falls into."""
        if not self.counts or self.counts[-1] <= 0.0:
            return 0.0
        low, below = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if bound >= threshold_seconds:
                if bound == threshold_seconds:
                    below = count
                elif bound != float("inf"):
                    below += (count - below) * (threshold_seconds - low) / (bound - low)
                break
            low, below = bound, count
        return max(0.0, self.counts[-1] - below)


def increase_of(before: Histogram | None, now: Histogram | None) -> tuple[Increase, bool]:
    """What was counted between two pages, and whether the histogram restarted between them.

    The first page of a histogram gives nothing; one that restarted, or has other buckets, gives all it has.
    """
    if now is None or before is None:
        return Increase(), False
    if before.bounds != now.bounds:
        return Increase(now.bounds, now.counts, now.total), True
    counts = tuple([new - old for new, old in zip(now.counts, before.counts, strict=True)])
    if counts and min(counts) < 0.0:
        return Increase(now.bounds, now.counts, now.total), True
    return Increase(now.bounds, counts, max(0.0, now.total - before.total)), False


@dataclass(frozen=True, slots=True)
class Look:
    """What happened between two looks.

    Attributes:
        seconds: between the two pages.
        running: sequences in the batch now.
        waiting: sequences in the queue now.
        kv_share: of the KV cache, in use now.
        running_before: sequences in the batch at the look before.
        waiting_before: sequences in the queue at the look before.
        prompt_tokens: of requests that had their first token since.
        output_tokens: generated since.
        histograms: by our name, those that the page has.
        watts: mean power of all cards since, from their energy counters, else their power readings; None: neither.
        sm_mhz: lowest SM clock of the cards now; None: not read.
        cap_limited: a card's power cap slows it.
        restarted: a counter of the engine went back.
    """

    seconds: float
    running: float
    waiting: float
    kv_share: float
    running_before: float
    waiting_before: float
    prompt_tokens: float
    output_tokens: float
    histograms: dict[str, Increase]
    watts: float | None
    sm_mhz: int | None
    cap_limited: bool
    restarted: bool

    def increase(self, name: str) -> Increase:
        """Of a histogram; an empty one where the page lacks it."""
        return self.histograms.get(name, _NOTHING)


_NOTHING: Final = Increase()


class Looker:
    """Turns pages and readings into looks.

    Args:
        histograms: those to compare.
    """

    def __init__(self, histograms: Sequence[str]) -> None:
        self._names = tuple(histograms)
        self._page: EngineSample | None = None
        self._page_seconds = 0.0
        self._energy: tuple[float | None, ...] = ()
        self._energy_seconds = 0.0

    def look(
        self, page: EngineSample, page_seconds: float, gpus: Sequence[GpuReading], now_seconds: float
    ) -> Look | None:
        """What changed since the last look; None at the first, on the same page again, and after a long gap.

        Args:
            page: the newest page.
            page_seconds: when it was read.
            gpus: the cards now.
            now_seconds: when their readings were taken.
        """
        before, since = self._page, self._page_seconds
        gap = page_seconds - since
        if before is not None and gap <= 1e-6:
            return None
        watts = self._watts(gpus, now_seconds)
        self._page, self._page_seconds = page, page_seconds
        if before is None or gap > LONGEST_GAP_SECONDS:
            return None
        now, then = page.values, before.values
        prompt, prompt_restarted = _counter(then.get("prompt_tokens"), now.get("prompt_tokens"))
        output, output_restarted = _counter(then.get("generation_tokens"), now.get("generation_tokens"))
        restarted = prompt_restarted or output_restarted
        increases = {}
        for name in self._names:
            histogram = page.histograms.get(name)
            if histogram is not None:
                increases[name], again = increase_of(before.histograms.get(name), histogram)
                restarted = restarted or again
        clocks = [gpu.sm_mhz for gpu in gpus if gpu.sm_mhz is not None]
        return Look(
            seconds=gap,
            running=now.get("requests_running", 0.0),
            waiting=now.get("requests_waiting", 0.0),
            kv_share=now.get("kv_cache_usage", 0.0),
            running_before=then.get("requests_running", 0.0),
            waiting_before=then.get("requests_waiting", 0.0),
            prompt_tokens=prompt,
            output_tokens=output,
            histograms=increases,
            watts=watts,
            sm_mhz=min(clocks, default=None),
            cap_limited=any(gpu.cap_limited for gpu in gpus),
            restarted=restarted,
        )

    def _watts(self, gpus: Sequence[GpuReading], now_seconds: float) -> float | None:
        energy = tuple([gpu.energy_joules for gpu in gpus])
        before, gap = self._energy, now_seconds - self._energy_seconds
        self._energy, self._energy_seconds = energy, now_seconds
        if len(before) == len(energy) and energy and 0.0 < gap <= LONGEST_GAP_SECONDS:
            joules = 0.0
            for old, new in zip(before, energy, strict=True):
                if old is None or new is None or new < old:
                    break
                joules += new - old
            else:
                return joules / gap
        powers = [gpu.power_watts for gpu in gpus]
        if not powers or any(power is None for power in powers):
            return None
        return sum(power for power in powers if power is not None)


def _counter(before: float | None, now: float | None) -> tuple[float, bool]:
    """By how much a counter grew, and whether it restarted; nothing where either page lacks it."""
    if before is None or now is None:
        return 0.0, False
    return (now - before, False) if now >= before else (now, True)


class Window:
    """Amounts of the last so many seconds, as a rate.

    Args:
        seconds: length of the window.
    """

    def __init__(self, seconds: float) -> None:
        self._length = seconds
        self._parts: deque[tuple[float, float]] = deque()
        self._seconds = 0.0
        self._amount = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """An amount that came in the last `seconds`."""
        self._parts.append((amount, seconds))
        self._amount += amount
        self._seconds += seconds
        while len(self._parts) > 1 and self._seconds - self._parts[0][1] >= self._length - 1e-9:
            old_amount, old_seconds = self._parts.popleft()
            self._amount -= old_amount
            self._seconds -= old_seconds

    def clear(self) -> None:
        """Forget all."""
        self._parts.clear()
        self._seconds = self._amount = 0.0

    @property
    def rate(self) -> float:
        """Per second; a window not yet full counts only the time it has seen."""
        return max(0.0, self._amount) / self._seconds if self._seconds > 0.0 else 0.0

    @property
    def amount(self) -> float:
        """In the window."""
        return max(0.0, self._amount)

    @property
    def seconds(self) -> float:
        """That it has seen."""
        return self._seconds
