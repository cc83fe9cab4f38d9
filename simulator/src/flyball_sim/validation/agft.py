"""Row 15: AGFT beside its paper, on the card of its authors' logs and as far as the paper says what it ran.

The paper's model and trace are not known to us; its code's logs name an RTX A6000. Here: Llama-3.1-8B on the modelled
card under an hour of a conversation-like load that drifts and is light enough for one card, learning included. The
reference is the same hour with clocks unlocked. What it learns hangs on the hour, so the values are means of three.
Looks within a window come every 100 ms instead of 10, as on a node, which spares most of the time this takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Final

import numpy as np

from flyball_agent.controllers.agft.controller import Agft
from flyball_agent.controllers.base import GroupController
from flyball_agent.controllers.fixed import Fixed
from flyball_api.controllers.agft import AgftController
from flyball_api.controllers.fixed import FixedController, RoleClock
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.load.generators import make_trace
from flyball_sim.validation.rows import Row, Subject, difference, within
from flyball_sim.world.direct import run_engine, setup_of

CARD: Final = "RTX-A6000"
MODEL: Final = "llama-3.1-8b"
REQUESTS_PER_SECOND: Final = 0.5
SECONDS: Final = 3600.0
POLL_MILLISECONDS: Final = 100
SEEDS: Final = (1, 2, 3)
SOURCE: Final = "arXiv 2508.01744, abstract"


@dataclass(frozen=True, slots=True)
class Hour:
    """One run: energy of the card and mean end-to-end latency of the requests finished in it."""

    joules: float
    latency_seconds: float


@dataclass(frozen=True, slots=True)
class Saving:
    """A run beside the one with unlocked clocks, in percent."""

    energy: float
    latency: float

    @property
    def product(self) -> float:
        """How much lower energy times latency is."""
        return 100.0 - (100.0 - self.energy) * (100.0 + self.latency) / 100.0


def hour(controller: GroupController, *, seed: int = 1) -> Hour:
    """The load's hour under a controller."""
    model = step_model(GPU_TYPES[CARD], MODEL, 1)
    trace = make_trace("conversation", seconds=SECONDS, requests_per_second=REQUESTS_PER_SECOND, seed=seed)
    machine = Machine(model, EngineLimits(max_model_len=8192), seed=seed)
    run = run_engine(machine, trace, controller, model=model, end_seconds=SECONDS, native=True)
    latencies = np.asarray(run.outcomes.finished_seconds) - np.asarray(run.outcomes.arrival_seconds)
    return Hour(run.energy_joules, float(np.nanmean(latencies)))


@cache
def _unlocked(seed: int) -> Hour:
    return hour(Fixed(FixedController(clocks=())), seed=seed)


@cache
def saving(*, improved: bool, seed: int = 1, poll_milliseconds: int = POLL_MILLISECONDS) -> Saving:
    """AGFT's hour beside the unlocked one."""
    setup = setup_of(step_model(GPU_TYPES[CARD], MODEL, 1))
    parameters = AgftController(improved=improved, poll_milliseconds=poll_milliseconds)
    return _beside(hour(Agft(parameters, setup), seed=seed), _unlocked(seed))


def static_saving(sm_mhz: int, *, seed: int = 1) -> Saving:
    """The hour at one clock beside the unlocked one."""
    clock = RoleClock(role="unified", min_megahertz=sm_mhz, max_megahertz=sm_mhz)
    return _beside(hour(Fixed(FixedController(clocks=(clock,))), seed=seed), _unlocked(seed))


def _beside(ours: Hour, unlocked: Hour) -> Saving:
    return Saving(
        100.0 * (1.0 - ours.joules / unlocked.joules),
        100.0 * (ours.latency_seconds / unlocked.latency_seconds - 1.0),
    )


def mean_saving(*, improved: bool) -> Saving:
    """Over the hours of `SEEDS`."""
    savings = [saving(improved=improved, seed=seed) for seed in SEEDS]
    return Saving(fmean(each.energy for each in savings), fmean(each.latency for each in savings))


@cache
def rows() -> tuple[Row, ...]:
    """Energy, energy-delay product and latency, each with the improved variant's in its note."""
    paper, better = mean_saving(improved=False), mean_saving(improved=True)
    hours = [saving(improved=False, seed=seed) for seed in SEEDS]
    setting = f"AGFT, RTX A6000, {MODEL}, light drifting load"

    def about(number: str, what: str) -> Subject:
        return Subject(number, f"{setting}: {what}", "%", SOURCE, "not fitted")

    def note(value: Callable[[Saving], float], more: str) -> str:
        lowest, highest = min(map(value, hours)), max(map(value, hours))
        return f"{lowest:.0f} to {highest:.0f} over {len(hours)} hours; improved: {value(better):.1f} %; {more}"

    return (
        difference(
            about("15", "energy saved"),
            paper.energy,
            44.3,
            tolerance=10.0,
            error_unit="points",
            note=note(lambda each: each.energy, "the card and its clock scaling are modelled"),
        ),
        difference(
            about("15", "lower energy-delay product"),
            paper.product,
            40.3,
            tolerance=10.0,
            error_unit="points",
            note=note(lambda each: each.product, "the published value is an upper one"),
        ),
        within(
            about("15", "latency added"),
            paper.latency,
            (0.0, 10.0),
            error_unit="points",
            note=note(lambda each: each.latency, _WHY_SLOWER),
        ),
    )


_WHY_SLOWER: Final = (
    "the modelled energy-delay product is least near 1050 MHz, the authors' logs say 1020 to 1305, and the first sweep"
    " goes down to 210 MHz"
)
