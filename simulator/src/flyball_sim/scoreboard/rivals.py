"""Rows of controllers: the five that a policy can ask for, cold and warm, on a cell's arrivals."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np

from flyball_agent.controllers.base import ControlLimits, GroupController, Setup, Targets
from flyball_agent.controllers.registry import CONTROLLERS
from flyball_api.controllers.union import PARAMETERS, ControllerType
from flyball_sim.engine.machine import Machine
from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard.contest import Contest, Ground, Row
from flyball_sim.scoreboard.profiled import needs_profile, profile_of
from flyball_sim.scoreboard.runs import Engine
from flyball_sim.scoreboard.slo import ATTAINMENT, Floats, Slo
from flyball_sim.scoreboard.warmup import WARM_SECONDS, warm_up
from flyball_sim.world.direct import EngineRun, control_limits, run_engine, setup_of
from flyball_sim.world.pair import PairRun
from flyball_sim.world.slo import met_all

PRIOR_OFF: Final = 0.3
"""Every number of Flyball's prior is off by a factor drawn from 1 less this to 1 plus this."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A controller with one set of parameters.

    Attributes:
        name: of the controller, without its set of parameters.
        kind: its type in a policy.
        parameters: fields of its parameters that differ from their defaults.
        native: whether it gets the signals it declares; else 0.5 s ticks and the page.
        wrong_prior: whether what it believes beforehand is made wrong by drawn factors.
    """

    name: str
    kind: ControllerType
    parameters: Mapping[str, Any] = field(default_factory=dict)
    native: bool = True
    wrong_prior: bool = False

    def with_parameters(self, parameters: Mapping[str, Any]) -> Contender:
        """The same with these, its own on top of them."""
        return replace(self, parameters=MappingProxyType({**parameters, **self.parameters}))

    @property
    def module(self) -> str:
        """The controller's."""
        return CONTROLLERS[self.kind][0]


CONTENDERS: Final[Mapping[str, Contender]] = MappingProxyType(
    {
        each.name: each
        for each in (
            Contender("agft", "AGFT"),
            Contender("agft-improved", "AGFT", {"improved": True}),
            Contender("voltanallm", "VoltanaLLM"),
            Contender("throttllem", "ThrottLLeM"),
            Contender("throttllem-oracle", "ThrottLLeM", {"length_error_percent": 0}),
            Contender("pals", "PALS"),
            Contender("flyball", "Flyball", native=False, wrong_prior=True),
        )
    }
)
"""By name; their parameters are the papers' constants, or what Flyball does unless told otherwise."""
ORACLES: Final = frozenset({"throttllem-oracle"})
"""Told what nobody can know: reported, and no rival."""


def make(contender: Contender, setup: Setup, factors: Mapping[str, float] | None = None) -> GroupController:
    """A fresh controller.

    Args:
        contender: which.
        setup: what it drives.
        factors: what each number it believes beforehand is multiplied by; None: it is left right.
    """
    module, name = CONTROLLERS[contender.kind]
    parameters = PARAMETERS[contender.kind][1](**contender.parameters)
    more: dict[str, Any] = {} if factors is None else {"prior_factors": factors}
    made: GroupController = getattr(import_module(module), name)(parameters, setup, **more)
    return made


def wrong_by(names: tuple[str, ...], seed: int) -> dict[str, float]:
    """A factor for each number of a prior, the same for the same seed."""
    return {name: 1.0 + PRIOR_OFF * (2.0 * _uniform(f"{seed}/{name}") - 1.0) for name in names}


class Arrivals(Protocol):
    """What a controller is played on: a cell of the board, or one that tuning plays."""

    @property
    def slo(self) -> Slo:
        """The objective."""
        ...

    @property
    def trace(self) -> Sequence[TraceRequest]:
        """Requests by arrival."""
        ...

    @property
    def end_seconds(self) -> float:
        """The common end."""
        ...

    @property
    def blocks(self) -> Floats:
        """Ends of the stretches at which energy is noted."""
        ...

    @property
    def seed(self) -> int:
        """Of actuation delays."""
        ...


@dataclass(frozen=True, slots=True)
class Play:
    """One run of a controller in a cell.

    Attributes:
        run: what came of it, warm-up included.
        met: 1 for each scored request that met its SLO.
        tokens: of the answers to those that were finished.
        completed: scored requests that were finished.
        preemptions: sequences computed again, warm-up included.
    """

    run: EngineRun | PairRun
    met: Floats
    tokens: int
    completed: int
    preemptions: int


def play(contest: Contest, contender: Contender, *, warm: bool, drawn: int | None = None) -> Play:
    """Run a controller over a cell.

    Args:
        contest: the cell.
        contender: which.
        warm: after half an hour of the same kind of traffic that does not count.
        drawn: number of the parameter draw the engine has; None: the nominal one.
    """
    engine = contest.engine if drawn is None else contest.drawn_engine(drawn)
    controller = fresh(contest, contender, engine, drawn=drawn)
    return serve(contest, engine, controller, native=contender.native, before=traffic_before(contest, warm=warm))


def fresh(contest: Ground, contender: Contender, engine: Engine, *, drawn: int | None = None) -> GroupController:
    """A controller that has not seen the cell, with the profile of its engine where it needs one."""
    seed = cell_seed(contest)
    which = None if drawn is None else (contest.seed, drawn)
    profile = profile_of(contest.cell.case.world, contender.kind, which) if needs_profile(contender.kind) else None
    return make(contender, setup_of(engine.model, seed=seed, profile=profile), prior_factors(contender, seed))


def traffic_before(contest: Ground, *, warm: bool) -> tuple[TraceRequest, ...]:
    """The warm-up's requests; none where there is no warm-up."""
    if not warm:
        return ()
    options = contest.options
    return warm_up(contest.cell.case.trace, contest.multiplier, seed=options.seed, data=options.data)


def scored_from(arrivals: Arrivals, before: Sequence[TraceRequest]) -> tuple[float, tuple[TraceRequest, ...]]:
    """When the scored requests begin, and all requests."""
    start = WARM_SECONDS if before else 0.0
    scored = (replace(request, arrival_seconds=start + request.arrival_seconds) for request in arrivals.trace)
    return start, (*before, *(scored if before else arrivals.trace))


def limits_of(arrivals: Arrivals, engine: Engine) -> ControlLimits:
    """What every controller may set, and what it is to hold."""
    targets = Targets(arrivals.slo.ttft_seconds, arrivals.slo.tpot_seconds, attainment=ATTAINMENT)
    return control_limits(engine.model, int(engine.model.gpu.cap_default_watts), targets)


def serve(
    arrivals: Arrivals,
    engine: Engine,
    controller: GroupController,
    *,
    native: bool,
    before: Sequence[TraceRequest] = (),
) -> Play:
    """Let a controller drive an engine, after traffic that does not count where there is any."""
    start, requests = scored_from(arrivals, before)
    machine = Machine(engine.model, engine.limits, dies=engine.dies, seed=arrivals.seed)
    run = run_engine(
        machine,
        requests,
        controller,
        model=engine.model,
        end_seconds=start + arrivals.end_seconds,
        limits=limits_of(arrivals, engine),
        native=native,
        score_seconds=start,
        marks=start + arrivals.blocks,
        stopwatch=time.process_time,
    )
    return play_of(arrivals, run, unscored=len(before), preemptions=machine.preemptions)


def play_of(arrivals: Arrivals, run: EngineRun | PairRun, *, unscored: int, preemptions: int) -> Play:
    """What a run came to for the scored requests, those after the first `unscored`."""
    finished = ~np.isnan(run.outcomes.finished_seconds[unscored:])
    return Play(
        run=run,
        met=met_all(run.outcomes, arrivals.slo.bounds)[unscored:].astype(float),
        tokens=int(run.outcomes.output_tokens[unscored:][finished].sum()),
        completed=int(finished.sum()),
        preemptions=preemptions,
    )


def row(contest: Contest, contender: Contender, *, warm: bool = False) -> Row:
    """A controller's row of a cell, with its energies under the parameter draws where it starts cold."""
    nominal = play(contest, contender, warm=warm)
    draws = 0 if warm else contest.options.draws
    return row_of(nominal, [play(contest, contender, warm=False, drawn=index) for index in range(draws)])


def row_of(nominal: Play, drawn: list[Play]) -> Row:
    """What a run came to, as a row."""
    run = nominal.run
    return Row(
        energy_joules=run.energy_joules,
        attainment=float(nominal.met.mean()),
        completed=nominal.completed,
        output_tokens=nominal.tokens,
        blocks_joules=np.diff(run.marks_joules, prepend=0.0),
        met=nominal.met,
        drawn=tuple((each.run.energy_joules, float(each.met.mean())) for each in drawn),
        details={
            "preemptions": nominal.preemptions,
            "decisions": run.decisions,
            "changes": run.changes,
            "controller_seconds": round(run.controller_seconds, 3),
            "degraded": run.degraded[0] if run.degraded else None,
        },
    )


def cell_seed(contest: Ground) -> int:
    """Of what a controller draws in a cell."""
    return int(_uniform(f"{contest.options.seed}/{sorted(contest.cell.key.items())}") * 2**31)


def prior_factors(contender: Contender, seed: int) -> dict[str, float] | None:
    """What each number of its prior is wrong by; None: it has none, or is right."""
    if not contender.wrong_prior:
        return None
    # By name, so that the rows of other controllers do not depend on it.
    names: tuple[str, ...] = import_module("flyball_agent.controllers.flyball.cards").PRIOR_NAMES
    return wrong_by(names, seed)


def _uniform(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / (1 << 64)
