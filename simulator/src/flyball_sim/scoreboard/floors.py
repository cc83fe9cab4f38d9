"""What any step costs at least, as sums over what it does: the unit costs of the bound's linear program.

A step decodes B sequences that hold K tokens, and computes N prompt tokens. What it costs without the prompt tokens is
never below a function ``pass + decode*B + held*K``, linear in each band of batch sizes and found by a small linear
program over every batch size and every piece of the decode line.

What the prompt tokens add goes with their number in the step: a few ride along with a decode step that waits for
memory anyway, many do not. An engine cuts a prompt only in a step whose token budget is full. So a prompt of n tokens
is computed in a step of at least n prompt tokens; or all but its last r tokens in full steps, and those in a step of
at least r. `Floors.prompt` has what a token costs in steps of so many.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog

from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.models import BLOCK_TOKENS, StepCost, StepModel
from flyball_sim.scoreboard.slo import Floats

QUANTITIES = ("host_seconds", "fixed_seconds", "clocked_seconds", "memory_bytes", "flops")
_BAND_EDGES = (32,)
_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Tokens to which an engine may fill up a step."""
_SPARSE = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


@dataclass(frozen=True, slots=True)
class Band:
    """Steps that decode so many sequences: what the step costs, each sequence, and each token those hold.

    `slack` and `held_slack`: step and sequences, and the tokens they hold, take at most these shares more time on the
    cards than their floors, at any clock.
    """

    fewest: int
    most: int
    step: Floats
    decode: Floats
    held: Floats
    slack: float
    held_slack: float


@dataclass(frozen=True, slots=True)
class Floors:
    """Unit costs, arrays in the order of `QUANTITIES`, and what they leave out.

    Attributes:
        bands: of steps that decode, by batch.
        pair: of attention, by half of (s+n)^2 - s^2 for a chunk of n tokens after s.
        prompt_step: of a step that decodes nothing, its prompt tokens apart,
        prompt_tokens: of every alternative, the prompt tokens in the step,
        prompt: and what each of them adds there, attention apart: (alternatives, quantities).
        chunk_host_seconds: a step takes at most this much more time on the host than its floor, for each chunk,
        chunk_card_seconds: and this much on the cards.
    """

    bands: tuple[Band, ...]
    pair: Floats
    prompt_step: Floats
    prompt_tokens: Floats
    prompt: Floats
    chunk_host_seconds: float
    chunk_card_seconds: float


def cost_array(model: StepModel, decodes: int, held_tokens: int, chunks: tuple[tuple[int, int], ...] = ()) -> Floats:
    """`StepModel.cost` in the order of `QUANTITIES`."""
    cost: StepCost = model.cost(decodes, held_tokens, list(chunks))
    return np.array([getattr(cost, name) for name in QUANTITIES])


def floors(model: StepModel, limits: EngineLimits, prompt_edges: tuple[int, ...]) -> Floors:
    """The floors of one model under an engine's limits.

    Args:
        model: the step times.
        limits: the engine's.
        prompt_edges: numbers of prompt tokens that must be among the alternatives.
    """
    pair = _pair(model, limits)
    prompt_step, tokens, prompt = _prompts(model, limits, pair, prompt_edges)
    one, two = (cost_array(model, 1, 1, chunks) for chunks in (((0, 16),), ((0, 8), (0, 8))))
    another_chunk = np.maximum(two - one, 0.0)
    tops = [edge for edge in _BAND_EDGES if edge < limits.max_num_seqs]
    bands = [_band(model, range(below + 1, upto + 1)) for below, upto in pairwise([0, *tops, limits.max_num_seqs])]
    return Floors(
        bands=tuple(bands),
        pair=pair,
        prompt_step=prompt_step,
        prompt_tokens=tokens,
        prompt=prompt,
        chunk_host_seconds=float(another_chunk[0]),
        chunk_card_seconds=max(
            float(another_chunk[1] / model.gpu.bandwidth_factor(clock) + another_chunk[2] * model.reference_mhz / clock)
            for clock in model.gpu.supported_sm_mhz()
        ),
    )


def _band(model: StepModel, batches: range) -> Band:
    bare, slopes = [], []
    for decodes in batches:
        ends = _held_ends(model, decodes)
        costs = [cost_array(model, decodes, end) for end in ends]
        mine = [
            (after - before) / (upper - lower)
            for (lower, before), (upper, after) in pairwise(zip(ends, costs, strict=True))
        ]
        least = np.min(mine, axis=0)
        # From its lowest end on, a batch's cost is nowhere below the line of its least slope.
        bare.append(costs[0] - least * ends[0])
        slopes += [*mine, least]
    held = np.maximum(np.min(slopes, axis=0), 0.0)
    features = np.array([[1.0, decodes] for decodes in batches])
    fits = np.array([_fit(features, np.maximum(np.array(bare)[:, index], 0.0)) for index in range(len(QUANTITIES))])
    return Band(
        fewest=batches.start,
        most=batches.stop - 1,
        step=fits[:, 0],
        decode=fits[:, 1],
        held=held,
        slack=_card_slack(model, np.array(bare), features @ fits.T),
        held_slack=_card_slack(model, np.array(slopes), np.broadcast_to(held, (len(slopes), len(QUANTITIES)))),
    )


def _card_slack(model: StepModel, costs: Floats, floor: Floats) -> float:
    """By what share time on the cards is at most above its floor, over all clocks."""
    slack = 0.0
    for sm_mhz in model.gpu.supported_sm_mhz():
        bandwidth, stretch = model.gpu.bandwidth_factor(sm_mhz), model.reference_mhz / sm_mhz
        cards, least = (part[:, 1] / bandwidth + part[:, 2] * stretch for part in (costs, floor))
        slack = max(slack, float((cards / least).max()) - 1.0)
    return slack


def _held_ends(model: StepModel, decodes: int) -> list[int]:
    """The fewest and the most tokens that so many sequences can hold, and where the decode line breaks between."""
    capacity = model.kv_blocks * BLOCK_TOKENS
    ends = {decodes, capacity}
    held = 0.0
    while held < capacity:
        line = model.decode_line(decodes, held)
        ends |= {int(min(max(edge, decodes), capacity)) for edge in (line.from_tokens, line.until_tokens)}
        held = line.until_tokens
    return sorted(ends)


def _pair(model: StepModel, limits: EngineLimits) -> Floats:
    """What attention adds for each pair of tokens, at least, whatever else is in the step."""
    count = 16
    slopes = [
        (cost_array(model, decodes, decodes, ((start, count),)) - cost_array(model, decodes, decodes, ((0, count),)))
        / (count * start)
        for decodes in (0, 1, limits.max_num_seqs)
        for start in (512, 4096, limits.max_model_len - count)
    ]
    slope = np.asarray(np.maximum(np.min(slopes, axis=0), 0.0))
    # Keys and values are read once for a chunk, not for each pair: that belongs to no pair.
    slope[QUANTITIES.index("memory_bytes")] = 0.0
    return slope


def _prompts(
    model: StepModel, limits: EngineLimits, pair: Floats, edges: tuple[int, ...]
) -> tuple[Floats, Floats, Floats]:
    """The step that decodes nothing without its tokens; then the alternatives, by number of prompt tokens, and costs.

    The dense part of a step is a broken line in its tokens, filled up to `_SIZES`: what a token adds is least at the
    line's breaks, with a batch just above a size.
    """
    budget = limits.max_num_batched_tokens
    breaks = sorted({*_SIZES, *_SPARSE, budget})
    batches = sorted({size + more for size in (0, *_SIZES) for more in (0, 1)} - {0})
    shapes = {(decodes, at - decodes) for decodes in batches for at in breaks}
    shapes |= {(decodes, count) for decodes in batches for count in edges}
    shapes |= {(at - count, count) for at in breaks for count in edges}
    shapes |= {(0, count) for count in (*breaks, *edges)}
    possible = [
        (decodes, count)
        for decodes, count in sorted(shapes)
        if 0 <= decodes <= limits.max_num_seqs and count >= 1 and decodes + count <= budget
    ]
    tokens = np.array([float(count) for _, count in possible])
    added = np.array(
        [
            cost_array(model, decodes, decodes, ((0, count),))
            - pair * (0.5 * count * count)
            - (cost_array(model, decodes, decodes) if decodes else 0.0)
            for decodes, count in possible
        ]
    )
    alone = np.array([decodes == 0 for decodes, _ in possible])
    each = added / tokens[:, None]
    cheapest = each[~alone][np.argmin(each[~alone, 1] + each[~alone, 2])]
    # A step without a batch is its own and its tokens': its own is what one token leaves of it, at the cheapest price.
    step = np.maximum(added[alone & (tokens == 1.0)][0] - cheapest, 0.0)
    each[alone] = (added[alone] - step) / tokens[alone, None]
    return step, tokens, each


def _fit(features: Floats, values: Floats) -> Floats:
    """The largest non-negative linear function of the features that is nowhere above the values."""
    zero = values <= 0.0
    relative = features / np.where(zero, 1.0, values)[:, None]
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)
    scaled = relative / scale
    limit = np.where(zero, 0.0, 1.0)
    # The sum of the shares reached: tight for small and large steps alike.
    solution = linprog(-scaled.mean(axis=0), A_ub=scaled, b_ub=limit, bounds=(0.0, 1.0), method="highs")
    slope: Floats = np.maximum(solution.x, 0.0) / scale
    # The solver keeps its constraints up to a tolerance; a bound may not lean on that.
    slope[(features[zero] > 0.0).any(axis=0)] = 0.0
    over = float(np.max((features @ slope)[~zero] / values[~zero], initial=0.0))
    return slope / over if over > 1.0 else slope
