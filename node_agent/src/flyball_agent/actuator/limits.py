"""Pure rules: what a card takes of what was asked, and whether what it does is what was asked."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

from flyball_agent.actuator.device import REASON_IDLE, REASONS_SLOWED, Identity, Sample

Verdict = Literal["True", "False", "Unknown"]

TOLERANCE_WATTS = 0.5
"""Caps are whole watts to us and milliwatts to NVML."""


@dataclass(frozen=True, slots=True)
class CapChoice:
    """What to do about a cap.

    Attributes:
        write_watts: what to write to the card; None when it is right as it is.
        foreign_watts: a lower limit of somebody else that is kept; None when there is none.
        expect_watts: the most that may be in force afterwards.
    """

    write_watts: float | None
    foreign_watts: float | None
    expect_watts: float


def clamp_clocks(low_mhz: int, high_mhz: int, supported: tuple[int, ...]) -> tuple[int, int]:
    """The lock nearest to what was asked that the card can hold, never above what was asked where it can be below.

    Args:
        low_mhz: asked lowest SM clock.
        high_mhz: asked highest SM clock; at least `low_mhz`.
        supported: the card's SM clocks, ascending and not empty.

    Returns:
        (lowest, highest), both supported clocks.
    """
    at = bisect_right(supported, high_mhz) - 1
    high = supported[max(at, 0)]
    at = bisect_left(supported, low_mhz)
    low = supported[min(at, len(supported) - 1)]
    return min(low, high), high


def clamp_cap(cap_watts: float, ceiling_watts: float | None, card: Identity) -> float:
    """The cap to hold: within the grant, then within what the card takes (its minimum wins over the grant)."""
    wanted = cap_watts if ceiling_watts is None else min(cap_watts, ceiling_watts)
    return min(max(wanted, card.cap_min_watts), card.cap_max_watts)


def choose_cap(
    target_watts: float,
    requested_watts: float,
    enforced_watts: float,
    ours_watts: tuple[float, ...],
    default_watts: float,
) -> CapChoice:
    """Whether to write a cap, given what is found on the card.

    Found above the target: it is put (back) to the target. Found at something we wrote: replaced. Found at anything
    else below both the target and where it would be without us: somebody else's limit, kept.

    Args:
        target_watts: the cap to hold.
        requested_watts: the limit requested of the card now, by whomever.
        enforced_watts: the limit in force now.
        ours_watts: the values we may have written ourselves; empty when we never did.
        default_watts: the card's default limit.
    """
    mine = any(abs(requested_watts - ours) <= TOLERANCE_WATTS for ours in ours_watts)
    without_others = min((*ours_watts, default_watts))
    if not mine and requested_watts < min(without_others - TOLERANCE_WATTS, target_watts):
        return CapChoice(None, requested_watts, target_watts)
    write = None if abs(requested_watts - target_watts) <= TOLERANCE_WATTS else target_watts
    below = enforced_watts < min(requested_watts, target_watts) - TOLERANCE_WATTS
    return CapChoice(write, enforced_watts if below else None, target_watts)


def release_target(default_watts: float, before_watts: float | None) -> float:
    """Where a cap goes when Flyball lets go: the default, or the lower limit that was somebody's before us."""
    return default_watts if before_watts is None else min(default_watts, before_watts)


def judge_lock(lock_mhz: tuple[int, int], step_mhz: int, sample: Sample) -> Verdict:
    """Whether the SM clock shows that a lock is in force; NVML has no getter for a lock.

    Above the lock is proof against it. Inside it, under load, is proof for it. Below it proves nothing while the
    card is idle or slowed by its cap or by heat.
    """
    low, high = lock_mhz
    if sample.reasons & REASON_IDLE or sample.utilisation_percent == 0:
        return "Unknown"
    if sample.sm_mhz > high + step_mhz:
        return "False"
    if sample.sm_mhz >= low - step_mhz:
        return "True"
    return "Unknown" if sample.reasons & REASONS_SLOWED else "False"
