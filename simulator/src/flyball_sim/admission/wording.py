"""The words of the API server: its field errors, and how Go prints what it quotes in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal

Kind = Literal["Required value", "Invalid value", "Wrong type", "Too long", "Too many", "Duplicate value"]

BLOCKING: Final = frozenset({"Required value", "Wrong type", "Too long", "Too many"})
"""Kinds after which the API server asks no CEL rule."""

NO_FIELD: Final = "<nil>"


class Omitted(Enum):
    """Stands for a value that is not printed."""

    VALUE = "value"


OMITTED: Final = Omitted.VALUE


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field error, as apimachinery's `field.Error`: kind, path of the field, the value it prints, and why."""

    kind: Kind
    field: str
    value: Any
    detail: str

    def sentence(self) -> str:
        """The line that kubectl prints for it."""
        # The API server tells a wrong type from another invalid value, and prints both alike.
        said = "Invalid value" if self.kind == "Wrong type" else self.kind
        shown = "" if self.value is OMITTED else f": {go_value(self.value)}"
        return f"{self.field}: {said}{shown}{f': {self.detail}' if self.detail else ''}"


def required(field: str, detail: str = "") -> FieldError:
    """A field that must be given is not."""
    return FieldError("Required value", field, OMITTED, detail)


def invalid(field: str, value: Any, detail: str) -> FieldError:
    """A value that is not acceptable."""
    return FieldError("Invalid value", field, value, detail)


def wrong_type(field: str, expected: str, given: str) -> FieldError:
    """A value of another type than the schema's."""
    return FieldError("Wrong type", field, given, f'{field} in body must be of type {expected}: "{given}"')


def too_long(field: str, longest: int) -> FieldError:
    """A text beyond its bound. The API server counts characters and says bytes."""
    unit = "byte" if longest == 1 else "bytes"
    return FieldError("Too long", field, OMITTED, f"may not be more than {longest} {unit}")


def too_many(field: str, count: int, most: int) -> FieldError:
    """A list or map with more entries than allowed."""
    unit = "item" if most == 1 else "items"
    return FieldError("Too many", field, count, f"must have at most {most} {unit}")


def duplicate(field: str, value: Any) -> FieldError:
    """An entry that is there already."""
    return FieldError("Duplicate value", field, value, "")


def go_value(value: Any) -> str:
    """A JSON value as a field error prints it."""
    if isinstance(value, str):
        return go_quote(value)
    if isinstance(value, float):
        return go_float(value)
    return go_json(value)


def go_float(value: float) -> str:
    """A number as Go's `%v` and `%g` print it: the shortest digits, with an exponent below 1e-4 and from 1e6 on."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
    sign, digits, exponent = _shortest(value)
    power = len(digits) + exponent - 1
    if value and not -4 <= power < 6:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if exponent >= 0:
        return f"{sign}{digits}{'0' * exponent}"
    whole = digits[:exponent] or "0"
    return f"{sign}{whole}.{digits[exponent:].rjust(-exponent, '0')}"


def _shortest(value: float) -> tuple[str, str, int]:
    """Sign, the shortest digits that read back as this number, and the power of ten they stand for."""
    mantissa, _, power = f"{abs(value):e}".partition("e") if value == 0 else repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, exponent = whole + fraction, int(power or 0) - len(fraction)
    stripped = digits.lstrip("0").rstrip("0")
    exponent += len(digits) - len(digits.rstrip("0"))
    sign = "-" if math.copysign(1, value) < 0 else ""
    return (sign, stripped, exponent) if stripped else (sign, "0", 0)


_ESCAPES: Final[Mapping[str, str]] = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", '"': '\\"', "\\": "\\\\",
}  # fmt: skip


def go_quote(text: str) -> str:
    """A text as Go's `%q` prints it."""
    return f'"{"".join(_quoted(character) for character in text)}"'


def _quoted(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def go_json(value: Any) -> str:
    """A value as Go's `json.Marshal` writes it: keys sorted, no spaces, and escaped so that HTML can hold it."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
