"""What a controller is: a deterministic state machine with the clock passed in.

One controller drives one GPU group (a tensor-parallel group runs at the pace of its slowest card, so it gets one
setpoint). It sees an `Observation` that says what is missing or stale, and answers with a `Decision`. It never reads a
clock, draws no random number that it was not given, and does no input or output, so that the simulator can run it
unchanged in virtual time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from flyball_agent.scanner import EngineSample
from flyball_api.common import Role

NEVER_SECONDS: Final = 3600.0
"""A wake-up for a controller that has nothing to wait for."""


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
    """

    role: Role
    gpus: tuple[GpuReading, ...]
    engine: EngineSample | None = None
    engine_age_seconds: float | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """What a setpoint may be: the cards' range, narrowed by the policy and the grant.

    Attributes:
        sm_min_mhz: lowest SM clock that every card of the group takes and the policy allows.
        sm_max_mhz: highest.
        cap_watts: the granted cap of each card; None: caps are not to be touched.
    """

    sm_min_mhz: int
    sm_max_mhz: int
    cap_watts: int | None = None

    def clip(self, low_mhz: int, high_mhz: int) -> tuple[int, int]:
        """The nearest range within the limits."""
        high = min(max(high_mhz, self.sm_min_mhz), self.sm_max_mhz)
        return min(max(low_mhz, self.sm_min_mhz), high), high


@dataclass(frozen=True, slots=True)
class GroupSetpoint:
    """What every card of the group is to be set to.

    Attributes:
        sm_mhz: (lowest, highest) SM clock to lock; None: unlocked.
        cap_watts: a cap below the granted one; None: the granted one.
    """

    sm_mhz: tuple[int, int] | None = None
    cap_watts: int | None = None


UNLOCKED: Final = GroupSetpoint()


@dataclass(frozen=True, slots=True)
class Decision:
    """A controller's answer.

    Attributes:
        setpoint: what to write.
        would: what would be written if writing were wanted; None: the same as `setpoint`.
        next_wake_seconds: when to ask again at the latest, from now.
        degraded: sentences on what keeps it from controlling well.
    """

    setpoint: GroupSetpoint
    would: GroupSetpoint | None = None
    next_wake_seconds: float = NEVER_SECONDS
    degraded: tuple[str, ...] = field(default=())


class GroupController(Protocol):
    """A controller of one GPU group."""

    requires: frozenset[str]
    """Families (of `scanner.FAMILIES`) without which it must not control."""

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """The setpoint from now on; changes the state."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything it has learnt, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        ...
