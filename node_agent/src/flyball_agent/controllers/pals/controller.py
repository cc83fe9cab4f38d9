"""PALS: every 0.5 s the cap and the batch that an offline model says are most efficient for what is asked.

Faithful to arXiv 2605.21427: the period, the joint choice under budget and target, the fallback to the fastest choice
within the budget, PID feedback that a deviation of 5 % must persist for, and budgets that act at once. The paper
publishes no gains, filters, margins or dwell times: those are our reading of it (parameters of the API).

What differs, and why:

* The target is 1.15 of the mean offered output where none is set, and never more than that where one is: an engine
  with nothing to do would otherwise be driven as if it had.
* Offered output is put together from standard metrics (`telemetry`); the paper's is its load generator's.
* A choice is within the budget also when its caps' sum is: the card itself holds a cap, whatever the model says.
* A forest is a table on its grid, which is all that runs here (`fit`).
* It knows output and power only: no time to first token, none per output token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.controllers.base import (
    UNLOCKED,
    ControlLimits,
    Decision,
    Event,
    GroupSetpoint,
    Observation,
    Setup,
)
from flyball_agent.controllers.pals.feedback import Feedback, Gains
from flyball_agent.controllers.pals.table import (
    Bounds,
    Candidate,
    Choice,
    NodePower,
    Table,
    choose,
    nearest,
    read_table,
)
from flyball_agent.controllers.pals.telemetry import Counts, Telemetry
from flyball_agent.scanner import METRIC_NAMES
from flyball_api.controllers.pals import PalsController

PERIOD_SECONDS: Final = 0.5
STALE_SECONDS: Final = 5.0
"""A page older than this says nothing of now."""
BOARD_SECONDS: Final = 5.0
"""An engine that showed its scheduler so recently has a batch knob."""
TRIM_SAMPLES: Final = 2
TRIM_SECONDS: Final = 10.0
"""A trimmed cap may rise again after the cards drew less than the budget and margin for so long."""
STATE_VERSION: Final = 1
_NEEDS: Final = frozenset({"generation_tokens", "requests_running", "requests_waiting"})


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked of the next choice.

    Attributes:
        bounds: it is judged by.
        target: output that is wanted; None: not known yet.
        correction: of the target by the feedback, a share.
    """

    bounds: Bounds
    target: float | None
    correction: float


class Pals:
    """Chooses cap and batch limit together; a state machine with the clock passed in.

    Args:
        parameters: `spec.controller.pals` of the policy.
        setup: what it drives; its profile must hold a fit for PALS.
    """

    events: frozenset[Event] = frozenset()
    period_seconds = PERIOD_SECONDS

    def __init__(self, parameters: PalsController, setup: Setup | None = None) -> None:
        self._parameters, self._setup = parameters, setup or Setup()
        self.requires = _NEEDS if parameters.target_tokens_per_second else _NEEDS | {"end_to_end"}
        self.wants_board = parameters.batch_knob
        self._table, self._trouble = _table_of(self._setup)
        self._node = NodePower(parameters.node_base_watts, parameters.node_factor_percent / 100.0)
        self._gains = Gains(
            proportional=parameters.proportional_percent / 100.0,
            integral_per_second=parameters.integral_percent / 100.0,
            derivative_seconds=parameters.derivative_percent / 100.0,
            most=parameters.correction_percent / 100.0,
            deviation=parameters.deviation_percent / 100.0,
            ticks=parameters.deviation_ticks,
        )
        self._telemetry, self._feedback = self._fresh()
        self._chosen: Choice | None = None
        self._used: tuple[float, float | None] | None = None
        self._correction = 0.0
        self._seen_seconds: float | None = None
        self._switched_seconds: float | None = None
        self._due = False
        self._shown: tuple[int, int] | None = None
        self._board: tuple[float, int] | None = None
        self._offer: tuple[tuple[int | None, int, bool], tuple[Candidate, ...]] | None = None
        self._offered: Sequence[Candidate] = ()
        self._ceiling_watts: float | None = None
        self._over = 0
        self._under_since: float | None = None

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """See `GroupController.decide`."""
        table = self._table
        if table is None:
            return Decision(
                UNLOCKED,
                next_wake_seconds=PERIOD_SECONDS,
                degraded=(self._trouble,),
                because="no model: clocks unlocked, caps as granted",
            )
        counts = Counts.of(observation)
        blind = self._blind(observation, counts)
        if counts is None or blind:
            waiting = observation.engine is None
            return Decision(
                UNLOCKED,
                next_wake_seconds=PERIOD_SECONDS,
                degraded=() if waiting else (blind,),
                because=f"{blind}: clocks unlocked, caps as granted",
            )
        knob = self._has_knob(observation, now_seconds)
        candidates = self._candidates(table, limits.cap_watts, knob=knob)
        age = observation.engine_age_seconds or 0.0
        wanted = self._wanted(counts, now_seconds - age, self._budget(limits), table.gpus)
        self._trim(observation, wanted.bounds, limits, now_seconds)
        chosen = self._choice(candidates, wanted, now_seconds)
        cap, batch = self._staged(chosen, wanted.bounds)
        return Decision(
            self._setpoint(chosen, (cap, batch if knob else None), limits),
            next_wake_seconds=PERIOD_SECONDS,
            degraded=self._troubles(table, chosen, wanted, limits, knob=knob),
            because=self._because(chosen, wanted, cap, knob=knob),
        )

    # -- what is seen ----------------------------------------------------------------------------------------

    def _blind(self, observation: Observation, counts: Counts | None) -> str:
        """Why nothing can be said of the engine now; empty: it can."""
        age = observation.engine_age_seconds
        if observation.engine is None or age is None:
            return "no page of the engine has come yet"
        if age > STALE_SECONDS:
            return f"the engine's newest page is {age:.0f} s old"
        lacking = sorted(METRIC_NAMES[name] for name in self.requires & set(observation.missing))
        if lacking:
            return f"the engine's page lacks {', '.join(lacking)}"
        if counts is None:
            return f"the engine's page lacks a number of {', '.join(sorted(METRIC_NAMES[name] for name in _NEEDS))}"
        return ""

    def _has_knob(self, observation: Observation, now: float) -> bool:
        """Whether the engine's batch can be set."""
        if observation.board is not None:
            self._board = (now, observation.board.max_batch_limit)
        return self.wants_board and self._board is not None and 0.0 <= now - self._board[0] <= BOARD_SECONDS

    def _candidates(self, table: Table, granted: int | None, *, knob: bool) -> tuple[Candidate, ...]:
        """What may be chosen from: caps up to the granted one, batches up to the engine's; one where there is no knob.

        Never empty: where all is out of bounds, the lowest that the profile has.
        """
        most = self._board[1] if knob and self._board is not None else table.largest_batch
        key = (granted, most, knob)
        if self._offer is None or self._offer[0] != key:
            every = sorted({one.batch_limit for one in table.candidates})
            batches = {batch for batch in every if batch <= most} or {every[0]}
            batches = batches if knob else {max(batches)}
            levels = sorted({one.cap_watts for one in table.candidates})
            caps = {levels[-1]} if granted is None else {cap for cap in levels if cap <= granted} or {levels[0]}
            offer = tuple(one for one in table.candidates if one.cap_watts in caps and one.batch_limit in batches)
            self._offer = (key, offer)
        return self._offer[1]

    def _budget(self, limits: ControlLimits) -> float:
        """Most that the cards may draw together."""
        own = self._parameters.budget_watts
        granted = None if limits.cap_watts is None else float(limits.cap_watts * self._setup.gpus)
        known = [watts for watts in (granted, None if own is None else float(own)) if watts is not None]
        return min(known, default=float("inf"))

    def _wanted(self, counts: Counts, read_seconds: float, budget: float, gpus: int) -> _Wanted:
        telemetry, parameters = self._telemetry, self._parameters
        fresh = telemetry.see(counts, read_seconds)
        offered = telemetry.offered_tokens_per_second
        asked = None if offered is None else parameters.offered_percent / 100.0 * offered
        fixed = parameters.target_tokens_per_second
        known = [value for value in (asked, None if fixed is None else float(fixed)) if value is not None]
        target = min(known, default=None)
        measured = telemetry.tokens_per_second
        if fresh and measured is not None and target:
            starved = telemetry.waiting <= 0.0 and measured < target
            short = self._chosen is not None and not self._chosen.meets
            elapsed = 0.0 if self._seen_seconds is None else max(0.0, read_seconds - self._seen_seconds)
            # An engine that has nobody waiting lacks nothing, whatever the target is above what it is asked for.
            error = 0.0 if starved else (target - measured) / target
            self._correction = self._feedback.see(error, min(elapsed, STALE_SECONDS), frozen=starved or short)
            self._seen_seconds = read_seconds
        needed = None if target is None else target * (1.0 + self._correction)
        margin = parameters.model_margin_percent / 100.0
        return _Wanted(Bounds(budget, needed, margin, gpus, self._node), target, self._correction)

    # -- what is chosen --------------------------------------------------------------------------------------

    def _choice(self, candidates: Sequence[Candidate], wanted: _Wanted, now: float) -> Choice:
        current, bounds = self._chosen, wanted.bounds
        if current is not None and candidates is not self._offered:
            # A knob or the grant has changed what there is.
            near = nearest(candidates, current.candidate.cap_watts, current.candidate.batch_limit)
            current, self._due = Choice(near, meets=bounds.meets(near), within=bounds.within(near)), True
        self._offered = candidates
        if current is not None and not (self._due or self._changed(wanted) or self._feedback.persists):
            return current
        self._used = (bounds.budget_watts, wanted.target)
        best = choose(candidates, bounds)
        taken = best if current is None else self._settled(current, best, bounds, now)
        if current is None or taken.candidate != current.candidate:
            self._switched_seconds = now
        self._chosen = taken
        return taken

    def _changed(self, wanted: _Wanted) -> bool:
        """Whether budget or target are others than those of the last choice."""
        if self._used is None or wanted.bounds.budget_watts != self._used[0]:
            return True
        before, target = self._used[1], wanted.target
        if before is None or target is None:
            return before is not target
        return abs(target - before) > self._gains.deviation * before

    def _settled(self, current: Choice, best: Choice, bounds: Bounds, now: float) -> Choice:
        """The best choice, or the current one while a change does not pay or must wait."""
        held = current.candidate
        kept = Choice(held, meets=bounds.meets(held), within=bounds.within(held))
        self._due = False
        if best.candidate == held:
            return kept
        if kept.within == best.within and kept.meets == best.meets:
            if best.meets:
                gain = bounds.efficiency(best.candidate) / max(bounds.efficiency(held), 1e-12) - 1.0
            else:
                gain = best.candidate.tokens_per_second / held.tokens_per_second - 1.0
            if best.within and gain <= self._parameters.hysteresis_percent / 100.0:
                return kept
        rising = best.candidate.power_watts > held.power_watts
        dwell = self._parameters.dwell_up_milliseconds / 1000.0
        waited = self._switched_seconds is None or now - self._switched_seconds >= dwell - 1e-6
        if rising and not waited and kept.within:
            self._due = True
            return kept
        return best

    def _trim(self, observation: Observation, bounds: Bounds, limits: ControlLimits, now: float) -> None:
        """Lower the caps when the cards draw more than the budget, whatever the model says."""
        drawn = [gpu.power_watts for gpu in observation.gpus]
        if limits.cap_watts is None or not drawn or any(watts is None for watts in drawn):
            self._over = 0
            return
        budget, total = bounds.budget_watts, sum(watts for watts in drawn if watts is not None)
        if self._used is not None and self._used[0] != budget:
            self._ceiling_watts, self._over = None, 0
        self._over = self._over + 1 if total > budget else 0
        if self._over >= TRIM_SAMPLES:
            cap = float(limits.cap_watts) if self._shown is None else min(self._shown[0], limits.cap_watts)
            below = cap if self._ceiling_watts is None else min(cap, self._ceiling_watts)
            self._ceiling_watts = max(below - (total - budget) / len(drawn), self._setup.cap_min_watts)
            self._over = 0
        if total > budget * (1.0 - bounds.margin):
            self._under_since = None
        elif self._under_since is None:
            self._under_since = now
        elif now - self._under_since >= TRIM_SECONDS:
            self._ceiling_watts = None

    def _staged(self, chosen: Choice, bounds: Bounds) -> tuple[int, int]:
        """Cap and batch limit to show now: batch falls before the cap does, and the cap rises before the batch."""
        cap, batch = chosen.candidate.cap_watts, chosen.candidate.batch_limit
        shown = self._shown
        if shown is not None and self._setup.gpus * shown[0] <= bounds.budget_watts:
            if cap < shown[0] and batch < shown[1]:
                cap = shown[0]
            elif cap > shown[0] and batch > shown[1]:
                batch = shown[1]
        self._shown = (cap, batch)
        return cap, batch

    # -- what is said ----------------------------------------------------------------------------------------

    def _setpoint(self, chosen: Choice, shown: tuple[int, int | None], limits: ControlLimits) -> GroupSetpoint:
        cap, batch = shown
        if batch is not None and self._board is not None and batch >= self._board[1]:
            batch = None
        lock = None
        if not chosen.within and self._parameters.floor_clock:
            lock = (limits.sm_min_mhz, limits.sm_min_mhz)
        if limits.cap_watts is None:
            return GroupSetpoint(sm_mhz=lock, batch_limit=batch)
        trimmed = cap if self._ceiling_watts is None else min(cap, int(self._ceiling_watts))
        held = max(min(trimmed, limits.cap_watts), min(round(self._setup.cap_min_watts), limits.cap_watts))
        return GroupSetpoint(lock, held if held < limits.cap_watts else None, batch)

    def _troubles(
        self, table: Table, chosen: Choice, wanted: _Wanted, limits: ControlLimits, *, knob: bool
    ) -> tuple[str, ...]:
        found = []
        if not chosen.within:
            locked = "; clocks are locked to the lowest" if self._parameters.floor_clock else ""
            found.append(
                f"BUDGET_INFEASIBLE: the cards may draw {wanted.bounds.budget_watts:.0f} W together and no cap and"
                f" batch of the profile is predicted to draw so little: lowest cap, smallest batch{locked}"
            )
        if limits.cap_watts is None:
            found.append(
                "no power cap is granted to these cards and PALS must not touch their caps: give the policy a"
                " spec.powerBudget"
            )
        if self.wants_board and not knob:
            found.append("the engine's batch cannot be set (it has no /flyball/board): PALS sets the power cap only")
        if not table.accepted:
            found.append(
                f"the profile's model errs by {table.throughput_error_percent:.1f} % in output and"
                f" {table.power_error_percent:.1f} % in power on configurations it has not seen, more than the"
                " paper's 6.8 and 4.5 %: let flyball profile measure more load points"
            )
        return tuple(found)

    def _because(self, chosen: Choice, wanted: _Wanted, cap: int, *, knob: bool) -> str:
        one, budget = chosen.candidate, wanted.bounds.budget_watts
        batch = f", batch {one.batch_limit}" if knob else ", batch as it is"
        held = cap if self._ceiling_watts is None else min(cap, int(self._ceiling_watts))
        trimmed = " (trimmed: the cards drew more than the budget)" if held < cap else ""
        predicted = f"predicted {one.tokens_per_second:.0f} tokens/s at {one.power_watts:.0f} W a card"
        if wanted.target is None:
            why = "no target yet, the fastest within the budget"
        else:
            aim = "least energy" if chosen.meets else "out of reach, the fastest within the budget"
            why = f"target {wanted.target:.0f} tokens/s {wanted.correction:+.0%}: {aim}"
        limit = "" if budget == float("inf") else f", budget {budget:.0f} W"
        return f"cap {held} W{trimmed}{batch}: {predicted}; {why}{limit}"

    # -- what is kept ----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """See `GroupController.state`."""
        chosen = self._chosen
        return {
            "version": STATE_VERSION,
            "telemetry": self._telemetry.to_json(),
            "feedback": self._feedback.to_json(),
            "correction": self._correction,
            "chosen": None if chosen is None else [chosen.candidate.cap_watts, chosen.candidate.batch_limit],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `GroupController.restore`."""
        telemetry, feedback = self._fresh()
        try:
            if state["version"] != STATE_VERSION:
                raise ValueError(f"version {state['version']!r} is not {STATE_VERSION}")
            telemetry.take(state["telemetry"])
            feedback.take(state["feedback"])
            correction, chosen = float(state["correction"]), state["chosen"]
            if not abs(correction) <= self._gains.most:
                raise ValueError(f"a correction of {correction} is beyond {self._gains.most}")
            place = None if chosen is None else (int(chosen[0]), int(chosen[1]))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"the state is damaged ({type(error).__name__}: {error})") from error
        self._telemetry, self._feedback, self._correction = telemetry, feedback, correction
        if place is not None and self._table is not None:
            self._chosen, self._due = Choice(nearest(self._table.candidates, *place), meets=False, within=True), True

    def _fresh(self) -> tuple[Telemetry, Feedback]:
        parameters = self._parameters
        telemetry = Telemetry(parameters.throughput_milliseconds / 1000.0, parameters.offered_milliseconds / 1000.0)
        return telemetry, Feedback(self._gains)


def _table_of(setup: Setup) -> tuple[Table | None, str]:
    """The profile's table, or the sentence why there is none."""
    profile = setup.profile
    if profile is None:
        return None, setup.profile_trouble or (
            "no profile is given and PALS chooses by one: make one with flyball profile and name it in"
            " spec.controller.pals.profile"
        )
    fit = profile.fits.get("PALS")
    if fit is None:
        return None, f"profile {profile.name} holds no model for PALS: make it again with flyball profile"
    try:
        return read_table(fit, setup.gpus), ""
    except ValueError as error:
        return None, f"the model for PALS in profile {profile.name} cannot be used: {error}; make the profile again"
