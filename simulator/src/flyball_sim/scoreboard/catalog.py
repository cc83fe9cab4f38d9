"""All rows of a cell by name, and what the result of each depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from flyball_agent.controllers.fixed import Fixed
from flyball_api.controllers.fixed import FixedController, RoleClock
from flyball_sim.scoreboard.cells import AZURE, Case
from flyball_sim.scoreboard.contest import Contest, Options, Row
from flyball_sim.scoreboard.digests import OWN, code_digest
from flyball_sim.scoreboard.rivals import CONTENDERS, ORACLES, Contender, Play, row, row_of, serve
from flyball_sim.scoreboard.rows import MODEL_ROWS
from flyball_sim.scoreboard.runs import Engine
from flyball_sim.scoreboard.tuned import tuned_parameters

_MODEL_ROOTS: Final = ("flyball_sim.scoreboard.rows", "flyball_sim.scoreboard.records")
_RIVAL_ROOTS: Final = ("flyball_sim.scoreboard.rivals", "flyball_sim.scoreboard.records")
OURS: Final = "flyball"
_TUNED_WITH: Final = {"throttllem-oracle": "throttllem"}


@dataclass(frozen=True, slots=True)
class RowKind:
    """How a row is played and what it depends on.

    Attributes:
        name: as `--controller` takes it.
        play: makes it in a cell.
        roots: modules whose code, with all they import, it depends on.
        packages: only code of these counts.
        contender: the controller with its parameters; None: no controller of the five makes it.
        warm: whether the controller learns before anything counts.
        alone: whether it shares no run with other rows of its cell.
    """

    name: str
    play: Callable[[Contest], Row]
    roots: tuple[str, ...]
    packages: tuple[str, ...] = OWN
    contender: Contender | None = None
    warm: bool = False
    alone: bool = True

    @property
    def rival(self) -> bool:
        """Whether Flyball has to beat it."""
        return self.contender is not None and self.contender.name not in {*ORACLES, OURS}

    def digest(self, case: Case, options: Options) -> str:
        """Of the code, of what it leans on, and of the options and data that change its result in a case's cells."""
        parts: dict[str, Any] = {
            "code": code_digest(self.roots, self.packages),
            "seed": options.seed,
            "draws": options.draws,
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
    rows = [
        RowKind(name, play, _MODEL_ROOTS, packages=("flyball_sim",), alone=False) for name, play in MODEL_ROWS.items()
    ]
    rows.append(RowKind("fixed", _fixed, (*_RIVAL_ROOTS, "flyball_agent.controllers.fixed"), alone=False))
    for contender in CONTENDERS.values():
        for name, with_set in _sets(contender).items():
            roots = (*_RIVAL_ROOTS, contender.module)
            for suffix, warm in (("", False), ("/warm", True)):
                play = partial(row, contender=with_set, warm=warm)
                rows.append(RowKind(name + suffix, play, roots, contender=with_set, warm=warm))
    return {each.name: each for each in rows}


def _sets(contender: Contender) -> dict[str, Contender]:
    tuned = contender.with_parameters(tuned_parameters(_TUNED_WITH.get(contender.name, contender.name)))
    if contender.name == OURS:
        return {OURS: contender, f"{OURS}/tuned": tuned}
    return {f"{contender.name}/paper": contender, f"{contender.name}/tuned": tuned}


ROWS: Final[Mapping[str, RowKind]] = MappingProxyType(_rows())
"""Every row of a cell by its name; a controller with two sets of parameters is two rows, and two more when warm."""


def _is_here(kind: RowKind) -> bool:
    return kind.contender is None or find_spec(kind.contender.module) is not None


HEADLINE: Final = tuple(
    name for name, kind in ROWS.items() if not kind.warm and name != f"{OURS}/tuned" and _is_here(kind)
)
"""Rows that are played unless others are asked for: controllers as they start, learning counted."""
WARM: Final = tuple(
    name for name, kind in ROWS.items() if kind.warm and name != f"{OURS}/tuned/warm" and _is_here(kind)
)
"""The same controllers after half an hour that does not count."""
