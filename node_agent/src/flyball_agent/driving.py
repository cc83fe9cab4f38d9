"""Runs the controllers of all groups: makes them, asks them, checks what they answer, and survives what they raise.

Pure: time is passed in.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flyball_agent.asking import Asked, period_of
from flyball_agent.controllers.base import (
    NEVER_SECONDS,
    UNLOCKED,
    ControlLimits,
    Decision,
    GroupController,
    GroupSetpoint,
    Setup,
)
from flyball_agent.controllers.observing import Observing
from flyball_agent.facts import Engine, EngineState, Report, Wish
from flyball_agent.groups import Group, lineage, metric_faults, observe
from flyball_agent.memory import Remembered, digest, setup_digest

MakeController = Callable[..., GroupController]
"""Called with a policy's `controller`, `observe=` and `setup=`."""

FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 60.0
FORGIVEN_SECONDS: Final = 600.0
"""A controller that failed this long ago is tried again as soon as one that never did."""
MAX_NOTES: Final = 100
_MAX_TEXT: Final = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows for a group.

    Attributes:
        setpoint: what to write, fail-safe included.
        would: what Enforce would write.
        faults: code -> sentence, for each card of the group.
        turn: which decision of its controller this is.
        because: the controller's line on it.
    """

    setpoint: GroupSetpoint
    would: GroupSetpoint
    faults: Mapping[str, str]
    turn: int = 0
    because: str = ""


@dataclass(slots=True)
class _Failure:
    """A controller that raised."""

    sentence: str
    at: float
    retry_at: float
    retry_seconds: float


class GroupDriver:
    """Runs the controllers of all groups.

    Args:
        make: makes a controller.
    """

    def __init__(self, make: MakeController) -> None:
        self._make = make
        self._asked: dict[tuple[Any, ...], Asked] = {}
        self._failures: dict[tuple[Any, ...], _Failure] = {}
        self._outcomes: dict[tuple[Any, ...], Outcome] = {}
        self._memory: dict[str, Remembered] = {}
        self._notes: list[str] = []

    def keep(self, groups: Sequence[Group]) -> None:
        """Forget the controllers of groups that are gone.

        Where a group is from now on driven instead of watched, or the other way round, what was learnt goes on.
        """
        keys = {group.key for group in groups}
        heirs = {lineage(group.key): group for group in groups if group.key not in self._asked}
        for key in self._asked.keys() - keys:
            heir = heirs.get(lineage(key))
            if heir is not None:
                self._hand_over(self._asked[key], heir)
        self._asked = {key: value for key, value in self._asked.items() if key in keys}
        self._failures = {key: value for key, value in self._failures.items() if key in keys}
        self._outcomes = {key: value for key, value in self._outcomes.items() if key in keys}

    def _hand_over(self, asked: Asked, heir: Group) -> None:
        kind, name, controller = heir.policy.controller.type, heir.policy.name, asked.controller
        try:
            state = controller.watched_state() if isinstance(controller, Observing) else controller.state()
        except Exception as error:  # noqa: BLE001 - a controller's fault must not be the node's
            self._note(f"{kind} for policy {name} cannot say what it learnt: {_text(error)}")
            return
        if state:
            key = digest(*heir.key)
            self._memory[key] = Remembered(key, setup_digest(asked.setup), name, kind, state)

    def next_wake(self) -> float | None:
        """When the first controller wants to be asked again, in monotonic seconds."""
        wakes = [max(asked.wake, asked.next_look) for asked in self._asked.values()]
        wakes += [failure.retry_at for key, failure in self._failures.items() if key not in self._asked]
        return min(wakes, default=None)

    def wishes(self, groups: Sequence[Group]) -> dict[Engine, Wish]:
        """What to read of the groups' engines."""
        wishes: dict[Engine, Wish] = {}
        for group in groups:
            if group.engine is None:
                continue
            wish, before = self._wish(group), wishes.get(group.engine)
            if before is not None:
                wish = Wish(min(wish.period_seconds, before.period_seconds), wish.board or before.board)
            wishes[group.engine] = wish
        return wishes

    def _wish(self, group: Group) -> Wish:
        asked = self._asked.get(group.key)
        if asked is None:
            return Wish()
        board = asked.controller.wants_board
        if asked.decision is not None:
            # Whoever would limit an engine is shown whether it can be.
            setpoint = asked.decision.setpoint
            board = board or setpoint.batch_limit is not None or setpoint.admit is not None
        return Wish(asked.period_seconds, board)

    def awaits_page(self, group: Group, state: EngineState, now: float) -> bool:
        """Whether the controller is to be asked because of the page that has just come."""
        asked = self._asked.get(group.key)
        return asked is not None and asked.limits is not None and asked.due(asked.limits, state, now)[0]

    # -- deciding ------------------------------------------------------------------------------------------

    def outcome(
        self,
        group: Group,
        limits: ControlLimits,
        reports: Mapping[str, Report],
        state: EngineState | None,
        now: float,
        *,
        setup: Setup | None = None,
    ) -> Outcome:
        """What to do with a group now.

        Args:
            group: which.
            limits: of `limits_of`.
            reports: the actuator's newest, by UUID.
            state: of the group's engine; None when it is not scraped.
            now: monotonic seconds.
            setup: what its controller is told that it drives.
        """
        asked = self._controller(group, setup or Setup(), now)
        try:
            decision = None if asked is None else _ask(asked, group, limits, reports, state=state, now=now)
        except Exception as error:  # noqa: BLE001 - a controller's fault must not be the node's
            decision = None
            self._fail(group, error, now)
        if asked is None or decision is None:
            faults = {"ControllerFailed": self._failures[group.key].sentence}
            return self._same(group, Outcome(UNLOCKED, UNLOCKED, faults))
        faults = metric_faults(group, asked.controller.requires, state, now)
        would = decision.setpoint if decision.would is None else decision.would
        if asked.complaint:
            faults["Degraded"] = "; ".join(asked.complaint)
        if "MetricsStale" in faults or "MetricMissing" in faults:
            # The safe state for the SLO is full clocks; the cap is the operator's grant and stays.
            return self._same(group, Outcome(UNLOCKED, UNLOCKED, faults, asked.turn, "fail-safe: metrics"))
        return self._same(group, Outcome(decision.setpoint, would, faults, asked.turn, decision.because[:_MAX_TEXT]))

    def _same(self, group: Group, outcome: Outcome) -> Outcome:
        self._outcomes[group.key] = outcome
        return outcome

    def _controller(self, group: Group, setup: Setup, now: float) -> Asked | None:
        asked, failure = self._asked.get(group.key), self._failures.get(group.key)
        if asked is not None and (asked.setup is setup or asked.setup == setup):
            return asked
        if asked is None and failure is not None and now < failure.retry_at:
            return None
        if asked is not None:
            self._note(f"controller of policy {group.policy.name}: its cards or its profile changed, it starts afresh")
            del self._asked[group.key]
        try:
            controller = self._begin(group, setup, fresh=failure is not None)
            made = self._asked[group.key] = Asked(controller, setup, period_of(controller))
        except Exception as error:  # noqa: BLE001 - see above
            self._fail(group, error, now)
            return None
        return made

    def _begin(self, group: Group, setup: Setup, *, fresh: bool) -> GroupController:
        make, kind, name = self._make, group.policy.controller.type, group.policy.name
        controller = make(group.policy.controller, observe=group.observed, setup=setup)
        kept = self._memory.pop(digest(*group.key), None)
        if kept is None or fresh:
            return controller
        if kept.kind != kind or kept.setup != setup_digest(setup):
            self._note(f"kept state of {kind} for policy {name} is of other cards or another profile: it starts afresh")
            return controller
        try:
            controller.restore(kept.state)
        except Exception as error:  # noqa: BLE001 - whatever an older agent wrote
            self._note(f"kept state of {kind} for policy {name} discarded, it starts afresh: {_text(error)}")
            return make(group.policy.controller, observe=group.observed, setup=setup)
        self._note(f"{kind} for policy {name} goes on from its kept state")
        return controller

    def _fail(self, group: Group, error: Exception, now: float) -> None:
        before = self._failures.get(group.key)
        wait = FIRST_RETRY_SECONDS
        if before is not None and now - before.at < FORGIVEN_SECONDS:
            wait = min(2 * before.retry_seconds, LAST_RETRY_SECONDS)
        kind, name = group.policy.controller.type, group.policy.name
        sentence = (
            f"controller {kind} of policy {name} failed ({_text(error)}): clocks are unlocked, and it starts afresh"
            f" after {wait:.0f} s; choose another spec.controller.type if it does so again"
        )
        self._failures[group.key] = _Failure(sentence, now, now + wait, wait)
        self._asked.pop(group.key, None)
        at = traceback.extract_tb(error.__traceback__)
        place = f" at {at[-1].filename}:{at[-1].lineno}" if at else ""
        self._note(f"controller {kind} of policy {name} failed{place}: {_text(error)}")

    # -- memory --------------------------------------------------------------------------------------------

    def recall(self, kept: Mapping[str, Remembered]) -> None:
        """What controllers learnt in an earlier life of the agent, by key."""
        self._memory = dict(kept)

    def remembered(self, groups: Sequence[Group]) -> list[Remembered]:
        """What is to be kept of these groups' controllers, those included that have not been made yet."""
        entries = []
        keys = {group.key: digest(*group.key) for group in groups}
        self._memory = {key: entry for key, entry in self._memory.items() if key in keys.values()}
        for group in groups:
            key, asked = keys[group.key], self._asked.get(group.key)
            if asked is None:
                if key in self._memory:
                    entries.append(self._memory[key])
                continue
            kind, name = group.policy.controller.type, group.policy.name
            try:
                state = asked.controller.state()
            except Exception as error:  # noqa: BLE001 - see above
                self._note(f"{kind} for policy {name} cannot say what it learnt: {_text(error)}")
                continue
            if state:
                entries.append(Remembered(key, setup_digest(asked.setup), name, kind, state))
        return entries

    # -- saying --------------------------------------------------------------------------------------------

    def last(self, group: Group) -> Outcome | None:
        """What was decided last for a group."""
        return self._outcomes.get(group.key)

    def degraded(self, group: Group) -> tuple[str, ...]:
        """What keeps a group's controller from controlling well."""
        asked = self._asked.get(group.key)
        return () if asked is None else asked.complaint

    def take_notes(self) -> list[str]:
        """Sentences for the log since this was last called."""
        notes, self._notes = self._notes, []
        return notes

    def _note(self, sentence: str) -> None:
        if len(self._notes) < MAX_NOTES:
            self._notes.append(sentence)


def _ask(
    asked: Asked,
    group: Group,
    limits: ControlLimits,
    reports: Mapping[str, Report],
    *,
    state: EngineState | None,
    now: float,
) -> Decision:
    """The controller's decision now: a new one if it is due, else its last."""
    due, event = asked.due(limits, state, now)
    if due or asked.decision is None:
        decision = asked.controller.decide(observe(group, reports, state, now, event), limits, now)
        made = checked(decision, limits)
        asked.note(made, limits, state, now)
        return made
    return asked.decision


def checked(decision: Decision, limits: ControlLimits) -> Decision:
    """The decision with its clocks and its cap within the limits.

    Raises:
        ValueError: it asks for what cannot be, or its words are none.
    """
    wait = decision.next_wake_seconds
    if not wait >= 0:
        raise ValueError(f"next_wake_seconds is {wait}: it must be 0 or more")
    said = (decision.because, *decision.degraded)
    if isinstance(decision.degraded, str) or not all(isinstance(words, str) for words in said):
        raise ValueError("because and degraded are not a text and a tuple of texts")
    setpoint = _within(decision.setpoint, limits)
    would = decision.would if decision.would is None else _within(decision.would, limits)
    if setpoint is decision.setpoint and would is decision.would and wait <= NEVER_SECONDS:
        return decision
    return replace(decision, setpoint=setpoint, would=would, next_wake_seconds=min(wait, NEVER_SECONDS))


def _within(setpoint: GroupSetpoint, limits: ControlLimits) -> GroupSetpoint:
    for name, low in (("cap_watts", 1), ("batch_limit", 1), ("admit", 0)):
        value = getattr(setpoint, name)
        if value is not None and (not isinstance(value, int) or value < low):
            raise ValueError(f"{name} is {value!r}: it must be a whole number of {low} or more")
    if setpoint.cap_watts is not None and (limits.cap_watts is None or setpoint.cap_watts > limits.cap_watts):
        setpoint = replace(setpoint, cap_watts=None)
    if setpoint.sm_mhz is None:
        return setpoint
    low_mhz, high_mhz = setpoint.sm_mhz
    if not (isinstance(low_mhz, int) and isinstance(high_mhz, int) and 0 < low_mhz <= high_mhz):
        raise ValueError(f"sm_mhz is {setpoint.sm_mhz!r}: it must be two whole MHz, the lower first")
    held = limits.clip(low_mhz, high_mhz)
    return setpoint if held == setpoint.sm_mhz else replace(setpoint, sm_mhz=held)


def _text(error: Exception) -> str:
    said = str(error) or type(error).__name__
    return f"{type(error).__name__}: {said}"[:_MAX_TEXT] if str(error) else said
