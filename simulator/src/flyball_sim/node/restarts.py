"""When a container that ended is started again: 1 s, doubling to 30 s, forgiven after 60 good seconds. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
FORGIVEN_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class Backoff:
    """The back-off of one container; `delay_seconds` is the wait before its next start (0: none yet)."""

    delay_seconds: float = 0.0

    def after_run(self, ran_seconds: float) -> Backoff:
        """The back-off once a run of this length has ended."""
        if self.delay_seconds == 0.0 or ran_seconds >= FORGIVEN_AFTER_SECONDS:
            return Backoff(FIRST_DELAY_SECONDS)
        return Backoff(min(2 * self.delay_seconds, LONGEST_DELAY_SECONDS))
