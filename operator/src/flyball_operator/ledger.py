"""Where a budget's watts are. `docs/ledger.md` tells it in words.

A GPU is charged the highest cap that may be in force on it. What was granted is only the charge once the node has
read it back; until then every cap not yet superseded counts, and a node that is not proven alive counts in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from flyball_api.energypolicy import Ledger
from flyball_operator.fleet import Gpu, Liveness


class ChargeState(StrEnum):
    """Under which heading of the ledger a charge stands."""

    ENFORCED = "enforced"
    IN_FLIGHT = "inFlight"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Charge:
    """What one GPU (or one pod whose GPUs are not yet known) is charged.

    Attributes:
        watts: the highest cap that may be in force.
        state: the heading.
        beyond_grant_watts: the part of `watts` that no grant of ours explains (a reset, a node that is silent). The
            reserve pays for it first.
    """

    watts: int
    state: ChargeState
    beyond_grant_watts: int = 0


def has_cap(gpu: Gpu) -> bool:
    """The GPU stands under a grant that set a cap, or under the release of one."""
    entry = gpu.entry
    if entry is None:
        return False
    return entry.cap_watts is not None if entry.action == "Enforce" else ceiling_of_release(gpu) is not None


def ceiling_of_release(gpu: Gpu) -> int | None:
    """What a GPU on its way out still holds; None: it never had a cap of ours."""
    if gpu.entry is None or gpu.entry.action != "Release":
        return None
    return gpu.entry.ceiling_watts


def charge(gpu: Gpu) -> Charge:
    """The charge of a GPU, whatever policy it stands under."""
    entry = gpu.entry
    dark = gpu.liveness is not Liveness.ALIVE
    if entry is None or not has_cap(gpu):
        # Never capped by us: the card stands where anyone may have put it.
        return Charge(gpu.card_max_watts, ChargeState.UNKNOWN if dark else ChargeState.IN_FLIGHT)
    if entry.action == "Release":
        # It leaves. What it draws after its release is no longer this budget's; what it held is not granted again
        # before the release is read back.
        held = entry.ceiling_watts or 0
        if not dark:
            return Charge(held, ChargeState.IN_FLIGHT)
        return Charge(max(held, gpu.card_max_watts), ChargeState.UNKNOWN, max(0, gpu.card_max_watts - held))
    cap = entry.cap_watts or 0
    enforced = gpu.enforced_cap_watts
    if gpu.acknowledged:
        watts = max(cap, enforced or 0)
        return Charge(watts, ChargeState.ENFORCED, watts - cap)
    granted = max(cap, entry.ceiling_watts or 0)
    if dark:
        watts = max(granted, gpu.card_max_watts)
        return Charge(watts, ChargeState.UNKNOWN, watts - granted)
    watts = max(granted, gpu.card_max_watts if enforced is None else enforced)
    return Charge(watts, ChargeState.IN_FLIGHT, watts - granted)


def claim(gpu: Gpu) -> Charge:
    """The charge of a GPU that a policy wants to drive: as `charge`, but a release under way may already be done."""
    entry = gpu.entry
    if entry is None or entry.action != "Release" or not has_cap(gpu):
        return charge(gpu)
    watts = max(entry.ceiling_watts or 0, gpu.card_default_watts, gpu.enforced_cap_watts or 0)
    if gpu.liveness is Liveness.ALIVE:
        return Charge(watts, ChargeState.IN_FLIGHT)
    return Charge(max(watts, gpu.card_max_watts), ChargeState.UNKNOWN, max(0, gpu.card_max_watts - watts))


def granted_watts(gpu: Gpu) -> int:
    """The highest cap that a grant of ours may have put in force on this GPU, in watts.

    It is the ceiling of the next grant, and what a raise is measured from: watts that a reset or somebody else put
    on a card are charged for as long as they are read there, but are not ours to grant.
    """
    charged = claim(gpu)
    return charged.watts - charged.beyond_grant_watts


def balance(budget_watts: int, reserve_watts: int, charges: Iterable[Charge]) -> Ledger:
    """The ledger: enforced + inFlight + unknown + reserved + free = budget + deficit.

    Args:
        budget_watts: the budget in force.
        reserve_watts: what is to be kept back. What resets and silent nodes add beyond their grants is taken out of
            it first; the rest is kept as far as the budget goes.
        charges: of every GPU of the policy.
    """
    sums = dict.fromkeys(ChargeState, 0)
    beyond = 0
    for entry in charges:
        sums[entry.state] += entry.watts
        beyond += entry.beyond_grant_watts
    left = budget_watts - sum(sums.values())
    reserved = max(0, min(reserve_watts - beyond, left))
    return Ledger(
        budget_watts=budget_watts,
        enforced_watts=sums[ChargeState.ENFORCED],
        in_flight_watts=sums[ChargeState.IN_FLIGHT],
        unknown_watts=sums[ChargeState.UNKNOWN],
        reserved_watts=reserved,
        free_watts=max(0, left - reserved),
        deficit_watts=max(0, -left),
    )
