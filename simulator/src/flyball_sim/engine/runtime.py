"""The engine core in real time: one timer at the next step's end, tokens handed to the requests that wait for them.

The core's clock is the event loop's. Nothing accumulates when the process is late: steps follow each other on the
core's clock, and what was missed is worked out at the next wake-up. How late that was is counted, because a run in
which engines lag shows the machine and not the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from flyball_sim.engine.core import EngineCore, EngineRequest, LoadSample, QueueFullError, RequestTiming, TokenEvent
from flyball_sim.engine.gpus import EngineGpus
from flyball_sim.engine.metrics import EngineMetrics, EngineState

HALF_TICK_SECONDS = 0.0005
"""The event loop's timers are rounded up to 1 ms (epoll), so each wake-up takes what is due within half of it: tokens
leave up to 0.5 ms early or late instead of up to 1 ms late."""
LOAD_PERIOD_SECONDS = 0.1
IDLE_LOAD_PERIOD_SECONDS = 0.5
"""An idle engine still says that it lives: a load that is 1 s old counts as a process that is gone."""


class TokenStream:
    """The tokens of one request as they come out."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.late_seconds = 0.0
        """How late the latest of them was written, at most."""
        self._ready: list[TokenEvent] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: TokenEvent) -> None:
        """Add a token and wake the reader."""
        self._ready.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[TokenEvent]:
        """All tokens that came out since the last call, at least one."""
        if not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        taken, self._ready = self._ready, []
        return taken


class EngineRuntime:
    """Runs one core on the running event loop.

    Args:
        make_core: given the function to call after each step, makes the core.
        gpus: where the SM clock comes from and the load goes to.
        metrics: what is counted.
    """

    def __init__(
        self, make_core: Callable[[Callable[[int], None]], EngineCore], gpus: EngineGpus, metrics: EngineMetrics
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._gpus = gpus
        self._metrics = metrics
        self._core = make_core(metrics.count_step)
        self._core.advance(self._loop.time(), gpus.sm_mhz())
        self._core.take_load()
        self._streams: dict[str, TokenStream] = {}
        self._timer: asyncio.TimerHandle | None = None
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

    def submit(self, request: EngineRequest) -> TokenStream:
        """Hand a request to the engine; its tokens come out of the stream.

        Raises:
            EngineRefusalError: the engine can never run it.
            QueueFullError: overload.
        """
        self._pump()
        was_idle = not (self._core.running or self._core.waiting)
        try:
            self._core.submit(request, self._core.now_seconds)
        except QueueFullError:
            self._metrics.count_rejected()
            raise
        stream = TokenStream(request)
        self._streams[request.request_id] = stream
        self._all_answered.clear()
        if was_idle and self._load_was_idle:
            self._write_load()  # begins the first sample of this burst
        self._arm()
        return stream

    def wrote(self, stream: TokenStream, event: TokenEvent) -> None:
        """A token (with all before it) has been written to the client."""
        late = max(0.0, self._loop.time() - event.seconds)
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
        """The gauges now."""
        self._pump()
        core = self._core
        return EngineState(core.running, core.waiting, core.kv_usage, core.preemptions, core.busy_seconds, core.sm_mhz)

    def close(self) -> None:
        """Stop the timers and take the load off the GPUs."""
        for timer in (self._timer, self._load_timer):
            if timer is not None:
                timer.cancel()
        self._gpus.write_load(LoadSample(0.0, 0.0, 0.0))

    def _pump(self) -> None:
        """Bring the core up to the present and hand out what came of it."""
        core, metrics = self._core, self._metrics
        real = self._loop.time()
        now = max(real + HALF_TICK_SECONDS, core.now_seconds)
        due = core.next_event_seconds()
        if due is not None and due < real:
            metrics.count_lag(real - due)
        for event in core.advance(now, self._gpus.sm_mhz()):
            stream = self._streams.get(event.request_id)
            if stream is not None:
                metrics.count_token(event, stream.request.prompt_tokens)
                stream.put(event)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._core.next_event_seconds()
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
