"""The engine itself: continuous batching, worked out in closed form between the events that matter.

Scheduling follows vLLM V1 (`vllm/v1/core/sched/scheduler.py`): each step gives running sequences their next token
or prefill chunk first, then admits from the queue in order, under one token budget. A prompt's KV blocks are taken
when it is admitted, later ones as tokens come; when they run out the youngest running sequence is preempted and
computes its tokens again later (`flyball_sim.engine.batch`).

While nobody comes or goes the batch is constant and the tokens it holds, K, grow by B a step, so the steps' times are
a straight line and m of them take ``T(m) = m*(a + b*K) + b*B*m*(m-1)/2``; its inverse says how many were done by any
time. Steps with prefill run one by one. Where a power cap binds, the clock is the highest supported one at which the
step fits under it; it moves with K, and the line is cut where it moves by one supported step
(`flyball_sim.engine.power`).

The core has no clock and never waits: `advance` works out all that happens by a time. A change of clock acts at once
on the step under way, which keeps the share of its work that is done.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop

from flyball_sim.engine.batch import Batch
from flyball_sim.engine.batch import Sequence as Running
from flyball_sim.engine.models import BLOCK_TOKENS, StepModel
from flyball_sim.engine.power import GroupPower, Pace
from flyball_sim.engine.requests import (
    EngineLimits,
    EngineRefusalError,
    EngineRequest,
    LoadSample,
    QueueFullError,
    RequestTiming,
    TokenEvent,
)
from flyball_sim.engine.tallies import ITL_BUCKETS, STEP_BUCKET, EngineCounts
from flyball_sim.engine.work import NO_LINE, NO_WORK, Work, work_table
from flyball_sim.gpu.dies import NOMINAL_DIE, Die

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

_IDLE, _LINE, _STEP = 0, 1, 2
_NEVER = math.inf
_MOST_TOKENS = len(STEP_BUCKET) - 1


class EngineCore:
    """One engine replica on one group of GPUs.

    Args:
        model: step times, GPU peaks and KV capacity.
        limits: batch, queue and context bounds.
        dies: of the cards; nominal ones if not given.
        start_seconds: the engine's clock at first.
        ready_seconds: no step begins before.
    """

    __slots__ = (
        "_batch", "_begin", "_due", "_duration", "_end", "_first", "_growth", "_kind", "_left", "_line", "_now",
        "_pace", "_ready", "_step_began", "_step_tokens", "_steps", "_table", "_work", "counts", "events", "finished",
        "model", "power",
    )  # fmt: skip

    def __init__(
        self,
        model: StepModel,
        limits: EngineLimits,
        *,
        dies: Sequence[Die] = (),
        start_seconds: float = 0.0,
        ready_seconds: float = -math.inf,
    ) -> None:
        self.model = model
        self.counts = EngineCounts()
        self.finished: list[RequestTiming] = []
        """Requests answered; whoever reads them empties it."""
        self.events: list[TokenEvent] | None = None
        """First and last tokens, if somebody set a list here; whoever reads them empties it."""
        cards = dies or (NOMINAL_DIE,) * model.gpus
        self.power = GroupPower(model.gpu, model.reference_mhz, cards, start_seconds)
        self._batch = Batch(limits, model.kv_blocks)
        self._table = work_table(model)
        self._now = start_seconds
        self._ready = ready_seconds
        # What is under way since _begin: nothing, a line of decode steps, or one step of which a share may be done.
        self._kind = _IDLE
        self._begin = start_seconds
        self._end = self._due = _NEVER
        self._line, self._steps, self._first, self._growth = NO_LINE, 0, 0.0, 0.0
        self._pace: Pace | None = None  # of the line, where it runs at the wanted clock
        self._work, self._left, self._duration = NO_WORK, 0.0, 0.0
        self._step_began, self._step_tokens = 0.0, 0

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
        return None if self._due == _NEVER else self._due

    def next_token_seconds(self) -> float | None:
        """When the step under way ends at the present clock; None when there is none."""
        self.sync()
        if self._kind == _LINE and self._steps > 1:
            return self._begin + self._line_seconds(1)
        return None if self._kind == _IDLE else self._end

    def kv_usage(self) -> float:
        """Share of the KV blocks in use, those of the step under way included."""
        self.sync()
        return self._batch.used_blocks() / self._batch.kv.capacity

    def busy_seconds(self) -> float:
        """With a step under way, host part included, up to now."""
        self.sync()
        under_way = self._now - self._begin if self._kind != _IDLE else 0.0
        return sum(sums.step_seconds for sums in self.power.close_book().clocks.values()) + under_way

    def generated(self, request_id: str) -> int | None:
        """Output tokens of a request so far; None if it is not here."""
        self.sync()
        sequence = self._batch.sequences.get(request_id)
        if sequence is None:
            return None
        return sequence.generated + (self._batch.number if sequence.finish >= 0 else 0)

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

    def advance(self, now_seconds: float) -> None:
        """Work out all that happens up to and at `now_seconds`."""
        if now_seconds < self._now:
            raise ValueError(f"time {now_seconds} is before the engine's clock {self._now}: it never runs backwards")
        while self._due <= now_seconds:
            end = self._end
            if self._due < end:  # a cap on its way has moved on, or the engine has become ready
                self._interrupt(self._due)
                self._resume()
            elif self._kind == _LINE:
                self._commit(self._steps, end)
                if self._batch.finishes[0][0] <= self._batch.number:
                    self._complete(end)
                self._open()
            else:
                self._finish_step(end)
                self._open()
        self._now = now_seconds

    def sync(self) -> None:
        """Count what is over by now; the step under way stays open."""
        if self._kind == _LINE:
            if self._begin + self._line_seconds(1) <= self._now and self._steps > 1:
                done = self._whole_steps()
                self._commit(done, self._begin + self._line_seconds(done))
                self._steps -= done
        elif self._kind == _IDLE and self._now > self._begin:
            self.power.account_idle(self._begin, self._now)
            self._begin = self._now

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
        if self._kind == _LINE:
            if len(batch.running) < batch.limits.max_num_seqs:
                self._stop_after_step()
        elif self._kind == _IDLE:
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
        if self._kind == _LINE and self._batch.waiting:
            self._stop_after_step()

    def account_now(self) -> None:
        """Account for all that is done by now, the part of the step under way included."""
        self._interrupt(self._now)
        self._resume()

    def take_load(self) -> LoadSample:
        """GPU use since this was last called, the part of the step under way included."""
        self.account_now()
        return self.power.take_load(self._now)

    # -- what is under way -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Begin to work after having been idle, at once or when the engine is ready."""
        self.sync()
        if self._now < self._ready:
            self._due = self._ready
        else:
            self._open()

    def _open(self) -> None:
        """Decide what runs from `_begin` on, a moment at which no step is under way."""
        batch = self._batch
        if (batch.waiting or batch.partial is not None) and batch.choose(self._begin):
            if batch.with_decodes:
                tokens = batch.decodes
                self._work = self._table.step(tokens + batch.fresh, batch.held + batch.fresh_held, batch.spans)
            else:
                tokens = 0
                self._work = self._table.step(batch.fresh, batch.fresh_held, batch.spans)
            self._left = 1.0
            self._step_began = self._begin
            self._step_tokens = tokens + batch.chosen_tokens
            self._launch()
        elif batch.decodes:
            self._open_line()
        else:
            self._kind = _IDLE
            self._end = self._due = _NEVER
            self.power.kernels_ended(self._begin)

    def _open_line(self) -> None:
        batch, power, begin = self._batch, self.power, self._begin
        decodes, held = batch.decodes, batch.held
        pace = power.paces.get(decodes)
        if pace is None:
            line = self._table.straight_line(decodes)
            if line is None:
                self._open_line_with_care()
                return
            pace = power.make_pace(line, decodes, BLOCK_TOKENS * (batch.kv.capacity - decodes))
        steps = batch.finishes[0][0] - batch.number
        last_held = held + decodes * (steps - 1)
        if (
            last_held > pace.most_held
            or begin < power.lag_until
            or batch.kv.reserved
            or batch.stalled_since is not None
        ):
            self._open_line_with_care()
            return
        if power.clock is not power.wanted or power.capped:
            power.run_at_wanted()
        self._kind, self._line, self._pace, self._steps = _LINE, pace.line, pace, steps
        self._first, self._growth = first, growth = pace.first, pace.growth
        self._end = self._due = begin + (steps * first + growth * (steps * (held + last_held) >> 1))

    def _open_line_with_care(self) -> None:
        """The same where blocks may run out, the line bends, decodes were stalled, or the cap may move the clock."""
        batch, power, begin, kv = self._batch, self.power, self._begin, self._batch.kv
        steps = batch.finishes[0][0] - batch.number
        if ((batch.held + (steps + 15) * batch.decodes) >> 4) + kv.reserved > kv.capacity:
            steps = batch.steps_with_room(steps, begin)
        decodes, held = batch.decodes, batch.held
        line = self._table.line(decodes, held)
        if batch.stalled_since is not None:
            steps = 1
        elif held + steps * decodes > line.until_tokens:
            steps = max(1, math.ceil((line.until_tokens - held) / decodes))
        self._kind, self._line, self._pace = _LINE, line, None
        piece_end = _NEVER
        if begin < power.lag_until:
            wanted = steps
            steps = power.settle_line(line, held, decodes, steps, min(power.held_watts, power.held_at(begin)))
            if power.capped or steps < wanted:
                limit, piece_end = power.lag_piece(begin)
                steps = power.settle_line(line, held, decodes, wanted, limit)
        else:
            steps = power.settle_line(line, held, decodes, steps, power.held_watts)
        clock = power.clock
        host, fixed, fixed_k, clocked, clocked_k, _, _, _, _, _ = line
        self._first = host + fixed * clock.fixed_factor + clocked * clock.clocked_factor
        self._growth = fixed_k * clock.fixed_factor + clocked_k * clock.clocked_factor
        self._steps = steps
        self._end = end = begin + self._line_seconds(steps)
        self._due = min(piece_end, end)

    def _launch(self) -> None:
        """Run what is left of one step, at the clock it settles at."""
        power, work, begin = self.power, self._work, self._begin
        kind = min(self._step_tokens >> 5, 62) + 1
        piece_end = _NEVER
        if begin < power.lag_until:
            power.settle(work, min(power.held_watts, power.held_at(begin)), kind)
            if power.capped:
                limit, piece_end = power.lag_piece(begin)
                power.settle(work, limit, kind)
        else:
            power.settle(work, power.held_watts, kind)
        clock = power.clock
        host, fixed, clocked, _, _ = work
        self._duration = duration = host + fixed * clock.fixed_factor + clocked * clock.clocked_factor
        self._kind = _STEP
        self._end = end = begin + self._left * duration
        self._due = piece_end if piece_end < end else end

    def _work_now(self) -> Work | None:
        if self._kind == _LINE:
            return self._line.at(self._batch.held)
        return self._work if self._kind == _STEP else None

    def _line_seconds(self, steps: int) -> float:
        batch = self._batch
        held_sum = steps * batch.held + batch.decodes * (steps * (steps - 1) >> 1)
        return steps * self._first + self._growth * held_sum

    def _whole_steps(self) -> int:
        """How many steps of the line, its last one left out, are over by now."""
        most, begin, now, batch = self._steps - 1, self._begin, self._now, self._batch
        growth, held = self._growth, batch.held
        curve = 0.5 * growth * batch.decodes
        slope = self._first + growth * held - curve
        elapsed = now - begin
        steps = int(2.0 * elapsed / (slope + math.sqrt(slope * slope + 4.0 * curve * elapsed))) if elapsed > 0.0 else 0
        # Rounding may leave the inverse one step off where a step ends now.
        if steps < most:
            if begin + self._line_seconds(steps + 1) <= now:
                return steps + 1
            return steps
        return most

    def _stop_after_step(self) -> None:
        """Let the line of decode steps end with the one under way."""
        if self._steps > 1:
            self._steps = steps = self._whole_steps() + 1
            self._end = end = self._begin + self._line_seconds(steps)
            self._due = min(self._due, end)

    def _interrupt(self, now: float) -> None:
        """Account for all that is done up to now. What is left of a step under way becomes a step of its own."""
        self._now = now
        self.sync()
        begin = self._begin
        if self._kind == _IDLE:
            self._due = _NEVER
        elif now > begin:
            if self._kind == _LINE:
                batch = self._batch
                self._work = self._line.at(batch.held)
                self._duration = self._line_seconds(1)
                self._left, self._step_began, self._step_tokens = 1.0, begin, batch.decodes
                batch.with_decodes, batch.chosen = True, []
                self._kind = _STEP
            self._do(min(self._left, (now - begin) / self._duration), now)
            self._begin = now

    def _resume(self) -> None:
        """Go on after an interruption, under the limits as they are now."""
        if self._kind == _STEP:
            self._launch()
        elif self._kind == _LINE:
            self._open()
        elif self._batch.waiting:
            self._wake()
        else:
            self.power.account_idle(self._begin, self._begin)

    # -- what is over ----------------------------------------------------------------------------------------

    def _do(self, share: float, now: float) -> None:
        """A share of one step is done."""
        self._left -= share
        host, _, _, memory, compute = self._work
        seconds = share * self._duration
        self.power.account(seconds, seconds - share * host, share * memory, share * compute, now)

    def _commit(self, steps: int, now: float) -> None:
        """The next steps of the line are over."""
        batch, counts = self._batch, self.counts
        decodes, held, first, growth = batch.decodes, batch.held, self._first, self._growth
        tokens = steps * decodes
        held_sum = steps * held + decodes * (steps * (steps - 1) >> 1)
        seconds = steps * first + growth * held_sum
        pace = self._pace
        if pace is not None:
            self.power.account_pace(pace, steps, held_sum, seconds, now)
        else:
            self._count_steps(steps, decodes)
            host, _, _, _, _, memory, memory_k, compute, compute_k, _ = self._line
            self.power.account(
                seconds,
                seconds - steps * host,
                steps * memory + memory_k * held_sum,
                steps * compute + compute_k * held_sum,
                now,
            )
        counts.generation_tokens += tokens
        if batch.stalled_since is None:
            tally, shortest = counts.inter_token, first + growth * held
            bucket = bisect_left(ITL_BUCKETS, shortest)
            if shortest + growth * (tokens - decodes) <= tally.bounds[bucket]:
                tally.counts[bucket] += tokens
                tally.total += seconds * decodes
            else:
                tally.observe_line(shortest, growth * decodes, steps, decodes, seconds)
        else:
            self._count_stalled(now)
        batch.number += steps
        batch.held = held + tokens
        self._begin = now

    def _count_steps(self, steps: int, tokens: int) -> None:
        counts = self.counts
        counts.steps += steps
        counts.step_tokens += steps * tokens
        counts.step_buckets[STEP_BUCKET[min(tokens, _MOST_TOKENS)]] += steps

    def counted(self) -> EngineCounts:
        """All it counted, up to now."""
        self.sync()
        self.power.close_book()
        for decodes, steps in self.power.steps_by_batch.items():
            self._count_steps(steps, decodes)
        self.power.steps_by_batch.clear()
        return self.counts

    def _finish_step(self, now: float) -> None:
        """The one step under way is over."""
        if self._left == 1.0:
            host, _, _, memory, compute = self._work
            self.power.account(self._duration, self._duration - host, memory, compute, now)
        else:
            self._do(self._left, now)
        self._begin = now
        batch, counts = self._batch, self.counts
        counts.steps += 1
        counts.step_tokens += (tokens := self._step_tokens)
        counts.step_buckets[STEP_BUCKET[tokens if tokens < _MOST_TOKENS else _MOST_TOKENS]] += 1
        decodes = batch.decodes
        if batch.with_decodes:
            batch.number += 1
            if decodes:
                batch.held += decodes
                counts.generation_tokens += decodes
                if batch.stalled_since is None:
                    counts.inter_token.observe(now - self._step_began, decodes)
                else:
                    self._count_stalled(now)
                if batch.finishes[0][0] <= batch.number:
                    self._complete(now)
        elif decodes and batch.stalled_since is None:
            batch.stalled_since = self._step_began
        for sequence, tokens in batch.chosen:
            sequence.computed = computed = sequence.computed + tokens
            if computed < sequence.prompt + sequence.generated:
                batch.partial = sequence
            else:
                self._token_after_prefill(sequence, now)

    def _token_after_prefill(self, sequence: Running, now: float) -> None:
        counts = self.counts
        counts.generation_tokens += 1
        sequence.generated = number = sequence.generated + 1
        if number == 1:
            sequence.first_token = now
            counts.time_to_first.observe(now - sequence.arrival)
            counts.prompt_tokens += sequence.prompt
            counts.cached_tokens += sequence.cached
            if self.events is not None and sequence.output > 1:
                self.events.append(TokenEvent(sequence.name, now, 1, None))
        else:  # it was preempted
            counts.inter_token.observe(now - sequence.last_token)
        if number == sequence.output:
            self._batch.unreserve(sequence)
            self._finish(sequence, now)
        else:
            self._batch.join(sequence, now)

    def _complete(self, now: float) -> None:
        """Answer those that just got their last token."""
        batch = self._batch
        finishes, number = batch.finishes, batch.number
        while finishes and finishes[0][0] <= number:
            sequence = heappop(finishes)[2]
            batch.leave(sequence)
            self._finish(sequence, now)

    def _finish(self, sequence: Running, now: float) -> None:
        name, output, arrival = sequence.name, sequence.output, sequence.arrival
        del self._batch.running[name]
        del self._batch.sequences[name]
        timing = RequestTiming(sequence.prompt, output, arrival, sequence.scheduled, sequence.first_token, now, name)
        self.finished.append(timing)
        self.counts.end_to_end.observe(now - arrival)
        if self.events is not None:
            self.events.append(TokenEvent(name, now, output, timing))

    def _count_stalled(self, now: float) -> None:
        """The first tokens after steps without decodes: each gap counts from the sequence's own last token."""
        batch, observe = self._batch, self.counts.inter_token.observe
        since = batch.stalled_since or 0.0
        for sequence in batch.running.values():
            if sequence.finish >= 0:
                observe(now - max(since, sequence.last_token))
        batch.stalled_since = None
