"""The actuator's protocol: one JSON object a line each way, checked field by field.

Requests carry `op` and a number `id`, which the answer repeats. An answer has `ok`; when that is false, `code` and
`error`, a sentence that names field, value and mend.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

MAX_LINE_BYTES: Final = 4096
OPERATIONS: Final = ("hello", "capabilities", "set", "renew", "read", "release", "status", "hold")
_MAX_MHZ: Final = 10_000
_MAX_WATTS: Final = 10_000
_MAX_LEASE_SECONDS: Final = 60


class MessageError(Exception):
    """A request that is not understood; the message names field, value and mend."""


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request. Fields that its operation does not have are None.

    Attributes:
        operation: one of `OPERATIONS`.
        number: repeated in the answer.
        session: hello: the agent's life.
        gpu: set, release, hold: UUID.
        sm_mhz: set: (lowest, highest) SM clock to lock, None to unlock.
        cap_watts: set: power cap, None to leave it alone.
        ceiling_watts: set: the highest cap granted; `cap_watts` is clamped to it.
        lease_seconds: set, hold: how long the lock, or the hold, outlives the last sign of life.
        writes: renew: False while the cluster-wide switch forbids all writing.
    """

    operation: str
    number: int
    session: str | None = None
    gpu: str | None = None
    sm_mhz: tuple[int, int] | None = None
    cap_watts: float | None = None
    ceiling_watts: float | None = None
    lease_seconds: float | None = None
    writes: bool = True


def parse(line: bytes) -> Request:
    """Check one line.

    Raises:
        MessageError: it is not a request.
    """
    try:
        body = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"line {line[:60]!r} is not JSON ({error}): send one JSON object a line") from error
    if not isinstance(body, dict):
        raise MessageError(f"line {line[:60]!r} is not an object: send one JSON object a line")
    operation = body.get("op")
    if operation not in OPERATIONS:
        raise MessageError(f"op is {operation!r}: use one of {', '.join(OPERATIONS)}")
    number = _number(body, "id", 0, 2**53)
    if operation == "hello":
        return Request(operation, int(number), session=_text(body, "session"))
    if operation == "release":
        return Request(operation, int(number), gpu=_text(body, "gpu"))
    if operation == "hold":
        lease_seconds = _number(body, "lease_seconds", 1, _MAX_LEASE_SECONDS)
        return Request(operation, int(number), gpu=_text(body, "gpu"), lease_seconds=lease_seconds)
    if operation == "renew":
        writes = body.get("writes", True)
        if not isinstance(writes, bool):
            raise MessageError(f"writes is {writes!r}: use true or false")
        return Request(operation, int(number), writes=writes)
    if operation == "set":
        return Request(
            operation,
            int(number),
            gpu=_text(body, "gpu"),
            sm_mhz=_clocks(body),
            cap_watts=_optional(body, "cap_watts", _MAX_WATTS),
            ceiling_watts=_optional(body, "ceiling_watts", _MAX_WATTS),
            lease_seconds=_number(body, "lease_seconds", 1, _MAX_LEASE_SECONDS),
        )
    return Request(operation, int(number))


def encode(answer: dict[str, Any]) -> bytes:
    """One answer as a line."""
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not 1 <= len(value) <= 96:
        raise MessageError(f"{field} is {value!r}: give a text of 1 to 96 characters")
    return value


def _number(body: dict[str, Any], field: str, low: float, high: float) -> float:
    value = body.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise MessageError(f"{field} is {value!r}: give a number from {low:g} to {high:g}")
    return value


def _optional(body: dict[str, Any], field: str, high: float) -> float | None:
    return None if body.get(field) is None else _number(body, field, 1, high)


def _clocks(body: dict[str, Any]) -> tuple[int, int] | None:
    value = body.get("sm_mhz")
    if value is None:
        return None
    whole = isinstance(value, list) and len(value) == 2 and all(type(mhz) is int for mhz in value)
    if not whole or not 1 <= value[0] <= value[1] <= _MAX_MHZ:
        raise MessageError(f"sm_mhz is {value!r}: give [lowest, highest] in whole MHz up to {_MAX_MHZ}, or null")
    return (value[0], value[1])
