"""What a group's controller is told of what it drives, from the cards' own facts and the policy. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from flyball_agent.controllers.base import Setup, Targets
from flyball_agent.facts import Report
from flyball_agent.profiles import Profile
from flyball_api.energypolicy import LatencyTarget, Slo

Shelf = Mapping[str, Profile | str]
"""Profiles by name, as they were last read; a text says why one cannot be."""


def targets_of(slo: Slo | None) -> Targets:
    """What a policy promises, as controllers see it."""
    if slo is None:
        return Targets()
    named = (slo.time_to_first_token, slo.inter_token_latency, slo.end_to_end)
    shares = [target.percentile / 100 for target in named if target is not None]
    ttft, tpot, e2e = (_seconds(target) for target in named)
    return Targets(ttft, tpot, e2e, max(shares))


def _seconds(target: LatencyTarget | None) -> float | None:
    return None if target is None else target.threshold_milliseconds / 1000


def seed_of(policy_uid: str, uuids: Iterable[str]) -> int:
    """The same for the same policy and cards in every process and life."""
    text = json.dumps([policy_uid, sorted(uuids)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def setup_of(cards: Sequence[Report], seed: int, *, profile: str | None, shelf: Shelf, model: str) -> Setup:
    """What the controller of these cards is told.

    Args:
        cards: the actuator's answer to `capabilities` for each card of the group.
        seed: of `seed_of`.
        profile: the name that the policy gives; None: it names none.
        shelf: profiles that were read.
        model: what the engine says it serves; empty: not known.
    """
    products = sorted({card["product"] for card in cards})
    product = products[0] if len(products) == 1 else ""
    found, trouble = _profile(profile, shelf, product, gpus=len(cards), model=model)
    if found is not None and len(products) > 1:
        kinds = ", ".join(products)
        trouble = f"profile {profile!r} is of {found.product}, but the cards are of several kinds: {kinds}"
        found = None
    return Setup(
        product=product,
        gpus=len(cards),
        clocks_mhz=_common_clocks(cards),
        cap_min_watts=max(card["cap_min_watts"] for card in cards),
        cap_max_watts=min(card["cap_max_watts"] for card in cards),
        seed=seed,
        profile=found,
        profile_trouble=trouble,
    )


def _common_clocks(cards: Sequence[Report]) -> tuple[int, ...]:
    common = set(cards[0].get("sm_mhz", ()))
    for card in cards[1:]:
        common &= set(card.get("sm_mhz", ()))
    return tuple(sorted(common))


def _profile(name: str | None, shelf: Shelf, product: str, *, gpus: int, model: str) -> tuple[Profile | None, str]:
    if not name:
        return None, ""
    found = shelf.get(name)
    if found is None:
        return None, f"profile {name!r} has not been read yet"
    if isinstance(found, str):
        return None, found
    trouble = found.check(product, gpus, model or None)
    return (None, trouble) if trouble else (found, "")
