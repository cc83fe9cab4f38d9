"""Who runs: queue, batch and KV blocks of an engine, counted in steps and not in seconds."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappush

from flyball_sim.engine.kvcache import KvBlocks, blocks_of
from flyball_sim.engine.models import BLOCK_TOKENS
from flyball_sim.engine.requests import EngineLimits, EngineRefusalError, EngineRequest, QueueFullError

NOT_SCHEDULED = -1.0
UNBOUNDED = 1 << 60
"""Of `Batch.admit`: more than can ever wait."""


class Sequence:
    """A request in the engine.

    Attributes:
        name: the request's id.
        prompt: tokens of the prompt.
        output: tokens of the answer.
        cached: tokens of the prompt that need not be computed.
        arrival: when it came; all times are the engine's seconds.
        scheduled: when it was first admitted.
        first_token: when it got its first token.
        last_token: when it got the last one before it was preempted, or came into decode.
        computed: tokens whose keys and values are in the cache; in decode an offset to the step's number.
        generated: output tokens; in decode an offset to the step's number.
        reserved: blocks it was given, in prefill.
        finish: number of the step that gives its last token; -1 outside decode.
    """

    __slots__ = (
        "arrival", "cached", "computed", "finish", "first_token", "generated", "last_token", "name", "output", "prompt",
        "reserved", "scheduled",
    )  # fmt: skip

    def __init__(self, request: EngineRequest, arrival: float) -> None:
        self.name, self.prompt, self.output, self.cached = request
        self.arrival = arrival
        self.scheduled = NOT_SCHEDULED
        self.first_token = 0.0
        self.last_token = 0.0
        self.computed = 0
        self.generated = 0
        self.reserved = 0
        self.finish = -1


class Batch:
    """The sequences of one engine.

    Attributes:
        admit: how many of those that wait may still be taken in.
        most: the highest that `limits.max_num_seqs` was made with.
        longest: tokens a request may come to, with prompt and answer, and still be served.
        decodes: sequences that get a token in each decode step.
        held: tokens in the cache of those.
        number: decode steps so far.
        partial: the one sequence whose prompt is computed in part.
        chosen: (sequence, tokens) of those that compute prompt tokens in the step chosen last.
        chosen_tokens: of those.
        spans: (tokens before, tokens in the step) of those that are more than one token.
        fresh: how many of them are one token on top of a cached prompt, which costs what a decode costs.
        fresh_held: tokens in the cache of those.
        with_decodes: whether the decodes are in that step.
        finishes: heap of (step's number, order, sequence): who gets its last token when.
        stalled_since: when decodes got their last token, after steps without them.
        preemptions: so far.
    """

    __slots__ = (
        "_joins", "admit", "chosen", "chosen_tokens", "decodes", "finishes", "fresh", "fresh_held", "held", "kv",
        "limits", "longest", "most", "number", "partial", "preemptions", "running", "sequences", "spans",
        "stalled_since", "waiting", "with_decodes",
    )  # fmt: skip

    def __init__(self, limits: EngineLimits, kv_blocks: int) -> None:
        self.limits = limits
        self.most = limits.max_num_seqs
        self.admit = UNBOUNDED
        self.kv = KvBlocks(kv_blocks)
        self.longest = min(limits.max_model_len, BLOCK_TOKENS * kv_blocks + 1)
        self.waiting: deque[Sequence] = deque()
        self.running: dict[str, Sequence] = {}
        self.sequences: dict[str, Sequence] = {}
        self.decodes = self.held = self.number = 0
        self.partial: Sequence | None = None
        self.chosen: list[tuple[Sequence, int]] = []
        self.spans: list[tuple[int, int]] = []
        self.chosen_tokens = self.fresh = self.fresh_held = 0
        self.with_decodes = True
        self.stalled_since: float | None = None
        self.preemptions = 0
        self._joins = 0
        self.finishes: list[tuple[int, int, Sequence]] = []

    def add(self, request: EngineRequest, now: float) -> None:
        """Put a request into the queue.

        Raises:
            EngineRefusalError: it is empty or exceeds the context length or the KV cache.
            QueueFullError: `max_num_queued_reqs` requests wait already.
            ValueError: the id is in use.
        """
        name, prompt, output, cached = request
        last = prompt + output - 1
        if prompt < 1 or output < 1 or not 0 <= cached <= prompt or last >= self.longest or name in self.sequences:
            self._refuse(request)
        if len(self.waiting) >= self.limits.max_num_queued_reqs:
            self._refuse(request)
        self.sequences[name] = sequence = Sequence(request, now)
        self.waiting.append(sequence)

    def _refuse(self, request: EngineRequest) -> None:
        name, prompt, output, cached = request
        total = prompt + output
        if prompt < 1 or output < 1 or not 0 <= cached <= prompt:
            raise EngineRefusalError(
                f"request {name!r} has {prompt} prompt ({cached} of them cached) and {output} output tokens: give at "
                "least 1 of each, and 0 to all of the prompt cached"
            )
        if total > self.limits.max_model_len:
            raise EngineRefusalError(
                f"request {name!r} needs {total} tokens of context, the engine has {self.limits.max_model_len}: "
                "shorten the prompt or max_tokens"
            )
        if blocks_of(total - 1) > self.kv.capacity:
            raise EngineRefusalError(
                f"request {name!r} needs {blocks_of(total - 1)} KV blocks, the engine has {self.kv.capacity}: "
                "shorten the prompt or max_tokens"
            )
        if name in self.sequences:
            raise ValueError(f"request id {name!r} is in use: ids are unique while a request lives")
        if len(self.waiting) >= self.limits.max_num_queued_reqs:
            raise QueueFullError(
                f"{len(self.waiting)} requests wait, the limit is {self.limits.max_num_queued_reqs}: "
                "try again later or add replicas"
            )

    def used_blocks(self) -> int:
        """KV blocks in use, those that the next decode step takes included."""
        return self.kv.used(self.number + (self.decodes > 0))

    def steps_with_room(self, steps: int, now: float) -> int:
        """How many of these decode steps fit the KV cache exactly, at least 1: for that one the youngest make way."""
        self._make_room(now)
        return self.kv.steps_that_fit(self.number, min(steps, self.finishes[0][0] - self.number))

    def choose(self, now: float) -> bool:
        """Choose who computes prompt tokens in the step that begins now; whether there is anybody."""
        chosen: list[tuple[Sequence, int]] = []
        spans: list[tuple[int, int]] = []
        self.chosen, self.spans = chosen, spans
        self.chosen_tokens = self.fresh = self.fresh_held = 0
        kv, decodes, limits, waiting, running = self.kv, self.decodes, self.limits, self.waiting, self.running
        sure = kv.capacity - ((self.held + 16 * decodes) >> 4)  # free for sure, reserved ones not taken off
        if sure < kv.reserved and decodes and self._make_room(now):
            return False
        chunked = limits.chunked_prefill
        budget = limits.max_num_batched_tokens - (decodes if chunked else 0)
        if self.partial is not None and budget > 0:
            budget -= self._take(self.partial, budget)
        while waiting and budget > 0 and self.admit and len(running) < limits.max_num_seqs:
            sequence = waiting[0]
            total = sequence.prompt + sequence.generated
            # All of it must fit, or long prompts would be admitted only to be preempted half-way.
            need = (total + 15) >> 4
            if kv.reserved + need > sure and self.used_blocks() + need > kv.capacity:
                break
            if sequence.cached and not sequence.generated:
                # The last token of a prompt is computed even where all are cached: it gives the first token.
                sequence.computed = min(sequence.cached, sequence.prompt - 1)
            if not chunked and chosen and not self._goes_with_chosen(sequence, budget):
                break
            waiting.popleft()
            self.admit -= 1
            running[sequence.name] = sequence
            sequence.reserved = need
            kv.reserved += need
            if sequence.scheduled == NOT_SCHEDULED:
                sequence.scheduled = now
            if sequence.computed == 0 and total <= budget:
                chosen.append((sequence, total))
                spans.append((0, total))
                self.chosen_tokens += total
                budget -= total
            else:
                budget -= self._take(sequence, budget if chunked else total)
        self.with_decodes = chunked or not spans
        return bool(chosen)

    def join(self, sequence: Sequence, now: float) -> None:
        """A sequence whose prompt is computed decodes from now on."""
        number, computed, generated = self.number, sequence.computed, sequence.generated
        self.decodes += 1
        self.held += computed
        sequence.finish = finish = number + sequence.output - generated
        sequence.computed = offset = computed - number
        sequence.generated = generated - number
        sequence.last_token = now
        kv = self.kv
        kv.reserved -= sequence.reserved
        sequence.reserved = 0
        kv.join(offset)
        self._joins = order = self._joins + 1
        heappush(self.finishes, (finish, order, sequence))

    def leave(self, sequence: Sequence) -> None:
        """Give back what a running sequence holds; `computed` and `generated` are plain numbers again."""
        if sequence.finish < 0:
            self.unreserve(sequence)
            return
        number = self.number
        self.kv.leave(sequence.computed)
        sequence.computed += number
        sequence.generated += number
        sequence.finish = -1
        self.held -= sequence.computed
        self.decodes -= 1

    def unreserve(self, sequence: Sequence) -> None:
        """Its prompt is computed, or it goes: the blocks are not set aside any more."""
        self.kv.reserved -= sequence.reserved
        sequence.reserved = 0
        if sequence is self.partial:
            self.partial = None

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is; the step under way goes on without it."""
        name = sequence.name
        del self.sequences[name]
        if self.running.pop(name, None) is None:
            self.waiting.remove(sequence)
            return
        self._leave_early(sequence)
        self.chosen = [chunk for chunk in self.chosen if chunk[0] is not sequence]

    def _leave_early(self, sequence: Sequence) -> None:
        if sequence.finish >= 0:
            self.finishes = [entry for entry in self.finishes if entry[2] is not sequence]
            heapify(self.finishes)
        self.leave(sequence)

    def _take(self, sequence: Sequence, budget: int) -> int:
        computed = sequence.computed
        left = sequence.prompt + sequence.generated - computed
        tokens = min(left, budget)
        self.chosen.append((sequence, tokens))
        self.chosen_tokens += tokens
        if tokens == 1 and computed:
            self.fresh += 1
            self.fresh_held += computed
        else:
            self.spans.append((computed, tokens))
        return tokens

    def _goes_with_chosen(self, sequence: Sequence, budget: int) -> bool:
        """Without chunks a step holds whole prompts or decodes, not both."""
        left = sequence.prompt + sequence.generated - sequence.computed
        if left == 1 and sequence.computed:
            return not self.spans
        return bool(self.spans) and left <= budget

    def _make_room(self, now: float) -> bool:
        """Preempt the youngest until the decodes' next tokens fit; whether anybody had to go."""
        kv, preempted = self.kv, False
        while kv.used(self.number + 1) > kv.capacity:
            _, sequence = self.running.popitem()
            if sequence.finish >= 0:
                last_step = now if self.stalled_since is None else self.stalled_since
                sequence.last_token = max(last_step, sequence.last_token)
            self._leave_early(sequence)
            sequence.computed = 0
            self.waiting.appendleft(sequence)
            self.preemptions += 1
            preempted = True
        return preempted
