"""AGFT (arXiv 2508.01744) as a state machine: look, lock, settle, measure, learn; 3.0 to 3.8 s a round.

After the paper and the behaviour of its public code. What differs:

* Clock distances are shares of the card's highest clock, put to clocks it has; on the paper's card they are its 90, 150
  and 15 MHz.
* A tensor-parallel group is one card: powers are added up, and the lowest clock of its cards must be the one asked for.
* That a clock was not reached counts only while the cards work and no power or heat limit slows them; else a capped
  card would lose clocks that it can run.
* Between windows nothing sleeps: the controller names the time of its next look. Where looks come later than asked (a
  node reads pages at most every 100 ms), a window is as long as it was, and its energy that of its real length.
* A counter that goes back (the engine was restarted) voids the round; the paper's code drops the negative differences.
* A page that is missing, stale or lacks a metric unlocks the clocks; in the measured window it also costs the clock its
  reward of -0.5.
* The inverse of each ridge matrix is kept by rank-one updates and not solved for: the same numbers.

`improved` mends four weaknesses: the context has an intercept; the baseline follows the mean of the rounds; the
SLO boundary comes down a step after a hundred rounds without a violation, and where it left no clock around the anchor
the whole grid is chosen from again; energy is the counters' difference.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Final, Literal

from flyball_agent.controllers.agft.arms import Arms
from flyball_agent.controllers.agft.bandit import Arm, Exploration, reward_of
from flyball_agent.controllers.agft.window import FEATURES, REQUIRES, Polls, Welford, Window, trouble
from flyball_agent.controllers.base import (
    UNLOCKED,
    ControlLimits,
    Decision,
    Event,
    GroupSetpoint,
    Observation,
    Setup,
)
from flyball_api.controllers.agft import AgftController

VERSION: Final = 1
BASELINE_WINDOWS: Final = 10
BASELINE_SHARE: Final = 0.9
LOCK_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 0.3
IDLE_WINDOWS: Final = 3
IDLE_SECONDS: Final = 2.0
CLOCK_TOLERANCE_MHZ: Final = 5
FAILED_REWARD: Final = -1.0
BLIND_REWARD: Final = -0.5
REFINE_FROM: Final = 80
REFINE_EVERY: Final = 10
CONVERGED_ROUNDS: Final = 100
CONVERGED_ARMS: Final = 3
CONVERGED_SHARE: Final = 0.6
WORSE_ROUNDS: Final = 50
WORSE_FACTOR: Final = 1.3
ROLLING_ROUNDS: Final = 50
"""Improved: time constant of the baseline."""
RELAX_ROUNDS: Final = 100
"""Improved: rounds without a violation after which the SLO boundary comes down by a step."""
_RETRY_SECONDS: Final = 0.5
_IDLE_POLL_SECONDS: Final = 0.1
"""An engine without requests is looked at no more often within a window: there is nothing to see."""
_EPSILON: Final = 1e-6

_Phase = Literal["observe", "lock", "settle", "measure", "feedback", "idle"]


class Agft:
    """One linear bandit per SM clock.

    Args:
        parameters: `spec.controller.agft` of the policy.
        setup: what it drives.
    """

    requires: frozenset[str] = REQUIRES
    events: frozenset[Event] = frozenset()
    wants_board = False

    def __init__(self, parameters: AgftController, setup: Setup) -> None:
        self._parameters = parameters
        self._clocks = setup.clocks_mhz
        self.period_seconds = parameters.poll_milliseconds / 1000
        self._window_seconds = parameters.window_milliseconds / 1000
        self._exploration = Exploration(
            parameters.alpha_start_percent / 100,
            parameters.alpha_decay_permille / 1000,
            parameters.alpha_floor_percent / 100,
        )
        self._forget()

    def _forget(self) -> None:
        parameters = self._parameters
        self._arms: Arms | None = None
        if self._clocks:
            self._arms = Arms(
                self._clocks,
                self._megahertz(parameters.coarse_step_permille),
                width=len(FEATURES) + parameters.improved,
                ridge=float(parameters.ridge),
            )
        self._welford = Welford()
        self._rounds = 0
        self._learning_rounds = 0
        self._exploiting = False
        self._swept: set[int] = set()
        self._history: deque[int] = deque(maxlen=CONVERGED_ROUNDS)
        self._edps: deque[float] = deque(maxlen=2 * WORSE_ROUNDS)
        self._baseline: float | None = None
        self._baseline_edps: list[float] = []
        self._calm_rounds = 0
        self._idle_windows = 0
        self._restart()

    def _restart(self) -> None:
        """Look anew; what was under way is dropped."""
        self._phase: _Phase = "observe"
        self._polls: Polls | None = None
        self._due_seconds = 0.0
        self._context: tuple[float, ...] = ()
        self._chosen: int | None = None
        self._achieved = True
        self._setpoint = UNLOCKED
        self._because = "unlocked: looking"

    def _megahertz(self, permille: int) -> int:
        """A share of the highest clock, to the nearest whole number of the card's own steps."""
        step = min((high - low for low, high in zip(self._clocks, self._clocks[1:], strict=False)), default=1)
        return max(round(permille * self._clocks[-1] / 1000 / step), 1) * step

    # -- the interface ---------------------------------------------------------------------------------------

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """See `GroupController.decide`."""
        if self._arms is None:
            return Decision(UNLOCKED, degraded=("the GPUs do not tell which clocks they take: nothing is locked",))
        why = trouble(observation)
        if why:
            if self._phase == "measure":
                self._learn(None, BLIND_REWARD)
            self._restart()
            return Decision(UNLOCKED, next_wake_seconds=_RETRY_SECONDS, degraded=(why,), because=f"unlocked: {why}")
        return self._step(self._arms, observation, limits, now_seconds)

    def state(self) -> dict[str, Any]:
        """See `GroupController.state`; the round under way is not part of it."""
        return {
            "version": VERSION,
            "improved": self._parameters.improved,
            "arms": None if self._arms is None else self._arms.state(),
            "welford": self._welford.state(),
            "rounds": self._rounds,
            "learning_rounds": self._learning_rounds,
            "exploiting": self._exploiting,
            "swept": sorted(self._swept),
            "history": list(self._history),
            "edps": list(self._edps),
            "baseline": self._baseline,
            "baseline_edps": list(self._baseline_edps),
            "calm_rounds": self._calm_rounds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `GroupController.restore`."""
        self._forget()
        if state.get("version") != VERSION or state.get("improved") is not self._parameters.improved:
            raise ValueError("AGFT's state is of another version, or of its other variant: it learns anew")
        try:
            self._take(state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self._forget()
            raise ValueError(f"AGFT's state cannot be read ({error}): it learns anew") from None

    def _take(self, state: Mapping[str, Any]) -> None:
        if self._arms is not None and state["arms"] is not None:
            self._arms.take(state["arms"])
        self._welford = Welford.of(state["welford"])
        self._rounds, self._learning_rounds = int(state["rounds"]), int(state["learning_rounds"])
        self._exploiting = bool(state["exploiting"])
        self._swept = {int(clock) for clock in state["swept"]}
        self._history.extend(int(clock) for clock in state["history"])
        self._edps.extend(float(edp) for edp in state["edps"])
        self._baseline = None if state["baseline"] is None else float(state["baseline"])
        self._baseline_edps = [float(edp) for edp in state["baseline_edps"]]
        self._calm_rounds = int(state["calm_rounds"])

    # -- time ------------------------------------------------------------------------------------------------

    def _step(self, arms: Arms, observation: Observation, limits: ControlLimits, now: float) -> Decision:
        if self._phase in ("lock", "settle", "idle"):
            if now < self._due_seconds - _EPSILON:
                return self._decision(self._due_seconds - now)
            if self._phase == "lock":
                self._achieved = self._is_achieved(observation)
                self._phase, self._due_seconds = "settle", now + SETTLE_SECONDS
                return self._decision(SETTLE_SECONDS)
            self._phase = "measure" if self._phase == "settle" else "observe"
        polls = self._polls
        if polls is None:
            polls = self._polls = Polls(now, use_counter=self._parameters.improved)
        if not polls.add(observation):
            self._restart()
            self._because = "unlocked: the engine's counters went back, it was restarted"
            return self._decision(self.period_seconds)
        left = polls.began_seconds + self._window_seconds - now
        if left > _EPSILON:
            period = self.period_seconds if polls.busy else max(self.period_seconds, _IDLE_POLL_SECONDS)
            return self._decision(min(period, left))
        self._polls = None
        return self._close(arms, polls.close(now), limits, now)

    def _close(self, arms: Arms, window: Window, limits: ControlLimits, now: float) -> Decision:
        """A window is over."""
        if self._phase == "measure":
            reward = reward_of(window.edp, self._baseline or 1.0) if self._achieved else FAILED_REWARD
            self._judge(arms, window, limits, reward)
            self._phase = "observe" if self._exploiting else "feedback"
            return self._decision(self.period_seconds)
        if self._phase == "feedback":
            self._welford.take(window.raw)
            self._refine(arms, window)
            self._phase = "observe"
            return self._decision(self.period_seconds)
        if self._baseline is None:
            self._take_baseline(window)
            return self._decision(self.period_seconds)
        context = self._welford.take(window.raw)
        self._context = (*context, 1.0) if self._parameters.improved else context
        self._idle_windows = self._idle_windows + 1 if window.running == 0.0 else 0
        if self._idle_windows >= IDLE_WINDOWS:
            lowest = limits.clip(self._clocks[0], self._clocks[0])
            return self._wait("idle", GroupSetpoint(sm_mhz=lowest), IDLE_SECONDS, now, f"{lowest[0]} MHz: idle")
        if self._parameters.improved and not arms.available(limits.sm_min_mhz, limits.sm_max_mhz):
            arms.widen()
            self._bound(arms, 0, violated=self._violates(window, limits))
        return self._choose(arms, limits, now)

    def _choose(self, arms: Arms, limits: ControlLimits, now: float) -> Decision:
        available = arms.available(limits.sm_min_mhz, limits.sm_max_mhz)
        if not available:
            self._setpoint, self._because = UNLOCKED, "unlocked: every clock was given up"
            return self._decision(self.period_seconds)
        unswept = [clock for clock in available if clock not in self._swept]
        if self._exploiting:
            chosen = max(available, key=lambda clock: arms.arm(clock).expected(self._context))
            how = f"most expected reward ({arms.arm(chosen).expected(self._context):+.2f})"
        elif unswept and self._learning_rounds < REFINE_FROM:
            chosen, how = unswept[0], "first sweep"
        else:
            chosen = max(available, key=lambda clock: self._score(arms.arm(clock)))
            how = f"highest confidence bound ({self._score(arms.arm(chosen)):+.2f})"
        self._chosen = chosen
        because = f"{chosen} MHz of {len(available)} clocks in round {self._rounds + 1}: {how}"
        return self._wait("lock", GroupSetpoint(sm_mhz=(chosen, chosen)), LOCK_SECONDS, now, because)

    def _score(self, arm: Arm) -> float:
        return arm.expected(self._context) + self._exploration.alpha(self._rounds) * arm.width(self._context)

    def _wait(self, phase: _Phase, setpoint: GroupSetpoint, seconds: float, now: float, because: str) -> Decision:
        self._phase, self._setpoint, self._due_seconds, self._because = phase, setpoint, now + seconds, because
        return self._decision(seconds)

    def _decision(self, next_wake_seconds: float) -> Decision:
        return Decision(self._setpoint, next_wake_seconds=next_wake_seconds, because=self._because)

    # -- learning --------------------------------------------------------------------------------------------

    def _take_baseline(self, window: Window) -> None:
        """The mean of ten windows with work, unlocked."""
        self._because = f"unlocked: baseline, {len(self._baseline_edps)} of {BASELINE_WINDOWS} busy windows"
        if window.edp is not None and window.edp > 0.0:
            self._baseline_edps.append(window.edp)
        if len(self._baseline_edps) >= BASELINE_WINDOWS:
            self._baseline = BASELINE_SHARE * sum(self._baseline_edps) / len(self._baseline_edps)

    def _is_achieved(self, observation: Observation) -> bool:
        if self._chosen is None or any(gpu.cap_limited or not gpu.utilisation_percent for gpu in observation.gpus):
            return True
        read = [gpu.sm_mhz for gpu in observation.gpus if gpu.sm_mhz is not None]
        return all(abs(sm_mhz - self._chosen) <= CLOCK_TOLERANCE_MHZ for sm_mhz in read)

    def _learn(self, edp: float | None, reward: float) -> None:
        """One round is over."""
        arms, chosen = self._arms, self._chosen
        if arms is None or chosen is None:
            return
        arms.arm(chosen).learn(self._context, reward, edp)
        self._swept.add(chosen)
        self._rounds += 1
        self._learning_rounds += not self._exploiting
        self._history.append(chosen)
        if edp is not None:
            self._edps.append(edp)
            if self._parameters.improved and self._baseline is not None:
                self._baseline += (edp - self._baseline) / ROLLING_ROUNDS

    def _judge(self, arms: Arms, window: Window, limits: ControlLimits, reward: float) -> None:
        chosen = self._chosen
        if chosen is None:
            return
        edp = window.edp if self._achieved and window.edp else None
        self._learn(edp, reward)
        if not self._achieved:
            arms.failed.add(chosen)
        arms.prune_extreme(chosen, self._rounds, -self._parameters.extreme_reward_permille / 1000)
        arms.prune_historical(self._rounds, self._parameters.historical_percent / 100)
        violated = self._violates(window, limits)
        self._bound(arms, chosen, violated=violated)
        if self._exploiting:
            self._exploiting = not violated and not self._is_worse()
        elif self._is_converged():
            self._exploiting = True

    def _violates(self, window: Window, limits: ControlLimits) -> bool:
        parameters, targets = self._parameters, limits.targets
        ttft, tpot = parameters.ttft_limit_milliseconds / 1000, parameters.tpot_limit_milliseconds / 1000
        if parameters.policy_slo:
            margin = parameters.slo_margin_percent / 100
            ttft = ttft if targets.ttft_seconds is None else margin * targets.ttft_seconds
            tpot = tpot if targets.tpot_seconds is None else margin * targets.tpot_seconds
        return (window.ttft_seconds or 0.0) > ttft or (window.tpot_seconds or 0.0) > tpot

    def _bound(self, arms: Arms, chosen: int, *, violated: bool) -> None:
        """Clocks at or below one that broke the SLO are given up: for good, unless improved."""
        if violated:
            arms.boundary_mhz = max(arms.boundary_mhz, chosen)
            self._calm_rounds = 0
            return
        self._calm_rounds += 1
        if self._parameters.improved and arms.boundary_mhz and self._calm_rounds % RELAX_ROUNDS == 0:
            lowered = arms.boundary_mhz - self._megahertz(self._parameters.coarse_step_permille)
            arms.boundary_mhz = max(lowered, 0)

    def _is_converged(self) -> bool:
        if len(self._history) < CONVERGED_ROUNDS:
            return False
        most = Counter(self._history).most_common(CONVERGED_ARMS)
        return sum(count for _, count in most) >= CONVERGED_SHARE * CONVERGED_ROUNDS

    def _is_worse(self) -> bool:
        if len(self._edps) < 2 * WORSE_ROUNDS:
            return False
        edps = list(self._edps)
        return sum(edps[WORSE_ROUNDS:]) > WORSE_FACTOR * sum(edps[:WORSE_ROUNDS])

    def _refine(self, arms: Arms, window: Window) -> None:
        if self._learning_rounds < REFINE_FROM or (self._learning_rounds - REFINE_FROM) % REFINE_EVERY:
            return
        anchor = arms.anchor(self._learning_rounds, (self._chosen or 0, window.edp), self._score)
        if anchor is not None:
            arms.refine(anchor, self._megahertz(self._parameters.fine_window_permille))
