"""Small parts the adapter is made of: times, pace, failed answers, lines of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime

import aiohttp

from flyball_api.kube_errors import KubeError, UnreachableError, error_from_status


def rfc3339_micro(moment: datetime) -> str:
    """A `MicroTime` of the Kubernetes API, for example `2026-11-21T10:00:00.000000Z`.

    Args:
        moment: aware; any time zone.
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Pace:
    """Spaces requests: on average one every `1 / per_second`, `burst` of them at once (GCRA)."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        self._interval = 1.0 / per_second
        self._slack = self._interval * (burst - 1)
        self._clock = clock
        self._due = clock()

    def reserve(self) -> float:
        """Take the next slot; returns how many seconds to wait for it."""
        now = self._clock()
        self._due = max(self._due, now) + self._interval
        return max(0.0, self._due - self._interval - self._slack - now)


async def error_of(response: aiohttp.ClientResponse, asked: str) -> KubeError:
    """The error that an answer of 300 or more stands for; `asked` opens its message."""
    raw = await response.read()
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        # Not the API server's own words: a proxy or a load balancer.
        body = {"message": raw[:200].decode(errors="replace")}
    header = response.headers.get("Retry-After", "")
    retry_after_seconds = float(header) if header.isdecimal() else None
    return error_from_status(response.status, body, asked, retry_after_seconds)


async def lines_of(stream: aiohttp.StreamReader, asked: str) -> AsyncGenerator[bytes, None]:
    """The non-empty lines of a watch. `UnreachableError` when the stream ends inside one."""
    # Split here: StreamReader.readline refuses lines beyond its buffer, and an object may have megabytes.
    rest = bytearray()
    async for piece in stream.iter_any():
        rest += piece
        if b"\n" in piece:
            *lines, tail = rest.split(b"\n")
            rest = bytearray(tail)
            for line in lines:
                if line.strip():
                    yield bytes(line)
    if rest.strip():
        raise UnreachableError(f"{asked}: the stream was cut inside an event")
