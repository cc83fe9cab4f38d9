import dataclasses
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_sim.engine.core import (
    EngineCore,
    EngineLimits,
    EngineRefusalError,
    EngineRequest,
    QueueFullError,
    TokenEvent,
)
from flyball_sim.engine.models import BLOCK_TOKENS, step_model
from flyball_sim.gpu.types import GPU_TYPES

H100 = GPU_TYPES["H100-SXM5"]
MODEL = step_model(H100, "llama-3.1-8b", 1)
FOREVER = 1e6


def core(kv_blocks: int = 10_000, **limits: int) -> EngineCore:
    return EngineCore(
        dataclasses.replace(MODEL, kv_blocks=kv_blocks), EngineLimits(**{"max_model_len": 131_072, **limits})
    )


def seconds_of(decodes: int, held: int, chunks: list[tuple[int, int]], sm_mhz: float = 1980) -> float:
    cost = MODEL.cost(decodes, held, chunks)
    on_card = cost.fixed_seconds / H100.bandwidth_factor(sm_mhz) + cost.clocked_seconds * 1980 / sm_mhz
    return cost.host_seconds + on_card


# -- one request -------------------------------------------------------------------------------------------


def test_an_idle_engine_has_nothing_to_wait_for():
    engine = core()
    assert engine.next_event_seconds() is None
    assert engine.advance(10.0) == []


def test_a_request_gets_its_first_token_after_its_prefill_and_the_rest_one_decode_step_apart():
    engine = core()
    engine.submit(EngineRequest("r", 500, 3), 1.0)
    first, second, third = engine.advance(FOREVER)
    prefill = seconds_of(0, 0, [(0, 500)])
    assert first.seconds == pytest.approx(1.0 + prefill)
    assert first.since_seconds == pytest.approx(prefill)
    assert second.since_seconds == pytest.approx(seconds_of(1, 500, []))
    assert third.since_seconds == pytest.approx(seconds_of(1, 501, []))
    assert [event.number for event in (first, second, third)] == [1, 2, 3]
    assert (first.finished, second.finished) == (None, None)
    assert third.finished is not None
    assert third.finished.arrival_seconds == third.finished.scheduled_seconds == 1.0
    assert third.finished.first_token_seconds == first.seconds
    assert third.finished.finished_seconds == third.seconds


def test_a_long_prompt_is_prefilled_in_chunks_of_the_token_budget():
    engine = core()
    engine.submit(EngineRequest("r", 5000, 1), 0.0)
    (event,) = engine.advance(FOREVER)
    chunks = [(0, 2048), (2048, 2048), (4096, 904)]
    assert event.seconds == pytest.approx(sum(seconds_of(0, 0, [chunk]) for chunk in chunks))


def test_a_prompt_joins_the_batch_at_the_next_step_and_slows_it():
    engine = core()
    engine.submit(EngineRequest("old", 100, 50), 0.0)
    engine.advance(seconds_of(0, 0, [(0, 100)]))
    arrival = engine.now_seconds + 0.001
    engine.advance(arrival)
    engine.submit(EngineRequest("new", 1000, 1), arrival)
    alone, together = [event for event in engine.advance(FOREVER) if event.request_id == "old"][:2]
    assert alone.since_seconds == pytest.approx(seconds_of(1, 100, []))
    assert together.since_seconds == pytest.approx(seconds_of(1, 101, [(0, 1000)]))


# -- clocks ------------------------------------------------------------------------------------------------


def test_a_clock_change_acts_at_once_on_the_step_under_way():
    engine = core()
    engine.submit(EngineRequest("r", 2048, 1), 0.0)
    full, half = seconds_of(0, 0, [(0, 2048)]), seconds_of(0, 0, [(0, 2048)], 990)
    engine.advance(full / 2, 990)
    (event,) = engine.advance(FOREVER)
    assert event.seconds == pytest.approx(full / 2 + half / 2)


def test_a_predicted_event_holds_until_the_clock_is_changed():
    engine = core()
    engine.submit(EngineRequest("r", 2048, 1), 0.0)
    due = engine.next_event_seconds()
    assert due is not None
    (event,) = engine.advance(due, 345)
    assert event.seconds == due


def test_a_parked_clock_counts_as_the_lowest_supported_one():
    engine = core()
    engine.advance(0.0, 0)
    assert engine.sm_mhz == H100.sm_min_mhz


# -- bounds ------------------------------------------------------------------------------------------------


def test_a_request_beyond_the_context_length_is_refused_with_the_bound():
    with pytest.raises(EngineRefusalError, match="needs 1001 tokens of context, the engine has 1000: shorten"):
        core(max_model_len=1000).submit(EngineRequest("r", 900, 101), 0.0)


def test_a_request_that_could_never_fit_the_kv_cache_is_refused():
    with pytest.raises(EngineRefusalError, match="needs 11 KV blocks, the engine has 10"):
        core(kv_blocks=10).submit(EngineRequest("r", 160, 2), 0.0)


def test_an_empty_prompt_is_refused():
    with pytest.raises(EngineRefusalError, match="0 prompt and 1 output tokens: give at least 1 of each"):
        core().submit(EngineRequest("r", 0, 1), 0.0)


def test_overload_turns_requests_away_instead_of_queueing_without_end():
    engine = core(max_num_seqs=1, max_num_queued_reqs=2)
    engine.submit(EngineRequest("a", 10, 10), 0.0)
    engine.advance(0.001)
    for name in "bc":
        engine.submit(EngineRequest(name, 10, 10), 0.001)
    with pytest.raises(QueueFullError, match="2 requests wait, the limit is 2"):
        engine.submit(EngineRequest("d", 10, 10), 0.001)


def test_time_never_runs_backwards():
    engine = core()
    engine.advance(2.0)
    with pytest.raises(ValueError, match="never runs backwards"):
        engine.advance(1.0)
    with pytest.raises(ValueError, match="never runs backwards"):
        engine.submit(EngineRequest("r", 1, 1), 1.0)


def test_a_request_cannot_slip_in_before_steps_that_are_already_over():
    engine = core()
    engine.submit(EngineRequest("a", 10, 10), 0.0)
    with pytest.raises(ValueError, match="call advance"):
        engine.submit(EngineRequest("b", 10, 10), 5.0)


def test_an_id_in_use_is_refused():
    engine = core()
    engine.submit(EngineRequest("a", 10, 10), 0.0)
    with pytest.raises(ValueError, match="'a' is in use"):
        engine.submit(EngineRequest("a", 10, 10), 0.0)


# -- memory ------------------------------------------------------------------------------------------------


def test_a_request_waits_while_its_prompt_does_not_fit_the_free_blocks():
    engine = core(kv_blocks=10)
    engine.submit(EngineRequest("big", 6 * BLOCK_TOKENS, 2), 0.0)
    engine.submit(EngineRequest("next", 6 * BLOCK_TOKENS, 1), 0.0)
    engine.next_event_seconds()
    assert (engine.running, engine.waiting) == (1, 1)
    order = [event.request_id for event in engine.advance(FOREVER)]
    assert order == ["big", "big", "next"]


def test_when_blocks_run_out_the_youngest_is_preempted_and_computes_its_tokens_again():
    engine = core(kv_blocks=8)
    engine.submit(EngineRequest("old", 3 * BLOCK_TOKENS, 40), 0.0)
    engine.submit(EngineRequest("young", 3 * BLOCK_TOKENS, 40), 0.0)
    events = engine.advance(FOREVER)
    assert engine.preemptions > 0
    numbers = defaultdict(list)
    for event in events:
        numbers[event.request_id].append(event.number)
    assert numbers["old"] == numbers["young"] == list(range(1, 41))
    gaps = {name: max(e.since_seconds for e in events if e.request_id == name) for name in ("old", "young")}
    assert gaps["young"] > 3 * gaps["old"]
    assert engine.kv_usage == 0


def test_a_cancelled_request_leaves_the_batch_and_frees_its_blocks():
    engine = core()
    engine.submit(EngineRequest("a", 1000, 100), 0.0)
    engine.submit(EngineRequest("b", 1000, 5), 0.0)
    engine.advance(0.1)
    assert engine.cancel("a")
    assert not engine.cancel("a")
    assert {event.request_id for event in engine.advance(FOREVER)} <= {"b"}
    assert (engine.running, engine.waiting, engine.kv_usage) == (0, 0, 0)


# -- load --------------------------------------------------------------------------------------------------


def test_an_idle_engine_puts_no_load_on_its_gpus():
    engine = core()
    engine.advance(5.0)
    load = engine.take_load()
    assert (load.memory_use, load.compute_use, load.busy) == (0, 0, 0)


def test_prefill_uses_compute_and_decode_uses_memory():
    prefill, decode = core(), core()
    prefill.submit(EngineRequest("p", 20_480, 1), 0.0)
    prefill.advance(0.2)
    decode.submit(EngineRequest("d", 16, 10_000), 0.0)
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
        engine.advance(0.0, mhz)
        engine.submit(EngineRequest("p", 20_480, 1), 0.0)
        engine.advance(span, mhz)
    assert slow.take_load().compute_use == pytest.approx(fast.take_load().compute_use, rel=0.08)


# -- whatever happens --------------------------------------------------------------------------------------

arrivals = st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 400), st.integers(1, 30)), min_size=1, max_size=12)
clocks = st.lists(st.tuples(st.floats(0.001, 0.05), st.sampled_from([345, 800, 1200, 1605, 1980])), max_size=20)


def small_core() -> EngineCore:
    return core(kv_blocks=30, max_num_seqs=6, max_num_batched_tokens=128)


def play(
    engine: EngineCore, work: list[tuple[float, int, int]], changes: list[tuple[float, int]]
) -> tuple[list[TokenEvent], list[float]]:
    """Submit at each arrival and change clocks on the way; returns all events and the KV usage after each stop."""
    stops: list[tuple[float, int, EngineRequest | int]] = []
    now = 0.0
    for number, (gap, prompt, output) in enumerate(work):
        now += gap
        stops.append((now, 1, EngineRequest(str(number), prompt, output)))
    now = 0.0
    for gap, mhz in changes:
        now += gap
        stops.append((now, 0, mhz))
    events: list[TokenEvent] = []
    usage = []
    for moment, _, what in sorted(stops, key=lambda stop: stop[:2]):
        events += engine.advance(moment, None if isinstance(what, EngineRequest) else what)
        if isinstance(what, EngineRequest):
            engine.submit(what, moment)
        usage.append(engine.kv_usage)
    while (due := engine.next_event_seconds()) is not None:
        usage.append(engine.kv_usage)
        events += engine.advance(due)
    return events, usage


@given(work=arrivals, changes=clocks)
def test_every_request_gets_exactly_its_tokens_in_order_of_time_and_memory_never_overflows(work, changes):
    engine = small_core()
    events, usage = play(engine, work, changes)
    numbers = defaultdict(list)
    for event in events:
        numbers[event.request_id].append(event.number)
    assert numbers == {str(n): list(range(1, output + 1)) for n, (_, _, output) in enumerate(work)}
    assert {event.request_id for event in events if event.finished} == set(numbers)
    assert all(event.number == work[int(event.request_id)][2] for event in events if event.finished)
    assert [event.seconds for event in events] == sorted(event.seconds for event in events)
    assert all(event.since_seconds >= 0 for event in events)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in usage)
    assert engine.kv_usage == 0


@given(work=arrivals, changes=clocks)
def test_the_same_history_gives_the_same_events(work, changes):
    assert play(small_core(), work, changes) == play(small_core(), work, changes)


@given(
    work=st.lists(st.tuples(st.just(0.0), st.integers(1, 400), st.integers(1, 30)), min_size=1, max_size=12),
    changes=clocks,
    lowered=st.floats(0.3, 1),
)
def test_a_lower_clock_never_makes_anything_earlier(work, changes, lowered):
    # Requests that arrive later may do better by luck: on a slower engine a step can happen to end as they come.
    high, _ = play(small_core(), work, changes)
    slow = small_core()
    slow.advance(0.0, 1980 * lowered)
    low, _ = play(slow, work, [(gap, mhz * lowered) for gap, mhz in changes])
    at = {(event.request_id, event.number): event.seconds for event in high}
    assert all(event.seconds >= at[event.request_id, event.number] - 1e-9 for event in low)


@given(work=arrivals, ticks=st.lists(st.floats(0.0001, 0.03), max_size=40))
def test_looking_more_often_changes_nothing(work, ticks):
    rarely, _ = play(small_core(), work, [])
    often, _ = play(small_core(), work, [(gap, 1980) for gap in ticks])
    assert [event[:3] for event in often] == [event[:3] for event in rarely]


@given(work=arrivals, changes=clocks, span=st.floats(0.01, 0.3), cuts=st.integers(1, 7))
@settings(max_examples=50)
def test_load_adds_up_however_often_it_is_asked_for(work, changes, span, cuts):
    totals = []
    for pieces in (1, cuts):
        engine = small_core()
        for number, (_, prompt, output) in enumerate(work):
            engine.submit(EngineRequest(str(number), prompt, output), 0.0)
        stops = {span * (piece + 1) / pieces: None for piece in range(pieces)}
        now = 0.0
        for gap, mhz in changes:
            now += gap
            if now < span:
                stops[now] = mhz
        used = [0.0, 0.0, 0.0]
        sampled = 0.0
        for moment in sorted(stops):
            engine.advance(moment, stops[moment])
            if stops[moment] is None:
                load = engine.take_load()
                assert all(0 <= share <= 1 for share in dataclasses.astuple(load))
                used = [
                    total + share * (moment - sampled)
                    for total, share in zip(used, dataclasses.astuple(load), strict=True)
                ]
                sampled = moment
        totals.append(used)
    assert totals[0] == pytest.approx(totals[1], rel=1e-6, abs=1e-9)


@given(work=arrivals, victims=st.sets(st.integers(0, 11)), moment=st.floats(0, 0.2))
def test_cancelling_some_leaves_the_others_whole(work, victims, moment):
    engine = small_core()
    for number, (_, prompt, output) in enumerate(work):
        engine.submit(EngineRequest(str(number), prompt, output), 0.0)
    events = list(engine.advance(moment))
    for victim in victims:
        engine.cancel(str(victim))
    events += engine.advance(FOREVER)
    for number, (_, _, output) in enumerate(work):
        if number not in victims:
            assert sum(event.request_id == str(number) for event in events) == output
    assert engine.kv_usage == 0
