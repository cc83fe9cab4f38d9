"""One GPU of the node: its grant, what is known of it, and what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from flyball_agent.driving import Outcome
from flyball_agent.facts import Report
from flyball_api.nodeenergyplan import Acknowledgement, PlanGpu

FIRST_RETRY_SECONDS: Final = 1.0
DEFAULT_LEASE_SECONDS: Final = 3


@dataclass(frozen=True, slots=True)
class Command:
    """Something to ask of the actuator.

    Attributes:
        uuid: the GPU.
        operation: `set` or `release`.
        sm_mhz: clock lock; None: unlocked.
        cap_watts: cap to hold; None: left alone.
        ceiling_watts: the granted cap.
        lease_seconds: how long a lock outlives this agent.
        acknowledges: the grant that is carried out by this; None when there is none.
    """

    uuid: str
    operation: Literal["set", "release"]
    sm_mhz: tuple[int, int] | None = None
    cap_watts: int | None = None
    ceiling_watts: int | None = None
    lease_seconds: int = DEFAULT_LEASE_SECONDS
    acknowledges: Acknowledgement | None = None


@dataclass(slots=True)
class Gpu:
    """One GPU of the node, or one that only the plan knows.

    Attributes:
        uuid: its UUID.
        card: what the actuator says it is; None: the node has no such GPU.
        report: the actuator's newest report.
        entry: its grant.
        outcome: what its group's controller wants.
        applied: the command last answered with success in this life of the actuator.
        applied_lock: the lock that the answer showed.
        in_flight: the command that is not answered yet.
        acknowledged: the last grant carried out and read back in this session.
        failure: (code, sentence) of the last command, until one succeeds.
        retry_at: monotonic seconds before which nothing is sent again.
        retry_seconds: the next wait.
    """

    uuid: str
    card: Report | None = None
    report: Report | None = None
    entry: PlanGpu | None = None
    outcome: Outcome | None = None
    applied: Command | None = None
    applied_lock: list[int] | None = None
    in_flight: Command | None = None
    acknowledged: Acknowledgement | None = None
    failure: tuple[str, str] | None = None
    retry_at: float = 0.0
    retry_seconds: float = FIRST_RETRY_SECONDS

    @property
    def locked(self) -> bool:
        """Whether a lock of ours is on the card, as far as is known."""
        return self.report is not None and self.report["lock_mhz"] is not None


@dataclass(slots=True)
class Actuator:
    """What is known of the actuator.

    Attributes:
        connected: whether it can be asked.
        life: its random id.
        boot_id: the node's boot.
        driver_version: NVIDIA's.
        trouble: why it cannot be asked, or why it has no GPUs; empty when all is well.
    """

    connected: bool = False
    life: str = ""
    boot_id: str = ""
    driver_version: str = ""
    trouble: str = "not connected yet"
