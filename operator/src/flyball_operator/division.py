"""Dividing a budget: floors first, then by need, then the rest evenly. Integer watts, the same answer every time.

A group is the GPUs of one pod: a tensor-parallel group steps together, so its GPUs get one cap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flyball_operator.state import Need

NEED_BAND_WATTS: Final = 25
"""A need that moves by less than this does not move at all: NVML's power readings wander by as much."""

NEED_DROP_SECONDS: Final = 30.0
"""A need is lowered only after it has been low for this long: a batch that ends is soon followed by another."""

DEADBAND_WATTS: Final = 15
"""Caps that would all move by less than this stay: below it a GPU's speed does not change measurably."""

REDIVIDE_SECONDS: Final = 10.0
"""Needs alone divide a budget anew at most this often."""


@dataclass(frozen=True, slots=True)
class Group:
    """GPUs that get one cap.

    Attributes:
        key: unique; also the order in which single watts are handed out.
        node: where they are.
        size: how many.
        floor_watts: the lowest cap of one of them.
        ceiling_watts: the highest cap of one of them.
        default_watts: to what a reset puts one of them.
        need_watts: what one of them wants; None: not known, so as much as it may have.
    """

    key: str
    node: str
    size: int
    floor_watts: int
    ceiling_watts: int
    default_watts: int
    need_watts: int | None = None


def next_need(
    previous: Need | None, draw_watts: int | None, cap_limited: bool, cap_watts: int | None, now_seconds: float
) -> Need | None:
    """What a group wants now, held still against noise; None while nothing is known.

    Args:
        previous: what this returned before.
        draw_watts: the highest draw of its GPUs, as reported.
        cap_limited: the cap was slowing one of them.
        cap_watts: the cap read back.
        now_seconds: monotonic.
    """
    if cap_limited and cap_watts is not None:
        wanted = cap_watts + cap_watts * 15 // 100 + 10
    elif draw_watts is not None:
        wanted = draw_watts + draw_watts // 10 + 15
    else:
        return previous
    if previous is None or wanted > previous.watts + NEED_BAND_WATTS:
        return Need(wanted)
    if wanted >= previous.watts - NEED_BAND_WATTS:
        return Need(previous.watts)
    since = now_seconds if previous.lower_since_seconds is None else previous.lower_since_seconds
    return Need(wanted) if now_seconds - since >= NEED_DROP_SECONDS else Need(previous.watts, since)


def divide(available_watts: int, groups: Sequence[Group]) -> dict[str, int]:
    """Watts per GPU for every group.

    Args:
        available_watts: to be shared. When it is below the sum of floors, everyone gets the floor all the same: no
            card takes less.
        groups: in any order.

    Returns:
        Caps by group key; their sum over GPUs is at most max(available, sum of floors).
    """
    ordered = sorted(groups, key=lambda group: group.key)
    caps = {group.key: group.floor_watts for group in ordered}
    left = available_watts - sum(group.size * group.floor_watts for group in ordered)
    if left <= 0:
        return caps
    wants = {
        group.key: group.ceiling_watts
        if group.need_watts is None
        else min(max(group.need_watts, group.floor_watts), group.ceiling_watts)
        for group in ordered
    }
    # By need: everybody up to one common level, but nobody beyond what it wants.
    left = _raise(ordered, caps, left, lambda group, level: min(max(level, group.floor_watts), wants[group.key]))
    # The rest: everybody as many watts more, up to the ceiling.
    base = dict(caps)
    _raise(ordered, caps, left, lambda group, more: min(base[group.key] + more, group.ceiling_watts))
    return caps


def _raise(groups: Sequence[Group], caps: dict[str, int], left: int, cap_at: Callable[[Group, int], int]) -> int:
    """Raise `caps` to the highest x for which `cap_at(group, x)` is affordable, then single watts; what is left."""

    def cost(x: int) -> int:
        return sum(group.size * (cap_at(group, x) - caps[group.key]) for group in groups)

    low, high = 0, max((group.ceiling_watts for group in groups), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= left else (low, middle - 1)
    left -= cost(low)
    level = {group.key: cap_at(group, low) for group in groups}
    for group in groups:
        if cap_at(group, low + 1) > level[group.key] and group.size <= left:
            level[group.key] += 1
            left -= group.size
    caps.update(level)
    return left


def floor_sum(groups: Sequence[Group]) -> int:
    """The least that the groups can be brought to, in watts."""
    return sum(group.size * group.floor_watts for group in groups)


def default_reserve(budget_watts: int, groups: Sequence[Group]) -> int:
    """The reserve that a policy without one gets, in watts.

    It is what the policy's GPUs on one node, the worst one, add when a reset puts them back to their default caps.
    Those caps depend on the reserve, so this is the least reserve that covers what it itself leaves (needs aside, so
    that it does not move with the load). It is never more than half of what is above the floors: a policy on one
    node cannot be covered by any reserve, and would only be starved by trying.
    """
    limit = max(0, (budget_watts - floor_sum(groups)) // 2)
    even = [
        Group(group.key, group.node, group.size, group.floor_watts, group.ceiling_watts, group.default_watts, 0)
        for group in groups
    ]
    low, high = 0, limit
    while low < high:
        middle = (low + high) // 2
        if reset_watts(divide(budget_watts - middle, even), even) <= middle:
            high = middle
        else:
            low = middle + 1
    return low


def reset_watts(caps: Mapping[str, int], groups: Sequence[Group]) -> int:
    """What a reset of the worst node adds to these caps, in watts."""
    by_node: dict[str, int] = {}
    for group in groups:
        more = group.size * max(0, group.default_watts - caps[group.key])
        by_node[group.node] = by_node.get(group.node, 0) + more
    return max(by_node.values(), default=0)


def stays(current: Mapping[str, int], target: Mapping[str, int], available_watts: int, groups: Sequence[Group]) -> bool:
    """Whether `current` may stay: it is possible, fits, and no cap would move by enough to be worth a write."""
    return fits(current, available_watts, groups) and all(
        abs(target[group.key] - current[group.key]) < DEADBAND_WATTS for group in groups
    )


def fits(caps: Mapping[str, int], available_watts: int, groups: Sequence[Group]) -> bool:
    """Whether these caps cover just these groups, keep their bounds, and sum to at most what is available."""
    return (
        caps.keys() == {group.key for group in groups}
        and all(group.floor_watts <= caps[group.key] <= group.ceiling_watts for group in groups)
        and sum(group.size * caps[group.key] for group in groups) <= max(available_watts, floor_sum(groups))
    )
