"""Each controller's own fit of a profile's points: `controllers/<name>/fit.py` has `fit(profile) -> dict`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final

from flyball_agent.profiles import Profile

FITS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "VoltanaLLM": "flyball_agent.controllers.voltanallm.fit",
        "ThrottLLeM": "flyball_agent.controllers.throttllem.fit",
        "PALS": "flyball_agent.controllers.pals.fit",
    }
)
"""By controller type: the module. It is imported only to fit: it may need libraries that the agent does not have."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A profile with fits, and sentences on the controllers that have none."""

    profile: Profile
    troubles: tuple[str, ...]


def with_fits(profile: Profile, types: Iterable[str] = tuple(FITS)) -> Fitted:
    """The profile with what these controllers make of its points; those that cannot are named, not fatal.

    Args:
        profile: with points.
        types: controller types.
    """
    fits: dict[str, Mapping[str, Any]] = dict(profile.fits)
    troubles = []
    for kind in types:
        module = FITS[kind]
        if find_spec(module.rpartition(".")[0]) is None or find_spec(module) is None:
            troubles.append(f"controller {kind} has no fit here ({module} does not exist): it cannot use this profile")
            continue
        try:
            fits[kind] = import_module(module).fit(profile)
        except (ImportError, ValueError, ArithmeticError) as error:
            troubles.append(f"controller {kind} cannot be fitted ({error}): it cannot use this profile")
    return Fitted(replace(profile, fits=fits), tuple(troubles))
