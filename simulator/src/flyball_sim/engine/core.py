"""The engine itself: what comes to it, and what it shows.

Scheduling follows vLLM V1 (`vllm/v1/core/sched/scheduler.py`): each step gives running sequences their next token
or prefill chunk first, then admits from the queue in order, under one token budget. A prompt's KV blocks are taken
when it is admitted, later ones as tokens come; when they run out the youngest running sequence is preempted and
computes its tokens again later (`flyball_sim.engine.batch`). Steps are worked out in closed form between the events
that matter (`stepping`), their clock and energy with them (`power`).

The core has no clock and never waits: `advance` works out all that happens by a time. A change of clock acts at once
on the step under way, which keeps the share of its work that is done.
"""

from __future__ import annotations

from dataclasses import replace

from flyball_agent.controllers.base import Board, RequestView
from flyball_sim.engine.batch import NOT_SCHEDULED, UNBOUNDED
from flyball_sim.engine.models import BLOCK_TOKENS
from flyball_sim.engine.requests import (
    EngineLimits,
    EngineRefusalError,
    EngineRequest,
    LoadSample,
    QueueFullError,
    RequestTiming,
    TokenEvent,
)
from flyball_sim.engine.stepping import IDLE, LINE, NEVER, STEP, Stepper
from flyball_sim.engine.tallies import EngineCounts

__all__ = [
    "EngineCore",
    "EngineLimits",
    "EngineRefusalError",
    "EngineRequest",
    "LoadSample",
    "QueueFullError",
    "RequestTiming",
    "TokenEvent",
]


class EngineCore(Stepper):
    """One engine replica on one group of GPUs; see `Stepper` for its arguments."""

    __slots__ = ()

    # -- what it shows ---------------------------------------------------------------------------------------

    @property
    def now_seconds(self) -> float:
        """The engine's clock: the latest time it was told."""
        return self._now

    @property
    def limits(self) -> EngineLimits:
        """The bounds in force."""
        return self._batch.limits

    @property
    def max_batch_limit(self) -> int:
        """The `max_num_seqs` it was made with."""
        return self._batch.most

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._batch.running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._batch.waiting)

    @property
    def preemptions(self) -> int:
        """Sequences preempted so far."""
        return self._batch.preemptions

    @property
    def kv_blocks(self) -> int:
        """KV blocks in all."""
        return self._batch.kv.capacity

    def next_event_seconds(self) -> float | None:
        """When what is under way ends, if nothing comes between; None when there is nothing to do."""
        return None if self._due == NEVER else self._due

    def next_finish_seconds(self) -> float | None:
        """No request is answered before this time if nothing comes between; None when there is nothing to do."""
        due, batch = self.next_event_seconds(), self._batch
        if due is None or self._kind != STEP or due < self._end or batch.waiting or not batch.decodes:
            return due
        pace = self.power.paces.get(batch.decodes)
        if pace is None:
            return due
        # This step gives each at most one token, and the steps after it hold no fewer sequences.
        tokens = min([sequence.output - sequence.generated for sequence, _ in batch.chosen], default=1 << 30)
        steps = min(tokens, batch.finishes[0][0] - batch.number)
        return due + (steps - 1) * pace.first

    def next_token_seconds(self) -> float | None:
        """When the step under way ends at the present clock; None when there is none."""
        self.sync()
        if self._kind == LINE and self._steps > 1:
            return self._begin + self._line_seconds(1)
        return None if self._kind == IDLE else self._end

    def kv_usage(self) -> float:
        """Share of the KV blocks in use, those of the step under way included."""
        self.sync()
        return self._batch.used_blocks() / self._batch.kv.capacity

    def busy_seconds(self) -> float:
        """With a step under way, host part included, up to now."""
        self.sync()
        under_way = self._now - self._begin if self._kind != IDLE else 0.0
        return sum(sums.step_seconds for sums in self.power.close_book().clocks.values()) + under_way

    def counted(self) -> EngineCounts:
        """All it counted, up to now."""
        self.sync()
        self.power.close_book()
        for decodes, steps in self.power.steps_by_batch.items():
            self._count_steps(steps, decodes)
        self.power.steps_by_batch.clear()
        return self.counts

    def generated(self, request_id: str) -> int | None:
        """Output tokens of a request so far; None if it is not here."""
        self.sync()
        sequence = self._batch.sequences.get(request_id)
        if sequence is None:
            return None
        return sequence.generated + (self._batch.number if sequence.finish >= 0 else 0)

    def board(self) -> Board:
        """The scheduler as it is now: who runs and who waits, with what is known of each."""
        steps, batch, now = self.counted().steps, self._batch, self._now
        number, views = batch.number, []
        # It is looked at every 10 ms where a controller wants every iteration, so: one loop, no calls.
        for sequence in batch.running.values():
            prompt, generated, computed = sequence.prompt, sequence.generated, sequence.computed
            if sequence.finish >= 0:
                generated += number
                computed = prompt
            elif computed > prompt:
                computed = prompt
            age, since = now - sequence.arrival, now - sequence.scheduled
            views.append(RequestView(sequence.name, age, prompt, generated, True, sequence.output, since, computed))
        for sequence in batch.waiting:
            prompt, scheduled = sequence.prompt, sequence.scheduled
            views.append(
                RequestView(
                    sequence.name,
                    now - sequence.arrival,
                    prompt,
                    sequence.generated,
                    False,
                    sequence.output,
                    None if scheduled == NOT_SCHEDULED else now - scheduled,
                    0 if sequence.generated else min(sequence.cached, prompt - 1),
                )
            )
        limit = batch.limits.max_num_seqs
        return Board(steps, tuple(views), BLOCK_TOKENS, batch.kv.capacity, limit, batch.most)

    def watts(self) -> float:
        """Of all cards now: the mean over the step under way."""
        self.sync()
        return self.power.group(*self.power.watts(self._work_now(), self._now))

    def joules(self) -> tuple[float, float, float]:
        """Now, and the joules of a nominal card up to now: as if it had waited all the time, and above that."""
        self.sync()
        power, seconds = self.power, self._now - self._begin
        waiting, above = power.watts(self._work_now(), self._now) if seconds > 0.0 else (0.0, 0.0)
        return self._now, power.waiting_joules + waiting * seconds, power.above_joules + above * seconds

    def energy_joules(self) -> float:
        """Of all cards up to now, the part of the step under way included."""
        _, waiting, above = self.joules()
        return self.power.group(waiting, above)

    # -- what happens to it ----------------------------------------------------------------------------------

    def submit(self, request: EngineRequest) -> None:
        """Queue a request that arrives now.

        Raises:
            EngineRefusalError: it is empty or exceeds the context length or the KV cache.
            QueueFullError: `max_num_queued_reqs` requests wait already.
            ValueError: the id is in use.
        """
        batch = self._batch
        batch.add(request, self._now)
        if len(batch.waiting) > 1:
            return  # who waits while decodes run cannot be admitted before one of them ends
        if self._kind == LINE:
            if batch.admit and len(batch.running) < batch.limits.max_num_seqs:
                self._stop_after_step()
        elif self._kind == IDLE and batch.admit:
            self._wake()

    def cancel(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False if it is not here (finished, or never was)."""
        sequence = self._batch.sequences.get(request_id)
        if sequence is None:
            return False
        # The step under way was launched with it: its time stands, only the token is dropped.
        self._interrupt(self._now)
        self._batch.cancel(sequence)
        self._resume()
        return True

    def set_clock(self, sm_mhz: float) -> None:
        """The SM clock from now on, where no cap binds."""
        self._interrupt(self._now)
        self.power.set_wanted(sm_mhz)
        self._resume()

    def set_cap(self, watts: float, tau_seconds: float = 0.0) -> None:
        """The cap of every card from now on, reached with a first-order lag."""
        self._interrupt(self._now)
        self.power.set_cap(watts, self._now, tau_seconds)
        self._resume()

    def set_batch_limit(self, max_num_seqs: int) -> None:
        """Admit no more than this many sequences to the batch from now on; those that run go on."""
        self._batch.limits = replace(self._batch.limits, max_num_seqs=max_num_seqs)
        if self._kind == LINE and self._batch.waiting:
            self._stop_after_step()

    def set_admission(self, admit: int | None) -> None:
        """Let this many of those that wait, oldest first, into the batch until this is changed; None: all.

        Who was preempted waits like everybody else, in front.
        """
        batch = self._batch
        batch.admit = UNBOUNDED if admit is None else max(0, admit)
        if batch.admit and batch.waiting:
            if self._kind == IDLE:
                self._wake()
            elif self._kind == LINE and len(batch.running) < batch.limits.max_num_seqs:
                self._stop_after_step()

    def account_now(self) -> None:
        """Account for all that is done by now, the part of the step under way included."""
        self._interrupt(self._now)
        self._resume()

    def take_load(self) -> LoadSample:
        """GPU use since this was last called, the part of the step under way included."""
        self.account_now()
        return self.power.take_load(self._now)
