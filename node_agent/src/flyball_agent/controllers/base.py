"""What a controller is: a deterministic state machine with the clock passed in.

One controller drives one GPU group (a tensor-parallel group runs at the pace of its slowest card, so it gets one
setpoint). It is told once what it drives (`Setup`), sees `Observation`s that say what is missing or stale, and answers
each with a `Decision`. It never reads a clock, draws no random number but from the seed it was given, and does no input
or output, so that the simulator can run it unchanged in virtual time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample
from flyball_api.common import Role

NEVER_SECONDS: Final = 3600.0
"""A wake-up for a controller that has nothing to wait for."""


Event = Literal["arrival", "completion", "iteration"]
"""What a controller may be woken by beside the passing of time."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the policy promises; None: nothing.

    Attributes:
        ttft_seconds: bound of the time to first token, from arrival.
        tpot_seconds: bound of the time per output token.
        e2e_seconds: bound of the time to the last token.
        attainment: share of observations that must be within, the highest of the policy's percentiles.
    """

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    e2e_seconds: float | None = None
    attainment: float = 0.99


@dataclass(frozen=True, slots=True)
class Setup:
    """What a controller drives, told once.

    Attributes:
        product: the cards' product name as NVML gives it; empty: not known.
        gpus: cards of the group.
        clocks_mhz: SM clocks that every card of the group takes, ascending; empty: not known.
        cap_min_watts: lowest cap of a card.
        cap_max_watts: highest cap of a card.
        seed: of everything random in it.
        profile: what was measured of this engine beforehand; None: nothing that fits it.
        profile_trouble: why the profile that the policy names is not used; empty when all is well.
    """

    product: str = ""
    gpus: int = 1
    clocks_mhz: tuple[int, ...] = ()
    cap_min_watts: float = 0.0
    cap_max_watts: float = 0.0
    seed: int = 0
    profile: Profile | None = None
    profile_trouble: str = ""


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request in an engine.

    Attributes:
        request_id: the engine's.
        age_seconds: since it arrived at the engine.
        prompt_tokens: of its prompt.
        generated_tokens: so far.
        running: in the batch, not in the queue.
        output_tokens: how many it will have; only a simulated engine knows.
        scheduled_age_seconds: since it first entered the batch; None while it has not.
        computed_tokens: tokens of the prompt that need no more work, cached ones included.
    """

    request_id: str
    age_seconds: float
    prompt_tokens: int
    generated_tokens: int
    running: bool
    output_tokens: int | None = None
    scheduled_age_seconds: float | None = None
    computed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Board:
    """What an engine with the `/flyball/board` endpoint says of its scheduler; no standard engine has one.

    Attributes:
        iteration: steps done so far.
        requests: running ones first, then waiting ones in order of arrival.
        block_tokens: tokens of a KV block.
        kv_blocks: KV blocks of the engine.
        batch_limit: most sequences in the batch now.
        max_batch_limit: highest it can be set to.
    """

    iteration: int
    requests: tuple[RequestView, ...]
    block_tokens: int
    kv_blocks: int
    batch_limit: int
    max_batch_limit: int


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One card of the group; None where it did not say.

    Attributes:
        power_watts: one-second average.
        sm_mhz: SM clock at the moment of reading.
        utilisation_percent: share of time with a kernel running.
        cap_limited: the power cap slows it.
        energy_joules: counter since the driver was loaded.
    """

    power_watts: float | None = None
    sm_mhz: int | None = None
    utilisation_percent: int | None = None
    cap_limited: bool = False
    energy_joules: float | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of a group at one moment.

    Attributes:
        role: what its pod does.
        gpus: its cards, by UUID order.
        engine: the newest page of its engine; None before the first.
        engine_age_seconds: how old that page is; None before the first.
        missing: families (of `scanner.FAMILIES`) that the page lacks. Missing is not zero.
        board: the engine's scheduler now; None: the engine does not tell, or the controller did not ask.
        event: what woke the controller; None: time.
    """

    role: Role
    gpus: tuple[GpuReading, ...]
    engine: EngineSample | None = None
    engine_age_seconds: float | None = None
    missing: tuple[str, ...] = ()
    board: Board | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """What a setpoint may be: the cards' range, narrowed by the policy and the grant.

    Attributes:
        sm_min_mhz: lowest SM clock that every card of the group takes and the policy allows.
        sm_max_mhz: highest.
        cap_watts: the granted cap of each card; None: caps are not to be touched.
        targets: the policy's objectives; they may change while a controller lives.
    """

    sm_min_mhz: int
    sm_max_mhz: int
    cap_watts: int | None = None
    targets: Targets = Targets()

    def clip(self, low_mhz: int, high_mhz: int) -> tuple[int, int]:
        """The nearest range within the limits."""
        high = min(max(high_mhz, self.sm_min_mhz), self.sm_max_mhz)
        return min(max(low_mhz, self.sm_min_mhz), high), high


@dataclass(frozen=True, slots=True)
class GroupSetpoint:
    """What every card of the group, and its engine, is to be set to.

    Attributes:
        sm_mhz: (lowest, highest) SM clock to lock; None: unlocked.
        cap_watts: a cap below the granted one; None: the granted one.
        batch_limit: most sequences in the engine's batch; None: the engine's own limit. An engine without `Board`
            has no such knob, and it is left out.
        admit: how many waiting requests, oldest first, may enter the batch until the next decision; None: as many as
            fit. The same engines have it.
    """

    sm_mhz: tuple[int, int] | None = None
    cap_watts: int | None = None
    batch_limit: int | None = None
    admit: int | None = None


UNLOCKED: Final = GroupSetpoint()


@dataclass(frozen=True, slots=True)
class Decision:
    """A controller's answer.

    Attributes:
        setpoint: what to write.
        would: what would be written if writing were wanted; None: the same as `setpoint`.
        next_wake_seconds: when to ask again at the latest, from now.
        degraded: sentences on what keeps it from controlling well.
        because: one line on why this setpoint.
    """

    setpoint: GroupSetpoint
    would: GroupSetpoint | None = None
    next_wake_seconds: float = NEVER_SECONDS
    degraded: tuple[str, ...] = field(default=())
    because: str = ""


class GroupController(Protocol):
    """A controller of one GPU group."""

    requires: frozenset[str]
    """Families (of `scanner.FAMILIES`) without which it must not control."""
    events: frozenset[Event]
    """What it wants to be woken by where somebody can tell; the next wake-up holds as well."""
    wants_board: bool
    """Whether it looks at `Observation.board`."""
    period_seconds: float
    """How often it wants a fresh page; the agent reads none more often than every 0.1 s."""

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """The setpoint from now on; changes the state."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything it has learnt, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: another version wrote it, or it is damaged; the controller is as fresh as before.
        """
        ...
