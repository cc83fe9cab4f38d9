"""Time as the node's loops see it, injected so that tests may step it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Clock:
    """Wall clock (aware, UTC), monotonic seconds, and a sleep that goes with them."""

    now: Callable[[], datetime] = _utc_now
    monotonic_seconds: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
