"""VoltanaLLM in its paper's setting (arXiv 2509.04827): A100, two prefill and two decode engines, two clocks.

The paper's requests are drawn here: log-normal lengths with means of about what ShareGPT gives serving benchmarks (300
prompt and 200 answer tokens), prompt and answer at most 3,000 together, Poisson arrivals for 120 s. Its objectives are
not known; `voltanallm_sweep` looks for those that put the statics' knees where its figure has them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np

from flyball_agent.controllers.base import GroupController, Targets
from flyball_agent.controllers.fixed import Fixed
from flyball_agent.controllers.voltanallm.controller import VoltanaLlm
from flyball_agent.profiles import Profile
from flyball_api.common import Role
from flyball_api.controllers.fixed import FixedController, RoleClock
from flyball_api.controllers.voltanallm import VoltanaLlmController
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import StepModel, step_model
from flyball_sim.load.traces import TraceRequest
from flyball_sim.profiling import profile_engine
from flyball_sim.world.direct import control_limits, setup_of
from flyball_sim.world.pair import PairRun, run_pair
from flyball_sim.world.routers import EcoRoute, MakeRouter, RoundRobin

HIGH_MHZ, LOW_MHZ = 1410, 1005
SECONDS: Final = 120.0
SEED: Final = 13
MOST_TOKENS: Final = 3000
PROMPT: Final = (300.0, 1.2)
ANSWER: Final = (200.0, 1.0)
"""Mean tokens, and standard deviation of the logarithm: drawn, not ShareGPT itself."""
LOOK_SECONDS: Final = 0.03
"""Between two looks at the engines: a decode step takes 12 to 60 ms here."""
PREFILL_LIMITS: Final = EngineLimits(
    8192, max_num_batched_tokens=8192, max_num_queued_reqs=1_000_000, chunked_prefill=False
)
DECODE_LIMITS: Final = EngineLimits(8192, max_num_seqs=1024, max_num_batched_tokens=8192, max_num_queued_reqs=1_000_000)
PROFILE_LIMITS: Final = EngineLimits(16_384, max_num_seqs=1024, max_num_batched_tokens=16_384, chunked_prefill=False)
CLOCKS: Final = (1005, 1095, 1200, 1305, 1410)
"""That the authors profile; two of them are used."""
BATCHES: Final = (1, 4, 5, 8, *range(9, 129, 16), *range(16, 129, 16), 129, 256, 257, 384, 385, 512, 640, 768, 1024)


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request is to keep; the share of requests that do is judged for each alone, as in the figure."""

    ttft_seconds: float
    tpot_seconds: float


OBJECTIVE: Final = Objective(0.25, 0.045)
"""Those of the sweep that come closest to the figure's knees for Llama-3.1-8B on ShareGPT."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How clocks and decode engines are chosen.

    Attributes:
        lock_mhz: one clock for all; None: EcoFreq.
        window_milliseconds: of EcoFreq.
        router: of decode engines.
    """

    lock_mhz: int | None = None
    window_milliseconds: int = 0
    router: str = "rr"


STATIC_HIGH, STATIC_LOW = Policy(HIGH_MHZ), Policy(LOW_MHZ)
ECOFREQ: Final = Policy()
POLICIES: Final[Mapping[str, Policy]] = MappingProxyType(
    {
        "static 1410": STATIC_HIGH,
        "static 1005": STATIC_LOW,
        "EcoFreq": ECOFREQ,
        "EcoFreq + tile_aware": Policy(router="tile_aware"),
        "EcoFreq + fadr": Policy(router="fadr"),
        "EcoFreq, 5 s window": Policy(window_milliseconds=5000),
    }
)


@dataclass(frozen=True, slots=True)
class Played:
    """One policy at one rate.

    Attributes:
        joules: from each engine's first request to its last, as the authors' benchmark counts.
        ttft: seconds of each request.
        tpot: likewise.
    """

    joules: float
    ttft: tuple[float, ...]
    tpot: tuple[float, ...]

    def ttft_percent(self, seconds: float) -> float:
        """Requests whose first token came in time."""
        return 100.0 * float(np.mean(np.array(self.ttft) <= seconds))

    def itl_percent(self, seconds: float) -> float:
        """Requests whose mean time between tokens held; those of one token are left out."""
        known = np.array(self.tpot)
        return 100.0 * float(np.mean(known[~np.isnan(known)] <= seconds))


def paper_engine(model: str = "llama-3.1-8b", gpus: int = 1) -> StepModel:
    """An engine of the paper's on A100-SXM4-80GB."""
    return step_model(gpu_type("A100-SXM4-80GB"), model, gpus)


def requests(rate: float, *, seconds: float = SECONDS, seed: int = SEED) -> tuple[TraceRequest, ...]:
    """Poisson arrivals of drawn lengths."""
    rng = random.Random(seed)  # noqa: S311 - a drawn trace
    now = 0.0
    found: list[TraceRequest] = []
    while True:
        now += rng.expovariate(rate)
        if now > seconds:
            return tuple(found)
        while True:
            prompt, answer = _tokens(rng, *PROMPT), _tokens(rng, *ANSWER)
            if prompt + answer <= MOST_TOKENS:
                break
        found.append(TraceRequest(now, prompt, answer))


def _tokens(rng: random.Random, mean: float, sigma: float) -> int:
    return max(1, round(rng.lognormvariate(math.log(mean) - sigma * sigma / 2.0, sigma)))


@lru_cache(maxsize=4)
def _profile(model: StepModel) -> Profile:
    return profile_engine(model, PROFILE_LIMITS, clocks=CLOCKS, batches=BATCHES, caps=(400,), fits=("VoltanaLLM",))


def play(
    policy: Policy,
    rate: float,
    *,
    model: StepModel,
    objective: Objective = OBJECTIVE,
    seconds: float = SECONDS,
) -> Played:
    """Two prefill and two decode engines under a policy, until the last request is answered."""
    setup = setup_of(model, profile=_profile(model))

    def make(role: Role, _: int) -> GroupController:
        if policy.lock_mhz is not None:
            clock = RoleClock(role=role, min_megahertz=policy.lock_mhz, max_megahertz=policy.lock_mhz)
            return Fixed(FixedController(clocks=(clock,)), setup)
        return VoltanaLlm(VoltanaLlmController(window_milliseconds=policy.window_milliseconds), setup)

    targets = Targets(objective.ttft_seconds, objective.tpot_seconds)
    run = run_pair(
        [Machine(model, PREFILL_LIMITS, seed=number) for number in (1, 2)],
        [Machine(model, DECODE_LIMITS, seed=number) for number in (3, 4)],
        requests(rate, seconds=seconds),
        controllers=make,
        limits=control_limits(model, targets=targets),
        router=_router(policy.router, objective),
        prefill_router=_router("fadr", objective),
        decode_at_arrival=True,
        native=policy.lock_mhz is None,
        iteration_seconds=LOOK_SECONDS,
    )
    return _played(run)


def _router(rule: str, objective: Objective) -> MakeRouter:
    if rule == "rr":
        return RoundRobin
    return lambda: EcoRoute("fadr" if rule == "fadr" else "tile_aware", slo_seconds=objective.tpot_seconds, seed=SEED)


def _played(run: PairRun) -> Played:
    outcomes = run.outcomes
    return Played(run.serving_joules, tuple(outcomes.ttft_seconds.tolist()), tuple(outcomes.tpot_seconds.tolist()))
