import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency.steps import STEP_TIMES, StepCost, UnknownEngineError, step_model

H100 = GPU_TYPES["H100-SXM5"]


def seconds(cost: StepCost, clock_share: float = 1.0) -> float:
    return cost.host_seconds + cost.fixed_seconds + cost.clocked_seconds / clock_share


def test_a_decode_step_takes_what_the_table_says():
    cost = step_model(H100, "llama-3.1-8b", 1).cost(decodes=64, held_tokens=64 * 1000, chunks=[])
    assert cost.fixed_seconds + cost.clocked_seconds == pytest.approx(
        (6.4884 + 0.010022 * 64 + 42.0798e-6 * 64_000) / 1e3
    )


def test_a_prompt_of_2048_tokens_takes_what_the_table_says():
    cost = step_model(H100, "llama-3.1-8b", 1).cost(decodes=0, held_tokens=0, chunks=[(0, 2048)])
    table_ms = (8.111**4 + (0.021153 * 2048) ** 4) ** 0.25 + 0.3713e-6 * 2048**2
    assert cost.fixed_seconds + cost.clocked_seconds == pytest.approx(table_ms / 1e3)


def test_a_prompt_in_chunks_costs_the_same_attention_as_in_one_piece():
    model = step_model(H100, "llama-3.1-8b", 1)
    whole = model.cost(1, 100, [(0, 2000)])
    halves = [model.cost(1, 100, [(0, 1000)]), model.cost(1, 100, [(1000, 1000)])]
    decode = model.cost(1, 100, [])
    extra_whole = seconds(whole) - seconds(decode)
    extra_halves = sum(seconds(half) - seconds(decode) for half in halves)
    assert extra_halves == pytest.approx(extra_whole, rel=1e-3)


def test_published_70b_decode_times_are_met_within_the_tables_own_error():
    # silicon: H100 TP4 Llama-3.1-70B; the row is bf16, so it is the shape over the batch that is compared
    model = step_model(H100, "llama-3.1-70b", 4)
    small, large = (seconds(model.cost(batch, batch * 1500, [])) for batch in (4, 64))
    assert 0.0155 < small < 0.0166
    assert 1.2 < large / small < 1.7


def test_half_the_clock_nearly_doubles_prefill_and_hardly_touches_decode():
    model = step_model(H100, "llama-3.1-8b", 1)
    prefill, decode = model.cost(0, 0, [(0, 2048)]), model.cost(32, 32_000, [])
    assert 1.9 < seconds(prefill, 0.5) / seconds(prefill) < 2.0
    assert 1.1 < seconds(decode, 0.5) / seconds(decode) < 1.16


def test_a_short_prompt_alone_is_bound_by_memory_as_decode_is():
    cost = step_model(H100, "llama-3.1-8b", 1).cost(0, 0, [(0, 16)])
    assert seconds(cost, 0.5) / seconds(cost) < 1.2


def test_tensor_parallelism_shares_bytes_and_flops_between_the_gpus():
    one, two = (step_model(H100, "llama-3.1-8b", gpus).cost(8, 8000, []) for gpus in (1, 2))
    assert two.memory_bytes == pytest.approx(one.memory_bytes / 2)
    assert two.flops == pytest.approx(one.flops / 2)


def test_every_row_leaves_room_for_keys_and_values():
    for gpu, model, gpus in STEP_TIMES:
        assert step_model(GPU_TYPES[gpu], model, gpus).kv_blocks > 2000


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownEngineError, match=r"'llama-3\.1-8B-Instruct' is unknown: did you mean 'llama-3\.1-8b'"):
        step_model(H100, "llama-3.1-8B-Instruct", 1)


def test_a_group_size_without_measurements_is_refused_with_those_that_have_them():
    with pytest.raises(UnknownEngineError, match=r"'llama-3\.1-70b' on 1 x H100-SXM5: give the engine 4 or 8 GPUs"):
        step_model(H100, "llama-3.1-70b", 1)


@given(
    row=st.sampled_from(sorted(STEP_TIMES)),
    decodes=st.integers(0, 256),
    held=st.integers(0, 2000),
    chunks=st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 1024)), max_size=3),
)
def test_more_work_never_takes_less_time(row, decodes, held, chunks):
    steps = step_model(GPU_TYPES[row[0]], row[1], row[2])
    if not decodes and not chunks:
        return
    cost = steps.cost(decodes, held * decodes, chunks)
    assert seconds(steps.cost(decodes + 1, held * decodes + held, chunks)) >= seconds(cost) - 1e-12 or not decodes
    assert seconds(steps.cost(decodes, held * decodes, [*chunks, (0, 64)])) >= seconds(cost)
    assert cost.fixed_seconds >= 0
    assert cost.clocked_seconds > 0
