"""The table: each controller under each fault, beside unlocked clocks on the same requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from flyball_agent.controllers.base import GroupController, Setup, Targets
from flyball_agent.controllers.fixed import Fixed
from flyball_agent.controllers.registry import make_controller
from flyball_agent.profiles import Profile
from flyball_agent.profiling.fits import FITS
from flyball_api.controllers.fixed import FixedController
from flyball_api.controllers.union import PARAMETERS, Controller, ControllerType
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel, step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import gpu_type
from flyball_sim.load.generators import make_trace
from flyball_sim.load.traces import TraceRequest
from flyball_sim.profiling import profile_engine
from flyball_sim.robustness.faults import FAULTS, Fault
from flyball_sim.robustness.guarded import Guarded
from flyball_sim.robustness.machine import FaultyMachine
from flyball_sim.world.direct import EngineRun, control_limits, run_engine, setup_of
from flyball_sim.world.slo import Slo, met_all

MODEL: Final = "llama-3.1-8b"
CARD: Final = "H100-SXM5"
FOREIGN_CARD: Final = "A100-SXM4-80GB"
LIMITS: Final = EngineLimits(max_model_len=32_768)
SLO: Final = Slo(ttft_seconds=1.0, tpot_seconds=0.05)
SECONDS: Final = 300.0
RATE: Final = 6.0
"""Requests per second: about a third of what the engine can do."""
QUIET_RATE: Final = 1.6
"""Before and after it goes up tenfold."""
GOAL: Final = 0.99

KINDS: Final[Mapping[ControllerType, Mapping[str, Any]]] = MappingProxyType(
    {
        "Flyball": {},
        "AGFT": {},
        "VoltanaLLM": {},
        "ThrottLLeM": {},
        "PALS": {},
        "Fixed": {"clocks": [{"role": "unified", "minMegahertz": 1200, "maxMegahertz": 1200}]},
    }
)
"""Controllers by type, and their parameters where they are not the defaults."""
NATIVE: Final = frozenset({"AGFT", "VoltanaLLM", "ThrottLLeM", "PALS"})
"""Those that get the signals their papers assume; the others see a page every 0.5 s."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One controller under one fault.

    Attributes:
        fault: its name.
        controller: its type.
        seed: of requests, noise and delays.
        attainment: share of the requests within both objectives.
        unlocked_attainment: the same with unlocked clocks, on the same requests.
        energy: over that with unlocked clocks.
        failures: how often the controller raised.
        degraded: what it said last.
    """

    fault: str
    controller: str
    seed: int
    attainment: float
    unlocked_attainment: float
    energy: float
    failures: int
    degraded: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """It attains the goal, or unlocked clocks do not either."""
        return self.attainment >= GOAL or self.unlocked_attainment < GOAL


def engine(card: str = CARD) -> StepModel:
    """The engine on one card."""
    return step_model(gpu_type(card), MODEL, 1)


@lru_cache(maxsize=8)
def profile_of(card: str, kind: str) -> Profile | None:
    """What `flyball profile` would make of it, with the fit of one controller; None for one that needs none."""
    return profile_engine(engine(card), LIMITS, fits=(kind,)) if kind in FITS else None


def requests_of(fault: Fault, seed: int, seconds: float) -> tuple[TraceRequest, ...]:
    """The load of a trial."""
    if not fault.jump:
        return make_trace("conversation", seconds=seconds, requests_per_second=RATE, seed=seed)
    parts = ((0.0, 0.4, QUIET_RATE), (0.4, 0.6, 10.0 * QUIET_RATE), (0.6, 1.0, QUIET_RATE))
    return tuple(
        replace(request, arrival_seconds=request.arrival_seconds + begin * seconds)
        for part, (begin, end, rate) in enumerate(parts)
        for request in make_trace(
            "poisson", seconds=(end - begin) * seconds, requests_per_second=rate, seed=seed + part
        )
    )


def setup_under(fault: Fault, kind: str, seed: int) -> Setup:
    """What a controller is told of its cards; under `foreign`, of others."""
    if not fault.foreign:
        return setup_of(engine(), seed=seed, profile=profile_of(CARD, kind))
    # Under its own name the profile would be refused: that is what names are compared for.
    told = setup_of(engine(), seed=seed, profile=profile_of(FOREIGN_CARD, kind))
    return replace(told, product=engine(FOREIGN_CARD).gpu.product_name)


def controller_of(kind: ControllerType, setup: Setup) -> GroupController:
    """A fresh controller, as a policy asks for it."""
    attribute, model = PARAMETERS[kind]
    spec = Controller(type=kind, **{attribute: model.model_validate(KINDS[kind])})
    return make_controller(spec, observe=False, setup=setup)


def play(fault: Fault, controller: GroupController, *, native: bool, seed: int, seconds: float) -> EngineRun:
    """One run."""
    model = engine()
    machine = FaultyMachine(Machine(model, LIMITS, seed=seed), fault, seed)
    limits = control_limits(model, round(model.gpu.cap_max_watts), Targets(SLO.ttft_seconds, SLO.tpot_seconds))
    return run_engine(machine, requests_of(fault, seed, seconds), controller, model=model, limits=limits, native=native)


def trials(
    kinds: Sequence[ControllerType] = tuple(KINDS),
    faults: Sequence[str] = tuple(FAULTS),
    *,
    seed: int = 1,
    seconds: float = SECONDS,
) -> Iterator[Trial]:
    """Each fault, each controller; unlocked runs are made once for each load.

    Args:
        kinds: of `KINDS`.
        faults: of `FAULTS`.
        seed: of requests, noise and delays.
        seconds: of requests.
    """
    unlocked: dict[bool, tuple[float, float]] = {}
    for fault in (FAULTS[name] for name in faults):
        if fault.jump not in unlocked:
            free = play(fault, Fixed(FixedController()), native=False, seed=seed, seconds=seconds)
            unlocked[fault.jump] = (_attained(free), free.energy_joules)
        for kind in kinds:
            guarded = Guarded(controller_of(kind, setup_under(fault, kind, seed)), fault, seconds)
            run = play(fault, guarded, native=kind in NATIVE, seed=seed, seconds=seconds)
            attainment, joules = unlocked[fault.jump]
            yield Trial(
                fault=fault.name,
                controller=kind,
                seed=seed,
                attainment=_attained(run),
                unlocked_attainment=attainment,
                energy=run.energy_joules / joules,
                failures=guarded.failures,
                degraded=run.degraded,
            )


def _attained(run: EngineRun) -> float:
    return float(met_all(run.outcomes, SLO).mean())
