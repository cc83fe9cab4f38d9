"""The kinds of generated traces: how the rate of each moves, and what can be asked of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from flyball_sim.load import conversation, profiles
from flyball_sim.load.measured import SERVEGEN_MODELS, servegen_rates
from flyball_sim.load.profiles import Profile
from flyball_sim.load.servegen import SERVEGEN_DAYS


@dataclass(frozen=True, slots=True)
class Option:
    """A number that an option may be: its default (None: there is none), its bounds, and what it is."""

    default: float | None
    low: float
    high: float
    about: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a kind, checked."""

    seconds: float
    seed: int
    numbers: Mapping[str, float]
    model: str
    data: Path | None

    def rng(self, purpose: str) -> random.Random:
        """A random source of its own for each purpose."""
        return random.Random(f"{self.seed} {purpose}")  # noqa: S311 - a workload, not a secret


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of generated trace.

    Attributes:
        about: one line for people.
        profile: how its rate moves.
        options: what can be asked beyond rate, seconds, seed and lengths.
        seconds: its length unless asked.
        lengths: its lengths unless asked; `{model}` stands for the model.
        models: of which one is asked for by name; the first unless asked.
    """

    about: str
    profile: Callable[[Wish], Profile]
    options: Mapping[str, Option]
    seconds: float = 3600.0
    lengths: str = "conversation"
    models: tuple[str, ...] = ()


_CV: Final = Option(1.0, 0.1, 10.0, "coefficient of variation of the gaps; 1: Poisson")
_AT: Final = Option(0.5, 0.0, 0.999, "where in the trace it happens, as a share of it")
_FACTOR: Final = Option(3.0, 0.01, 100.0, "the rate afterwards over the rate before")
_DAY: Final = Option(86_400.0, 60.0, 1e7, "seconds that a day takes")


def _conversation(wish: Wish) -> Profile:
    drift = profiles.Drift(conversation.DRIFT_SECONDS, conversation.DRIFT_SIGMA, conversation.DRIFT_CORRELATION)
    return profiles.drifting(wish.seconds, wish.rng("drift"), drift)


def _constant(wish: Wish) -> Profile:
    return profiles.constant(wish.seconds)


def _diurnal(wish: Wish) -> Profile:
    period = wish.numbers.get("period", wish.seconds)
    return profiles.diurnal(wish.seconds, swing=wish.numbers["swing"], period=period)


def _step(wish: Wish) -> Profile:
    return profiles.step(wish.seconds, factor=wish.numbers["factor"], at=wish.numbers["at"])


def _ramp(wish: Wish) -> Profile:
    return profiles.ramp(wish.seconds, factor=wish.numbers["factor"])


def _flash_crowd(wish: Wish) -> Profile:
    numbers = wish.numbers
    return profiles.flash_crowd(wish.seconds, factor=numbers["factor"], at=numbers["at"], lasting=numbers["lasting"])


def _idle_heavy(wish: Wish) -> Profile:
    return profiles.bursts(wish.seconds, wish.rng("bursts"), busy=wish.numbers["busy"], burst=wish.numbers["burst"])


def _servegen_day(wish: Wish) -> Profile:
    fitted, day = SERVEGEN_DAYS[wish.model], wish.numbers["day"]
    drift = profiles.Drift(day * fitted.window_share, fitted.drift_sigma, fitted.drift_correlation)
    return profiles.drifting(wish.seconds, wish.rng("drift"), drift, lambda seconds: fitted.mean_rate(seconds / day))


def _servegen(wish: Wish) -> Profile:
    table = servegen_rates(wish.data, wish.model)
    window = table.window_seconds * wish.numbers["day"] / 86_400
    first = int(wish.numbers["start"] // window) % len(table.rates)
    return profiles.measured(wish.seconds, window=window, rates=table.rates[first:] + table.rates[:first])


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "conversation": Kind(
            "as the Azure conversation trace of 2023: fitted lengths, gaps and drift",
            _conversation,
            {"cv": replace(_CV, default=1.03)},
        ),
        "code": Kind(
            "long prompts and short answers in bursts, as code assistants have: modelled",
            _constant,
            {"cv": replace(_CV, default=1.5)},
            lengths="code",
        ),
        "poisson": Kind("a constant rate", _constant, {}),
        "gamma": Kind("a constant rate in bursts", _constant, {"cv": replace(_CV, default=2.0)}),
        "diurnal": Kind(
            "a sine",
            _diurnal,
            {
                "swing": Option(0.6, 0.0, 1.0, "amplitude over the mean rate"),
                "period": Option(None, 1.0, 1e7, "seconds of one cycle; unless given, the whole trace"),
                "cv": _CV,
            },
        ),
        "step": Kind("another rate from one moment on", _step, {"factor": _FACTOR, "at": _AT, "cv": _CV}),
        "ramp": Kind("a rate on a straight line", _ramp, {"factor": _FACTOR, "cv": _CV}),
        "flash-crowd": Kind(
            "a sudden rush that fades",
            _flash_crowd,
            {
                "factor": replace(_FACTOR, default=5.0, low=1.0),
                "at": replace(_AT, default=0.4),
                "lasting": Option(120.0, 1.0, 1e6, "seconds in which the rush fades by 1/e"),
                "cv": _CV,
            },
        ),
        "idle-heavy": Kind(
            "nothing most of the time",
            _idle_heavy,
            {
                "busy": Option(0.1, 0.001, 0.9, "share of the time in which requests arrive"),
                "burst": Option(20.0, 0.1, 1e6, "mean seconds of a burst"),
                "cv": _CV,
            },
        ),
        "servegen-day": Kind(
            "the mean day of a ServeGen model with its drift: fitted",
            _servegen_day,
            {"day": _DAY, "cv": replace(_CV, default=None)},
            seconds=86_400.0,
            lengths="servegen-{model}",
            models=tuple(SERVEGEN_DAYS),
        ),
        "servegen": Kind(
            "the rates of a ServeGen model as measured; needs --data",
            _servegen,
            {
                "day": _DAY,
                "start": Option(0.0, 0.0, 1e7, "seconds of the table at which the trace begins"),
                "cv": replace(_CV, default=None),
            },
            seconds=86_400.0,
            lengths="servegen-{model}-measured",
            models=SERVEGEN_MODELS,
        ),
    }
)
