"""What was measured of an engine beforehand: the tables that some controllers need.

`flyball profile` makes one; the agent reads it from a file, which the chart mounts from a ConfigMap. A profile is used
only for the GPU, the model and the group size it was made on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

KIND: Final = "flyball-profile"
VERSION: Final = 1
_MAX_POINTS: Final = 20_000
_MAX_NUMBER: Final = 1e12

_Point = TypeVar("_Point", "DecodePoint", "PrefillPoint", "LoadPoint")


class ProfileError(ValueError):
    """A profile that cannot be read; the message names what, its value, what it may be and the mend."""


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """A steady decode batch at one clock, no prompts in it.

    Attributes:
        sm_mhz: SM clock, locked.
        running: sequences in the batch.
        kv_tokens: KV tokens they held in all, mean.
        tpot_seconds: mean time per output token.
        power_watts: mean of one card.
    """

    sm_mhz: int
    running: int
    kv_tokens: float
    tpot_seconds: float
    power_watts: float


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """Prompts alone at one clock.

    Attributes:
        sm_mhz: SM clock, locked.
        prompt_tokens: new prompt tokens of the batch.
        seconds: of execution, no queueing.
        power_watts: mean of one card.
    """

    sm_mhz: int
    prompt_tokens: int
    seconds: float
    power_watts: float


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """A saturated engine under one cap and batch limit.

    Attributes:
        cap_watts: cap of each card.
        batch_limit: most sequences in the batch.
        gpus: cards of the group (tensor parallel).
        tokens_per_second: output.
        power_watts: mean of one card.
        tpot_p95_seconds: 95th percentile of the time per output token.
    """

    cap_watts: int
    batch_limit: int
    gpus: int
    tokens_per_second: float
    power_watts: float
    tpot_p95_seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything measured of one engine.

    Attributes:
        name: file name without suffix, or the ConfigMap's key.
        product: GPU as NVML names it.
        model: as the engine serves it.
        gpus: cards of the group.
        engine_version: of the engine.
        created: UTC date and time, ISO 8601.
        kv_blocks: of the engine; 0: not known.
        block_tokens: of a KV block.
        max_batch_limit: of the engine.
        decode: points.
        prefill: points.
        load: points.
        fits: by controller type, what its fitting made of the points; JSON.
    """

    name: str
    product: str
    model: str
    gpus: int
    engine_version: str
    created: str
    kv_blocks: int = 0
    block_tokens: int = 16
    max_batch_limit: int = 256
    decode: tuple[DecodePoint, ...] = ()
    prefill: tuple[PrefillPoint, ...] = ()
    load: tuple[LoadPoint, ...] = ()
    fits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def check(self, product: str, gpus: int, model: str | None = None) -> str:
        """Why the profile must not be used for an engine; empty when it may be.

        Args:
            product: of the engine's cards, as NVML names it; empty: not known, and not compared.
            gpus: cards of the engine's group.
            model: what the engine serves; None: not known, and not compared.
        """
        name = f"profile {self.name!r}"
        if product and product != self.product:
            return f"{name} was made on {self.product!r}, but the cards are {product!r}: profile these"
        if gpus != self.gpus:
            return f"{name} was made on a group of {self.gpus} GPUs, but the engine has {gpus}: profile it with {gpus}"
        if model is not None and model != self.model:
            return f"{name} was made with model {self.model!r}, but the engine serves {model!r}: profile that model"
        return ""

    def to_json(self) -> str:
        """As text, which `from_json` reads; points are rows below their columns, to stay small in a ConfigMap."""
        tables = {
            table: {"columns": _columns(kind), "rows": [point_row(point) for point in getattr(self, table)]}
            for table, kind in _TABLES.items()
        }
        facts = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in (*_TABLES, "fits")}
        return json.dumps({"kind": KIND, "version": VERSION, **facts, **tables, "fits": self.fits}) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Profile:
        """What `to_json` wrote.

        Raises:
            ProfileError: it is damaged, of another version, or not a profile at all.
        """
        try:
            body = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"the profile is not JSON ({error}): make it anew with `flyball profile`") from error
        if not isinstance(body, dict) or body.get("kind") != KIND:
            found = body.get("kind") if isinstance(body, dict) else body
            raise ProfileError(f"kind is {str(found)[:60]!r}, not {KIND!r}: give a file that `flyball profile` wrote")
        if body.get("version") != VERSION:
            raise ProfileError(
                f"version of the profile is {body.get('version')!r}, and this Flyball reads {VERSION}: make it anew"
            )
        fits = body.get("fits", {})
        if not isinstance(fits, dict) or not all(isinstance(fit, dict) for fit in fits.values()):
            raise ProfileError("fits of the profile is not an object of objects: make the profile anew")
        return Profile(
            **{name: _text(body, name) for name in ("name", "product", "model", "engine_version", "created")},
            gpus=_whole(body, "gpus", 1),
            kv_blocks=_whole(body, "kv_blocks", 0),
            block_tokens=_whole(body, "block_tokens", 1),
            max_batch_limit=_whole(body, "max_batch_limit", 1),
            decode=_points(body, "decode", DecodePoint),
            prefill=_points(body, "prefill", PrefillPoint),
            load=_points(body, "load", LoadPoint),
            fits=fits,
        )


_TABLES: Final[Mapping[str, type[DecodePoint | PrefillPoint | LoadPoint]]] = {
    "decode": DecodePoint,
    "prefill": PrefillPoint,
    "load": LoadPoint,
}


def point_row(point: DecodePoint | PrefillPoint | LoadPoint) -> list[float]:
    """The point's numbers, to seven digits, in the order of its fields."""
    return [float(f"{getattr(point, each.name):.7g}") for each in fields(point)]


def point_of(kind: type[_Point], row: Any) -> _Point:
    """The point of such a row.

    Raises:
        ProfileError: it has another length, or a number that is none, not above 0, or too high.
    """
    names = _columns(kind)
    if not isinstance(row, list) or len(row) != len(names):
        raise ProfileError(f"row {str(row)[:60]} does not have the {len(names)} numbers {', '.join(names)}")
    for name, value in zip(names, row, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_NUMBER:
            raise ProfileError(f"{name} is {value!r}: it must be a number above 0 and at most {_MAX_NUMBER:g}")
        if name in _WHOLE and value != math.floor(value):
            raise ProfileError(f"{name} is {value!r}: it must be a whole number")
    numbers: dict[str, Any] = {
        name: int(value) if name in _WHOLE else float(value) for name, value in zip(names, row, strict=True)
    }
    return kind(**numbers)


_WHOLE: Final = frozenset({"sm_mhz", "running", "prompt_tokens", "cap_watts", "batch_limit", "gpus"})


def _columns(kind: type[Any]) -> list[str]:
    return [each.name for each in fields(kind)]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value or len(value) > 256:
        raise ProfileError(f"{name} of the profile is {str(value)[:60]!r}: it must be a text of 1 to 256 characters")
    return value


def _whole(body: Mapping[str, Any], name: str, low: int) -> int:
    value = body.get(name)
    if type(value) is not int or not low <= value <= _MAX_NUMBER:
        raise ProfileError(f"{name} of the profile is {value!r}: it must be a whole number of {low} or more")
    return value


def _points(body: Mapping[str, Any], table: str, kind: type[_Point]) -> tuple[_Point, ...]:
    held = body.get(table)
    if not isinstance(held, dict) or held.get("columns") != _columns(kind) or not isinstance(held.get("rows"), list):
        raise ProfileError(
            f"{table} of the profile is no table of {', '.join(_columns(kind))}: make it anew with `flyball profile`"
        )
    rows = held["rows"]
    if len(rows) > _MAX_POINTS:
        raise ProfileError(f"{table} of the profile has {len(rows)} rows: at most {_MAX_POINTS} are read")
    points = []
    for number, row in enumerate(rows):
        try:
            points.append(point_of(kind, row))
        except ProfileError as error:
            raise ProfileError(f"{table} row {number} of the profile: {error}; make it anew") from None
    return tuple(points)
