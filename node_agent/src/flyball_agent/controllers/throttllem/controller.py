"""throttLL'eM as a controller; see `docs/controllers/throttllem.md` for what is the paper's and what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flyball_agent.controllers.base import (
    UNLOCKED,
    Board,
    ControlLimits,
    Decision,
    Event,
    GroupSetpoint,
    Observation,
    RequestView,
    Setup,
    Targets,
)
from flyball_agent.controllers.throttllem.approximate import Approximation, MissingMetricError
from flyball_agent.controllers.throttllem.lengths import History, Injected, LengthPredictor
from flyball_agent.controllers.throttllem.performance import Performance
from flyball_agent.controllers.throttllem.projection import Entry
from flyball_agent.controllers.throttllem.schedule import Choice, Engine, decide, with_clocks
from flyball_agent.profiles import Profile
from flyball_api.controllers.throttllem import ThrottLlemController

STATE_VERSION: Final = 1
TYPE: Final = "ThrottLLeM"
_WAKE_SECONDS: Final = 0.5
_PERIOD_SECONDS: Final = 0.1
_STALE_SECONDS: Final = 5.0
_NO_DEADLINE: Final = float("inf")
_PREDICTIONS: Final = 4096
_MOST_ADMITTED: Final = 32


class ThrottLlem:
    """Projects batch and KV cache from the engine's scoreboard and runs at the least clock at which all end in time.

    Deviations from the paper: the performance model is monotone in the clock and knows only profiled clocks; the SLO is
    translated from TTFT and TPOT by default; what a lost request does to others, and the ones of the projection, are
    not in the paper (`schedule`, `projection`); without a board it works from `approximate`.

    Args:
        parameters: of the policy.
        setup: what it drives.
    """

    requires: frozenset[str] = frozenset()  # the board has all it needs; without one it names what it lacks
    events: frozenset[Event] = frozenset({"arrival", "completion"})
    wants_board = True
    period_seconds = _PERIOD_SECONDS

    def __init__(self, parameters: ThrottLlemController, setup: Setup) -> None:
        self._parameters = parameters
        self._setup = setup
        self._trouble = ""
        self._engine: Engine | None = None
        error = parameters.length_error_percent / 100.0
        self._injected = Injected(error, setup.seed)
        self._history = History()
        self._approximation = Approximation()
        self._predicted: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._lost: frozenset[str] = frozenset()
        self._clock: tuple[int, float] | None = None
        self._tbt = 0.0
        if setup.profile is None:
            self._trouble = setup.profile_trouble or "controller ThrottLLeM has no profile: name one in spec.controller"
            return
        try:
            self._engine = _engine_of(setup.profile, parameters)
        except ValueError as trouble:
            self._trouble = f"profile {setup.profile.name} cannot be used by controller ThrottLLeM: {trouble}"

    def decide(self, observation: Observation, limits: ControlLimits, now_seconds: float) -> Decision:
        """See `GroupController.decide`."""
        engine = self._engine
        if engine is None:
            return Decision(UNLOCKED, degraded=(self._trouble,), because="unlocked: there is no performance model")
        top = round(engine.performance.clocks_mhz[-1] * self._parameters.floor_percent / 100)
        low, high = max(limits.sm_min_mhz, top), limits.sm_max_mhz
        clocks = [index for index, mhz in enumerate(engine.performance.clocks_mhz) if low <= mhz <= high]
        if not clocks:
            sentence = f"profile {_name(self._setup)} has no clock from {low} to {high} MHz: profile with one"
            return Decision(UNLOCKED, degraded=(sentence,), because="unlocked: no profiled clock is allowed")
        engine = with_clocks(engine, clocks)
        board = observation.board
        degraded: tuple[str, ...] = ()
        if board is None:
            board, sentence = self._approximated(observation, engine, now_seconds)
            degraded = (sentence,)
            if board is None:
                return Decision(UNLOCKED, next_wake_seconds=_WAKE_SECONDS, degraded=degraded, because="unlocked")
        return self._decide(engine, board, limits, now_seconds=now_seconds, degraded=degraded)

    def _approximated(self, observation: Observation, engine: Engine, now_seconds: float) -> tuple[Board | None, str]:
        page, age = observation.engine, observation.engine_age_seconds
        lacking = "the engine has no /flyball/board"
        if page is None or age is None or age > _STALE_SECONDS:
            return None, f"{lacking}, and no page of it is newer than {_STALE_SECONDS:g} s"
        try:
            self._approximation.see(page, now_seconds)
        except MissingMetricError as error:
            return None, f"{lacking}, and {error}: it cannot be approximated"
        profile = self._setup.profile
        if not engine.kv_blocks or profile is None:
            return None, f"{lacking}, and profile {_name(self._setup)} does not say how many KV blocks it has"
        if not self._approximation.knows:
            return None, f"{lacking}, and too few requests ended to approximate it from its metrics"
        made = self._approximation.board(
            page, kv_blocks=engine.kv_blocks, block_tokens=engine.block_tokens, max_batch=profile.max_batch_limit
        )
        return made, f"{lacking}: its requests are approximated from its metrics, and none is held back"

    def _decide(
        self, engine: Engine, board: Board, limits: ControlLimits, *, now_seconds: float, degraded: tuple[str, ...]
    ) -> Decision:
        real = not degraded
        engine = self._with(engine, board, limits.targets)
        if real:
            self._learn(board.requests)
        else:
            # Requests that are made up anew for each page: of one name on two pages nothing is the same.
            self._predicted.clear()
        running = [self._entry(view, limits.targets) for view in board.requests if view.running]
        queue = [view for view in board.requests if not view.running]
        waiting = [self._entry(view, limits.targets) for view in queue]
        gated = real and self._parameters.admission
        if not gated:
            running, waiting = [*running, *waiting], []
        if not running and not waiting:
            return self._idle(engine, limits, gated=gated, degraded=degraded)
        room = max(0, board.batch_limit - len(running))
        choice = decide(
            engine,
            running,
            waiting,
            prompts=[view.prompt_tokens - view.computed_tokens for view in queue],
            running_prompts=sum(
                view.prompt_tokens - view.computed_tokens for view in board.requests if view.running or not gated
            ),
            most_admitted=min(room, _MOST_ADMITTED),
        )
        self._lost = choice.lost if real else frozenset()
        self._tbt = choice.check.tbt_seconds
        mhz = limits.sm_max_mhz if choice.clock is None else engine.performance.clocks_mhz[choice.clock]
        held = self._held(mhz, limits, now_seconds)
        setpoint = GroupSetpoint(sm_mhz=(held, held), admit=choice.admit if gated else None)
        return Decision(
            setpoint,
            next_wake_seconds=self._wake(running, choice),
            degraded=degraded,
            because=_because(choice, held, mhz, batch=len(running) + choice.admit, waiting=len(waiting)),
        )

    def _with(self, engine: Engine, board: Board, targets: Targets) -> Engine:
        tbt = targets.tpot_seconds
        return Engine(
            engine.performance,
            engine.clocks,
            board.block_tokens,
            board.kv_blocks,
            self._parameters.tbt_milliseconds / 1000.0 if tbt is None else tbt,
            engine.tbt_reading,
            engine.slower,
            engine.count_prefill,
        )

    def _idle(self, engine: Engine, limits: ControlLimits, *, gated: bool, degraded: tuple[str, ...]) -> Decision:
        mhz = engine.performance.clocks_mhz[engine.clocks[0]]
        low, high = limits.clip(mhz, mhz)
        self._clock = None
        setpoint = GroupSetpoint(sm_mhz=(low, high), admit=0 if gated else None)
        return Decision(setpoint, next_wake_seconds=_WAKE_SECONDS, degraded=degraded, because=f"{mhz} MHz: idle")

    def _held(self, mhz: int, limits: ControlLimits, now_seconds: float) -> int:
        """The wanted clock, or for a while still a higher one."""
        last = self._clock
        dwell = self._parameters.dwell_milliseconds / 1000.0
        if last is not None and mhz < last[0] <= limits.sm_max_mhz and now_seconds - last[1] < dwell:
            return last[0]
        if last is None or last[0] != mhz:
            self._clock = (mhz, now_seconds)
        return min(max(mhz, limits.sm_min_mhz), limits.sm_max_mhz)

    def _wake(self, running: Sequence[Entry], choice: Choice) -> float:
        """When the first request is to end: if it does not, it has outlived its prediction."""
        if not running:
            return _WAKE_SECONDS
        first = min([entry.left_tokens for entry in running])
        return min(_WAKE_SECONDS, max(_PERIOD_SECONDS, (first + 1) * choice.check.tbt_seconds))

    # -- requests --------------------------------------------------------------------------------------------

    def _entry(self, view: RequestView, targets: Targets) -> Entry:
        length = self._length(view)
        due = self._deadline(length, targets) - view.age_seconds
        return Entry(
            view.request_id,
            view.prompt_tokens + view.generated_tokens,
            length - view.generated_tokens,
            due,
            view.request_id in self._lost,
        )

    def _length(self, view: RequestView) -> int:
        """Predicted tokens of the answer, more than there are already."""
        longest = self._parameters.max_output_tokens
        name = view.request_id
        known = self._predicted.get(name)
        if known is None:
            predictor: LengthPredictor = self._history if view.output_tokens is None else self._injected
            known = predictor.predict(view)
            known = longest if known is None else min(known, longest)
            if len(self._predicted) >= _PREDICTIONS:
                self._predicted.clear()
            self._predicted[name] = known
        if view.generated_tokens >= known:  # it outlived its prediction, or even that
            known = longest
            while view.generated_tokens >= known:
                known *= 2
            self._predicted[name] = known
        return known

    def _deadline(self, length: int, targets: Targets) -> float:
        ttft, tpot, e2e = targets.ttft_seconds, targets.tpot_seconds, targets.e2e_seconds
        translated = ttft is not None and tpot is not None
        if e2e is not None and (self._parameters.slo == "EndToEnd" or not translated):
            return e2e
        if ttft is None or tpot is None:
            return _NO_DEADLINE
        return ttft * self._parameters.ttft_share_percent / 100.0 + (length - 1) * tpot

    def _learn(self, requests: Sequence[RequestView]) -> None:
        """Who is gone has ended; its length is what was last seen of it."""
        here = {view.request_id: view.generated_tokens for view in requests}
        for name, generated in self._seen.items():
            if name not in here:
                self._predicted.pop(name, None)
                if generated:
                    self._history.learn(generated)
        self._seen = here

    # -- memory ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """See `GroupController.state`."""
        return {
            "version": STATE_VERSION,
            "lengths": list(self._history.lengths),
            "lost": sorted(self._lost),
            "means": self._approximation.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `GroupController.restore`."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"the state's version is {state.get('version')!r}, this agent reads {STATE_VERSION}")
        lengths, lost, means = state.get("lengths"), state.get("lost"), state.get("means")
        if not isinstance(lengths, list) or not all(isinstance(length, int) and length > 0 for length in lengths):
            raise ValueError("the state's lengths cannot be read: they are no list of positive integers")
        if not isinstance(lost, list) or not all(isinstance(name, str) for name in lost):
            raise ValueError("the state's lost requests cannot be read: they are no list of names")
        if not isinstance(means, Mapping):
            raise ValueError("the state has no means")
        approximation = Approximation.of(means)
        self._history, self._lost, self._approximation = History(lengths), frozenset(lost), approximation


def _engine_of(profile: Profile, parameters: ThrottLlemController) -> Engine:
    fit = profile.fits.get(TYPE)
    if fit is None:
        raise ValueError(f"it has no fit for {TYPE}; make it again with scikit-learn installed")
    performance = Performance(fit, profile.gpus)
    return Engine(
        performance,
        tuple(range(len(performance.clocks_mhz))),
        profile.block_tokens,
        profile.kv_blocks,
        parameters.tbt_milliseconds / 1000.0,
        parameters.tbt_reading,
        1.0 + parameters.margin_percent / 100.0,
        parameters.count_prefill,
    )


def _name(setup: Setup) -> str:
    return "" if setup.profile is None else setup.profile.name


def _because(choice: Choice, held: int, mhz: int, *, batch: int, waiting: int) -> str:
    tbt = f"{1000.0 * choice.check.tbt_seconds:.0f} ms per token"
    queue = f", {choice.admit} of {waiting} waiting let in" if waiting else ""
    if choice.lost:
        return f"{held} MHz, the highest: {len(choice.lost)} of {batch} cannot be in time; {tbt}{queue}"
    if not choice.feasible:
        return f"{held} MHz, the highest: at none are all {batch} in time; {tbt}{queue}"
    if held != mhz:
        return f"{held} MHz, kept for a while: {mhz} MHz would do for {batch}; {tbt}{queue}"
    slack = -choice.check.late_seconds
    rest = f", least slack {slack:.2f} s" if slack != _NO_DEADLINE else ""
    return f"{held} MHz, the least at which all {batch} are in time: {tbt}{rest}{queue}"
