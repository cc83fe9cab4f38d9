import dataclasses
from collections import defaultdict
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_sim.engine.core import EngineCore
from flyball_sim.engine.models import BLOCK_TOKENS, step_model
from flyball_sim.engine.requests import EngineLimits, EngineRefusalError, EngineRequest, QueueFullError
from flyball_sim.gpu.types import GPU_TYPES

H100 = GPU_TYPES["H100-SXM5"]
MODEL = step_model(H100, "llama-3.1-8b", 1)
FOREVER = 1e6


def core(kv_blocks: int = 10_000, **limits: int) -> EngineCore:
    return EngineCore(
        dataclasses.replace(MODEL, kv_blocks=kv_blocks), EngineLimits(**{"max_model_len": 131_072, **limits})
    )


class Token(NamedTuple):
    request_id: str
    seconds: float
    number: int


def tokens_of(engine: EngineCore, until: float = FOREVER) -> list[Token]:
    """Every token up to a time, seen step by step."""
    names = list(engine._batch.sequences)
    seen = {name: engine.generated(name) or 0 for name in names}
    engine.finished.clear()
    tokens = []
    while (due := engine.next_token_seconds()) is not None and due <= until:
        engine.advance(due)
        ended = {timing.request_id: timing.output_tokens for timing in engine.finished}
        for name in names:
            now = engine.generated(name)
            total = ended.get(name, seen[name]) if now is None else now
            tokens += [Token(name, due, number) for number in range(seen[name] + 1, total + 1)]
            seen[name] = total
    engine.advance(max(until if until < FOREVER else 0.0, engine.now_seconds))
    return tokens


def gaps(tokens: list[Token], name: str) -> list[float]:
    times = [token.seconds for token in tokens if token.request_id == name]
    return [later - earlier for earlier, later in pairwise(times)]


def seconds_of(decodes: int, held: int, chunks: list[tuple[int, int]], sm_mhz: float = 1980) -> float:
    cost = MODEL.cost(decodes, held, chunks)
    on_card = cost.fixed_seconds / H100.bandwidth_factor(sm_mhz) + cost.clocked_seconds * 1980 / sm_mhz
    return cost.host_seconds + on_card


# -- one request -------------------------------------------------------------------------------------------


def test_an_idle_engine_has_nothing_to_wait_for():
    engine = core()
    assert engine.next_event_seconds() is None
    assert engine.next_token_seconds() is None
    engine.advance(10.0)
    assert engine.now_seconds == 10.0


def test_a_request_gets_its_first_token_after_its_prefill_and_the_rest_one_decode_step_apart():
    engine = core()
    engine.advance(1.0)
    engine.submit(EngineRequest("r", 500, 3))
    engine.events = []
    first, second, third = tokens_of(engine)
    prefill = seconds_of(0, 0, [(0, 500)])
    assert first.seconds == pytest.approx(1.0 + prefill)
    assert second.seconds - first.seconds == pytest.approx(seconds_of(1, 500, []))
    assert third.seconds - second.seconds == pytest.approx(seconds_of(1, 501, []))
    began, ended = engine.events
    assert (began.number, began.seconds, began.finished) == (1, first.seconds, None)
    assert (ended.number, ended.seconds) == (3, third.seconds)
    assert ended.finished is not None
    assert ended.finished.arrival_seconds == ended.finished.scheduled_seconds == 1.0
    assert ended.finished.first_token_seconds == first.seconds
    assert ended.finished.finished_seconds == third.seconds


def test_a_long_prompt_is_prefilled_in_chunks_of_the_token_budget():
    engine = core()
    engine.submit(EngineRequest("r", 5000, 1))
    (token,) = tokens_of(engine)
    chunks = [(0, 2048), (2048, 2048), (4096, 904)]
    assert token.seconds == pytest.approx(sum(seconds_of(0, 0, [chunk]) for chunk in chunks))


def test_a_prompt_joins_the_batch_at_the_next_step_and_slows_it():
    engine = core()
    engine.submit(EngineRequest("old", 100, 50))
    start = seconds_of(0, 0, [(0, 100)])
    engine.advance(start + 0.001)
    engine.submit(EngineRequest("new", 1000, 1))
    alone, together = [token.seconds for token in tokens_of(engine) if token.request_id == "old"][:2]
    assert alone - start == pytest.approx(seconds_of(1, 100, []))
    assert together - alone == pytest.approx(seconds_of(1, 101, [(0, 1000)]))


def test_a_prompt_whose_keys_and_values_are_there_decodes_at_once():
    engine = core()
    engine.submit(EngineRequest("r", 1000, 3, cached_tokens=1000))
    engine.advance(0.001)
    assert engine.kv_usage() * engine.kv_blocks == pytest.approx(63)
    times = [token.seconds for token in tokens_of(engine)]
    assert times == pytest.approx([sum(seconds_of(1, 999 + k, []) for k in range(n)) for n in (1, 2, 3)])


def test_a_cached_prefix_is_not_computed_again():
    engine = core()
    engine.submit(EngineRequest("r", 1000, 1, cached_tokens=600))
    (token,) = tokens_of(engine)
    assert token.seconds == pytest.approx(seconds_of(0, 0, [(600, 400)]))
    assert (engine.counts.prompt_tokens, engine.counts.cached_tokens) == (1000, 600)


def test_without_chunks_whole_prompts_go_first_and_decodes_wait():
    engine = EngineCore(MODEL, EngineLimits(131_072, max_num_batched_tokens=2048, chunked_prefill=False))
    engine.submit(EngineRequest("old", 100, 50))
    start = seconds_of(0, 0, [(0, 100)])
    engine.advance(start + 0.001)
    for name, prompt in (("a", 5000), ("b", 1000), ("c", 900)):
        engine.submit(EngineRequest(name, prompt, 2))
    tokens = tokens_of(engine)
    first = {token.request_id: token.seconds for token in tokens if token.number == 1}
    alone = start + seconds_of(1, 100, [])
    assert first["a"] == pytest.approx(alone + seconds_of(0, 0, [(0, 5000)]))
    assert first["b"] == first["c"] == pytest.approx(first["a"] + seconds_of(0, 0, [(0, 1000), (0, 900)]))
    stalled = max(gaps(tokens, "old"))
    assert stalled == pytest.approx(first["c"] - alone + seconds_of(4, 101 + 5000 + 1900, []))
    assert engine.counts.inter_token.total == pytest.approx(
        sum(sum(gaps(tokens, name)) for name in "abc") + sum(gaps(tokens, "old")) + alone - start
    )


def test_an_engine_that_starts_lets_requests_wait_until_it_is_ready():
    engine = EngineCore(MODEL, EngineLimits(131_072), ready_seconds=5.0)
    engine.advance(1.0)
    engine.submit(EngineRequest("a", 100, 1))
    engine.submit(EngineRequest("b", 100, 1))
    assert (engine.running, engine.waiting, engine.next_event_seconds()) == (0, 2, 5.0)
    engine.advance(5.0)
    assert [token.seconds for token in tokens_of(engine)] == pytest.approx([5 + seconds_of(0, 0, [(0, 100)] * 2)] * 2)


# -- clocks ------------------------------------------------------------------------------------------------


def test_a_clock_change_acts_at_once_on_the_step_under_way():
    engine = core()
    engine.submit(EngineRequest("r", 2048, 1))
    full, half = seconds_of(0, 0, [(0, 2048)]), seconds_of(0, 0, [(0, 2048)], 990)
    engine.advance(full / 2)
    engine.set_clock(990)
    (token,) = tokens_of(engine)
    assert token.seconds == pytest.approx(full / 2 + half / 2)


def test_a_clock_change_within_a_line_of_decode_steps_is_exact_to_the_share_of_a_step():
    engine = core()
    engine.submit(EngineRequest("r", 100, 50))
    start = seconds_of(0, 0, [(0, 100)])
    steps = [seconds_of(1, 100 + k, []) for k in range(49)]
    slow = [seconds_of(1, 100 + k, [], 600) for k in range(49)]
    engine.advance(start + sum(steps[:20]) + 0.25 * steps[20])
    engine.set_clock(600)
    ended = start + sum(steps[:20]) + 0.25 * steps[20] + 0.75 * slow[20] + sum(slow[21:])
    assert tokens_of(engine)[-1].seconds == pytest.approx(ended)


def test_a_predicted_event_holds_until_the_clock_is_changed():
    engine = core()
    engine.submit(EngineRequest("r", 2048, 1))
    due = engine.next_event_seconds()
    assert due is not None
    engine.advance(due)
    engine.set_clock(345)
    assert [timing.finished_seconds for timing in engine.finished] == [due]


def test_a_parked_clock_counts_as_the_lowest_supported_one():
    engine = core()
    engine.set_clock(0)
    assert engine.power.clock.sm_mhz == H100.sm_min_mhz


def test_a_cap_lowers_the_clock_of_prefill_and_leaves_light_decodes_alone():
    engine = core()
    engine.set_cap(500.0)
    engine.submit(EngineRequest("r", 2048, 100))
    prefill = engine.power.clock.sm_mhz
    assert prefill < 1900
    assert engine.power.capped
    assert engine.watts() <= 500.0
    engine.advance(engine.next_event_seconds() or 0.0)
    assert (engine.power.clock.sm_mhz, engine.power.capped) == (1980, False)


def test_a_cap_below_what_the_lowest_clock_draws_is_overshot_at_the_lowest_clock():
    engine = core()
    engine.set_cap(100.0)
    engine.submit(EngineRequest("r", 2048, 100))
    assert (engine.power.clock.sm_mhz, engine.power.capped) == (345, True)
    assert engine.watts() > 100.0


# -- bounds ------------------------------------------------------------------------------------------------


def test_a_request_beyond_the_context_length_is_refused_with_the_bound():
    with pytest.raises(EngineRefusalError, match="needs 1001 tokens of context, the engine has 1000: shorten"):
        core(max_model_len=1000).submit(EngineRequest("r", 900, 101))


def test_a_request_that_could_never_fit_the_kv_cache_is_refused():
    with pytest.raises(EngineRefusalError, match="needs 11 KV blocks, the engine has 10"):
        core(kv_blocks=10).submit(EngineRequest("r", 160, 2))


@pytest.mark.parametrize(("prompt", "output", "cached"), [(0, 1, 0), (1, 0, 0), (5, 1, 6), (5, 1, -1)])
def test_an_empty_or_over_cached_request_is_refused(prompt, output, cached):
    with pytest.raises(EngineRefusalError, match="give at least 1 of each, and 0 to all of the prompt cached"):
        core().submit(EngineRequest("r", prompt, output, cached))


def test_overload_turns_requests_away_instead_of_queueing_without_end():
    engine = core(max_num_seqs=1, max_num_queued_reqs=2)
    engine.submit(EngineRequest("a", 10, 10))
    engine.advance(0.001)
    for name in "bc":
        engine.submit(EngineRequest(name, 10, 10))
    with pytest.raises(QueueFullError, match="2 requests wait, the limit is 2"):
        engine.submit(EngineRequest("d", 10, 10))


def test_time_never_runs_backwards():
    engine = core()
    engine.advance(2.0)
    with pytest.raises(ValueError, match="never runs backwards"):
        engine.advance(1.0)


def test_an_id_in_use_is_refused():
    engine = core()
    engine.submit(EngineRequest("a", 10, 10))
    with pytest.raises(ValueError, match="'a' is in use"):
        engine.submit(EngineRequest("a", 10, 10))


def test_a_lower_batch_limit_admits_nobody_new_and_a_higher_one_does_at_the_next_step():
    engine = core(max_num_seqs=2)
    for name in "abcd":
        engine.submit(EngineRequest(name, 10, 200))
    engine.advance(0.1)
    assert (engine.running, engine.waiting) == (2, 2)
    engine.set_batch_limit(1)
    engine.advance(0.2)
    assert (engine.running, engine.waiting) == (2, 2)
    engine.set_batch_limit(4)
    engine.advance(0.3)
    assert (engine.running, engine.waiting) == (4, 0)


# -- memory ------------------------------------------------------------------------------------------------


def test_a_request_waits_while_its_prompt_does_not_fit_the_free_blocks():
    engine = core(kv_blocks=10)
    engine.submit(EngineRequest("big", 6 * BLOCK_TOKENS, 2))
    engine.submit(EngineRequest("next", 6 * BLOCK_TOKENS, 1))
    assert (engine.running, engine.waiting) == (1, 1)
    order = [token.request_id for token in tokens_of(engine)]
    assert order == ["big", "big", "next"]


def test_when_blocks_run_out_the_youngest_is_preempted_and_computes_its_tokens_again():
    engine = core(kv_blocks=8)
    engine.submit(EngineRequest("old", 3 * BLOCK_TOKENS, 40))
    engine.submit(EngineRequest("young", 3 * BLOCK_TOKENS, 40))
    tokens = tokens_of(engine)
    assert engine.preemptions > 0
    numbers = defaultdict(list)
    for token in tokens:
        numbers[token.request_id].append(token.number)
    assert numbers["old"] == numbers["young"] == list(range(1, 41))
    assert max(gaps(tokens, "young")) > 3 * max(gaps(tokens, "old"))
    assert engine.kv_usage() == 0


def test_a_cancelled_request_leaves_the_batch_and_frees_its_blocks():
    engine = core()
    engine.submit(EngineRequest("a", 1000, 100))
    engine.submit(EngineRequest("b", 1000, 5))
    engine.advance(0.1)
    assert engine.cancel("a")
    assert not engine.cancel("a")
    assert {token.request_id for token in tokens_of(engine)} <= {"b"}
    assert (engine.running, engine.waiting, engine.kv_usage()) == (0, 0, 0)


def test_a_prompt_under_way_can_be_cancelled_and_its_step_goes_on():
    engine = core()
    engine.submit(EngineRequest("a", 5000, 100))
    due = engine.next_event_seconds()
    engine.advance(0.001)
    assert engine.cancel("a")
    assert engine.next_event_seconds() == pytest.approx(due)
    assert engine.kv_usage() == 0
    assert tokens_of(engine) == []


# -- load --------------------------------------------------------------------------------------------------


def test_an_idle_engine_puts_no_load_on_its_gpus():
    engine = core()
    engine.advance(5.0)
    load = engine.take_load()
    assert (load.memory_use, load.compute_use, load.busy) == (0, 0, 0)


def test_prefill_uses_compute_and_decode_uses_memory():
    prefill, decode = core(), core()
    prefill.submit(EngineRequest("p", 20_480, 1))
    prefill.advance(0.2)
    decode.submit(EngineRequest("d", 16, 10_000))
    decode.advance(0.2)
    at_prefill, at_decode = prefill.take_load(), decode.take_load()
    assert at_prefill.compute_use > 0.6
    assert at_decode.compute_use < 0.01
    assert at_decode.memory_use > 0.6
    assert 0.95 < at_prefill.busy <= 1
    assert 0.95 < at_decode.busy <= 1


def test_compute_use_is_of_the_peak_at_the_clock_in_force():
    fast, slow = core(), core()
    for engine, mhz, span in ((fast, 1980, 0.1), (slow, 990, 0.2)):
        engine.set_clock(mhz)
        engine.submit(EngineRequest("p", 20_480, 1))
        engine.advance(span)
    assert slow.take_load().compute_use == pytest.approx(fast.take_load().compute_use, rel=0.08)


# -- whatever happens --------------------------------------------------------------------------------------

arrivals = st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 400), st.integers(1, 30)), min_size=1, max_size=12)
clocks = st.lists(st.tuples(st.floats(0.001, 0.05), st.sampled_from([345, 800, 1200, 1605, 1980])), max_size=20)


def small_core() -> EngineCore:
    return core(kv_blocks=30, max_num_seqs=6, max_num_batched_tokens=128)


def play(engine: EngineCore, work: list[tuple[float, int, int]], changes: list[tuple[float, int]]) -> dict[str, tuple]:
    """Submit at each arrival and change clocks on the way; returns first and last token of each."""
    stops: list[tuple[float, int, EngineRequest | int]] = []
    now = 0.0
    for number, (gap, prompt, output) in enumerate(work):
        now += gap
        stops.append((now, 1, EngineRequest(str(number), prompt, output)))
    now = 0.0
    for gap, mhz in changes:
        now += gap
        stops.append((now, 0, mhz))
    for moment, _, what in sorted(stops, key=lambda stop: stop[:2]):
        engine.advance(moment)
        if isinstance(what, EngineRequest):
            engine.submit(what)
        else:
            engine.set_clock(what)
    while (due := engine.next_event_seconds()) is not None:
        engine.advance(due)
    return {timing.request_id: timing[4:6] for timing in engine.finished}


@given(work=arrivals, changes=clocks)
@settings(deadline=None)
def test_the_same_history_gives_the_same_times(work, changes):
    assert play(small_core(), work, changes) == play(small_core(), work, changes)


@given(
    work=st.lists(st.tuples(st.just(0.0), st.integers(1, 400), st.integers(1, 30)), min_size=1, max_size=12),
    changes=clocks,
    lowered=st.floats(0.3, 1),
)
@settings(deadline=None)
def test_a_lower_clock_never_makes_anything_earlier(work, changes, lowered):
    # Requests that arrive later may do better by luck: on a slower engine a step can happen to end as they come.
    high = play(small_core(), work, changes)
    slow = small_core()
    slow.set_clock(1980 * lowered)
    low = play(slow, work, [(gap, mhz * lowered) for gap, mhz in changes])
    assert all(low[name][which] >= high[name][which] - 1e-9 for name in high for which in (0, 1))


@given(work=arrivals, changes=clocks, span=st.floats(0.01, 0.3), cuts=st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_load_adds_up_however_often_it_is_asked_for(work, changes, span, cuts):
    totals = []
    for pieces in (1, cuts):
        engine = small_core()
        for number, (_, prompt, output) in enumerate(work):
            engine.submit(EngineRequest(str(number), prompt, output))
        stops: dict[float, int | None] = {span * (piece + 1) / pieces: None for piece in range(pieces)}
        now = 0.0
        for gap, mhz in changes:
            now += gap
            if now < span:
                stops[now] = mhz
        used = [0.0, 0.0, 0.0]
        sampled = 0.0
        for moment, mhz in sorted(stops.items()):
            engine.advance(moment)
            if mhz is not None:
                engine.set_clock(mhz)
                continue
            load = dataclasses.astuple(engine.take_load())
            assert all(0 <= share <= 1 for share in load)
            used = [total + share * (moment - sampled) for total, share in zip(used, load, strict=True)]
            sampled = moment
        totals.append(used)
    assert totals[0] == pytest.approx(totals[1], rel=1e-6, abs=1e-9)


@given(work=arrivals, victims=st.sets(st.integers(0, 11)), moment=st.floats(0, 0.2))
@settings(deadline=None)
def test_cancelling_some_leaves_the_others_whole(work, victims, moment):
    engine = small_core()
    for number, (_, prompt, output) in enumerate(work):
        engine.submit(EngineRequest(str(number), prompt, output))
    engine.advance(moment)
    for victim in victims:
        engine.cancel(str(victim))
    engine.advance(FOREVER)
    assert {str(number) for number in range(len(work))} - {str(victim) for victim in victims} <= {
        timing.request_id for timing in engine.finished
    }
    assert engine.kv_usage() == 0
