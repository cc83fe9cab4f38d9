"""Profiles of the worlds' engines, for the controllers that need one: made once, kept in the user's cache."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from flyball_agent.profiles import Profile, ProfileError
from flyball_agent.profiling.fits import FITS
from flyball_api.controllers.union import ControllerType
from flyball_sim.gpu.parameters import draw
from flyball_sim.profiling import profile_engine
from flyball_sim.scoreboard.cells import WORLDS, engine_of
from flyball_sim.scoreboard.digests import code_digest

SEED = 1
"""Of the errors of measuring."""
_ROOTS = ("flyball_sim.profiling.virtual", "flyball_sim.scoreboard.cells", "flyball_agent.profiling.fits")


def needs_profile(kind: ControllerType) -> bool:
    """Whether controllers of this type choose by a profile."""
    return kind in FITS


def profile_of(world: str, kind: ControllerType, drawn: tuple[int, int] | None = None) -> Profile:
    """The profile of a world's engine with the fit of one controller.

    Args:
        world: a name of `WORLDS`.
        kind: the controller's type.
        drawn: (seed, index) of the parameter draw the engine has; None: the nominal one.

    Raises:
        ValueError: the controller cannot be fitted to it.
    """
    return _profile_of(world, kind, drawn, _cache())


@lru_cache(maxsize=64)
def _profile_of(world: str, kind: ControllerType, drawn: tuple[int, int] | None, cache: Path) -> Profile:
    which = "" if drawn is None else f"-draw{drawn[0]}.{drawn[1]}"
    path = cache / f"{world}-{kind.lower()}-{code_digest((*_ROOTS, FITS[kind]))}{which}.json"
    try:
        return Profile.from_json(path.read_text())
    except (OSError, ProfileError):
        pass
    engine = engine_of(WORLDS[world], None if drawn is None else draw(*drawn))
    profile = profile_engine(engine.model, engine.limits, seed=SEED, fits=(kind,))
    if kind not in profile.fits:
        raise ValueError(f"{kind} has no fit of the profile of {world}: see {FITS[kind]}")
    cache.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=cache, suffix=".part", delete=False) as part:
        part.write(profile.to_json())
    Path(part.name).replace(path)
    return profile


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flyball" / "profiles"
