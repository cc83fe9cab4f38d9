"""When a controller is asked: at the time it named, as soon as the page it waits for is there, and at its events. Pure.

Pages come in their own rhythm. A controller that wants one decision for each page would, asked at its time alone, see
pages of up to a period ago: so it is asked with the page when that comes a little before its time, or may be waited
for a little after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flyball_agent.controllers.base import ControlLimits, Decision, Event, GroupController, Setup
from flyball_agent.facts import LEAST_SCRAPE_SECONDS, SCRAPE_SECONDS, EngineState
from flyball_agent.scanner import EngineSample

LAST_SCRAPE_SECONDS: Final = 10.0
"""The slowest that a controller may have its engine scraped."""
_EARLY_SHARE: Final = 0.1
_LATE_SHARE: Final = 0.25
COMPLAINT_SECONDS: Final = 10.0
"""A complaint of a controller stands at least this long: each that comes or goes is a write to the API server."""
_ORDER: Final[tuple[Event, ...]] = ("arrival", "completion", "iteration")


@dataclass(slots=True)
class Asked:
    """A controller, when it was asked last, and when it is next.

    Attributes:
        controller: which.
        setup: what it was told that it drives.
        period_seconds: how often it wants a page.
        limits: it was asked with; None: it never was.
        decision: its last.
        turn: how many it made.
        wake: monotonic seconds at which it wants to be asked.
        patient: whether it can wait a little for a page then.
        next_look: monotonic seconds at which to look whether it is to be asked.
        pages: of its engine when it was asked.
        sample: the page when it was asked.
        complaint: what kept it from controlling well, not longer ago than a complaint stands.
        complained_at: monotonic seconds at which it last said so.
    """

    controller: GroupController
    setup: Setup
    period_seconds: float
    limits: ControlLimits | None = None
    decision: Decision | None = None
    turn: int = 0
    wake: float = 0.0
    patient: bool = False
    next_look: float = 0.0
    pages: int = 0
    sample: EngineSample | None = None
    complaint: tuple[str, ...] = ()
    complained_at: float = 0.0

    def due(self, limits: ControlLimits, state: EngineState | None, now: float) -> tuple[bool, Event | None]:
        """Whether to ask it now, and what woke it."""
        if self.decision is None or limits != self.limits:
            return True, None
        if state is None or state.at is None:
            return now >= self.wake, None
        if state.pages != self.pages:
            event = self._event(state.sample)
            if event is not None or now >= self.wake - _EARLY_SHARE * self.period_seconds:
                return True, event
        if now < self.wake:
            return False, None
        expected = state.at + (1.0 + _LATE_SHARE) * self.period_seconds
        if self.patient and state.pages == self.pages and now < expected:
            self.next_look = expected
            return False, None
        return True, None

    def note(self, decision: Decision, limits: ControlLimits, state: EngineState | None, now: float) -> None:
        """It was asked."""
        wait = max(0.0, float(decision.next_wake_seconds))
        self.decision, self.limits = decision, limits
        self.turn += 1
        self.wake = self.next_look = now + wait
        self.patient = wait >= self.period_seconds / 2
        if decision.degraded:
            self.complaint, self.complained_at = decision.degraded, now
        elif now - self.complained_at >= COMPLAINT_SECONDS:
            self.complaint = ()
        if state is not None:
            self.pages, self.sample = state.pages, state.sample

    def _event(self, sample: EngineSample | None) -> Event | None:
        events = self.controller.events
        if not events or sample is None or self.sample is None:
            return None
        seen = happened(self.sample, sample)
        return next((event for event in _ORDER if event in events and event in seen), None)


def period_of(controller: GroupController) -> float:
    """How often a controller's engine is scraped, within bounds."""
    period = float(controller.period_seconds)
    if not period > 0:
        return SCRAPE_SECONDS
    return min(max(period, LEAST_SCRAPE_SECONDS), LAST_SCRAPE_SECONDS)


def happened(before: EngineSample, now: EngineSample) -> frozenset[Event]:
    """What two pages of an engine tell of what was between them; of one that began anew, everything.

    What one of them lacks tells nothing.
    """
    done = _grown(_completions(before), _completions(now))
    steps = [_grown(before.values.get(name), now.values.get(name)) for name in ("generation_tokens", "prompt_tokens")]
    if done < 0 or min(steps) < 0:
        return frozenset(_ORDER)
    inside = [_grown(before.values.get(name), now.values.get(name)) for name in _INSIDE]
    seen: dict[Event, bool] = {"arrival": sum(inside) + done > 0, "completion": done > 0, "iteration": max(steps) > 0}
    return frozenset(event for event, holds in seen.items() if holds)


_INSIDE: Final = ("requests_running", "requests_waiting")


def _completions(sample: EngineSample) -> float | None:
    histogram = sample.histograms.get("end_to_end")
    return None if histogram is None else histogram.count


def _grown(before: float | None, now: float | None) -> float:
    return 0.0 if before is None or now is None else now - before
