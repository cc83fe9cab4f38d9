"""Which engine gets a request: the gateway's own rules, and VoltanaLLM's."""

from __future__ import annotations

import difflib
import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final, Literal, Protocol

from flyball_agent.routing.ecoroute import PAPER_CLOCK_SHARES, Instance, InterTokenSeconds, fadr, tile_aware
from flyball_agent.scanner import EngineSample
from flyball_api.common import Role
from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.models import BLOCK_TOKENS, StepModel
from flyball_sim.gpu.steps import step_seconds
from flyball_sim.load.traces import TraceRequest


class EngineView(Protocol):
    """One engine as a router may look at it. What a pod tells is read at the moment it is asked for."""

    @property
    def name(self) -> str:
        """Of its pod."""
        ...

    @property
    def index(self) -> int:
        """Among all engines of the cluster."""
        ...

    @property
    def role(self) -> Role:
        """What it does."""
        ...

    @property
    def weight(self) -> float:
        """Its share, where shares are given."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests sent to it and not answered, as the router counts them."""
        ...

    @property
    def model(self) -> StepModel:
        """Its step times and KV capacity."""
        ...

    @property
    def limits(self) -> EngineLimits:
        """Of its batches."""
        ...

    @property
    def running(self) -> int:
        """Sequences in its batch now."""
        ...

    @property
    def waiting(self) -> int:
        """Sequences in its queue now."""
        ...

    @property
    def kv_usage(self) -> float:
        """Share of its KV blocks in use now."""
        ...

    @property
    def sm_mhz(self) -> float:
        """Its SM clock now."""
        ...

    def page(self) -> EngineSample:
        """Its whole metrics page now."""
        ...


class Router(Protocol):
    """Chooses engines; told of everything that changes what there is to choose from."""

    def join(self, engine: EngineView) -> None:
        """An engine is ready."""
        ...

    def leave(self, engine: EngineView) -> None:
        """An engine is gone."""
        ...

    def choose(self, request: TraceRequest, now_seconds: float) -> EngineView | None:
        """The engine for a request; None: there is none."""
        ...

    def counted(self, engine: EngineView) -> None:
        """The engine's `in_flight` changed."""
        ...


class RoundRobin:
    """Each in turn."""

    def __init__(self) -> None:
        self._engines: list[EngineView] = []
        self._next = 0

    def join(self, engine: EngineView) -> None:
        """See `Router`."""
        self._engines.append(engine)

    def leave(self, engine: EngineView) -> None:
        """See `Router`."""
        at = self._engines.index(engine)
        del self._engines[at]
        if at < self._next:
            self._next -= 1

    def choose(self, request: TraceRequest, now_seconds: float) -> EngineView | None:  # noqa: ARG002
        """See `Router`."""
        if not self._engines:
            return None
        self._next %= len(self._engines)
        chosen = self._engines[self._next]
        self._next += 1
        return chosen

    def counted(self, engine: EngineView) -> None:
        """See `Router`."""


class LeastRequests:
    """The engine with the fewest requests in flight; of several the one that has had so few for longest."""

    def __init__(self) -> None:
        self._levels: list[dict[int, EngineView]] = []  # by requests in flight; in each by index, the longest first
        self._level_of: dict[int, int] = {}
        self._lowest = 0

    def join(self, engine: EngineView) -> None:
        """See `Router`."""
        self._put(engine, engine.in_flight)

    def leave(self, engine: EngineView) -> None:
        """See `Router`."""
        del self._levels[self._level_of.pop(engine.index)][engine.index]

    def choose(self, request: TraceRequest, now_seconds: float) -> EngineView | None:  # noqa: ARG002
        """See `Router`."""
        if not self._level_of:
            return None
        while not self._levels[self._lowest]:
            self._lowest += 1
        return next(iter(self._levels[self._lowest].values()))

    def counted(self, engine: EngineView) -> None:
        """See `Router`."""
        level = self._level_of.get(engine.index)
        if level is not None and level != engine.in_flight:
            del self._levels[level][engine.index]
            self._put(engine, engine.in_flight)

    def _put(self, engine: EngineView, level: int) -> None:
        while len(self._levels) <= level:
            self._levels.append({})
        self._levels[level][engine.index] = engine
        self._level_of[engine.index] = level
        self._lowest = min(self._lowest, level)


class Weighted:
    """Shares in proportion to the engines' weights, as evenly spread as they can be (stride scheduling)."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, EngineView]] = []  # (virtual time of the next turn, index, engine)
        self._here: set[int] = set()
        self._now = 0.0

    def join(self, engine: EngineView) -> None:
        """See `Router`."""
        self._here.add(engine.index)
        heapq.heappush(self._queue, (self._now + 1.0 / engine.weight, engine.index, engine))

    def leave(self, engine: EngineView) -> None:
        """See `Router`."""
        self._here.discard(engine.index)

    def choose(self, request: TraceRequest, now_seconds: float) -> EngineView | None:  # noqa: ARG002
        """See `Router`."""
        while self._queue:
            at, index, engine = self._queue[0]
            if index not in self._here:
                heapq.heappop(self._queue)
                continue
            self._now = at
            heapq.heapreplace(self._queue, (at + 1.0 / engine.weight, index, engine))
            return engine
        return None

    def counted(self, engine: EngineView) -> None:
        """See `Router`."""


ECOROUTE_TPOT_SECONDS: Final = 0.05
"""Objective of EcoRoute where nobody gives one: that of VoltanaLLM's demo."""


class EcoRoute:
    """VoltanaLLM's choice of decode engines; prefill engines are drawn evenly, as there.

    Engines are taken to be alike (the authors' are): the first one's clocks and times stand for all.

    Args:
        rule: `fadr` asks whether an engine's clock would have to rise, `tile_aware` only fills tiles.
        seconds: predicts times between tokens; None: the engine's own step times, as if profiled without error.
        slo_seconds: bound of the time between tokens.
        seed: of the draws of prefill engines.
    """

    def __init__(
        self,
        rule: Literal["fadr", "tile_aware"] = "fadr",
        *,
        seconds: InterTokenSeconds | None = None,
        slo_seconds: float = ECOROUTE_TPOT_SECONDS,
        seed: int = 0,
    ) -> None:
        self._rule = rule
        self._seconds = seconds
        self._slo_seconds = slo_seconds
        self._rng = random.Random(seed)  # noqa: S311 - a draw of the simulation
        self._engines: list[EngineView] = []
        self._clocks_mhz: tuple[int, ...] = ()
        self._prompts = self._prompt_tokens = 0

    def join(self, engine: EngineView) -> None:
        """See `Router`."""
        self._engines.append(engine)
        self._engines.sort(key=lambda each: each.index)
        if not self._clocks_mhz:
            gpu = engine.model.gpu
            wanted = [share * gpu.sm_max_mhz for share in PAPER_CLOCK_SHARES]
            self._clocks_mhz = tuple([_nearest(gpu.supported_sm_mhz(), mhz) for mhz in wanted])
            if self._seconds is None:
                self._seconds = partial(modelled_token_seconds, engine.model)

    def leave(self, engine: EngineView) -> None:
        """See `Router`."""
        self._engines.remove(engine)

    def choose(self, request: TraceRequest, now_seconds: float) -> EngineView | None:  # noqa: ARG002
        """See `Router`."""
        engines = self._engines
        if not engines or self._seconds is None:
            return None
        if engines[0].role == "prefill":
            return engines[self._rng.randrange(len(engines))]
        self._prompts += 1
        self._prompt_tokens += request.prompt_tokens
        instances = [self._instance(engine) for engine in engines]
        if self._rule == "tile_aware":
            return engines[tile_aware(instances)]
        chosen = fadr(
            instances,
            request.prompt_tokens,
            clocks_mhz=self._clocks_mhz,
            seconds=self._seconds,
            slo_seconds=self._slo_seconds,
        )
        return engines[chosen]

    def counted(self, engine: EngineView) -> None:
        """See `Router`."""

    def _instance(self, engine: EngineView) -> Instance:
        if self._rule == "tile_aware":
            return Instance(engine.in_flight, 0.0, engine.sm_mhz)
        held = engine.kv_usage * engine.model.kv_blocks * BLOCK_TOKENS
        # An engine does not tell its queue's tokens: its prompts are taken as long as those that came so far.
        queued = engine.waiting * self._prompt_tokens / self._prompts
        return Instance(engine.in_flight, held + queued, engine.sm_mhz)


def _nearest(clocks_mhz: Sequence[int], wanted_mhz: float) -> int:
    return min(clocks_mhz, key=lambda mhz: abs(mhz - wanted_mhz))


def modelled_token_seconds(model: StepModel, sm_mhz: int, running: float, kv_tokens: float) -> float:
    """A decode step of this engine at a clock."""
    if running <= 0:
        return 0.0
    return step_seconds(model.gpu, model.cost(round(running), round(kv_tokens), ()), sm_mhz, model.reference_mhz)


MakeRouter = Callable[[], Router]

ROUTERS: Final[Mapping[str, MakeRouter]] = MappingProxyType(
    {
        "round-robin": RoundRobin,
        "least-requests": LeastRequests,
        "weighted": Weighted,
        "ecoroute": EcoRoute,
        "ecoroute-tile": partial(EcoRoute, "tile_aware"),
    }
)


def make_router(router: str | MakeRouter) -> Router:
    """A fresh router of this name, or of this making.

    Raises:
        ValueError: there is none of this name; the message names the nearest.
    """
    if not isinstance(router, str):
        return router()
    if router not in ROUTERS:
        nearest = difflib.get_close_matches(router, ROUTERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"router {router!r} is unknown: did you mean {nearest!r}? There are {', '.join(ROUTERS)}")
    return ROUTERS[router]()
