"""throttLL'eM's autoscaler (arXiv 2408.05235, section IV-F): the smallest engine that bears the load.

A model is at hand in several engine sizes (tensor parallel 1, 2, 4), each with the highest request rate it was found to
bear. Every 10 s the smallest size is wanted that bears the rate that was observed. A new engine takes more than 20 s to
start, and the old one serves until it is ready (shadow instancing); then requests go to the new one and the old one
drains. Up is allowed at any time; down only after a grace period, so that a short lull does not pay for two engines.

The paper gives neither the length of the grace nor how the rate is observed, nor what the old engine runs at while a
larger one starts: here the grace is three starts, the rate is a moving mean of some periods, and the old engine is not
throttled. `min{tp : maxRPS >= rps}` and the timing are the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

PERIOD_SECONDS: Final = 10.0
GRACE_SECONDS: Final = 60.0
START_SECONDS: Final = 25.0
"""From the paper's "more than 20 s"."""
_STATE_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """One engine size of a model.

    Attributes:
        name: of the variant, unique.
        gpus: cards it takes.
        max_rps: requests per second it was found to bear.
    """

    name: str
    gpus: int
    max_rps: float


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """What is to be so from now on.

    Attributes:
        serve: the variant that new requests go to.
        start: a variant that is to start, or is starting; None: none.
        unthrottled: whether the serving engine is to run at its highest clock: it has to bear more than it can.
        because: one line on why.
    """

    serve: str
    start: str | None
    unthrottled: bool
    because: str


class TensorParallelScaler:
    """The rule, with its memory. Ask it every `PERIOD_SECONDS`, and when an engine that it had started is ready.

    Args:
        variants: of one model; any order.
        serving: the one that serves at first.
        grace_seconds: after a change before the next one down.
        smoothing: weight of the newest period in the mean rate, above 0 and at most 1.

    Raises:
        ValueError: there are no variants, two have one name, or `serving` is none of them.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        serving: str,
        *,
        grace_seconds: float = GRACE_SECONDS,
        smoothing: float = 0.3,
    ) -> None:
        self._variants = {variant.name: variant for variant in sorted(variants, key=lambda each: each.gpus)}
        if len(self._variants) != len(variants) or serving not in self._variants:
            raise ValueError(
                f"variants {[variant.name for variant in variants]} with {serving!r} serving: give each a name of its"
                " own, and one of them"
            )
        if not 0.0 < smoothing <= 1.0:
            raise ValueError(f"smoothing is {smoothing}: give more than 0 and at most 1")
        self._grace_seconds = grace_seconds
        self._smoothing = smoothing
        self._serving = serving
        self._starting: str | None = None
        self._changed_seconds = float("-inf")
        self._mean_rps: float | None = None

    @property
    def serving(self) -> str:
        """The variant that new requests go to."""
        return self._serving

    def decide(self, now_seconds: float, observed_rps: float) -> ScalePlan:
        """A period is over.

        Args:
            now_seconds: the time.
            observed_rps: requests per second that came in the period.
        """
        mean = observed_rps if self._mean_rps is None else self._mean_rps
        self._mean_rps = mean + self._smoothing * (observed_rps - mean)
        rate = self._mean_rps
        wanted = self._wanted(rate)
        serving = self._variants[self._serving]
        if wanted.gpus > serving.gpus:
            starting = self._starting and self._variants[self._starting]
            if not starting or starting.gpus < wanted.gpus:
                self._starting = wanted.name
                self._changed_seconds = now_seconds
        elif wanted.gpus < serving.gpus and self._starting is None:
            if now_seconds - self._changed_seconds >= self._grace_seconds:
                self._starting = wanted.name
        elif self._starting is not None and self._shrinks and self._variants[self._starting].max_rps < rate:
            self._starting = None  # the load came back: the smaller engine would bear less than is asked
        return self._plan(f"{rate:.2g} requests/s: {wanted.name} is the smallest that bears them")

    def ready(self, now_seconds: float, variant: str) -> ScalePlan:
        """A variant that was started is ready.

        Raises:
            ValueError: it was not to start.
        """
        if variant != self._starting:
            raise ValueError(f"variant {variant} is ready, {self._starting} was to start")
        before, self._serving, self._starting = self._serving, variant, None
        self._changed_seconds = now_seconds
        return self._plan(f"{variant} is ready: it serves from now on, {before} drains")

    @property
    def _shrinks(self) -> bool:
        return self._starting is not None and self._variants[self._starting].gpus < self._variants[self._serving].gpus

    def _wanted(self, rps: float) -> Variant:
        ordered = list(self._variants.values())
        return next((variant for variant in ordered if variant.max_rps >= rps), ordered[-1])

    def _plan(self, because: str) -> ScalePlan:
        grows = self._starting is not None and not self._shrinks
        return ScalePlan(self._serving, self._starting, grows, because)

    def state(self) -> dict[str, Any]:
        """Its memory, as JSON; what starts is not in it, for whoever starts again starts it again."""
        changed = self._changed_seconds
        return {
            "version": _STATE_VERSION,
            "serving": self._serving,
            "meanRps": self._mean_rps,
            "changedSeconds": None if changed == float("-inf") else changed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it cannot be read, or serves a variant there is none of.
        """
        serving, mean, changed = state.get("serving"), state.get("meanRps"), state.get("changedSeconds")
        if state.get("version") != _STATE_VERSION or serving not in self._variants:
            raise ValueError(f"the scaler's state serves {serving!r} in version {state.get('version')!r}: start anew")
        if not all(value is None or isinstance(value, int | float) for value in (mean, changed)):
            raise ValueError("the scaler's state holds something that is no number: start anew")
        self._serving, self._starting = str(serving), None
        self._mean_rps = mean
        self._changed_seconds = float("-inf") if changed is None else changed
