"""Flyball: the least energy that holds the objectives, from standard metrics alone. docs/controllers/flyball.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from flyball_agent.controllers.base import (
    UNLOCKED,
    ControlLimits,
    Decision,
    Event,
    GroupSetpoint,
    Observation,
    Setup,
    Targets,
)
from flyball_agent.controllers.flyball.anticipation import Anticipation
from flyball_agent.controllers.flyball.cards import Prior, prior_of
from flyball_agent.controllers.flyball.choice import Choice, View, choose, parking, unknown_parking
from flyball_agent.controllers.flyball.drift import DriftWatch
from flyball_agent.controllers.flyball.feasibility import LOOK_SECONDS
from flyball_agent.controllers.flyball.latency import LatencyModel
from flyball_agent.controllers.flyball.load import Load, LoadMeter
from flyball_agent.controllers.flyball.margin import HIGHEST, LOWEST, Margin
from flyball_agent.controllers.flyball.memory import number, part
from flyball_agent.controllers.flyball.power import PowerModel
from flyball_agent.controllers.signals import Look, Looker
from flyball_agent.scanner import METRIC_NAMES
from flyball_api.common import Role
from flyball_api.controllers.flyball import FlyballController

STATE_VERSION: Final = 1
STALE_SECONDS: Final = 2.5
PARK_SECONDS: Final = 2.0
_FALLBACK_STEP_MHZ: Final = 15
_LEARNT_STEPS: Final = 0.1
_LEARNT_PROMPT_SPREAD: Final = 0.5
_LEARNT_LOOKS: Final = 4
_EXPLORING_STEP: Final = 0.1
"""Of the clock range: how far below known clocks a decision may go."""
_KNOWN_LOOKS: Final = 2
_HISTOGRAMS: Final = (
    "time_to_first_token",
    "inter_token_latency",
    "time_per_output_token",
    "end_to_end",
    "iteration_tokens",
)
_OPEN_MEMORY_SECONDS: Final = 10.0
_UNLOCK_AFTER_ALARM_SECONDS: Final = 3.0
_GRANT_BINDS: Final = 0.85
"""Of a granted cap, the predicted watts at full clocks from which on it is taken to bind: predictions are means."""
_CAP_OVER_PREDICTED: Final = 1.1
_CAP_STEP_WATTS: Final = 10
_OFF_SHARE: Final = 0.03
_OFF_LOOKS: Final = 3
_REACH_MEMORY_SECONDS: Final = 600.0
"""A clock that was out of reach is asked for again after this time."""
_CLOCK_MEMORY: Final = 0.98
_CLOCK_VARIED: Final = 0.04


_MARGIN_OF: Final = MappingProxyType(
    {"time per output token": "tpot", "time to last token": "tpot", "time to first token": "ttft", "queue": "ttft"}
)


class Flyball:
    """Learns an engine and holds its objectives at the least energy.

    Args:
        parameters: `spec.controller.flyball` of the policy.
        setup: what it drives.
        prior_factors: by names of `cards.PRIOR_NAMES`: what its prior is wrong by, for those who test it.
    """

    requires: frozenset[str] = frozenset(
        {"requests_running", "requests_waiting", "kv_cache_usage", "prompt_tokens", "generation_tokens"}
    )
    events: frozenset[Event] = frozenset()
    wants_board = False
    period_seconds = LOOK_SECONDS

    def __init__(
        self,
        parameters: FlyballController,
        setup: Setup | None = None,
        *,
        prior_factors: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._parameters = parameters
        self._setup = setup or Setup()
        self._prior: Prior = prior_of(self._setup.product, self._setup.cap_max_watts).scaled(prior_factors)
        self._fresh()

    def _fresh(self) -> None:
        self._latency = LatencyModel(self._prior)
        self._power = PowerModel(self._prior, self._setup.gpus)
        self._meter = LoadMeter()
        self._margin = Margin(self._parameters.margin_gain_percent / 100.0, 0.006)
        self._drift = DriftWatch()
        self._ahead = Anticipation()
        self._looker = Looker(_HISTOGRAMS)
        self._learnt_looks = 0
        self._ready = False
        self._known_share = 1.0
        self._held: int | None = None
        self._held_looks = 0
        self._asked_share: float | None = None
        self._lower_since: float | None = None
        self._lower_to = 0
        self._last_share: float | None = None
        self._clock_mean = 0.0
        self._clock_spread = 0.0
        self._open = 1.0
        self._binds = ""
        self._idle_seconds = 0.0
        self._asked_mhz: int | None = None
        self._off_looks = 0
        self._followed = False
        self._reach_mhz, self._reach_until = math.inf, math.inf
        self._trouble_of_lock = ""
        self._unlock_until = -math.inf
        self._why_unlocked = ""
        self._last: Decision | None = None
        self._grid: tuple[int, ...] = ()
        self._grid_of: tuple[int, int] = (0, 0)

    # -- deciding --------------------------------------------------------------------------------------------

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """See `GroupController.decide`."""
        page, age = observation.engine, observation.engine_age_seconds
        if page is None or age is None or age > STALE_SECONDS:
            return self._unlocked("the engine's page is stale" if page is not None else "no page of the engine yet")
        trouble = self._trouble(observation, limits.targets)
        if trouble:
            return self._unlocked(trouble, degraded=True)
        look = self._looker.look(page, now_seconds - age, observation.gpus, now_seconds)
        if look is None:
            return self._last or self._unlocked("the first page of the engine")
        if look.restarted:
            self._restart(now_seconds, "a counter went back: the engine restarted")
            return self._unlocked(self._why_unlocked)
        return self._decided(look, observation.role, limits, now_seconds)

    def _decided(self, look: Look, role: Role, limits: ControlLimits, now: float) -> Decision:
        grid = self._clocks(limits)
        top = self._top_mhz(limits)
        share = self._share(look, top)
        self._check_lock(look, now)
        self._open_now(look)
        if role == "prefill" and self._margin.judged <= 0.0:
            self._margin.logs["ttft"] = 0.0  # its queue is all there is to its latency, and is predicted as it is
        self._margin.allowed = self._parameters.miss_budget_percent / 100.0 * (1.0 - limits.targets.attainment)
        if self._off_looks < _OFF_LOOKS:  # misses at clocks that nobody set say nothing of the margin
            self._margin.see(look, limits.targets, binds=self._binds, open_share=self._open)
        growth = self._ahead.see(look.prompt_tokens, look.increase("time_to_first_token").count, look.seconds, now)
        load = self._meter.see(look, growth=growth if self._parameters.anticipate else 1.0)
        self._margin.know(load.arrival_rate, look.seconds)
        self._learn(look, role, share, now)
        if now < self._unlock_until:
            return self._unlocked(self._why_unlocked)
        self._ready = self._ready or self._learnt(role)
        if not self._ready:
            return self._unknown(load, grid, top, limits)
        self._idle_seconds = self._idle_seconds + look.seconds if load.idle else 0.0
        view = View(self._latency, self._power, grid, top, limits.targets, self._margin)
        if limits.targets.tpot_seconds is not None:
            watts = view.watts(view.at(load, len(grid) // 2))
            view = replace(view, miss_joules=self._margin.miss_joules(watts, load.arrival_rate))
        return self._controlled(view, load, limits, now)

    def _unknown(self, load: Load, grid: tuple[int, ...], top: int, limits: ControlLimits) -> Decision:
        """Open while it works, to measure it; not quite open while it waits."""
        ttft = limits.targets.ttft_seconds
        if not (load.idle and self._parameters.park_idle and ttft is not None):
            return self._unlocked("the engine's times are not learnt yet")
        mhz = grid[unknown_parking(grid, top, ttft, LOOK_SECONDS)]
        self._held, self._held_looks, self._lower_since = None, 0, None
        self._ask(mhz, top)
        return self._answer(
            GroupSetpoint(sm_mhz=(mhz, mhz)),
            f"waits at {mhz} MHz for its first requests, from which to learn its times",
        )

    def _controlled(self, view: View, load: Load, limits: ControlLimits, now: float) -> Decision:
        grid = view.clocks
        known = next((i for i, mhz in enumerate(grid) if mhz >= self._known_share * view.top_mhz), len(grid) - 1)
        slack = self._parameters.exploration_percent / 100.0
        chosen = choose(view, load, known=known, slack=slack)
        priced = view.miss_joules > 0.0
        if not load.idle:
            self._margin.spent(chosen.watts, load.arrival_rate)
        self._binds = _MARGIN_OF.get(chosen.binds, "")
        if priced and chosen.index is not None and (chosen.index > chosen.lowest or not self._binds):
            self._binds = "tpot"
        if chosen.index is None:
            return self._unlocked(f"no clock holds the objectives: {chosen.binds} at {grid[-1]} MHz")
        step = max(1, round(_EXPLORING_STEP * len(grid)))
        index = max(chosen.index, known - step, math.ceil(self._margin.floor(priced=priced) * (len(grid) - 1)))
        held = len(grid) - 1 if self._held is None else min(self._held, len(grid) - 1)
        parked = False
        if self._idle_seconds >= PARK_SECONDS and self._parameters.park_idle:
            lowest = parking(view, load, wake=index, look_seconds=LOOK_SECONDS, slack=slack)
            parked = view.power.waiting_watts(grid[lowest] / view.top_mhz) < view.power.waiting_watts(
                grid[index] / view.top_mhz
            )
            if parked:
                index = lowest
        if not parked:
            index = self._unhurried(view, load, index, held=held, now=now)
        self._held_looks = self._held_looks + 1 if index == self._held else 0
        self._held = index
        if self._held_looks >= _KNOWN_LOOKS and not load.idle:
            self._known_share = min(self._known_share, grid[index] / view.top_mhz)
        setpoint = self._setpoint(view, load, index, limits)
        return self._answer(setpoint, self._because(view, load, chosen, index, parked=parked))

    def _unhurried(self, view: View, load: Load, index: int, *, held: int, now: float) -> int:
        """Up at once; down when it was lower for a while, to the highest of that while, and if it gains enough."""
        if index >= held:
            self._lower_since = None
            return index
        if self._lower_since is None:
            self._lower_since, self._lower_to = now, index
            return held
        self._lower_to = max(self._lower_to, index)
        if now - self._lower_since < self._parameters.down_delay_milliseconds / 1000.0 - 1e-6:
            return held
        down = self._lower_to
        self._lower_since, self._lower_to = now, index
        gain = 1.0 - view.watts(view.at(load, down)) / view.watts(view.at(load, held))
        return down if gain >= self._parameters.least_gain_percent / 100.0 else held

    def _setpoint(self, view: View, load: Load, index: int, limits: ControlLimits) -> GroupSetpoint:
        mhz = view.clocks[index]
        beyond = mhz > self._reach_mhz
        self._ask(None if beyond else mhz, view.top_mhz)
        cap = None
        if limits.cap_watts is not None:
            # Only where the grant binds is a cap below it a knob of latency; else it would only be in the way.
            per_card = view.watts(view.at(load, index)) / max(1, self._setup.gpus)
            full = view.watts(view.at(load, len(view.clocks) - 1)) / max(1, self._setup.gpus)
            if full > _GRANT_BINDS * limits.cap_watts and not load.idle:
                steps = math.ceil(_CAP_OVER_PREDICTED * per_card / _CAP_STEP_WATTS)
                cap = min(limits.cap_watts, max(steps * _CAP_STEP_WATTS, math.ceil(self._setup.cap_min_watts)))
        return GroupSetpoint(sm_mhz=None if beyond else (mhz, mhz), cap_watts=cap)

    def _ask(self, mhz: int | None, top_mhz: int) -> None:
        self._asked_mhz = mhz
        self._asked_share = None if mhz is None else mhz / top_mhz

    def _because(self, view: View, load: Load, chosen: Choice, index: int, *, parked: bool) -> str:
        grid = view.clocks
        seen = view.at(load, index)
        under = f", below it {chosen.binds}" if chosen.binds else ""
        what = "parked at" if parked else "least energy at"
        price = f", a miss priced at {view.miss_joules:.0f} J" if view.miss_joules > 0.0 else ""
        return (
            f"{grid[chosen.lowest]}-{grid[-1]} MHz hold the objectives{under}; {what} {grid[index]} MHz:"
            f" {view.watts(seen):.0f} W, {1e3 * seen.tpot_seconds:.1f} ms per token,"
            f" {1e3 * seen.ttft_seconds:.0f} ms to the first, margin {view.margin.ttft:.2f}{price}"
        )

    def _unlocked(self, why: str, *, degraded: bool = False) -> Decision:
        self._held, self._held_looks, self._lower_since = None, 0, None
        self._ask(None, 1)
        return self._answer(UNLOCKED, f"unlocked: {why}", (why,) if degraded else ())

    def _answer(self, setpoint: GroupSetpoint, because: str, degraded: tuple[str, ...] = ()) -> Decision:
        if self._trouble_of_lock:
            degraded = (*degraded, self._trouble_of_lock)
        self._last = Decision(setpoint, next_wake_seconds=LOOK_SECONDS, degraded=degraded, because=because)
        return self._last

    # -- what it needs ---------------------------------------------------------------------------------------

    def _trouble(self, observation: Observation, targets: Targets) -> str:
        needed = set(self.requires)
        if targets.ttft_seconds is not None and observation.role != "decode":
            needed.add("time_to_first_token")
        if observation.role != "prefill":
            needed.add("inter_token_latency")
            if targets.tpot_seconds is not None:
                needed.add("time_per_output_token")
        if targets.e2e_seconds is not None:
            needed.add("end_to_end")
        missing = sorted(METRIC_NAMES[name] for name in needed & set(observation.missing))
        if missing:
            return f"the engine lacks {', '.join(missing)}: clocks stay unlocked"
        if targets.ttft_seconds is None and targets.tpot_seconds is None and targets.e2e_seconds is None:
            return "the policy has no latency objective to hold: clocks stay unlocked"
        return ""

    def _clocks(self, limits: ControlLimits) -> tuple[int, ...]:
        low, high = limits.sm_min_mhz, limits.sm_max_mhz
        if self._grid_of != (low, high):
            grid = tuple([mhz for mhz in self._setup.clocks_mhz if low <= mhz <= high])
            self._grid = grid or (*range(low, high, _FALLBACK_STEP_MHZ), high)
            self._grid_of = (low, high)
            self._held = None
        return self._grid

    def _top_mhz(self, limits: ControlLimits) -> int:
        return self._setup.clocks_mhz[-1] if self._setup.clocks_mhz else limits.sm_max_mhz

    def _restart(self, now: float, why: str) -> None:
        self._meter.forget_now()
        self._latency.gains.inflate(10.0)
        self._drift.clear()
        self._learnt_looks = 0
        self._ready = False
        self._known_share = 1.0
        self._unlock_until = now + _UNLOCK_AFTER_ALARM_SECONDS
        self._why_unlocked = why

    # -- learning --------------------------------------------------------------------------------------------

    def _share(self, look: Look, top: int) -> float:
        """Of the highest clock, while these steps ran; a new lock is in force for nearly all of a look."""
        now = max(look.sm_mhz or top, 1) / top
        before = now if self._last_share is None else self._last_share
        self._last_share = now
        if self._asked_share is not None and abs(now - self._asked_share) <= 0.02:
            return now
        return 2.0 / (1.0 / now + 1.0 / before)

    def _check_lock(self, look: Look, now: float) -> None:
        """Whether the cards run at the clock that was asked for; a lock beyond their reach ends below it."""
        if now >= self._reach_until:
            self._reach_mhz = math.inf
        asked, there = self._asked_mhz, look.sm_mhz
        off = 0.0 if asked is None or there is None or look.cap_limited else (there - asked) / asked
        if asked is not None and asked < 0.9 * self._grid_of[1]:
            self._followed = self._followed or abs(off) <= _OFF_SHARE
        self._off_looks = self._off_looks + 1 if abs(off) > _OFF_SHARE else 0
        self._trouble_of_lock = ""
        if asked is None or there is None or self._off_looks < _OFF_LOOKS:
            return
        if off < 0.0:
            self._reach_mhz, self._reach_until = there, now + _REACH_MEMORY_SECONDS
        if off < 0.0 or self._followed:  # else nothing was ever written: somebody only watches
            self._trouble_of_lock = f"the cards run at {there} MHz where a lock of {asked} MHz was asked for"

    def _open_now(self, look: Look) -> None:
        weight = min(1.0, look.seconds / _OPEN_MEMORY_SECONDS)
        self._open += weight * ((1.0 if self._held is None else 0.0) - self._open)

    def _varied(self, share: float) -> bool:
        """Whether the clock has moved enough lately to tell its effect from the rest."""
        value = math.log(share)
        if self._clock_mean == 0.0 and self._clock_spread == 0.0:
            self._clock_mean = value
        self._clock_mean += (1.0 - _CLOCK_MEMORY) * (value - self._clock_mean)
        self._clock_spread = _CLOCK_MEMORY * self._clock_spread + (1.0 - _CLOCK_MEMORY) * abs(value - self._clock_mean)
        return self._clock_spread > _CLOCK_VARIED

    def _learn(self, look: Look, role: Role, share: float, now: float) -> None:
        tokens = look.increase("inter_token_latency")
        mean = tokens.mean
        present = 0.5 * (look.running + look.running_before)
        steps = look.increase("iteration_tokens").count
        busy = 0.0
        if mean is not None and tokens.count >= 4.0 and present > 0.0:
            counted = steps > 0.0
            if not counted:
                steps = max(tokens.count / max(present, 1.0), 1.0)
            batch = tokens.count / steps
            prompt = look.prompt_tokens / steps
            busy = min(1.0, mean * steps / look.seconds)
            if counted or min(look.running, look.running_before) > 0.0:
                residual = self._latency.learn_steps(
                    mean, batch=batch, cache=look.kv_share, prompt_tokens=prompt, share=share,
                    varied=self._varied(share) and not look.cap_limited,
                )  # fmt: skip
                self._learnt_looks += 1
                if self._drift.see(residual) == "slower" and self._learnt_looks > 4 * _LEARNT_LOOKS:
                    self._restart(now, "its steps became slower than learnt")
        prefill = min(1.0, self._latency.prompt_seconds(share) * look.prompt_tokens / look.seconds)
        if role == "prefill":
            firsts = look.increase("time_to_first_token")
            if firsts.mean is not None and look.prompt_tokens > 0.0:
                queued = 1.0 + prefill / (2.0 * max(0.1, 1.0 - prefill))
                self._latency.learn_first_token(
                    firsts.mean, prompt_tokens=look.prompt_tokens / firsts.count, queued=queued, share=share
                )
                self._learnt_looks += 1
            busy = max(busy, prefill)
        if look.watts is not None and look.watts > 0.0:
            idle = look.running <= 0.0 and look.running_before <= 0.0
            self._power.learn(
                look.watts,
                busy=0.0 if idle else max(busy, prefill),
                prefill=prefill,
                bandwidth=self._latency.bandwidth(share),
                share=share,
            )

    def _learnt(self, role: Role) -> bool:
        """Whether the models are good enough to leave the highest clock."""
        if self._learnt_looks < _LEARNT_LOOKS:
            return False
        if role == "prefill":
            return self._latency.prompt_spread < _LEARNT_PROMPT_SPREAD
        prompts = role == "decode" or self._latency.prompt_spread < _LEARNT_PROMPT_SPREAD
        return prompts and self._latency.gains.unsure < _LEARNT_STEPS

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything it has learnt, as JSON."""
        return {
            "version": STATE_VERSION,
            "product": self._setup.product,
            "gpus": self._setup.gpus,
            "latency": self._latency.gains.state(),
            "power": self._power.gains.state(),
            "load": self._meter.state(),
            "hours": self._ahead.state(),
            "margins": dict(self._margin.logs),
            "known_share": self._known_share,
            "learnt_looks": self._learnt_looks,
            "ready": self._ready,
        }

    def watched_state(self) -> dict[str, Any] | None:
        """What of `state` holds although no setpoint was written: the model, not what misses taught; None: nothing."""
        if not self._ready:
            return None
        return {**self.state(), "margins": dict(Margin(0.0, 0.0).logs), "known_share": 1.0}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: another version or other cards wrote it, or it is damaged; the controller is fresh.
        """
        self._fresh()
        for name, wanted in (("version", STATE_VERSION), ("product", self._setup.product), ("gpus", self._setup.gpus)):
            if state.get(name) != wanted:
                raise ValueError(f"state: {name} is {state.get(name)!r} and here {wanted!r}: it is learnt over")
        try:
            self._latency.gains.restore(part(state, "latency"))
            self._power.gains.restore(part(state, "power"))
            self._meter.restore(part(state, "load"))
            self._ahead.restore(part(state, "hours"))
            margins = part(state, "margins")
            self._margin.logs = {
                which: number(margins, which, math.log(LOWEST) - 1e-9, math.log(HIGHEST) + 1e-9)
                for which in self._margin.logs
            }
            self._known_share = number(state, "known_share", 0.0, 1.0)
            self._learnt_looks = int(number(state, "learnt_looks", 0.0, 1e15))
            if not isinstance(state.get("ready"), bool):
                raise ValueError(f"state: ready is {state.get('ready')!r}: true or false is wanted")
            self._ready = state["ready"]
        except ValueError:
            self._fresh()
            raise
