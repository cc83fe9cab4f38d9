"""Which engine gets a request. The gateway's own rules, and the seam where Flyball's will come in."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from flyball_agent.scanner import EngineSample
from flyball_api.common import Role
from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.models import StepModel
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


MakeRouter = Callable[[], Router]

ROUTERS: Final[Mapping[str, MakeRouter]] = MappingProxyType(
    {"round-robin": RoundRobin, "least-requests": LeastRequests, "weighted": Weighted}
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
