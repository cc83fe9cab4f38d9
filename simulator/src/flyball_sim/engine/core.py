"""The engine itself, as pure arithmetic over a clock it is told: continuous batching with chunked prefill.

Scheduling follows vLLM V1 (`vllm/v1/core/sched/scheduler.py`): each step gives running sequences their next token
or prefill chunk first, then admits from the queue in order, under one token budget. KV blocks are taken as tokens
are computed; when they run out the youngest running sequence is preempted and computes its tokens again later.

The core has no clock and never waits. `advance(now, sm_mhz)` works out every step that ends by `now`; a step under
way keeps the share of work done when the SM clock changes, so a clock change acts at once and exactly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from flyball_sim.engine.models import BLOCK_TOKENS, StepCost, StepModel


class EngineRefusalError(ValueError):
    """A request this engine will never run; the message says which bound it breaks."""


class QueueFullError(RuntimeError):
    """The engine's queue is at its limit: overload, not a fault of the request."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """vLLM's knobs of the same names; `max_num_queued_reqs` bounds the requests waiting to be scheduled."""

    max_model_len: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_num_queued_reqs: int = 1024


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A prompt of `prompt_tokens` that is answered with exactly `output_tokens` tokens.

    `cached_tokens` of the prompt need no prefill: a prefix that is in the cache, or keys and values that came from
    a prefill engine. They take KV blocks all the same.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """When a finished request came, was first scheduled, gave its first and its last token (engine seconds)."""

    prompt_tokens: int
    output_tokens: int
    arrival_seconds: float
    scheduled_seconds: float
    first_token_seconds: float
    finished_seconds: float
    request_id: str = ""


class TokenEvent(NamedTuple):
    """One output token. `since_seconds` counts from the token before it, or from the arrival for the first."""

    request_id: str
    seconds: float
    number: int  # 1 is the first
    since_seconds: float
    finished: RequestTiming | None  # set on the last token


@dataclass(frozen=True, slots=True)
class LoadSample:
    """Use of each GPU of the group, averaged over the time since the last sample; shares of 1.

    `memory_use` is of peak bandwidth. `compute_use` is of the dense peak at the clock the work ran at: the power
    fits hold one exponent for clock and voltage together, so the clock must not be in the activity a second time.
    """

    memory_use: float
    compute_use: float
    busy: float


class _Sequence:
    __slots__ = ("arrival", "blocks", "computed", "first_token", "generated", "last_token", "request", "scheduled")

    def __init__(self, request: EngineRequest, arrival: float) -> None:
        self.request = request
        self.arrival = arrival
        self.computed = 0  # tokens whose keys and values are in the cache
        self.generated = 0
        self.blocks = 0
        self.scheduled: float | None = None
        self.first_token = 0.0
        self.last_token = arrival

    @property
    def uncomputed(self) -> int:
        return self.request.prompt_tokens + self.generated - self.computed


class _Step:
    """The step under way: its plan, its cost, and how much of it is done and accounted for."""

    __slots__ = ("accounted", "cost", "done", "plan", "since")

    def __init__(self, plan: dict[str, tuple[_Sequence, int]], cost: StepCost, started: float) -> None:
        self.plan = plan
        self.cost = cost
        self.since = started  # when `done` was last brought up to date: the start or a clock change
        self.done = 0.0
        self.accounted = 0.0


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


class EngineCore:
    """One engine replica on one group of GPUs.

    Args:
        model: step times, GPU peaks and KV capacity.
        limits: batch, queue and context bounds.
        sm_mhz: the SM clock in force at the start; the reference clock if not given.
        on_step: told (tokens computed) at the end of each step.
    """

    def __init__(
        self,
        model: StepModel,
        limits: EngineLimits,
        *,
        sm_mhz: float | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self._model = model
        self._limits = limits
        self._sm_mhz = self._clamped(model.reference_mhz if sm_mhz is None else sm_mhz)
        self._on_step = on_step
        self._now = 0.0
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._sequences: dict[str, _Sequence] = {}
        self._free_blocks = model.kv_blocks
        self._step: _Step | None = None
        self._sampled_at = 0.0
        self._memory_bytes = 0.0
        self._flops = 0.0  # each divided by the share of the reference clock it ran at
        self._gpu_seconds = 0.0
        self.busy_seconds = 0.0
        """Engine seconds with a step under way, host part included, so far."""
        self.preemptions = 0
        """Sequences preempted so far."""

    @property
    def now_seconds(self) -> float:
        """The engine's clock: the latest time it was told."""
        return self._now

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use."""
        return 1.0 - self._free_blocks / self._model.kv_blocks

    @property
    def sm_mhz(self) -> float:
        """The SM clock steps are computed with."""
        return self._sm_mhz

    @property
    def kv_blocks(self) -> int:
        """KV blocks in all."""
        return self._model.kv_blocks

    @property
    def step_cost(self) -> StepCost | None:
        """The cost of the step under way."""
        return None if self._step is None else self._step.cost

    def set_batch_limit(self, max_num_seqs: int) -> None:
        """Admit no more than this many sequences to the batch from now on."""
        self._limits = replace(self._limits, max_num_seqs=max_num_seqs)

    def submit(self, request: EngineRequest, now_seconds: float) -> None:
        """Queue a request that arrives now.

        Raises:
            EngineRefusalError: it is empty or exceeds the context length or the KV cache.
            QueueFullError: `max_num_queued_reqs` requests wait already.
            ValueError: a step has ended by `now_seconds` (call `advance` first), time would run backwards, or the
                id is in use.
        """
        total = request.prompt_tokens + request.output_tokens
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise EngineRefusalError(
                f"request {request.request_id!r} has {request.prompt_tokens} prompt and {request.output_tokens} "
                "output tokens: give at least 1 of each"
            )
        if total > self._limits.max_model_len:
            raise EngineRefusalError(
                f"request {request.request_id!r} needs {total} tokens of context, the engine has "
                f"{self._limits.max_model_len}: shorten the prompt or max_tokens"
            )
        if _blocks(total - 1) > self._model.kv_blocks:
            raise EngineRefusalError(
                f"request {request.request_id!r} needs {_blocks(total - 1)} KV blocks, the engine has "
                f"{self._model.kv_blocks}: shorten the prompt or max_tokens"
            )
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is in use: ids are unique while a request lives")
        if now_seconds < self._now:
            raise ValueError(f"time {now_seconds} is before the engine's clock {self._now}: it never runs backwards")
        if len(self._waiting) >= self._limits.max_num_queued_reqs:
            raise QueueFullError(
                f"{len(self._waiting)} requests wait, the limit is {self._limits.max_num_queued_reqs}: "
                "try again later or add replicas"
            )
        if now_seconds > self._now:
            due = self.next_event_seconds()
            if due is not None and due <= now_seconds:
                raise ValueError(f"a step ends at {due}, by {now_seconds}: call advance({now_seconds}, ...) first")
            self._now = now_seconds
        sequence = _Sequence(request, now_seconds)
        self._sequences[request.request_id] = sequence
        self._waiting.append(sequence)

    def cancel(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False if it is not here (finished, or never was)."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence in self._running:
            self._running.remove(sequence)
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
        if self._step is not None:
            # The step under way was launched with it: its time stands, only the token is dropped.
            self._step.plan.pop(request_id, None)
        return True

    def next_event_seconds(self) -> float | None:
        """When the step under way ends at the present clock; None when there is nothing to do."""
        self._start_step()
        return None if self._step is None else self._step_end(self._step)

    def advance(self, now_seconds: float, sm_mhz: float | None = None) -> Sequence[TokenEvent]:
        """Work out all that happens up to and at `now_seconds`; tokens in order of time.

        Args:
            now_seconds: not before the last time given.
            sm_mhz: the SM clock from now on (None: as before). The time up to `now_seconds` ran at the clock given
                last, so a prediction of `next_event_seconds` holds until the clock is changed.
        """
        if now_seconds < self._now:
            raise ValueError(f"time {now_seconds} is before the engine's clock {self._now}: it never runs backwards")
        events: list[TokenEvent] = []
        self._start_step()
        while self._step is not None:
            end = self._step_end(self._step)
            if end > now_seconds:
                break
            self._now = max(self._now, end)
            self._finish_step(self._step, end, events)
            self._start_step()
        self._now = now_seconds
        if sm_mhz is not None:
            self._set_clock(sm_mhz)
        return events

    def take_load(self) -> LoadSample:
        """GPU use since this was last called, up to the engine's present time."""
        if self._step is not None:
            self._account(self._step, self._done(self._step))
        span = self._now - self._sampled_at
        gpu = self._model.gpu
        sample = LoadSample(0.0, 0.0, 0.0)
        if span > 0:
            sample = LoadSample(
                min(1.0, self._memory_bytes / (span * gpu.memory_bandwidth_bytes_per_second)),
                min(1.0, self._flops / (span * gpu.dense_bf16_flops)),
                min(1.0, self._gpu_seconds / span),
            )
        self._sampled_at = self._now
        self._memory_bytes = self._flops = self._gpu_seconds = 0.0
        return sample

    def _clamped(self, sm_mhz: float) -> float:
        # A parked card reports a clock below its lowest supported one; kernels never run there.
        return min(max(sm_mhz, float(self._model.gpu.sm_min_mhz)), float(self._model.gpu.sm_max_mhz))

    def _set_clock(self, sm_mhz: float) -> None:
        clamped = self._clamped(sm_mhz)
        if clamped == self._sm_mhz:
            return
        step = self._step
        if step is not None:
            done = self._done(step)
            self._account(step, done)
            step.done, step.since = done, self._now
        self._sm_mhz = clamped

    def _gpu_duration(self, cost: StepCost) -> float:
        fixed = cost.fixed_seconds / self._model.gpu.bandwidth_factor(self._sm_mhz)
        return fixed + cost.clocked_seconds * self._model.reference_mhz / self._sm_mhz

    def _step_end(self, step: _Step) -> float:
        return step.since + (1.0 - step.done) * (step.cost.host_seconds + self._gpu_duration(step.cost))

    def _done(self, step: _Step) -> float:
        duration = step.cost.host_seconds + self._gpu_duration(step.cost)
        return min(1.0, step.done + (self._now - step.since) / duration)

    def _account(self, step: _Step, done: float) -> None:
        share = done - step.accounted
        step.accounted = done
        gpu_seconds = share * self._gpu_duration(step.cost)
        self._gpu_seconds += gpu_seconds
        self.busy_seconds += gpu_seconds + share * step.cost.host_seconds
        self._memory_bytes += share * step.cost.memory_bytes
        self._flops += share * step.cost.flops * self._model.reference_mhz / self._sm_mhz

    def _release(self, sequence: _Sequence) -> None:
        self._free_blocks += sequence.blocks
        sequence.blocks = 0
        sequence.computed = 0

    def _grow(self, sequence: _Sequence, tokens: int) -> bool:
        more = _blocks(sequence.computed + tokens) - sequence.blocks
        if more > self._free_blocks:
            return False
        self._free_blocks -= more
        sequence.blocks += more
        return True

    def _plan(self) -> dict[str, tuple[_Sequence, int]]:
        """Choose the next step's sequences and how many tokens each computes."""
        plan: dict[str, tuple[_Sequence, int]] = {}
        budget = self._limits.max_num_batched_tokens
        preempted = False
        index = 0
        while index < len(self._running) and budget > 0:
            sequence = self._running[index]
            tokens = min(sequence.uncomputed, budget)
            while not self._grow(sequence, tokens):
                victim = self._running.pop()
                self._release(victim)
                self._waiting.appendleft(victim)
                self.preemptions += 1
                preempted = True
                if victim is sequence:
                    break
            else:
                plan[sequence.request.request_id] = (sequence, tokens)
                budget -= tokens
            index += 1
        while self._waiting and budget > 0 and not preempted and len(self._running) < self._limits.max_num_seqs:
            sequence = self._waiting[0]
            # All of it must fit, or long prompts would be admitted only to be preempted half-way.
            if _blocks(sequence.uncomputed) > self._free_blocks:
                break
            if not sequence.generated:
                # The last token of a prompt is computed even where all are cached: its output is the first token.
                sequence.computed = min(sequence.request.cached_tokens, sequence.request.prompt_tokens - 1)
            tokens = min(sequence.uncomputed, budget)
            self._grow(sequence, tokens)
            self._waiting.popleft()
            self._running.append(sequence)
            if sequence.scheduled is None:
                sequence.scheduled = self._now
            plan[sequence.request.request_id] = (sequence, tokens)
            budget -= tokens
        return plan

    def _start_step(self) -> None:
        if self._step is not None or not (self._running or self._waiting):
            return
        plan = self._plan()
        decodes = held = 0
        chunks: list[tuple[int, int]] = []
        for sequence, tokens in plan.values():
            if tokens == 1 and sequence.computed:
                decodes += 1
                held += sequence.computed
            else:
                chunks.append((sequence.computed, tokens))
        self._step = _Step(plan, self._model.cost(decodes, held, chunks), self._now)

    def _finish_step(self, step: _Step, end: float, events: list[TokenEvent]) -> None:
        self._account(step, 1.0)
        self._step = None
        computed = 0
        for request_id, (sequence, tokens) in step.plan.items():
            computed += tokens
            sequence.computed += tokens
            if sequence.uncomputed:
                continue
            sequence.generated += 1
            request = sequence.request
            if sequence.generated == 1:
                sequence.first_token = end
            finished = None
            if sequence.generated == request.output_tokens:
                finished = RequestTiming(
                    prompt_tokens=request.prompt_tokens,
                    output_tokens=request.output_tokens,
                    arrival_seconds=sequence.arrival,
                    scheduled_seconds=sequence.arrival if sequence.scheduled is None else sequence.scheduled,
                    first_token_seconds=sequence.first_token,
                    finished_seconds=end,
                    request_id=request_id,
                )
                self._running.remove(sequence)
                self._release(sequence)
                del self._sequences[request_id]
            events.append(TokenEvent(request_id, end, sequence.generated, end - sequence.last_token, finished))
            sequence.last_token = end
        if self._on_step is not None:
            self._on_step(computed)
