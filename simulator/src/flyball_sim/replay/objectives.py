"""What a request must hold to count: from the policies, from the command line, or the default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flyball_api.energypolicy import EnergyPolicySpec, LatencyTarget

DEFAULT_TTFT_SECONDS = 1.0
DEFAULT_TPOT_SECONDS = 0.050
DEFAULT_TARGET_PERCENT = 99.0
DEFAULT_WINDOW_SECONDS = 300.0
DEFAULT_MINIMUM_REQUESTS = 20


class SloError(ValueError):
    """A `--slo` that cannot be understood; the message names the part and the mend."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What the requests of one policy's engines must hold, each of the named latencies; infinity: not judged.

    Attributes:
        ttft_seconds: from arrival to the first output token.
        tpot_seconds: mean time per output token after the first.
        e2e_seconds: from arrival to the last output token.
        target_percent: the share of requests that must hold all of them.
        window_seconds: over how long the share is taken when time outside is counted.
        minimum_requests: with fewer arrivals than this in the window nothing is judged.
        source: where the bounds come from, for the reader of the report.
    """

    ttft_seconds: float = math.inf
    tpot_seconds: float = math.inf
    e2e_seconds: float = math.inf
    target_percent: float = DEFAULT_TARGET_PERCENT
    window_seconds: float = DEFAULT_WINDOW_SECONDS
    minimum_requests: int = DEFAULT_MINIMUM_REQUESTS
    source: str = "the default"

    def bounds(self) -> str:
        """The bounds in words: `TTFT 1 s, TPOT 50 ms`."""
        named = (("TTFT", self.ttft_seconds), ("TPOT", self.tpot_seconds), ("end to end", self.e2e_seconds))
        return ", ".join(f"{name} {_duration(bound)}" for name, bound in named if bound < math.inf)

    def sentence(self) -> str:
        """The whole objective in words."""
        return f"{self.target_percent:g} % of requests hold {self.bounds()}"


DEFAULT = Objective(ttft_seconds=DEFAULT_TTFT_SECONDS, tpot_seconds=DEFAULT_TPOT_SECONDS)


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def of_policy(spec: EnergyPolicySpec) -> Objective:
    """A policy's own objective; the default where it names none.

    The target is the lowest percentile of the named latencies. Where they are equal this is stricter than the policy,
    which judges each latency by itself: a request that misses either one misses.
    """
    slo = spec.slo
    if slo is None:
        return replace(DEFAULT, source="the default, for the policy names no slo")
    asked = (slo.time_to_first_token, slo.inter_token_latency, slo.end_to_end)

    def bound(target: LatencyTarget | None) -> float:
        return math.inf if target is None else target.threshold_milliseconds / 1000

    return Objective(
        ttft_seconds=bound(asked[0]),
        tpot_seconds=bound(asked[1]),
        e2e_seconds=bound(asked[2]),
        target_percent=min(target.percentile for target in asked if target is not None),
        window_seconds=float(slo.attainment.window_seconds),
        minimum_requests=slo.attainment.minimum_requests,
        source="the policy's slo",
    )


def parse(text: str) -> Objective:
    """The objective of `--slo`, such as `ttft=1s,tpot=50ms` or `ttft=0.5,target=99.5` (bare numbers are seconds).

    Raises:
        SloError: a part that is not understood.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip().lower() for piece in part.partition("="))
        if name not in {"ttft", "tpot", "e2e", "target"} or not equals:
            raise SloError(f"--slo {text}: {part.strip()!r} is not understood: write ttft=1s,tpot=50ms")
        if name in found:
            raise SloError(f"--slo {text}: {name} is given twice: give it once")
        found[name] = _percent(text, value) if name == "target" else _seconds(text, name, value)
    if found.keys() <= {"target"}:
        raise SloError(f"--slo {text}: names no latency: give at least one of ttft, tpot and e2e")
    return Objective(
        ttft_seconds=found.get("ttft", math.inf),
        tpot_seconds=found.get("tpot", math.inf),
        e2e_seconds=found.get("e2e", math.inf),
        target_percent=found.get("target", DEFAULT_TARGET_PERCENT),
        source="--slo",
    )


def _seconds(text: str, name: str, value: str) -> float:
    unit = next((unit for unit in ("ms", "s") if value.endswith(unit)), "")
    try:
        seconds = float(value.removesuffix(unit)) * (0.001 if unit == "ms" else 1.0)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SloError(f"--slo {text}: {name} is {value!r}: give a time above 0, such as {name}=50ms or {name}=0.05")
    return seconds


def _percent(text: str, value: str) -> float:
    try:
        percent = float(value.removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not 1 <= percent <= 100:
        raise SloError(f"--slo {text}: target is {value!r}: give a percentage from 1 to 100, such as target=99")
    return percent


def settle(specs: Mapping[str, EnergyPolicySpec], override: str | None) -> Mapping[str, Objective]:
    """Each policy's objective by its name. `--slo` overrides the bounds and the target, not the window.

    Raises:
        SloError: `--slo` is not understood.
    """
    own = {name: of_policy(spec) for name, spec in specs.items()}
    if override is None:
        return own
    given = parse(override)
    return {
        name: replace(given, window_seconds=mine.window_seconds, minimum_requests=mine.minimum_requests)
        for name, mine in own.items()
    }


def combine(objectives: Sequence[Objective]) -> Objective:
    """The objective of requests that must hold several: every bound of any of them, at the lowest of the targets."""
    if len(objectives) == 1:
        return objectives[0]
    return Objective(
        ttft_seconds=min(objective.ttft_seconds for objective in objectives),
        tpot_seconds=min(objective.tpot_seconds for objective in objectives),
        e2e_seconds=min(objective.e2e_seconds for objective in objectives),
        target_percent=min(objective.target_percent for objective in objectives),
        window_seconds=max(objective.window_seconds for objective in objectives),
        minimum_requests=max(objective.minimum_requests for objective in objectives),
        source=" and ".join(dict.fromkeys(objective.source for objective in objectives)),
    )
