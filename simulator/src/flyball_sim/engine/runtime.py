"""The engine core in real time: brought up to the present when something matters, never slept through step by step.

A timer waits for the next event of the core (a first token, an answer's end, the end of a step with prefill) or for the
next flush, which hands streaming clients the tokens that came since the last one. Counters and histograms carry the
engine's own times, to the step; only what clients see moves with the flushes.

The core's clock is the event loop's. Nothing accumulates when the process is late: steps follow each other on the
core's clock, and what was missed is worked out at the next wake-up. How late that was is counted, because a run in
which engines lag shows the machine and not the engine. A flush is not lateness: tokens are due at their flush, first
and last ones when the engine has them.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from flyball_agent.controllers.base import Board
from flyball_sim.engine.core import EngineCore
from flyball_sim.engine.gpus import EngineGpus
from flyball_sim.engine.metrics import EngineMetrics, EngineState
from flyball_sim.engine.models import StepModel
from flyball_sim.engine.requests import EngineLimits, EngineRequest, LoadSample, QueueFullError, RequestTiming

HALF_TICK_SECONDS = 0.0005
"""The event loop's timers are rounded up to 1 ms (epoll), so each wake-up takes what is due within half of it: tokens
leave up to 0.5 ms early or late instead of up to 1 ms late."""
FLUSH_SECONDS = 0.025
"""Between two looks at a busy engine: tokens of streams, and the SM clock."""
LOAD_PERIOD_SECONDS = 0.1
IDLE_LOAD_PERIOD_SECONDS = 0.5
"""An idle engine still says that it lives: a load that is 1 s old counts as a process that is gone."""


class Tokens(NamedTuple):
    """Tokens of one request that came out together; `finished` is set with the last ones."""

    tokens: int
    due_seconds: float
    finished: RequestTiming | None


class TokenStream:
    """The tokens of one request as they come out."""

    def __init__(self, request: EngineRequest, *, live: bool) -> None:
        self.request = request
        self.live = live
        """Whether somebody wants them before the last one is there."""
        self.given = 0
        """How many came out so far."""
        self.late_seconds = 0.0
        """How late the latest of them was written, at most."""
        self._ready: Tokens | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, total: int, due_seconds: float, finished: RequestTiming | None = None) -> None:
        """There are `total` tokens by now; wakes the reader if that is news."""
        count = total - self.given
        if count <= 0:
            return
        self.given = total
        before = 0 if self._ready is None else self._ready.tokens
        self._ready = Tokens(before + count, due_seconds, finished)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> Tokens:
        """All tokens that came out since the last call, at least one."""
        while self._ready is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        taken, self._ready = self._ready, None
        return taken


class EngineRuntime:
    """Runs one core on the running event loop.

    Args:
        model: step times, GPU peaks and KV capacity.
        limits: batch, queue and context bounds.
        gpus: where the SM clock comes from and the load goes to.
        metrics: what is counted.
    """

    def __init__(self, model: StepModel, limits: EngineLimits, gpus: EngineGpus, metrics: EngineMetrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._gpus = gpus
        self._metrics = metrics
        self._core = EngineCore(model, limits, start_seconds=self._loop.time())
        self._sm_mhz = gpus.sm_mhz()
        self._core.set_clock(self._sm_mhz)
        self._core.events = []
        self._streams: dict[str, TokenStream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._limits_timer: asyncio.TimerHandle | None = None
        self._flush_due = 0.0
        self._load_timer: asyncio.TimerHandle | None = None
        self._load_was_idle = True
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._write_load()

    async def drained(self, within_seconds: float) -> int:
        """Wait until every request is answered; returns how many were not in time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_answered.wait(), within_seconds)
        return len(self._streams)

    def submit(self, request: EngineRequest, *, live: bool = True) -> TokenStream:
        """Hand a request to the engine; its tokens come out of the stream, all at the end if it is not live.

        Raises:
            EngineRefusalError: the engine can never run it.
            QueueFullError: overload.
        """
        self._pump()
        was_idle = not (self._core.running or self._core.waiting)
        try:
            self._core.submit(request)
        except QueueFullError:
            self._metrics.count_rejected()
            raise
        stream = TokenStream(request, live=live)
        self._streams[request.request_id] = stream
        self._all_answered.clear()
        if was_idle:
            self._flush_due = self._core.now_seconds + FLUSH_SECONDS
            if self._load_was_idle:
                self._write_load()  # begins the first sample of this burst
        self._arm()
        return stream

    def wrote(self, stream: TokenStream, tokens: Tokens) -> None:
        """Tokens (with all before them) have been written to the client."""
        late = max(0.0, self._loop.time() - tokens.due_seconds)
        stream.late_seconds = max(stream.late_seconds, late)
        self._metrics.count_written(late)

    def finished(self, stream: TokenStream, timing: RequestTiming, reason: str, max_tokens: int) -> None:
        """The whole answer has been written."""
        self._forget(stream)
        self._metrics.count_finished(timing, reason, max_tokens, stream.late_seconds)

    def abandon(self, stream: TokenStream) -> None:
        """The client is gone: stop working for it. Does nothing to a request that has finished."""
        if not self._forget(stream):
            return
        self._pump()
        self._core.cancel(stream.request.request_id)
        self._metrics.count_aborted()
        self._arm()

    def _forget(self, stream: TokenStream) -> bool:
        known = self._streams.pop(stream.request.request_id, None) is not None
        if not self._streams:
            self._all_answered.set()
        return known

    def state(self) -> EngineState:
        """The gauges and counts now."""
        self._pump()
        core = self._core
        return EngineState(
            core.running,
            core.waiting,
            core.kv_usage(),
            core.preemptions,
            core.busy_seconds(),
            core.power.clock.sm_mhz,
            core.counted(),
        )

    @property
    def max_batch_limit(self) -> int:
        """The `max_num_seqs` the engine was started with."""
        return self._core.max_batch_limit

    def board(self) -> Board:
        """The scheduler now."""
        self._pump()
        return self._core.board()

    def set_limits(self, batch_limit: int | None, admit: int | None, seconds: float | None = None) -> None:
        """Limit the batch, and who may enter it.

        Args:
            batch_limit: most sequences in the batch; None: the engine's own limit.
            admit: how many of those that wait may still enter; None: all.
            seconds: after these both are lifted if nobody sets them again; None: they stay.
        """
        if self._limits_timer is not None:
            self._limits_timer.cancel()
            self._limits_timer = None
        self._pump()
        core = self._core
        core.set_batch_limit(core.max_batch_limit if batch_limit is None else batch_limit)
        core.set_admission(admit)
        if seconds is not None:
            self._limits_timer = self._loop.call_later(seconds, self.set_limits, None, None)
        if self._streams:
            self._flush_due = max(self._flush_due, core.now_seconds)  # it may begin to work after having been idle
        self._arm()

    def close(self) -> None:
        """Stop the timers and take the load off the GPUs."""
        for timer in (self._timer, self._load_timer, self._limits_timer):
            if timer is not None:
                timer.cancel()
        self._gpus.write_load(LoadSample(0.0, 0.0, 0.0))

    def _pump(self) -> None:
        """Bring the core up to the present and hand out what came of it."""
        core = self._core
        real = self._loop.time()
        due = self._due()
        if due is not None and due < real:
            self._metrics.count_lag(real - due)
        core.advance(max(real + HALF_TICK_SECONDS, core.now_seconds))
        sm_mhz = self._gpus.sm_mhz()
        if sm_mhz != self._sm_mhz:
            self._sm_mhz = sm_mhz
            core.set_clock(sm_mhz)
        self._hand_out()
        if core.now_seconds >= self._flush_due:
            self._flush()
        self._arm()

    def _hand_out(self) -> None:
        """First and last tokens, which are due the moment the engine has them."""
        core = self._core
        core.finished.clear()  # they are in the events, too
        if core.events:
            events, core.events = core.events, []
            for event in events:
                stream = self._streams.get(event.request_id)
                if stream is not None and (stream.live or event.finished is not None):
                    stream.put(event.number, event.seconds, event.finished)

    def _flush(self) -> None:
        core, due = self._core, self._flush_due
        for name, stream in self._streams.items():
            if stream.live:
                stream.put(core.generated(name) or 0, due)
        missed = max(0.0, core.now_seconds - due) // FLUSH_SECONDS
        self._flush_due = due + (missed + 1.0) * FLUSH_SECONDS

    def _due(self) -> float | None:
        """When to look at the engine again; None while it has nothing to do."""
        due = self._core.next_event_seconds()
        return None if due is None else min(due, self._flush_due)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._due()
        if due is not None:
            self._timer = self._loop.call_at(due - HALF_TICK_SECONDS, self._pump)

    def _write_load(self) -> None:
        """Write the average use since the last time.

        An average is in force for as long as the next one is taken, so energy comes out right, 0.1 s late; writing
        zeros the moment the queue empties would lose the last piece of work.
        """
        if self._load_timer is not None:
            self._load_timer.cancel()
        self._pump()
        load = self._core.take_load()
        self._gpus.write_load(load)
        idle = load.busy == 0.0 and not (self._core.running or self._core.waiting)
        self._load_was_idle = idle
        period = IDLE_LOAD_PERIOD_SECONDS if idle else LOAD_PERIOD_SECONDS
        self._load_timer = self._loop.call_later(period, self._write_load)
