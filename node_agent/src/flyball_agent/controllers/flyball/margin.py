"""How much of an objective a prediction may use up: adaptive conformal control of misses that were counted.

After each request `log m` rises by `gain * allowed` and falls by `gain` if it missed (Gibbs and Candes 2021, on the
logarithm). Whatever the predictions are worth, over n requests between the bounds the share of misses is within
`(log high - log low) / (gain n)` of `allowed`, as long as a lower m means fewer misses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from flyball_agent.controllers.base import Targets
from flyball_agent.controllers.signals import Increase, Look

LOWEST: Final = 0.15
HIGHEST: Final = 1.3
FIRST: Final = 0.65
SMALLEST: Final = 0.5
"""Below it misses come from what the predictions do not see (answers of a few tokens, say): then a smaller share of the
objective would make the clock jump with every change of load, and the margin lifts the lowest clock instead."""
_CAUTION: Final = 3.0
"""By how much the logarithm of a miss's price rises where that of the margin falls."""
_HASTE: Final = 8.0
"""By how much more it rises below `SMALLEST`."""
_FIRST_PRICE: Final = 0.05
"""Of what a usual request costs over what it may miss: what a miss is worth at first."""
_USUAL_LOOKS: Final = 200
_OPEN: Final = 0.8
_EARLY: Final = 2.0
_EARLY_REQUESTS: Final = 300.0
_STRANGE: Final = 2.5
_USUAL_SECONDS: Final = 120.0
_LEAST_RATE: Final = 1e-3
_RECENT: Final = 0.9997
"""Per request, of the recent share of misses."""
_FEW: Final = 3.0
"""Misses that are no reason for haste, whatever share they are."""
_MUCH: Final = 1.3
_FASTEST: Final = 4.0
"""Where recent misses are beyond `_MUCH` times what is allowed, a miss counts more, up to `_FASTEST` times."""
_MEMORY: Final = 0.995
"""Per request, of the tail's shape."""


class TailCounter:
    """Counts observations above a threshold that may be on no bucket's edge.

    Latencies thin out beyond their mean, so within a bucket the share of those above falls as a power (a straight
    line would count most of a bucket's observations as misses); its two ends are the tail's, over some 200 requests.
    """

    def __init__(self) -> None:
        self._all = self._above_low = self._above_high = 0.0

    def count(self, grown: Increase, threshold_seconds: float) -> float:
        """How many of the new observations are above the threshold."""
        fresh = grown.count
        if fresh <= 0.0:
            return 0.0
        low, below_low, below_high = 0.0, 0.0, fresh
        for bound, count in zip(grown.bounds, grown.counts, strict=True):
            if bound == threshold_seconds:
                return fresh - count
            if bound > threshold_seconds:
                below_high = count
                break
            low, below_low = bound, count
        high = bound
        keep = math.pow(_MEMORY, fresh)
        self._all = self._all * keep + fresh
        self._above_low = self._above_low * keep + fresh - below_low
        self._above_high = self._above_high * keep + fresh - below_high
        beyond = fresh - below_high
        if math.isinf(high) or below_high <= below_low:
            return beyond
        place = (threshold_seconds - low) / (high - low)
        # Half an observation beyond the bucket, where none was seen.
        first = max(self._above_low, 0.5)
        last = min(max(self._above_high, 0.5), first)
        above = first * math.pow(last / first, place)
        share = max(0.0, above - last) / max(first - last, 0.5)
        return beyond + min(1.0, share) * (below_high - below_low)


class Margin:
    """The margins m of the time to first token and of the time per output token.

    A miss lowers the margin of the latency that was missed; what is allowed raises the one that binds at the moment.
    So the sum of both logarithms is what the module's bound holds for, and each prediction is corrected by its own
    misses.

    Args:
        gain: of a miss.
        allowed: share of requests that may miss.
    """

    def __init__(self, gain: float, allowed: float) -> None:
        self._gain, self.allowed = gain, allowed
        self.logs = {"ttft": math.log(FIRST), "tpot": math.log(FIRST)}
        self._most = HIGHEST
        self._usual_rate = 0.0
        self._usual, self._usual_looks = (0.0, 0.0), 0
        self._recent = self._recent_of = self.judged = 0.0
        self._tails = {name: TailCounter() for name in ("time_per_output_token", "time_to_first_token", "end_to_end")}

    @property
    def ttft(self) -> float:
        """Of the time to first token."""
        return max(min(math.exp(self.logs["ttft"]), self._most), SMALLEST)

    @property
    def tpot(self) -> float:
        """Of whole answers."""
        return max(min(math.exp(self.logs["tpot"]), self._most), SMALLEST)

    def floor(self, *, priced: bool) -> float:
        """How far up the range of clocks none lower is taken, whatever is predicted: 0 to 1.

        Args:
            priced: misses of the time per output token have a price, and need no floor.
        """
        least = self.logs["ttft"] if priced else min(self.logs.values())
        return min(max((math.log(SMALLEST) - least) / math.log(SMALLEST / LOWEST), 0.0), 1.0)

    def miss_joules(self, watts: float, arrival_rate: float) -> float:
        """What a miss of the time per output token is worth.

        Args:
            watts: of the group now, while no usual ones are known.
            arrival_rate: of requests now, the same.
        """
        usual_watts, usual_rate = self._usual if self._usual_looks else (watts, arrival_rate)
        log = min(self.logs["tpot"], math.log(self._most))
        rise = _CAUTION * (math.log(FIRST) - log) + _HASTE * max(0.0, math.log(SMALLEST) - log)
        caution = math.exp(rise)
        return _FIRST_PRICE * caution * usual_watts / (max(usual_rate, _LEAST_RATE) * self.allowed)

    def spent(self, watts: float, arrival_rate: float) -> None:
        """What an engine that works draws, and how many requests come to it."""
        self._usual_looks = min(self._usual_looks + 1, _USUAL_LOOKS)
        old_watts, old_rate = self._usual
        weight = 1.0 / self._usual_looks
        self._usual = (old_watts + weight * (watts - old_watts), old_rate + weight * (arrival_rate - old_rate))

    def know(self, arrival_rate: float, seconds: float) -> None:
        """How much there is to do: what was learnt under little load says nothing of several times as much."""
        self._most = FIRST if self._usual_rate > 0.0 and arrival_rate > _STRANGE * self._usual_rate else HIGHEST
        weight = min(1.0, seconds / _USUAL_SECONDS) if self._usual_rate > 0.0 else 1.0
        self._usual_rate += weight * (arrival_rate - self._usual_rate)

    def see(self, look: Look, targets: Targets, *, binds: str, open_share: float) -> None:
        """Count the requests of a look.

        Args:
            look: what happened.
            targets: the objectives.
            binds: "ttft" or "tpot", whichever keeps the clock from being lower; empty: neither.
            open_share: of the time in which these requests ran, with all clocks open: then no margin could have
                saved them.
        """
        missed = {"ttft": 0.0, "tpot": 0.0}
        done, judged = 0.0, False
        for name, which, threshold in (
            ("time_to_first_token", "ttft", targets.ttft_seconds),
            ("time_per_output_token", "tpot", targets.tpot_seconds),
            ("end_to_end", "tpot", targets.e2e_seconds),
        ):
            if threshold is not None:
                grown = look.increase(name)
                # Each request is in every histogram, at different looks: one of them counts requests.
                done = done if judged else grown.count
                judged = True
                missed[which] += self._tails[name].count(grown, threshold)
        counts = 1.0 - max(0.0, (open_share - _OPEN) / (1.0 - _OPEN))
        self.count(done, {which: counts * number for which, number in missed.items()}, binds)

    def count(self, requests: float, missed: Mapping[str, float], binds: str) -> None:
        """Move the margins by requests, so many of which missed."""
        keep = math.pow(_RECENT, requests)
        self._recent = self._recent * keep + sum(missed.values())
        self._recent_of = self._recent_of * keep + requests
        excess = self._recent / max(self._recent_of * self.allowed, _FEW)
        slow = self._gain * (1.0 + _EARLY * math.exp(-self.judged / _EARLY_REQUESTS))
        self.judged += requests
        gain = slow * min(max(excess / _MUCH, 1.0), _FASTEST)
        for which, log in self.logs.items():
            earned = self.allowed * requests * (1.0 if which == binds else 0.0 if binds else 0.5)
            moved = log + slow * earned - gain * missed[which]
            self.logs[which] = min(max(moved, math.log(LOWEST)), math.log(HIGHEST))
