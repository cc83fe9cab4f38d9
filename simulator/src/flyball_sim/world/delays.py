"""How long messages take between the processes of a cluster, and the agents' own periods.

Every message draws its delay from a range, by a random source of its own link, so that one link's traffic does not
shift another's. Sources: the measurements of a control plane of our own (API server 1.36.2, etcd without fsync:
4 to 17 ms mean per write at 1,000 to 10,000 nodes), stretched to a real etcd's fsync and to a network; the rest is
modelled. The API server's own objective for writes is a 99th percentile of 1 s: `DelayedGrants` and `ApiGone` of
`faults` are for that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

Range = tuple[float, float]

API_WRITE_SECONDS: Final[Range] = (0.004, 0.060)
"""From sending a write to its answer."""
WATCH_SECONDS: Final[Range] = (0.002, 0.050)
"""From a write's commit to its event at a watcher (modelled)."""
LIST_SECONDS: Final[Range] = (0.05, 0.8)
"""First list of all kinds: 0.8 s at 5,000 nodes."""
SCRAPE_SECONDS: Final[Range] = (0.001, 0.010)
"""From an engine rendering its page to the agent having read it, on one node (modelled; the API server's thread of
a busy vLLM takes longer, which `StaleMetrics` is for)."""
SOCKET_SECONDS: Final[Range] = (0.0002, 0.0010)
"""From the agent to the actuator over a Unix socket (modelled). The NVML call itself: `flyball_sim.gpu.delays`."""
ACQUIRE_SECONDS: Final[Range] = (0.0, 2.0)
"""Until a new leader asks for a free Lease: `LeaseTiming.retry_seconds`."""
RETRY_SECONDS: Final[Range] = (0.1, 1.0)
"""Until a client sends a request again whose engine died (modelled)."""

PLANNING_SECONDS_PER_GPU: Final = 1e-4
"""What the operator's `plan` takes (modelled, after its CPU time at 1,000 GPUs): turns on a large cluster are fewer."""

AGENT_TICK_SECONDS: Final = 0.5
"""`flyball_agent.agent.TICK_SECONDS`."""
AGENT_WAKE_SECONDS: Final = 0.05
"""The least wait between two looks of an agent's controllers, as in `Agent._control_through`."""
STATUS_CHECK_SECONDS: Final = 1.0
"""`flyball_agent.agent.STATUS_CHECK_SECONDS`."""
STATUS_GATHER_SECONDS: Final = 0.05
"""`flyball_agent.agent.GATHER_SECONDS`."""
SCRAPE_PERIOD_SECONDS: Final = 0.5
"""`flyball_agent.engines.PERIOD_SECONDS`."""
SCRAPE_TIMEOUT_SECONDS: Final = 2.0
"""`flyball_agent.engines.TIMEOUT_SECONDS`."""
LOOP_PERIOD_SECONDS: Final = 2.0
"""`flyball_operator.loop.PERIOD_SECONDS`."""
LOOP_GATHER_SECONDS: Final = 0.02
"""`flyball_operator.loop.GATHER_SECONDS`."""
WRITES_AT_ONCE: Final = 16
"""`flyball_operator.applying.CONCURRENCY`."""
OPERATOR_LEASE_SECONDS: Final = 15.0
"""`flyball_api.lease.LeaseTiming.duration_seconds`: a dead leader's Lease holds others off so long."""

# These processes import clients of HTTP and Kubernetes, which a simulation has no use for: their periods stand here
# again, and a test holds the two together.


@dataclass(frozen=True, slots=True)
class Delays:
    """Ranges of all delays, in seconds; the defaults are this module's."""

    api_write: Range = API_WRITE_SECONDS
    watch: Range = WATCH_SECONDS
    list_all: Range = LIST_SECONDS
    scrape: Range = SCRAPE_SECONDS
    socket: Range = SOCKET_SECONDS
    acquire: Range = ACQUIRE_SECONDS
    retry: Range = RETRY_SECONDS

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            low, high = getattr(self, name)
            if not 0.0 <= low <= high:
                raise ValueError(f"the {name} delay is {low} to {high} s: give 0 <= lowest <= highest")


class Link:
    """Draws the delays of one sender's messages.

    Args:
        seed: of the world.
        name: of the link; another name draws other delays.
    """

    __slots__ = ("_random",)

    def __init__(self, seed: int, name: str) -> None:
        # A text seeds by its SHA-512, the same in every process; `hash()` of it would not be.
        self._random = random.Random(f"{seed}/{name}").random  # noqa: S311

    def draw(self, between: Range) -> float:
        """One delay in seconds."""
        low, high = between
        return low + (high - low) * self._random()


class InOrder:
    """Times at which the messages of one stream arrive: none overtakes another."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = float("-inf")

    def arrive(self, seconds: float) -> float:
        """When a message arrives that would by itself at `seconds`."""
        self._last = max(self._last, seconds)
        return self._last
