"""A document as it reaches the API server: YAML as kubectl reads it, numbers as its JSON carries them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from flyball_sim.admission.wording import go_float

_INT64: Final = range(-(2**63), 2**63)
_WRITTEN_AS_WHOLE: Final = 1e21
"""Go's JSON writes a whole number below this without a point, so that it is read back as an integer."""


class DocumentError(ValueError):
    """A document that cannot be sent; the message says what is wrong with it."""


class _Loader(yaml.SafeLoader):
    """Takes a plain word for what kubectl takes it for, which PyYAML does not.

    `1e3` and `0o17` are numbers, `y` is true, `2026-01-01` and `1:30` are texts.
    """

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's name
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012


_INT: Final = r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)"
_FLOAT: Final = (
    r"[-+]?(?:\.[0-9_]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOL: Final = r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"
for _tag, _pattern, _first in (
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("bool", _BOOL, list("yYnNtTfFoO")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse_yaml(text: str) -> Any:
    """The one document of this text; of a repeated key the last counts, as for kubectl.

    Raises:
        DocumentError: not YAML, or not one document.
    """
    documents = parse_documents(text)
    if len(documents) != 1:
        raise DocumentError(f"{len(documents)} documents: give one EnergyPolicy")
    return documents[0]


def parse_documents(text: str) -> list[Any]:
    """Every document of this text that holds something, read like `parse_yaml`.

    Raises:
        DocumentError: not YAML.
    """
    try:
        return [found for found in yaml.load_all(text, Loader=_Loader) if found is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError(f"not YAML ({' '.join(str(error).split())})") from error


def as_sent(value: Any) -> Any:
    """The value as the API server reads it from kubectl's JSON.

    Keys become texts; whole numbers become integers, however they were written; integers beyond 64 bits floats.

    Raises:
        DocumentError: it holds what JSON cannot carry.
    """
    try:
        return _sent(value)
    except RecursionError as error:
        raise DocumentError("a part that holds itself, or parts too deep in each other: write it out flat") from error


def _sent(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_key(key): _sent(entry) for key, entry in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_sent(entry) for entry in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    raise DocumentError(f"{value!r} is of type {type(value).__name__}: give text, numbers, lists and maps")


def _number(value: float) -> float:
    if isinstance(value, int) and value in _INT64:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if not math.isfinite(number):
        raise DocumentError(f"{go_float(number)} is a number that JSON cannot carry: give a finite one")
    if number.is_integer() and abs(number) < _WRITTEN_AS_WHOLE and int(number) in _INT64:
        return int(number)
    return number


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return str(key).lower()
    if isinstance(key, int):
        return str(key)
    if isinstance(key, float):
        return go_float(key)
    raise DocumentError(f"{key!r} is a key of type {type(key).__name__}: give a text")
