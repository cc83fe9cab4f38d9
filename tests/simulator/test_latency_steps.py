import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency.catalogue import stretched
from flyball_sim.latency.rows import DECODE_KNOTS, KNOTS, RowKey, shipped_rows
from flyball_sim.latency.steps import StepCost, UnknownEngineError, padded_tokens, step_model

H100 = GPU_TYPES["H100-SXM5"]
ROWS = sorted(shipped_rows())
HOPPER_ROWS = [row for row in ROWS if row.gpu.startswith("H")]
rows = st.sampled_from(ROWS)
chunks_of = st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 1024)), max_size=3)


def model_of(row: RowKey):
    return step_model(GPU_TYPES[row.gpu], row.model, row.tp, dtype=row.dtype)


def seconds(cost: StepCost, clock_share: float = 1.0) -> float:
    return cost.host_seconds + cost.fixed_seconds + cost.clocked_seconds / clock_share


def test_a_decode_step_is_the_sum_of_the_rows_parts():
    row = shipped_rows()[RowKey("H100-SXM5", "llama-3.1-8b", "bf16", 1)]
    cost = step_model(H100, "llama-3.1-8b", 1).cost(decodes=64, held_tokens=64 * 1000, chunks=[])
    attention, attention_token = (
        times[DECODE_KNOTS.index(64)] for times in (row.decode_attention, row.decode_attention_token)
    )
    parts = row.dense[KNOTS.index(64)] + row.head + 64 * row.head_row + attention + 64_000 * attention_token
    assert cost.fixed_seconds + cost.clocked_seconds == pytest.approx(parts * 1e-6)


def test_a_mixed_step_reads_the_weights_once():
    model = step_model(H100, "llama-3.1-8b", 1)
    together = seconds(model.cost(32, 32_000, [(0, 128)]))
    apart = seconds(model.cost(32, 32_000, [])) + seconds(model.cost(0, 0, [(0, 128)]))
    assert together < 0.65 * apart


def test_decode_steps_are_straight_lines_in_the_tokens_held():
    model = step_model(H100, "llama-3.1-70b", 4, dtype="fp8")
    line = model.decode_line(48)
    for held in (0, 1, 50_000, 400_000):
        cost = model.cost(48, held, [])
        assert cost.host_seconds == line.host_seconds
        assert cost.fixed_seconds == pytest.approx(line.fixed_seconds + held * line.fixed_seconds_per_token)
        assert cost.clocked_seconds == pytest.approx(line.clocked_seconds + held * line.clocked_seconds_per_token)
        assert cost.memory_bytes == pytest.approx(line.memory_bytes + held * line.memory_bytes_per_token)
        assert cost.flops == pytest.approx(line.flops + held * line.flops_per_token)


def test_attention_of_a_batch_between_two_that_were_timed_lies_between_theirs():
    row = shipped_rows()[RowKey("A100-SXM4-80GB", "llama-2-7b", "bf16", 1)]
    model = step_model(GPU_TYPES["A100-SXM4-80GB"], "llama-2-7b", 1)

    def attention_of_context(decodes: int) -> float:
        line = model.decode_line(decodes)
        return 1e6 * decodes * (line.fixed_seconds_per_token + line.clocked_seconds_per_token)

    two, four = (at * row.decode_attention_token[DECODE_KNOTS.index(at)] for at in (2, 4))
    assert attention_of_context(3) == pytest.approx((two + four) / 2, rel=1e-3)
    assert attention_of_context(1024) == pytest.approx(2 * attention_of_context(512))


def test_a_batch_is_filled_up_to_the_next_cuda_graph():
    assert [padded_tokens(tokens) for tokens in (1, 2, 3, 5, 9, 250, 257, 512, 513)] == [
        1,
        2,
        4,
        8,
        16,
        256,
        272,
        512,
        513,
    ]


@given(
    row=st.sampled_from(HOPPER_ROWS),
    held=st.integers(0, 100_000),
    first=st.integers(1, 4000),
    second=st.integers(1, 4000),
)
def test_a_prompt_in_chunks_costs_hardly_less_than_in_one_piece(row, held, first, second):
    model = model_of(row)
    decode = model.cost(16, held, [])
    whole = seconds(model.cost(16, held, [(0, first + second)])) - seconds(decode)
    parts = seconds(model.cost(16, held, [(0, first)])) + seconds(model.cost(16, held, [(first, second)]))
    assert parts - seconds(decode) >= 0.85 * whole


def test_half_the_clock_nearly_doubles_prefill_and_hardly_touches_decode():
    model = step_model(H100, "llama-3.1-8b", 1)
    prefill, decode = model.cost(0, 0, [(0, 2048)]), model.cost(32, 32_000, [])
    assert 1.85 < seconds(prefill, 0.5) / seconds(prefill) < 2.0
    assert seconds(decode, 0.5) / seconds(decode) < 1.0 + 1.1 * H100.decode_clock_share


def test_a_short_prompt_alone_is_bound_by_memory_as_decode_is():
    cost = step_model(H100, "llama-3.1-8b", 1).cost(0, 0, [(0, 16)])
    assert seconds(cost, 0.5) / seconds(cost) < 1.2


def test_time_between_the_gpus_does_not_stretch_with_the_clock():
    one, eight = (step_model(H100, "llama-3.1-70b", gpus, dtype="fp8") for gpus in (1, 8))
    stretch = [seconds(m.cost(0, 0, [(0, 2048)]), 0.5) / seconds(m.cost(0, 0, [(0, 2048)])) for m in (one, eight)]
    assert stretch[1] < 1.75 < stretch[0]


def test_clock_shares_come_from_the_gpu_type():
    drawn = dataclasses.replace(H100, decode_clock_share=0.2)
    cost = step_model(drawn, "llama-3.1-8b", 1).cost(8, 8000, [])
    assert cost.clocked_seconds / (cost.fixed_seconds + cost.clocked_seconds) == pytest.approx(0.2, rel=0.01)


def test_tensor_parallelism_shares_bytes_and_flops_between_the_gpus():
    one, two = (step_model(H100, "llama-3.1-8b", gpus).cost(8, 8000, []) for gpus in (1, 2))
    assert two.memory_bytes == pytest.approx(one.memory_bytes / 2)
    assert two.flops == pytest.approx(one.flops / 2)


def test_heads_are_not_cut_so_eight_gpus_hold_four_heads_twice():
    four, eight = (step_model(H100, "qwen3-30b-a3b", gpus).decode_line(1) for gpus in (4, 8))
    assert four.memory_bytes_per_token == eight.memory_bytes_per_token


def test_fp8_halves_weights_and_counts_its_products_half():
    wide, narrow = (step_model(H100, "llama-3.1-8b", 1, dtype=dtype).cost(1, 0, []) for dtype in ("bf16", "fp8"))
    assert 0.5 < narrow.memory_bytes / wide.memory_bytes < 0.6
    assert narrow.flops == pytest.approx(wide.flops / 2)


def test_a_mixture_reads_only_the_experts_its_tokens_are_sent_to():
    model = step_model(H100, "qwen3-30b-a3b", 2)
    one, many = model.cost(1, 0, []), model.cost(512, 0, [])
    assert one.memory_bytes < 0.25 * many.memory_bytes
    assert many.memory_bytes < model.model.weight_bytes("bf16") / 2 * 1.01


def test_every_row_leaves_room_for_keys_and_values():
    for row in ROWS:
        assert model_of(row).kv_blocks >= 256


def test_no_step_of_a_row_streams_faster_than_the_memory():
    for row in ROWS:
        model = model_of(row)
        if model.model.experts:
            continue
        cost = model.cost(1, 0, [])
        bandwidth = cost.memory_bytes / (cost.fixed_seconds + cost.clocked_seconds)
        assert bandwidth < model.gpu.memory_bandwidth_bytes_per_second, row


@pytest.mark.parametrize(
    "name",
    ["llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B", "LLAMA3.1_8b", "neuralmagic/Llama-3.1-8B-Instruct-FP8"],
)
def test_organisation_case_and_tuning_in_a_name_do_not_matter(name):
    assert step_model(H100, name, 1).model.name == "llama-3.1-8b"


def test_models_of_one_shape_share_their_rows():
    assert step_model(H100, "Llama-3.3-70B-Instruct", 4) is step_model(H100, "llama-3.1-70b", 4)


def test_an_unknown_model_is_refused_with_the_nearest_names():
    with pytest.raises(UnknownEngineError, match=r"model 'lama-3\.1-9b' is unknown: did you mean '.*llama-3"):
        step_model(H100, "lama-3.1-9b", 1)


def test_a_group_size_without_room_is_refused_with_those_that_have_it():
    with pytest.raises(
        UnknownEngineError, match=r"'llama-3\.1-70b' in bf16 on 1 x H100-SXM5: give the engine 2, 4 or 8 GPUs"
    ):
        step_model(H100, "llama-3.1-70b", 1)


def test_a_precision_without_rows_is_refused_with_those_that_have_them():
    a100 = GPU_TYPES["A100-SXM4-80GB"]
    with pytest.raises(UnknownEngineError, match=r"in fp8 on 1 x A100-SXM4-80GB: give dtype bf16"):
        step_model(a100, "llama-3.1-8b", 1, dtype="fp8")
    with pytest.raises(UnknownEngineError, match=r"dtype 'int3' is unknown: give bf16 or fp8"):
        step_model(a100, "llama-3.1-8b", 1, dtype="int3")


def test_a_gpu_without_rows_is_stretched_from_its_relative_and_says_so():
    near, far = (step_model(GPU_TYPES[name], "llama-3.1-8b", 1) for name in ("A100-SXM4-80GB", "A100-SXM4-40GB"))
    assert (near.provenance, far.provenance) == ("measured", "modelled")
    ratio = near.gpu.memory_bandwidth_bytes_per_second / far.gpu.memory_bandwidth_bytes_per_second
    assert seconds(far.cost(8, 8000, [])) / seconds(near.cost(8, 8000, [])) == pytest.approx(ratio, rel=0.08)
    prompts = [seconds(model.cost(0, 0, [(0, 8192)])) for model in (near, far)]
    assert prompts[0] == pytest.approx(prompts[1], rel=0.02)


def test_a_row_stretched_to_its_own_gpu_stays_as_it_is():
    row = shipped_rows()[RowKey("H100-SXM5", "llama-3.1-8b", "bf16", 1)]
    same = stretched(row, H100, H100)
    assert same.dense == pytest.approx(row.dense)
    assert same.decode_attention_token == row.decode_attention_token


@given(row=rows, decodes=st.integers(0, 600), held=st.integers(0, 2000), chunks=chunks_of, at=st.floats(0.0, 1.0))
def test_more_work_never_takes_less_time_or_traffic_at_any_clock(row, decodes, held, chunks, at):
    model = model_of(row)
    if not decodes and not chunks:
        return
    sm_mhz = model.gpu.sm_min_mhz + at * (model.gpu.sm_max_mhz - model.gpu.sm_min_mhz)

    def taken(cost: StepCost) -> tuple[float, ...]:
        time = cost.fixed_seconds / model.gpu.bandwidth_factor(sm_mhz)
        time += cost.clocked_seconds * model.reference_mhz / sm_mhz
        return cost.host_seconds, time, cost.clocked_seconds, cost.memory_bytes, cost.flops

    cost = taken(model.cost(decodes, held * decodes, chunks))
    more = [
        model.cost(decodes + 1, held * (decodes + 1), chunks),
        model.cost(decodes, held * decodes, [*chunks, (0, 64)]),
    ]
    if decodes:
        more.append(model.cost(decodes, held * decodes + 1, chunks))
    for larger in more:
        assert all(new >= old * (1 - 1e-12) for new, old in zip(taken(larger), cost, strict=True))
