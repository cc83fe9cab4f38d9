"""EcoFreq: the least clock of a short list at which the next step is predicted to hold its objective.

VoltanaLLM (arXiv 2509.04827), after the public code v0.1 (`freq_manager.py`): feed-forward, no hysteresis, no dwell
time, no model of power. Prefill: the batch's prompts must be computed within TTFT x (1 + margin) less the longest that
one of them has waited; decode: a step must take at most TPOT x (1 + margin). Anything left in the queue, or a burst of
arrivals, asks for the highest clock; no work for 5 s for the lowest; between messages the clock stays.

Differences from the code:

* The clock asked for first is written at once; the code believes that it is set already.
* Clocks on other cards are the paper's as shares of the highest; a policy's limits narrow them.
* Where no clock is predicted to hold, or the tables know nothing, the highest is taken, as there; but a clock outside
  the profiled ones is passed over and does not end the process.
* A policy with one objective gets the other as the authors' router does: TTFT = 10 x TPOT.
* Times between tokens are corrected by what is measured (`correction`); `correctionPercent: 0` is the public code.
* Messages are read off the engine's board or page and not pushed by a patched engine (`messages`).
* A decode engine's burst guard is left out: the demo sets it so high that it never acts.

Unified engines: `our adaptation`, for VoltanaLLM is defined for split prefill and decode only and refuses to run
otherwise. Steps of a unified engine hold decodes and chunks of prompts. If prompts come at r tokens a second and a
token costs p(f) seconds, they take the share r x p(f) of all time, so a token comes every ITL(f) / (1 - r x p(f)) on
average, which is what the decode rule is asked. The prefill rule asks for the batch's prompts in chunks of 2,048, each
with a decode step. Both must hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
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
from flyball_agent.controllers.voltanallm.correction import Correction
from flyball_agent.controllers.voltanallm.ecopred import EcoPred
from flyball_agent.controllers.voltanallm.messages import Arrivals, BoardReader, Message, PageCounters, read_page
from flyball_api.common import Role
from flyball_api.controllers.voltanallm import VoltanaLlmController

VERSION: Final = 1
TYPE: Final = "VoltanaLLM"
PERIOD_SECONDS: Final = 0.1
"""Between two looks where nobody tells of steps: the shortest that an agent reads pages in."""
STALE_SECONDS: Final = 5.0
"""A page older than this says nothing of now."""
TTFT_TPOTS: Final = 10.0
CHUNK_TOKENS: Final = 2048
"""Of a unified engine's steps: vLLM's default."""
MOST_PROMPT_SHARE: Final = 0.95
"""Of a unified engine's time; beyond, no clock serves."""


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What must hold, margin included, in seconds."""

    ttft: float
    tpot: float


class VoltanaLlm:
    """VoltanaLLM for one engine.

    Args:
        parameters: of the policy.
        setup: what it drives; the profile must hold EcoPred's tables.
    """

    requires: frozenset[str] = frozenset({"requests_running", "requests_waiting", "kv_cache_usage"})
    events: frozenset[Event] = frozenset({"iteration"})
    wants_board = True
    period_seconds = PERIOD_SECONDS

    def __init__(self, parameters: VoltanaLlmController, setup: Setup) -> None:
        self._parameters = parameters
        self._setup = setup
        self._trouble = ""
        self._pred: EcoPred | None = None
        self._levels: dict[tuple[int, int], tuple[int, ...]] = {}
        try:
            self._pred = _tables(setup)
        except ValueError as error:
            self._trouble = str(error)
        self._begin()

    def _begin(self) -> None:
        parameters = self._parameters
        self._correction = Correction(parameters.correction_percent / 100.0)
        self._board = BoardReader()
        self._counters = PageCounters()
        self._arrivals = Arrivals(parameters.burst_milliseconds / 1e3)
        self._messages: list[Message] = []
        self._told_seconds: float | None = None
        self._due_seconds = 0.0
        self._sm_mhz: int | None = None
        self._because = ""
        self._evented = False

    # -- deciding --------------------------------------------------------------------------------------------

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """See `GroupController`."""
        self._evented = self._evented or observation.event is not None
        bounds = self._bounds(limits.targets)
        trouble = self._trouble or self._blind(observation)
        if self._pred is None or bounds is None or trouble:
            self._sm_mhz = None
            why = trouble or (
                "the policy gives neither a time to first token nor a time per output token: give one in spec.slo"
            )
            return Decision(
                UNLOCKED,
                next_wake_seconds=PERIOD_SECONDS,
                degraded=(f"VoltanaLLM leaves the clocks unlocked: {why}",),
                because="unlocked: VoltanaLLM cannot predict",
            )
        clocks = self._clocks(limits)
        if self._told_seconds is None:
            self._told_seconds = now_seconds
        message = self._listen(observation, now_seconds)
        if message is not None:
            self._messages.append(message)
            self._told_seconds = now_seconds
            self._correction.predict(self._step_seconds(self._pred, observation, message))
        if observation.engine is not None and observation.role != "prefill":
            self._correction.measure(observation.engine, now_seconds)
        if now_seconds >= self._due_seconds:
            self._choose(self._pred, observation.role, clocks, bounds, now_seconds)
            self._due_seconds = now_seconds + self._parameters.window_milliseconds / 1e3
        sm_mhz = self._sm_mhz
        if sm_mhz is None or sm_mhz not in clocks:
            wanted = sm_mhz or clocks[0]
            sm_mhz = self._sm_mhz = min(clocks, key=lambda mhz: abs(mhz - wanted))
        return Decision(
            GroupSetpoint((sm_mhz, sm_mhz)), next_wake_seconds=self._next_wake(now_seconds), because=self._because
        )

    def _blind(self, observation: Observation) -> str:
        """Why nothing is known of the engine; empty when something is."""
        if observation.board is not None:
            return ""
        page = observation.engine
        if page is None:
            return "the engine has shown no page yet"
        missing = [name for name in sorted(self.requires) if name not in page.values]
        if missing:
            return f"the engine's page lacks {', '.join(missing)}"
        age = observation.engine_age_seconds or 0.0
        if age > STALE_SECONDS:
            return f"the engine's page is {age:.1f} s old, older than {STALE_SECONDS:g} s"
        if not self._kv_capacity():
            return "the profile does not say how many KV blocks the engine has, and the engine shows no board"
        return ""

    def _kv_capacity(self) -> float:
        profile = self._setup.profile
        return 0.0 if profile is None else float(profile.kv_blocks * profile.block_tokens)

    def _bounds(self, targets: Targets) -> _Bounds | None:
        ttft, tpot = targets.ttft_seconds, targets.tpot_seconds
        if ttft is None and tpot is None:
            return None
        looser = 1.0 + self._parameters.margin_percent / 100.0
        ttft = TTFT_TPOTS * tpot if ttft is None and tpot is not None else ttft
        tpot = ttft / TTFT_TPOTS if tpot is None and ttft is not None else tpot
        return _Bounds((ttft or 0.0) * looser, (tpot or 0.0) * looser)

    def _clocks(self, limits: ControlLimits) -> tuple[int, ...]:
        """The levels, ascending: supported clocks within the limits."""
        held = self._levels.get((limits.sm_min_mhz, limits.sm_max_mhz))
        if held is not None:
            return held
        known = self._setup.clocks_mhz
        top = known[-1] if known else limits.sm_max_mhz
        wanted = [share / 1000.0 * top for share in self._parameters.clocks_permille]
        near = [min(known, key=lambda mhz: abs(mhz - want)) if known else round(want) for want in wanted]
        levels = tuple(sorted({limits.clip(mhz, mhz)[0] for mhz in near}))
        self._levels = {(limits.sm_min_mhz, limits.sm_max_mhz): levels}
        return levels

    def _listen(self, observation: Observation, now_seconds: float) -> Message | None:
        if observation.board is not None:
            message, arrived = self._board.read(observation.board, now_seconds)
            tokens = sum(request.prompt_tokens for request in arrived)
            self._arrivals.add(now_seconds, len(arrived), tokens)
            return message
        page = observation.engine
        if page is None:
            return None
        self._arrivals.add(now_seconds, *self._counters.since(page))
        return read_page(page, self._kv_capacity())

    def _choose(self, pred: EcoPred, role: Role, clocks: tuple[int, ...], bounds: _Bounds, now_seconds: float) -> None:
        """One poll: the messages since the last one decide."""
        messages, self._messages = self._messages, []
        arrivals, parameters = self._arrivals, self._parameters
        burst = arrivals.requests_per_second > parameters.requests_per_second or (
            arrivals.tokens_per_second > parameters.prompt_tokens_per_second
        )
        if role != "decode" and burst:
            self._take(clocks[-1], f"{role}: burst of {arrivals.tokens_per_second:.0f} prompt tokens/s")
        elif not messages:
            idle_seconds = parameters.idle_milliseconds / 1e3
            if self._sm_mhz is None or now_seconds - (self._told_seconds or 0.0) >= idle_seconds:
                self._take(clocks[0], f"{role}: no work")
        elif messages[-1].waiting:
            self._take(clocks[-1], f"{role}: {messages[-1].waiting} left in the queue")
        else:
            self._least(pred, role, clocks, bounds, messages)

    def _take(self, sm_mhz: int, why: str) -> None:
        adapted = " (our adaptation)" if why.startswith("unified") else ""
        self._sm_mhz = sm_mhz
        self._because = f"{sm_mhz} MHz: {why}{adapted}"

    def _least(
        self, pred: EcoPred, role: Role, clocks: tuple[int, ...], bounds: _Bounds, messages: list[Message]
    ) -> None:
        """The least clock that holds, else the highest; nothing changes where no message holds any tokens."""
        decodes = median([message.decodes for message in messages])
        kv_tokens = _median_of_some([message.kv_tokens for message in messages])
        prompts = _median_of_some([message.prompt_tokens for message in messages])
        ttft = bounds.ttft - messages[-1].waited_seconds
        if role == "prefill":
            if prompts is None:
                return
            found = next((mhz for mhz in clocks[:-1] if _at_most(pred.prefill_seconds(mhz, prompts), ttft)), None)
            took = pred.prefill_seconds(found or clocks[-1], prompts)
            what, bound = f"{prompts:.0f} prompt tokens", ttft
        else:
            if kv_tokens is None and (role == "decode" or prompts is None):
                return
            held, tpot = kv_tokens or 0.0, bounds.tpot
            unified = role == "unified"

            def holds(mhz: int) -> bool:
                step = self._token_seconds(pred, mhz, decodes, held, unified=unified)
                if not _at_most(step, tpot):
                    return False
                return not (unified and prompts) or _at_most(self._prompts_seconds(pred, mhz, prompts, step), ttft)

            found = next((mhz for mhz in clocks[:-1] if holds(mhz)), None)
            took = self._token_seconds(pred, found or clocks[-1], decodes, held, unified=unified)
            what, bound = f"{decodes:g} sequences with {held:.0f} KV tokens", tpot
        shown = "no prediction" if took is None else f"{1e3 * took:.1f} ms"
        self._take(found or clocks[-1], f"{role}: {what}, {shown} of {1e3 * bound:.1f} ms")

    # -- predicting ------------------------------------------------------------------------------------------

    def _token_seconds(
        self, pred: EcoPred, sm_mhz: float, decodes: float, kv_tokens: float, *, unified: bool
    ) -> float | None:
        """Mean time between tokens, corrected."""
        step = pred.decode_seconds(sm_mhz, decodes, kv_tokens)
        return None if step is None else self._correction.factor * self._shared(pred, sm_mhz, step, unified=unified)

    def _shared(self, pred: EcoPred, sm_mhz: float, step_seconds: float, *, unified: bool) -> float:
        """The time of a step, prompts of a unified engine spread over all of them."""
        if not unified:
            return step_seconds
        share = self._arrivals.tokens_per_second * (pred.prompt_seconds_per_token(sm_mhz) or 0.0)
        return step_seconds / (1.0 - share) if share < MOST_PROMPT_SHARE else math.inf

    @staticmethod
    def _prompts_seconds(pred: EcoPred, sm_mhz: int, prompts: float, step_seconds: float | None) -> float | None:
        """How long a unified engine computes these prompts."""
        alone = pred.prefill_seconds(sm_mhz, prompts)
        if alone is None or step_seconds is None:
            return None
        return alone + math.ceil(prompts / CHUNK_TOKENS) * step_seconds

    def _step_seconds(self, pred: EcoPred, observation: Observation, message: Message) -> float | None:
        """What is predicted, without correction, for the clock that the cards have."""
        if observation.role == "prefill" or not message.decodes:
            return None
        clocks = [gpu.sm_mhz for gpu in observation.gpus if gpu.sm_mhz is not None]
        sm_mhz = min(clocks, default=self._sm_mhz)
        if sm_mhz is None:
            return None
        step = pred.decode_seconds(sm_mhz, message.decodes, message.kv_tokens)
        return None if step is None else self._shared(pred, sm_mhz, step, unified=observation.role == "unified")

    def _next_wake(self, now_seconds: float) -> float:
        if not self._evented:
            return PERIOD_SECONDS
        told = now_seconds if self._told_seconds is None else self._told_seconds
        idle = told + self._parameters.idle_milliseconds / 1e3 - now_seconds
        waits = [self._due_seconds - now_seconds, idle]
        return min([wait for wait in waits if wait > 0.0], default=1.0)

    # -- keeping ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """See `GroupController`: the correction is all it learns."""
        return {"version": VERSION, "correction": self._correction.factor}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `GroupController`."""
        self._begin()
        factor = state.get("correction")
        if state.get("version") != VERSION or not isinstance(factor, float) or not 0.5 <= factor <= 2.0:
            raise ValueError(
                f"state of VoltanaLLM has version {state.get('version')!r} and correction {factor!r}:"
                f" version {VERSION} and a number from 0.5 to 2 are read, so it starts afresh"
            )
        self._correction.factor = factor


def _tables(setup: Setup) -> EcoPred:
    """EcoPred's tables.

    Raises:
        ValueError: there are none; the message says why.
    """
    if setup.profile is None:
        raise ValueError(setup.profile_trouble or "there is no profile of this engine: make one with flyball profile")
    fit = setup.profile.fits.get(TYPE)
    if fit is None:
        raise ValueError(f"profile {setup.profile.name!r} has no fit for {TYPE}: make it with flyball profile")
    try:
        return EcoPred.from_fit(fit)
    except ValueError as error:
        raise ValueError(f"profile {setup.profile.name!r}: {error}") from None


def _median_of_some(values: list[float]) -> float | None:
    """Median of those that are not 0; None without any."""
    some = [value for value in values if value]
    return median(some) if some else None


def _at_most(seconds: float | None, bound: float) -> bool:
    return seconds is not None and seconds <= bound
