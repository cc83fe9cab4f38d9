"""All rows of a cell by name, and what the result of each depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from flyball_agent.controllers.fixed import Fixed
from flyball_api.controllers.fixed import FixedController, RoleClock
from flyball_sim.scoreboard.cells import AZURE, WORLDS, Case
from flyball_sim.scoreboard.contest import Contest, Ground, Options, Row
from flyball_sim.scoreboard.digests import OWN, code_digest
from flyball_sim.scoreboard.pool import Pool, static_pair_row, unlocked_row
from flyball_sim.scoreboard.pool_rivals import pool_rival_row
from flyball_sim.scoreboard.rivals import CONTENDERS, ORACLES, Contender, Play, row, row_of, serve
from flyball_sim.scoreboard.rows import MODEL_ROWS
from flyball_sim.scoreboard.runs import Engine
from flyball_sim.scoreboard.tuned import tuned_parameters

_MODEL_ROOT: Final = "flyball_sim.scoreboard.rows"
_RIVALS_ROOT: Final = "flyball_sim.scoreboard.rivals"
_POOL_ROOT: Final = "flyball_sim.scoreboard.pool"
_POOL_RIVALS_ROOT: Final = "flyball_sim.scoreboard.pool_rivals"
_RECORDS: Final = "flyball_sim.scoreboard.records"
_FIXED: Final = "flyball_agent.controllers.fixed"
_MODEL_PACKAGES: Final = ("flyball_sim",)
OURS: Final = "flyball"
PAGED: Final = ("agft", "voltanallm", "throttllem")
"""Controllers that are played a second time on Flyball's signals; PALS looks every half second anyway."""
_TUNED_WITH: Final = {"throttllem-oracle": "throttllem"}


@dataclass(frozen=True, slots=True)
class RowKind:
    """How a row is played and what it depends on.

    Attributes:
        name: as `--controller` takes it.
        play: makes it in a cell of one engine; None: there is none.
        play_pool: makes it in a cell of a prefill and a decode engine; None: there is none.
        packages: only code of these counts.
        contender: the controller with its parameters; None: no controller of the five makes it.
        warm: whether the controller learns before anything counts.
        alone: whether it shares no run with other rows of its cell.
    """

    name: str
    play: Callable[[Contest], Row] | None
    play_pool: Callable[[Pool], Row] | None = None
    packages: tuple[str, ...] = OWN
    contender: Contender | None = None
    warm: bool = False
    alone: bool = True

    @property
    def rival(self) -> bool:
        """Whether Flyball has to beat it: with the signals its paper assumes."""
        return self.contender is not None and self.contender.name not in {*ORACLES, OURS} and not self.page_only

    @property
    def page_only(self) -> bool:
        """Whether it is a published controller that sees what Flyball sees: a page every half second."""
        return self.contender is not None and self.contender.name != OURS and not self.contender.native

    def plays(self, world: str) -> bool:
        """Whether a world's cells have it."""
        return (self.play_pool if WORLDS[world].split else self.play) is not None

    def make(self, ground: Ground) -> Row:
        """The row of a cell.

        Raises:
            ValueError: cells of its world have none.
        """
        if isinstance(ground, Pool) and self.play_pool is not None:
            return self.play_pool(ground)
        if isinstance(ground, Contest) and self.play is not None:
            return self.play(ground)
        raise ValueError(f"cells of {ground.world.name} have no row {self.name}: leave it out")

    def roots(self, world: str) -> tuple[str, ...]:
        """Modules whose code, with all they import, it depends on."""
        split = WORLDS[world].split
        own = [] if self.contender is None else [self.contender.module]
        if self.contender is None and self.name != "fixed":
            return (_POOL_ROOT if split else _MODEL_ROOT, _RECORDS)
        return (_POOL_RIVALS_ROOT if split else _RIVALS_ROOT, _RECORDS, *(own or [_FIXED]))

    def digest(self, case: Case, options: Options) -> str:
        """Of the code, of what it leans on, and of the options and data that change its result in a case's cells."""
        parts: dict[str, Any] = {
            "code": code_digest(self.roots(case.world), self.packages),
            "seed": options.seed,
            "draws": 0 if self.warm else options.draws,
            "seconds": options.seconds,
            "requests": options.requests,
            **{name: version(name) for name in ("numpy", "scipy")},
        }
        if self.name == "clairvoyant":
            parts["search_runs"] = options.search_runs
        if self.contender is not None:
            parts["parameters"] = dict(self.contender.parameters)
        if case.trace == AZURE and options.data is not None:
            parts["data"] = _hash(options.data / "traces" / "azure2023_conv.csv")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _fixed(contest: Contest) -> Row:
    """The best static clock as a real controller holds it: late to start, through page and tick."""
    clock = contest.static_clock.trial.setting.sm_mhz
    parameters = FixedController(
        clocks=() if clock is None else (RoleClock(role="unified", min_megahertz=clock, max_megahertz=clock),)
    )

    def held(engine: Engine) -> Play:
        return serve(contest, engine, Fixed(parameters), native=False)

    made = row_of(held(contest.engine), [held(engine) for engine in contest.drawn_engines()])
    made.details["sm_mhz"] = clock
    return made


def _rows() -> dict[str, RowKind]:
    pools = {"unlocked": unlocked_row}
    rows = [
        RowKind(name, play, pools.get(name), packages=_MODEL_PACKAGES, alone=False) for name, play in MODEL_ROWS.items()
    ]
    rows.append(RowKind("static-pair", None, static_pair_row, packages=_MODEL_PACKAGES, alone=False))
    rows.append(RowKind("fixed", _fixed, alone=False))
    for contender in CONTENDERS.values():
        for name, with_set in _sets(contender).items():
            for suffix, warm in (("", False), ("/warm", True)):
                play = partial(row, contender=with_set, warm=warm)
                play_pool = partial(pool_rival_row, contender=with_set, warm=warm)
                rows.append(RowKind(name + suffix, play, play_pool, contender=with_set, warm=warm))
    return {each.name: each for each in rows}


def _sets(contender: Contender) -> dict[str, Contender]:
    tuned = contender.with_parameters(tuned_parameters(_TUNED_WITH.get(contender.name, contender.name)))
    if contender.name == OURS:
        return {OURS: contender, f"{OURS}/tuned": tuned}
    sets = {f"{contender.name}/paper": contender, f"{contender.name}/tuned": tuned}
    if contender.name in PAGED:
        sets[f"{contender.name}/page"] = replace(tuned, native=False)
    return sets


ROWS: Final[Mapping[str, RowKind]] = MappingProxyType(_rows())
"""Every row of a cell by its name; a controller with two sets of parameters is two rows, and two more when warm."""


HEADLINE: Final = tuple(name for name, kind in ROWS.items() if not kind.warm and name != f"{OURS}/tuned")
"""Rows that are played unless others are asked for: controllers as they start, learning counted."""
WARM: Final = tuple(
    name for name, kind in ROWS.items() if kind.warm and name != f"{OURS}/tuned/warm" and not kind.page_only
)
"""The same controllers after half an hour that does not count."""

QUICK: Final = (
    *("unlocked", "static-clock", "clairvoyant", "bound"),
    *(f"{name}/tuned" for name in ("agft-improved", "voltanallm", "throttllem", "pals")),
    OURS,
)
"""Rows of the quick board: one of each controller."""
