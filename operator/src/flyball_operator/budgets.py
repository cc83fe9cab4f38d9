"""One policy's power budget: its ledger now, and the cap that each of its GPUs is granted next.

Cut before raise: a lower cap may be granted at any time, a higher one only out of free watts, and a watt is free only
when the cap that held it has been read back lower. `docs/ledger.md` tells it in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flyball_api.energypolicy import EnergyPolicySpec, Ledger, PowerBudget
from flyball_operator import division
from flyball_operator.division import Group
from flyball_operator.fleet import UNKNOWN_PRODUCT_WATTS, Gpu, Liveness
from flyball_operator.ledger import Charge, ChargeState, balance, charge, claim, granted_watts
from flyball_operator.state import DivisionMemory, Need
from flyball_operator.targets import GpuKey

WORTHWHILE_WATTS = 25
"""A part of a raise smaller than this per GPU waits for the rest of it."""


@dataclass(frozen=True, slots=True)
class Members:
    """Everything that is charged to one policy.

    Attributes:
        groups: GPUs it drives or is about to, by group.
        leaving: GPUs being released that still hold watts of it.
        pods: charges of pods whose GPUs are not yet known.
        unknown_product: one of those is of a product that nobody knows, which blocks raises.
    """

    groups: Mapping[str, Sequence[Gpu]]
    leaving: Sequence[Gpu] = ()
    pods: Sequence[Charge] = ()
    unknown_product: bool = False


@dataclass(frozen=True, slots=True)
class Budgeting:
    """The answer for one policy.

    Attributes:
        ledger: as it is now, before anything granted here is written.
        caps: the cap to grant now, by GPU.
        aims: the cap that it is to have in the end, by GPU: what Observe reports.
        memory: for the next time.
        floor_watts: the least the GPUs can be brought to.
        reserve_watts: what is to be kept back.
        reset_watts: what a reset of the worst node would add to the caps aimed at.
        narrow: bounds that the cards cannot keep, as sentences.
    """

    ledger: Ledger
    caps: Mapping[GpuKey, int]
    aims: Mapping[GpuKey, int]
    memory: DivisionMemory
    floor_watts: int
    reserve_watts: int
    reset_watts: int
    narrow: tuple[str, ...] = ()


def budget(
    spec: EnergyPolicySpec,
    power: PowerBudget,
    members: Members,
    memory: DivisionMemory | None,
    *,
    raises_allowed: bool,
    now_seconds: float,
) -> Budgeting:
    """Divide one policy's budget.

    Args:
        spec: the policy's accepted spec.
        power: its power budget.
        members: what is charged to it.
        memory: of the last time; None after a restart.
        raises_allowed: False while another leader's writes, or our own unanswered ones, may still arrive.
        now_seconds: monotonic.
    """
    groups, needs, narrow = _groups(spec, members, memory, now_seconds)
    reserve_key, default_reserve = _default_reserve(power.watts, groups, memory)
    reserve = default_reserve if power.reserve_watts is None else power.reserve_watts
    floors = division.floor_sum(groups)
    groups = [_without_raise_in_the_dark(group, members.groups[group.key]) for group in groups]
    charges = [claim(gpu) for gpus in members.groups.values() for gpu in gpus]
    leaving = [charge(gpu) for gpu in members.leaving]
    ledger = balance(power.watts, reserve, [*charges, *leaving, *members.pods])
    available = max(floors, power.watts - reserve - sum(entry.watts - entry.beyond_grant_watts for entry in leaving))
    aims, remembered = _aims(members, groups, available, needs=needs, memory=memory, now_seconds=now_seconds)
    raises = raises_allowed and not members.unknown_product and not ledger.deficit_watts
    in_flight = any(entry.state is ChargeState.IN_FLIGHT for entry in (*charges, *leaving))
    caps = _grant(members, groups, aims, ledger.free_watts if raises else None, whole_raises_only=in_flight)
    return Budgeting(
        ledger=ledger,
        caps=caps,
        aims={gpu.key: aims[group.key] for group in groups for gpu in members.groups[group.key]},
        memory=replace(remembered, reserve_key=reserve_key, reserve_watts=default_reserve),
        floor_watts=floors,
        reserve_watts=reserve,
        reset_watts=division.reset_watts(aims, groups),
        narrow=narrow,
    )


def _default_reserve(
    watts: int, groups: Sequence[Group], memory: DivisionMemory | None
) -> tuple[tuple[object, ...], int]:
    key = (watts, tuple(replace(group, need_watts=None) for group in groups))
    if memory is not None and memory.reserve_key == key:
        return key, memory.reserve_watts
    return key, division.default_reserve(watts, groups)


def _groups(
    spec: EnergyPolicySpec, members: Members, memory: DivisionMemory | None, now_seconds: float
) -> tuple[list[Group], dict[str, Need], tuple[str, ...]]:
    groups: list[Group] = []
    needs: dict[str, Need] = {}
    narrow: set[str] = set()
    for key in sorted(members.groups):
        gpus = members.groups[key]
        floor, ceiling = _bounds(spec, gpus, narrow)
        need = division.next_need(
            memory.needs.get(key) if memory is not None else None,
            max(
                (gpu.status.draw_watts for gpu in gpus if gpu.status and gpu.status.draw_watts is not None),
                default=None,
            ),
            any(gpu.status.cap_limited for gpu in gpus if gpu.status),
            max((gpu.enforced_cap_watts for gpu in gpus if gpu.enforced_cap_watts is not None), default=None),
            now_seconds,
        )
        if need is not None:
            needs[key] = need
        groups.append(
            Group(
                key=key,
                node=gpus[0].node,
                size=len(gpus),
                floor_watts=floor,
                ceiling_watts=ceiling,
                default_watts=max(gpu.card_default_watts for gpu in gpus),
                need_watts=None if need is None else need.watts,
            )
        )
    return groups, needs, tuple(sorted(narrow))


def _bounds(spec: EnergyPolicySpec, gpus: Sequence[Gpu], narrow: set[str]) -> tuple[int, int]:
    """Lowest and highest cap of one GPU of a group, in watts."""
    held = _held(gpus)
    if held is not None:
        return held, held
    limits = spec.limits.cap_watts
    lowest = max(gpu.card_min_watts for gpu in gpus)
    highest = min(gpu.card_max_watts for gpu in gpus)
    default = min(gpu.card_default_watts for gpu in gpus)
    product = gpus[0].status.product if gpus[0].status else ""
    if limits.max is not None and limits.max < lowest:
        narrow.add(
            f"limits.capWatts.max is {limits.max} W, but {product or 'the card'} takes no cap below {lowest} W: "
            f"it gets {lowest} W; raise the limit"
        )
    if limits.min is not None and limits.min > highest:
        narrow.add(
            f"limits.capWatts.min is {limits.min} W, but {product or 'the card'} takes no cap above {highest} W: "
            f"it gets {highest} W; lower the limit"
        )
    floor = min(max(lowest, limits.min or 0), highest)
    return floor, max(floor, min(highest, default if limits.max is None else limits.max))


def _held(gpus: Sequence[Gpu]) -> int | None:
    """The one cap that a group can have now; None: it can be moved."""
    stuck = [charge(gpu).watts for gpu in gpus if gpu.unwritable]
    if stuck:
        # What cannot be cut there has to be cut elsewhere.
        return max(stuck)
    if any(gpu.status is None or not gpu.status.cap_max_watts for gpu in gpus):
        # Its agent has not told the card's bounds (any more): what is granted stays.
        return common_cap(gpus)
    return None


def _without_raise_in_the_dark(group: Group, gpus: Sequence[Gpu]) -> Group:
    """A silent node's caps may be lowered, for when it comes back, but nothing is raised there."""
    current = common_cap(gpus)
    if current is None or all(gpu.liveness is Liveness.ALIVE for gpu in gpus):
        return group
    ceiling = min(group.ceiling_watts, current)
    return replace(group, ceiling_watts=ceiling, floor_watts=min(group.floor_watts, ceiling))


def common_cap(gpus: Sequence[Gpu]) -> int | None:
    """The cap that every GPU of the group is granted now; None when there is no such cap."""
    caps = {gpu.entry.cap_watts if gpu.entry is not None and gpu.entry.action == "Enforce" else None for gpu in gpus}
    return caps.pop() if len(caps) == 1 else None


def _aims(
    members: Members,
    groups: Sequence[Group],
    available: int,
    *,
    needs: Mapping[str, Need],
    memory: DivisionMemory | None,
    now_seconds: float,
) -> tuple[Mapping[str, int], DivisionMemory]:
    """Where the caps are to go, held still: a division stands until it is worth another."""
    bounds = tuple((group.key, group.size, group.floor_watts, group.ceiling_watts) for group in groups)
    key: tuple[object, ...] = (available, bounds)
    target = division.divide(available, groups)
    if memory is not None and memory.key == key:
        fresh = now_seconds - memory.at_seconds < division.REDIVIDE_SECONDS
        if fresh or division.stays(memory.caps, target, available, groups):
            return memory.caps, DivisionMemory(key, memory.caps, needs, memory.at_seconds)
    else:
        granted = {name: common_cap(gpus) for name, gpus in members.groups.items()}
        current = {name: cap for name, cap in granted.items() if cap is not None}
        if division.stays(current, target, available, groups):
            target = current
    return target, DivisionMemory(key, target, needs, now_seconds)


def _grant(
    members: Members,
    groups: Sequence[Group],
    aims: Mapping[str, int],
    free_watts: int | None,
    *,
    whole_raises_only: bool,
) -> dict[GpuKey, int]:
    """Caps to write now: cuts at once, raises as far as free watts go, in the order of group keys.

    Args:
        members: the GPUs.
        groups: in the order of their keys.
        aims: where the caps are to go.
        free_watts: not promised to anyone; None: no cap goes up, not even within what the GPU is charged already,
            for in a deficit those watts are not all there.
        whole_raises_only: cuts are under way, so a raise that can only be paid in part waits for them.
    """
    caps: dict[GpuKey, int] = {}
    may_raise, free_watts = free_watts is not None, free_watts or 0
    for group in groups:
        gpus = members.groups[group.key]
        aim = aims[group.key]
        held = [granted_watts(gpu) for gpu in gpus]

        def cost(cap: int, held: Sequence[int] = held) -> int:
            return sum(max(0, cap - watts) for watts in held)

        current = common_cap(gpus)
        if current is not None and not may_raise:
            aim = min(aim, current)
        if cost(aim) > free_watts:
            free_of_charge = min(held) if current is None else current
            step = free_watts // group.size
            partial = free_of_charge + step
            worthwhile = not whole_raises_only and step >= WORTHWHILE_WATTS and cost(partial) <= free_watts
            aim = min(aim, partial if worthwhile else free_of_charge)
        free_watts -= cost(aim)
        caps.update({gpu.key: aim for gpu in gpus})
    return caps


def pod_charge(watts: int | None) -> Charge:
    """The charge of a pod whose GPUs are not yet known; None: nobody knows its product."""
    return Charge(UNKNOWN_PRODUCT_WATTS if watts is None else watts, ChargeState.UNKNOWN)
