"""Cumulative counters per policy: energy, tokens and latencies, whatever restarts underneath. Pure.

An engine or a driver that restarts counts from 0 again: a value lower than the last one is taken as all new. What was
counted before the first reading of an engine or a card is not ours to count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from flyball_agent.scanner import EngineSample, within
from flyball_api.energypolicy import Slo
from flyball_api.nodeenergyplan import LatencyCounter, PolicyCounters

LATENCIES = ("time_to_first_token", "inter_token_latency", "end_to_end")
PER_REQUEST: Final = MappingProxyType({"inter_token_latency": "time_per_output_token"})
"""What an objective is judged by where the engine has it. Single gaps between tokens are as long as chunks of other
requests' prompts, which no reader notices; controllers hold each request's mean, and so it is judged."""


def thresholds(slo: Slo | None) -> dict[str, float]:
    """Seconds by latency name, of those that the policy has an objective for."""
    if slo is None:
        return {}
    targets = {name: getattr(slo, name) for name in LATENCIES}
    return {name: target.threshold_milliseconds / 1000 for name, target in targets.items() if target is not None}


def increase(earlier: float | None, now: float) -> float:
    """By how much a counter grew; None: this is its first reading."""
    if earlier is None:
        return 0.0
    return now - earlier if now >= earlier else now


@dataclass(slots=True)
class _Latency:
    total: float = 0.0
    within: float = 0.0
    interpolated: bool = False


@dataclass(slots=True)
class PolicyAccount:
    """The counters of one policy on this node.

    Attributes:
        name: the policy's.
        uid: the policy's.
        since: which life of the counters this is.
        began_seconds: monotonic seconds at its beginning.
        thresholds: seconds by latency name; other thresholds need another account.
    """

    name: str
    uid: str
    since: str
    began_seconds: float
    thresholds: Mapping[str, float]
    _energy: dict[str, float] = field(default_factory=dict)
    _engines: dict[str, EngineSample] = field(default_factory=dict)
    _joules: float = 0.0
    _generated: float = 0.0
    _prompt: float = 0.0
    _latencies: dict[str, _Latency] = field(default_factory=dict)

    def energy(self, readings: Mapping[str, float]) -> None:
        """Energy counters (joules, by UUID) of the policy's GPUs as they are now."""
        for uuid, joules in readings.items():
            self._joules += increase(self._energy.get(uuid), joules)
        # A card that left starts anew when it comes back: what it used in between is not the policy's.
        self._energy = dict(readings)

    def page(self, engine: str, sample: EngineSample) -> None:
        """A newer page of one of the policy's engines."""
        earlier = self._engines.get(engine)
        self._engines[engine] = sample
        self._generated += _grown("generation_tokens", earlier, sample)
        self._prompt += _grown("prompt_tokens", earlier, sample)
        for name, seconds in self.thresholds.items():
            self._latency(name, seconds, earlier, sample)

    def keep(self, engines: Iterable[str]) -> None:
        """Forget engines that are gone; one of the same address later is another."""
        kept = set(engines)
        self._engines = {key: sample for key, sample in self._engines.items() if key in kept}

    def _latency(self, name: str, seconds: float, earlier: EngineSample | None, sample: EngineSample) -> None:
        family = PER_REQUEST.get(name, name)
        if family not in sample.histograms:
            family = name
        histogram = sample.histograms.get(family)
        if histogram is None:
            return
        before = None if earlier is None else earlier.histograms.get(family)
        inside, interpolated = within(histogram, seconds)
        latency = self._latencies.setdefault(name, _Latency())
        latency.interpolated = interpolated
        if before is None:
            return
        if histogram.count < before.count:
            latency.total += histogram.count
            latency.within += inside
            return
        latency.total += histogram.count - before.count
        latency.within += max(0.0, inside - within(before, seconds)[0])

    def counters(self, now_seconds: float, engines: int, engines_stale: int) -> PolicyCounters:
        """The counters as status carries them."""
        latencies = {
            name: LatencyCounter(
                total=round(latency.total, 3), within=round(latency.within, 3), interpolated=latency.interpolated
            )
            for name, latency in self._latencies.items()
        }
        return PolicyCounters(
            name=self.name,
            uid=self.uid,
            since=self.since,
            seconds=round(now_seconds - self.began_seconds, 1),
            energy_joules=round(self._joules, 1),
            generated_tokens=self._generated,
            prompt_tokens=self._prompt,
            engines=engines,
            engines_stale=engines_stale,
            **latencies,
        )


def _grown(name: str, earlier: EngineSample | None, sample: EngineSample) -> float:
    now = sample.values.get(name)
    if now is None or earlier is None:
        return 0.0
    return increase(earlier.values.get(name), now)
