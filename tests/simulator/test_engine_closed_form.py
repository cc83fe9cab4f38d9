"""The closed form against an engine that does every step by itself, and laws that hold whatever happens."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from flyball_sim.engine.core import EngineCore
from flyball_sim.engine.kvcache import KvBlocks
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel, step_model
from flyball_sim.engine.requests import EngineLimits, EngineRequest, RequestTiming
from flyball_sim.engine.tallies import ITL_BUCKETS, Tally
from flyball_sim.gpu.dies import draw_dies
from flyball_sim.gpu.steps import settle, step_seconds, step_watts
from flyball_sim.gpu.types import GPU_TYPES

H100 = GPU_TYPES["H100-SXM5"]
MODEL = step_model(H100, "llama-3.1-8b", 1)
BLOCK = 16


@dataclass
class Slow:
    """One request of the slow engine."""

    request: EngineRequest
    arrival: float
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    scheduled: float | None = None
    first_token: float = 0.0
    last_token: float = 0.0

    @property
    def total(self) -> int:
        return self.request.prompt_tokens + self.generated

    @property
    def decodes(self) -> bool:
        return self.generated > 0 and self.computed == self.total - 1


@dataclass
class SlowEngine:
    """Every step by itself, every block counted, every watt at its step: slow and plain."""

    model: StepModel
    limits: EngineLimits
    lock: tuple[int, int] | None = None
    cap_watts: float = 1e9
    now: float = 0.0
    joules: float = 0.0
    waiting: deque[Slow] = field(default_factory=deque)
    running: list[Slow] = field(default_factory=list)
    finished: list[RequestTiming] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    preemptions: int = 0
    most_blocks: int = 0

    def free(self) -> int:
        return self.model.kv_blocks - sum(one.blocks for one in self.running)

    def choose(self) -> list[tuple[Slow, int]]:  # noqa: C901 - plain on purpose
        chunked, preempted = self.limits.chunked_prefill, False
        decodes = [one for one in self.running if one.decodes]
        while sum(-(-one.total // BLOCK) - one.blocks for one in decodes) > self.free():
            victim = self.running.pop()
            victim.computed = victim.blocks = 0
            self.waiting.appendleft(victim)
            self.preemptions += 1
            preempted = True
            decodes = [one for one in decodes if one is not victim]
        grown = sum(-(-one.total // BLOCK) - one.blocks for one in decodes)
        prompts = [one for one in self.running if not one.decodes]
        budget = self.limits.max_num_batched_tokens - (len(decodes) if chunked else 0)
        chosen: list[tuple[Slow, int]] = []
        for one in prompts:
            tokens = min(one.total - one.computed, budget)
            if tokens > 0:
                chosen.append((one, tokens))
                budget -= tokens
        while self.waiting and budget > 0 and not preempted and len(self.running) < self.limits.max_num_seqs:
            one = self.waiting[0]
            need = -(-one.total // BLOCK)
            if need > self.free() - grown:
                break
            if not one.generated:
                one.computed = min(one.request.cached_tokens, one.request.prompt_tokens - 1)
            left = one.total - one.computed
            alone = left == 1 and one.computed > 0
            if not chunked and chosen:
                whole = [not (tokens == 1 and other.computed) for other, tokens in chosen]
                if (alone and any(whole)) or (not alone and (not any(whole) or left > budget)):
                    break
            self.running.append(self.waiting.popleft())
            one.blocks = need
            if one.scheduled is None:
                one.scheduled = self.now
            tokens = min(left, budget) if chunked else left
            chosen.append((one, tokens))
            budget -= tokens
        if not chunked and any(not (tokens == 1 and one.computed) for one, tokens in chosen):
            return chosen
        for one in decodes:
            one.blocks = -(-one.total // BLOCK)
        return [*((one, 1) for one in decodes), *chosen]

    def step(self) -> None:
        plan = self.choose()
        self.most_blocks = max(self.most_blocks, sum(one.blocks for one in self.running))
        alike = [one for one, tokens in plan if tokens == 1 and one.computed]
        chunks = [(one.computed, tokens) for one, tokens in plan if not (tokens == 1 and one.computed)]
        cost = self.model.cost(len(alike), sum(one.computed for one in alike), chunks)
        reference = self.model.reference_mhz
        mhz, _, _ = settle(self.model.gpu, cost, self.cap_watts, self.lock, reference_mhz=reference)
        seconds = step_seconds(self.model.gpu, cost, mhz, reference)
        self.joules += seconds * step_watts(self.model.gpu, cost, mhz, reference)
        self.now += seconds
        for one, tokens in plan:
            one.computed += tokens
            if one.computed < one.total:
                continue
            one.generated += 1
            if one.generated == 1:
                one.first_token = self.now
            else:
                self.gaps.append(self.now - one.last_token)
            one.last_token = self.now
            if one.generated == one.request.output_tokens:
                name, prompt, output, _ = one.request
                assert one.scheduled is not None
                self.finished.append(
                    RequestTiming(prompt, output, one.arrival, one.scheduled, one.first_token, self.now, name)
                )
                self.running.remove(one)

    def play(self, arrivals: Iterable[tuple[float, EngineRequest]]) -> None:
        """All of them, to the last token."""
        for moment, request in arrivals:
            while (self.running or self.waiting) and self.now <= moment:
                self.step()  # the last one has begun before the request came
            if not (self.running or self.waiting) and self.now < moment:
                self.idle(moment)
            self.waiting.append(Slow(request, moment))
        while self.running or self.waiting:
            self.step()

    def idle(self, until: float) -> None:
        mhz = float(self.model.gpu.sm_max_mhz if self.lock is None else self.lock[1])
        self.joules += (until - self.now) * self.model.gpu.waiting_watts(mhz)
        self.now = until


work = st.lists(
    st.tuples(st.floats(0.0, 0.08), st.integers(1, 400), st.integers(1, 60), st.floats(0.0, 1.0)),
    min_size=1,
    max_size=14,
)
limits = st.builds(
    EngineLimits,
    max_model_len=st.just(100_000),
    max_num_seqs=st.sampled_from([2, 6, 64]),
    max_num_batched_tokens=st.sampled_from([128, 512]),
    chunked_prefill=st.booleans(),
)
blocks = st.sampled_from([32, 60, 5000])
caps = st.sampled_from([220.0, 330.0, 430.0, 700.0])
locks = st.sampled_from([None, (345, 345), (345, 900), (345, 1410)])


def arrivals_of(work: list[tuple[float, int, int, float]]) -> list[tuple[float, EngineRequest]]:
    now, made = 0.0, []
    for number, (gap, prompt, output, cached) in enumerate(work):
        now += gap
        made.append((now, EngineRequest(str(number), prompt, output, int(cached * prompt) if cached > 0.5 else 0)))
    return made


def small(kv_blocks: int) -> StepModel:
    return dataclasses.replace(MODEL, kv_blocks=kv_blocks)


def machine(model: StepModel, bounds: EngineLimits, lock: tuple[int, int] | None = None, cap: float = 700.0) -> Machine:
    made = Machine(model, bounds, actuation_delays=False)
    made.set_lock(0.0, lock)
    made.set_cap(0.0, cap)
    return made


def finish(engine: Machine) -> None:
    while (due := engine.next_event_seconds()) is not None:
        engine.advance(due)


@given(work=work, bounds=limits, kv_blocks=blocks, cap=caps, lock=locks)
@settings(max_examples=300, deadline=None)
def test_the_closed_form_is_the_engine_that_does_every_step(work, bounds, kv_blocks, cap, lock):
    slow = SlowEngine(small(kv_blocks), bounds, lock, cap)
    slow.play(arrivals_of(work))
    fast = machine(small(kv_blocks), bounds, lock, cap)
    for moment, request in arrivals_of(work):
        fast.submit(request, moment)
    finish(fast)
    event(f"preempted: {slow.preemptions > 0}")
    event(f"capped: {len(fast.book.clocks) > 1}")
    theirs = sorted(slow.finished, key=lambda timing: timing.request_id)
    ours = sorted(fast.take_finished(), key=lambda timing: timing.request_id)
    assert [timing.request_id for timing in ours] == [timing.request_id for timing in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our[2:6] == pytest.approx(their[2:6], abs=1e-6)
    assert fast.now_seconds == pytest.approx(slow.now, abs=1e-6)
    assert fast.energy_joules == pytest.approx(slow.joules, rel=1e-6)
    assert fast.preemptions == slow.preemptions
    page = fast.page()
    gaps = page.histograms["inter_token_latency"]
    assert gaps.count == len(slow.gaps)
    assert gaps.total == pytest.approx(sum(slow.gaps), abs=1e-6)
    edges = [sum(gap <= edge for gap in slow.gaps) for edge in gaps.bounds]
    assert list(gaps.counts) == edges
    assert page.values["generation_tokens"] == sum(request.output_tokens for _, request in arrivals_of(work))


@given(
    work=work,
    bounds=limits,
    kv_blocks=blocks,
    ticks=st.lists(st.floats(0.0001, 0.05), max_size=40),
    commands=st.lists(st.tuples(st.floats(0.0, 0.05), caps, locks), max_size=6),
)
@settings(deadline=None)
def test_many_small_advances_are_one_big_one(work, bounds, kv_blocks, ticks, commands):
    engines = [machine(small(kv_blocks), bounds), machine(small(kv_blocks), bounds)]
    for engine, looks in zip(engines, ([], ticks), strict=True):
        stops: list[tuple[float, int, object]] = [(moment, 1, request) for moment, request in arrivals_of(work)]
        now = 0.0
        for gap, cap, lock in commands:
            now += gap
            stops.append((now, 2, (cap, lock)))
        now = 0.0
        for gap in looks:
            now += gap
            stops.append((now, 0, None))
        for moment, _, what in sorted(stops, key=lambda stop: stop[:2]):
            engine.advance(moment)
            if isinstance(what, EngineRequest):
                engine.submit(what, moment)
            elif isinstance(what, tuple):
                engine.set_cap(moment, what[0])
                engine.set_lock(moment, what[1])
            else:
                engine.page()
                engine.readings()
                assert engine.book is not None
        finish(engine)
        engine.advance(10.0)
    rarely, often = (sorted(engine.take_finished(), key=lambda timing: timing.request_id) for engine in engines)
    for one, other in zip(rarely, often, strict=True):
        assert one[2:6] == pytest.approx(other[2:6], abs=1e-6)
    assert engines[0].energy_joules == pytest.approx(engines[1].energy_joules, rel=1e-6)


# -- conservation ------------------------------------------------------------------------------------------


@given(
    work=work,
    bounds=limits,
    kv_blocks=blocks,
    limit=st.tuples(caps, locks),
    delays=st.booleans(),
    dies=st.sampled_from([(), draw_dies(3, 1)]),
    victims=st.sets(st.integers(0, 13)),
    span=st.floats(0.05, 0.5),
)
@settings(deadline=None)
def test_tokens_joules_blocks_and_time_are_conserved(  # noqa: PLR0917 - drawn by name
    work, bounds, kv_blocks, limit, delays, dies, victims, span
):
    engine = Machine(small(kv_blocks), bounds, dies=dies, actuation_delays=delays, seed=5)
    arrivals = arrivals_of(work)
    before = 0.0
    given_up: set[str] = set()

    def look() -> None:
        nonlocal before
        joules = engine.energy_joules
        assert joules >= before - 1e-9
        before = joules
        assert engine.watts > 0
        assert 0.0 <= engine.kv_usage <= 1.0
        assert engine.book.energy_joules(engine.model.gpu, engine.dies) == pytest.approx(engine.energy_joules, rel=1e-9)

    for moment, request in arrivals:
        engine.submit(request, moment)
        look()
    moment = arrivals[-1][0] + span / 3
    engine.set_cap(moment, limit[0])
    engine.set_lock(moment, limit[1])
    look()
    engine.advance(moment + span / 3)
    look()
    for victim in sorted(victims):
        if engine.cancel(str(victim), engine.now_seconds):
            given_up.add(str(victim))
    look()
    finish(engine)
    end = engine.now_seconds + span
    engine.advance(end)
    look()
    timings = engine.take_finished()
    assert {timing.request_id for timing in timings} | given_up == {name for _, (name, *_) in arrivals}
    assert len(timings) + len(given_up) == len(arrivals)
    assert (engine.running, engine.waiting, engine.kv_usage) == (0, 0, 0.0)
    for timing in timings:
        name, prompt, output, _ = arrivals[int(timing.request_id)][1]
        assert (timing.request_id, timing.prompt_tokens, timing.output_tokens) == (name, prompt, output)
        assert timing.arrival_seconds == arrivals[int(timing.request_id)][0]
        assert timing.arrival_seconds <= timing.scheduled_seconds < timing.first_token_seconds
        assert timing.first_token_seconds <= timing.finished_seconds <= end
    page = engine.page()
    answered = sum(timing.output_tokens for timing in timings)
    wanted = sum(arrivals[int(name)][1].output_tokens for name in given_up)
    assert answered <= page.values["generation_tokens"] <= answered + wanted
    if not given_up:
        assert page.values["generation_tokens"] == answered
        firsts = page.histograms["time_to_first_token"].count
        assert firsts + page.histograms["inter_token_latency"].count == answered
    sums = engine.book.clocks.values()
    assert sum(clock.idle_seconds + clock.step_seconds for clock in sums) == pytest.approx(end, abs=1e-9)


@given(work=work, kv_blocks=blocks, cap=caps, looks=st.lists(st.floats(0.001, 0.1), max_size=20))
@settings(deadline=None)
def test_energy_is_the_integral_of_power(work, kv_blocks, cap, looks):
    core = EngineCore(small(kv_blocks), EngineLimits(100_000))
    core.set_cap(cap)
    stops: list[tuple[float, EngineRequest | None]] = [*arrivals_of(work)]
    now = integral = 0.0
    for gap in looks:
        now += gap
        stops.append((now, None))
    for moment, request in sorted(stops, key=lambda stop: stop[0]):
        while core.now_seconds < moment:
            due = core.next_token_seconds()
            end = moment if due is None else min(due, moment)
            integral += core.watts() * (end - core.now_seconds)
            core.advance(end)
        if request is not None:
            core.submit(request)
    assert core.energy_joules() == pytest.approx(integral, rel=1e-6, abs=1e-6)


# -- energy for other draws --------------------------------------------------------------------------------


def test_the_book_gives_the_energy_of_a_run_under_other_power_coefficients():
    other = dataclasses.replace(
        H100,
        idle_watts=81.0,
        power=dataclasses.replace(
            H100.power, static_watts=170.0, sm_watts=260.0, tensor_watts=650.0, clock_exponent=2.1
        ),
    )
    dies = draw_dies(11, 1)
    runs = []
    for gpu, cards in ((H100, ()), (other, dies)):
        model = dataclasses.replace(MODEL, gpu=gpu)
        engine = Machine(model, EngineLimits(100_000), dies=cards, actuation_delays=False)
        engine.set_cap(0.0, 1e6)
        for number in range(40):
            engine.submit(EngineRequest(str(number), 300 + 20 * number, 50 + number), 0.05 * number)
            if number == 20:
                engine.set_lock(engine.now_seconds, (345, 1200))
        engine.advance(30.0)
        runs.append(engine)
    assert runs[0].book.energy_joules(other, dies) == pytest.approx(runs[1].energy_joules, rel=1e-9)
    assert runs[0].energy_joules != pytest.approx(runs[1].energy_joules, rel=0.01)


# -- histograms of lines -----------------------------------------------------------------------------------


@given(
    first=st.floats(0.001, 3.0),
    growth=st.floats(0.0, 0.1),
    steps=st.integers(1, 300),
    each=st.integers(1, 5),
)
@settings(deadline=None)
def test_a_line_of_values_is_counted_as_one_by_one(first, growth, steps, each):
    values = [first + growth * step for step in range(steps)]
    edges = ITL_BUCKETS
    near = any(abs(value - edge) < 1e-9 for value in values for edge in edges)
    tally = Tally(edges)
    tally.observe_line(first, growth, steps, each, sum(values))
    plain = [0] * (len(edges) + 1)
    for value in values:
        plain[bisect_left(edges, value)] += each
    assert tally.total == pytest.approx(sum(values) * each)
    assert sum(tally.counts) == steps * each
    if not near:
        assert tally.counts == plain


# -- blocks ------------------------------------------------------------------------------------------------


@given(
    offsets=st.lists(st.integers(-40, 300), min_size=1, max_size=30),
    gone=st.sets(st.integers(0, 29)),
    step=st.integers(40, 200),
    spare=st.integers(0, 60),
    most=st.integers(1, 400),
)
@settings(deadline=None)
def test_sixteen_counters_know_the_blocks_of_every_sequence_at_every_step(offsets, gone, step, spare, most):
    kv = KvBlocks(0)
    for offset in offsets:
        kv.join(offset)
    for index in gone:
        if index < len(offsets):
            kv.leave(offsets[index])
    left = [offset for index, offset in enumerate(offsets) if index not in gone]

    def plain(at: int) -> int:
        return sum(-(-(at + offset) // BLOCK) for offset in left)

    assert [kv.used(at) for at in range(step, step + 40)] == [plain(at) for at in range(step, step + 40)]
    kv.capacity = plain(step) + spare
    fit = kv.steps_that_fit(step, most)
    assert plain(step + fit) <= kv.capacity
    assert fit == most or plain(step + fit + 1) > kv.capacity
