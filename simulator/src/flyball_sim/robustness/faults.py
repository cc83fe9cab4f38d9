"""What can be wrong between a controller, its engine and its cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flyball_agent.scanner import EngineSample, Histogram

LATENCIES: Final = ("time_to_first_token", "inter_token_latency", "end_to_end", "time_per_output_token")
COUNTERS: Final = (
    "prompt_tokens",
    "generation_tokens",
    "preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; whatever is not said is as it should be.

    Attributes:
        name: of its line in the table.
        about: one sentence.
        jump: the load goes up tenfold for a fifth of the time.
        reset_every_seconds: the engine's counters begin at 0 again so often; 0: never.
        blind_every_seconds: so often no page comes for `blind_seconds`; 0: never.
        blind_seconds: for how long.
        without: families that the page lacks.
        foreign: the controller is told of another GPU, and has that one's profile.
        clamp_share: locks above this share of the highest clock are clamped to it without a word.
        power_noise: readings of power and energy are off by up to this share.
        delay_factor: locks and caps take so many times as long.
        lost_at_share: the controller is not asked for half a second at this point of the run; 0: never.
    """

    name: str
    about: str
    jump: bool = False
    reset_every_seconds: float = 0.0
    blind_every_seconds: float = 0.0
    blind_seconds: float = 0.0
    without: tuple[str, ...] = ()
    foreign: bool = False
    clamp_share: float = 1.0
    power_noise: float = 0.0
    delay_factor: float = 1.0
    lost_at_share: float = 0.0


FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        fault.name: fault
        for fault in (
            Fault("none", "everything works"),
            Fault("counter resets", "the engine's counters begin at 0 every 45 s", reset_every_seconds=45.0),
            Fault(
                "pages refused",
                "for 12 s of every 60 s no page can be read: NaN on it, or no answer",
                blind_every_seconds=60.0,
                blind_seconds=12.0,
            ),
            Fault("no histograms", "the page has no latency histogram", without=LATENCIES),
            Fault("10x load", "ten times the load, all at once, for a fifth of the time", jump=True),
            Fault("another GPU", "profile and product name are an A100's on an H100", foreign=True),
            Fault("clamped clock", "locks above 60 % of the top clock are clamped to it silently", clamp_share=0.6),
            Fault(
                "clamped, 10x load",
                "both at once: the clock is needed that no lock reaches",
                jump=True,
                clamp_share=0.6,
            ),
            Fault("noisy power", "power and energy are read 20 % off, up and down", power_noise=0.2),
            Fault("late actuation", "locks and caps take ten times as long", delay_factor=10.0),
            Fault(
                "a lost tick",
                "the controller is not asked for half a second, just as the load goes up tenfold",
                jump=True,
                lost_at_share=0.4,
            ),
        )
    }
)


class CounterResets:
    """A page whose counters begin at 0 again from time to time; gauges are as they are.

    Args:
        every_seconds: how often.
    """

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._times = 0
        self._base = EngineSample()

    def shown(self, page: EngineSample, now_seconds: float) -> EngineSample:
        """The page at a time, times not falling."""
        times = int(now_seconds // self._every)
        if times > self._times:
            self._times, self._base = times, page
        base = self._base
        values = {
            name: value - base.values.get(name, 0.0) if name in COUNTERS else value
            for name, value in page.values.items()
        }
        histograms = {name: _less(one, base.histograms.get(name)) for name, one in page.histograms.items()}
        return EngineSample(values, histograms, page.missing)


def _less(histogram: Histogram, base: Histogram | None) -> Histogram:
    if base is None:
        return histogram
    counts = tuple(now - before for now, before in zip(histogram.counts, base.counts, strict=True))
    return Histogram(histogram.bounds, counts, histogram.total - base.total)


def lacking(page: EngineSample, names: tuple[str, ...]) -> EngineSample:
    """The page without these families."""
    values = {name: value for name, value in page.values.items() if name not in names}
    histograms = {name: one for name, one in page.histograms.items() if name not in names}
    return EngineSample(values, histograms, tuple(sorted({*page.missing, *names})))


Shown = Callable[[EngineSample, float], EngineSample]


def page_of(fault: Fault) -> Shown:
    """What a fault makes of the pages of one run."""
    resets = CounterResets(fault.reset_every_seconds) if fault.reset_every_seconds else None

    def shown(page: EngineSample, now_seconds: float) -> EngineSample:
        page = page if resets is None else resets.shown(page, now_seconds)
        return lacking(page, fault.without) if fault.without else page

    return shown
