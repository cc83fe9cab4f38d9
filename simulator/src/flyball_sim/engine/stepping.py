"""Steps of an engine one after the other: lines of decode steps in closed form, steps with prefill one by one.

While nobody comes or goes the batch is constant and the tokens it holds, K, grow by B a step, so the steps' times are
a straight line and m of them take ``T(m) = m*(a + b*K) + b*B*m*(m-1)/2``; its inverse says how many were done by any
time. Where a power cap binds, the clock is the highest supported one at which the step fits under it; it moves with K,
and the line is cut where it moves by one supported step.

What runs most often is written out where it could be a call: an hour of requests is some 400,000 steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop

from flyball_sim.engine.batch import Batch
from flyball_sim.engine.batch import Sequence as Running
from flyball_sim.engine.models import BLOCK_TOKENS, StepModel
from flyball_sim.engine.power import GroupPower, Pace
from flyball_sim.engine.requests import EngineLimits, RequestTiming, TokenEvent
from flyball_sim.engine.tallies import ITL_BUCKETS, REQUEST_BUCKETS, STEP_BUCKET, TTFT_BUCKETS, EngineCounts
from flyball_sim.engine.work import NO_LINE, NO_WORK, Work, WorkLine, work_table
from flyball_sim.gpu.dies import NOMINAL_DIE, Die

IDLE, LINE, STEP = 0, 1, 2
"""What is under way."""
NEVER = math.inf
_MOST_TOKENS = len(STEP_BUCKET) - 1


class Stepper:
    """The steps of one engine replica on one group of GPUs.

    Args:
        model: step times, GPU peaks and KV capacity.
        limits: batch, queue and context bounds.
        dies: of the cards; nominal ones if not given.
        start_seconds: the engine's clock at first.
        ready_seconds: no step begins before.
    """

    __slots__ = (
        "_batch", "_begin", "_due", "_duration", "_end", "_first", "_growth", "_held_sum", "_kind", "_left", "_line",
        "_now", "_pace", "_ready", "_seconds", "_step_began", "_step_tokens", "_steps", "_table", "_work", "counts",
        "events", "finished", "model", "power",
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
        self._kind = IDLE
        self._begin = start_seconds
        self._end = self._due = NEVER
        self._line, self._steps, self._first, self._growth = NO_LINE, 0, 0.0, 0.0
        self._held_sum, self._seconds = 0, 0.0  # of the line's steps: tokens held, added up, and time
        self._pace: Pace | None = None  # of the line, where it runs at the wanted clock
        self._work, self._left, self._duration = NO_WORK, 0.0, 0.0
        self._step_began, self._step_tokens = 0.0, 0

    def advance(self, now_seconds: float) -> None:
        """Work out all that happens up to and at `now_seconds`."""
        if now_seconds < self._now:
            raise ValueError(f"time {now_seconds} is before the engine's clock {self._now}: it never runs backwards")
        while self._due <= now_seconds:
            end = self._end
            if self._due < end:  # a cap on its way has moved on, or the engine has become ready
                self._interrupt(self._due)
                self._resume()
            elif self._kind == LINE:
                self._commit(end)
                batch = self._batch
                if batch.finishes[0][0] <= batch.number:
                    self._complete(end)
                self._open()
            else:
                self._finish_step(end)
                self._open()
        self._now = now_seconds

    def sync(self) -> None:
        """Count what is over by now; the step under way stays open."""
        if self._kind == LINE:
            begin, now, steps = self._begin, self._now, self._steps
            if steps > 1 and begin + self._line_seconds(1) <= now:
                done = self._whole_steps()
                if done + 1 < steps and begin + self._line_seconds(done + 1) <= now:
                    done += 1  # rounding put the inverse one step off, a step ends now
                self._plan(done)
                self._commit(begin + self._seconds)
                self._plan(steps - done)
        elif self._kind == IDLE and self._now > self._begin:
            self.power.account_idle(self._begin, self._now)
            self._begin = self._now

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
        batch, begin = self._batch, self._begin
        if (batch.waiting or batch.partial is not None) and batch.choose(begin):
            tokens, held = (batch.decodes, batch.held) if batch.with_decodes else (0, 0)
            self._work = self._table.step(tokens + batch.fresh, held + batch.fresh_held, batch.spans)
            self._left, self._step_began, self._step_tokens = 1.0, begin, tokens + batch.chosen_tokens
            self._launch()
        elif batch.decodes:
            self._open_line()
        else:
            self._kind = IDLE
            self._end = self._due = NEVER
            self.power.kernels_ended(begin)

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
        self._kind, self._pace, self._steps = LINE, pace, steps
        self._first = first = pace.first
        self._growth = growth = pace.growth
        self._held_sum = held_sum = steps * (held + last_held) >> 1
        self._seconds = seconds = steps * first + growth * held_sum
        self._end = self._due = begin + seconds

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
        self._kind, self._line, self._pace = LINE, line, None
        piece_end = NEVER
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
        self._plan(steps)
        self._end = end = begin + self._seconds
        self._due = min(piece_end, end)

    def _launch(self) -> None:
        """Run what is left of one step, at the clock it settles at."""
        power, work, begin = self.power, self._work, self._begin
        self._kind = STEP
        if begin < power.lag_until:
            power.settle(work, min(power.held_watts, power.held_at(begin)))
            piece_end = NEVER
            if power.capped:
                limit, piece_end = power.lag_piece(begin)
                power.settle(work, limit)
            self._duration = duration = self._step_seconds()
            self._end = begin + self._left * duration
            self._due = min(piece_end, self._end)
        else:
            power.settle(work, power.held_watts)
            clock = power.clock
            self._duration = duration = work[0] + work[1] * clock.fixed_factor + work[2] * clock.clocked_factor
            self._end = self._due = begin + self._left * duration

    def _step_seconds(self) -> float:
        host, fixed, clocked, _, _ = self._work
        return host + fixed * self.power.clock.fixed_factor + clocked * self.power.clock.clocked_factor

    def _work_now(self) -> Work | None:
        if self._kind == LINE:
            return self._line_now().at(self._batch.held)
        return self._work if self._kind == STEP else None

    def _line_now(self) -> WorkLine:
        return self._line if self._pace is None else self._pace.line

    def _line_seconds(self, steps: int) -> float:
        batch = self._batch
        held_sum = steps * batch.held + batch.decodes * (steps * (steps - 1) >> 1)
        return steps * self._first + self._growth * held_sum

    def _plan(self, steps: int) -> None:
        """The line goes on for this many steps."""
        batch = self._batch
        self._steps = steps
        self._held_sum = held_sum = steps * batch.held + batch.decodes * (steps * (steps - 1) >> 1)
        self._seconds = steps * self._first + self._growth * held_sum

    def _whole_steps(self) -> int:
        """How many steps of the line, its last one left out, are over by now."""
        most, batch, elapsed = self._steps - 1, self._batch, self._now - self._begin
        if elapsed <= 0.0:
            return 0
        curve = 0.5 * self._growth * batch.decodes
        slope = self._first + self._growth * batch.held - curve
        steps = int(2.0 * elapsed / (slope + math.sqrt(slope * slope + 4.0 * curve * elapsed)))
        return steps if steps < most else most

    def _stop_after_step(self) -> None:
        """Let the line of decode steps end with the one under way."""
        if self._steps > 1:
            self._plan(self._whole_steps() + 1)
            end = self._begin + self._seconds
            if end <= self._now:  # rounding put the inverse one step off, a step ends now
                self._plan(self._steps + 1)
                end = self._begin + self._seconds
            self._end = end
            self._due = min(self._due, end)

    def _interrupt(self, now: float) -> None:
        """Account for all that is done up to now. What is left of a step under way becomes a step of its own."""
        self._now = now
        self.sync()
        begin = self._begin
        if self._kind == IDLE:
            self._due = NEVER
        elif now > begin:
            if self._kind == LINE:
                batch = self._batch
                self._work = self._line_now().at(batch.held)
                self._duration = self._line_seconds(1)
                self._left, self._step_began, self._step_tokens = 1.0, begin, batch.decodes
                batch.with_decodes, batch.chosen = True, []
                self._kind = STEP
            self._do(min(self._left, (now - begin) / self._duration), now)
            self._begin = now

    def _resume(self) -> None:
        """Go on after an interruption, under the limits as they are now."""
        if self._kind == STEP:
            self._launch()
        elif self._kind == LINE:
            self._open()
        elif self._batch.waiting and self._batch.admit:
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

    def _commit(self, now: float) -> None:
        """The steps planned are over."""
        batch, power, counts, pace = self._batch, self.power, self.counts, self._pace
        steps, held_sum, seconds = self._steps, self._held_sum, self._seconds
        decodes, held = batch.decodes, batch.held
        tokens = steps * decodes
        if pace is not None:
            if not pace.steps:
                power.begun.append(pace)
            pace.steps += steps
            pace.held_sum += held_sum
            power.waiting_joules = waiting = power.waiting_joules + pace.waiting_watts * seconds
            power.above_joules = above = power.above_joules + steps * pace.joules + held_sum * pace.joules_per_token
            if power.pieces is not None:
                power.pieces.append((now, waiting, above))
        else:
            self._count_steps(steps, decodes)
            host, _, _, _, _, memory, memory_k, compute, compute_k, _ = self._line
            power.account(
                seconds,
                seconds - steps * host,
                steps * memory + memory_k * held_sum,
                steps * compute + compute_k * held_sum,
                now,
            )
        counts.generation_tokens += tokens
        if batch.stalled_since is None:
            tally, growth = counts.inter_token, self._growth
            shortest = self._first + growth * held
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
        self._decodes_got_tokens(now)
        for sequence, tokens in batch.chosen:
            sequence.computed = computed = sequence.computed + tokens
            generated = sequence.generated
            if computed < sequence.prompt + generated:
                batch.partial = sequence
                continue
            if sequence is batch.partial:
                batch.partial = None
            if generated or sequence.output == 1 or self.events is not None:
                self._token_after_prefill(sequence, now)
                continue
            sequence.generated = 1
            sequence.first_token = now
            counts.generation_tokens += 1
            counts.prompt_tokens += sequence.prompt
            counts.cached_tokens += sequence.cached
            waited, tally = now - sequence.arrival, counts.time_to_first
            tally.total += waited
            tally.counts[bisect_left(TTFT_BUCKETS, waited)] += 1
            batch.join(sequence, now)

    def _decodes_got_tokens(self, now: float) -> None:
        """What the end of one step is to the sequences in decode."""
        batch, counts = self._batch, self.counts
        decodes = batch.decodes
        if batch.with_decodes:
            batch.number += 1
            if decodes:
                batch.held += decodes
                counts.generation_tokens += decodes
                if batch.stalled_since is None:
                    gap, tally = now - self._step_began, counts.inter_token
                    tally.total += gap * decodes
                    tally.counts[bisect_left(ITL_BUCKETS, gap)] += decodes
                else:
                    self._count_stalled(now)
                if batch.finishes[0][0] <= batch.number:
                    self._complete(now)
        elif decodes and batch.stalled_since is None:
            batch.stalled_since = self._step_began

    def _token_after_prefill(self, sequence: Running, now: float) -> None:
        """The same for any sequence: one that was preempted, has one token only, or is watched."""
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
        batch, kv = self._batch, self._batch.kv
        finishes, number = batch.finishes, batch.number
        while finishes and finishes[0][0] <= number:
            sequence = heappop(finishes)[2]
            kv.leave(sequence.computed)
            batch.held -= sequence.computed + number
            batch.decodes -= 1
            self._finish(sequence, now)

    def _finish(self, sequence: Running, now: float) -> None:
        name, output, arrival = sequence.name, sequence.output, sequence.arrival
        del self._batch.running[name]
        del self._batch.sequences[name]
        timing = RequestTiming(sequence.prompt, output, arrival, sequence.scheduled, sequence.first_token, now, name)
        self.finished.append(timing)
        seconds, tally = now - arrival, self.counts.end_to_end
        tally.total += seconds
        tally.counts[bisect_left(REQUEST_BUCKETS, seconds)] += 1
        # vLLM counts 0 for an answer of one token, too
        each, tally = (now - sequence.first_token) / max(1, output - 1), self.counts.time_per_token
        tally.total += each
        tally.counts[bisect_left(ITL_BUCKETS, each)] += 1
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
