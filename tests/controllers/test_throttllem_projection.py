"""throttLL'eM's projection: by difference arrays, in segments, and against engines that really run."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_agent.controllers.throttllem.projection import Entry, fits, project, segments_of
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits, EngineRequest
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.load.conversation import generate

FAR = float("inf")
entries = st.lists(
    st.builds(
        Entry,
        name=st.just("r"),
        held_tokens=st.integers(1, 300),
        left_tokens=st.integers(1, 120),
        due_seconds=st.floats(-5, 50),
        lost=st.booleans(),
    ),
    max_size=12,
)


@given(board=entries, block=st.sampled_from([1, 7, 16, 64]))
@settings(deadline=None)
def test_the_difference_arrays_are_the_sums_of_the_paper(board, block):
    horizon = max((entry.left_tokens for entry in board), default=0)
    batch, blocks = project(board, block)
    for step in range(horizon):
        active = [entry for entry in board if step < entry.left_tokens]
        assert batch[step] == len(active)
        assert blocks[step] == sum(-(-(entry.held_tokens + step) // block) for entry in active)
    assert len(batch) == len(blocks) == horizon


@given(board=entries)
@settings(deadline=None)
def test_the_segments_say_the_same_as_the_arrays(board):
    batch, tokens = project(board, 1)
    step = 0
    for segment in segments_of(board):
        for number in range(segment.steps):
            assert segment.batch == batch[step]
            assert segment.held_tokens + number * segment.batch == tokens[step]
            step += 1
        ending = [entry.due_seconds for entry in board if entry.left_tokens == step and not entry.lost]
        assert segment.due_seconds == min(ending, default=FAR)
    assert step == len(batch)


@given(board=entries, block=st.sampled_from([1, 16, 64]), room=st.integers(1, 200))
@settings(deadline=None)
def test_the_kv_check_looks_at_every_iteration(board, block, room):
    assert fits(board, segments_of(board), block, room) == (max(project(board, block)[1], default=0) <= room)


def test_a_worked_example():
    # 30 tokens and 3 to come: 2, 2, 2 blocks of 16 (30, 31, 32); 16 tokens and 2 to come: 1, then 2 (16, 17).
    board = [Entry("a", 30, 3, FAR), Entry("b", 16, 2, FAR)]
    assert project(board, 16) == ([2, 2, 1], [3, 4, 2])


def replayed(seed: int) -> Machine:
    """An engine in the middle of a conversation, and nobody comes any more."""
    model = step_model(GPU_TYPES["A100-SXM4-80GB"], "llama-3.1-8b", 1)
    machine = Machine(model, EngineLimits(32_768), seed=seed)
    for number, request in enumerate(generate(25.0, seed=seed)):
        asked = EngineRequest(str(number), request.prompt_tokens, request.output_tokens)
        machine.submit(asked, request.arrival_seconds)
    machine.advance(25.0)
    return machine


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_the_true_lengths_the_batch_is_off_by_less_than_half_a_percent_and_the_cache_by_less_than_three(seed):
    machine = replayed(seed)
    # The gate closes and the queue is empty, as the paper's projection assumes: all that runs is on the scoreboard.
    board = machine.board()
    machine.set_admission(machine.now_seconds, 0)
    assert len(board.requests) > 15
    running = [
        Entry(
            view.request_id, view.prompt_tokens + view.generated_tokens, view.output_tokens - view.generated_tokens, FAR
        )
        for view in board.requests
        if view.running
    ]
    batch, blocks = project(running, board.block_tokens)
    rng, errors = random.Random(seed), []
    while True:
        now = machine.now_seconds + rng.uniform(0.005, 0.02)
        machine.advance(now)
        ahead = machine.board().iteration - board.iteration
        if ahead >= len(batch):
            break
        errors.append(
            (abs(batch[ahead] - machine.running), abs(blocks[ahead] - round(machine.kv_usage * board.kv_blocks)))
        )
    assert len(errors) > 200
    assert fmean(error for error, _ in errors) < 0.005 * fmean(batch)
    assert fmean(error for _, error in errors) < 0.03 * fmean(blocks)
