"""What must be done by when, and what can have been done: the bound's cumulative work at slot edges.

Every function here takes times as arrays and gives sums over requests at the edges, from sorted prefix sums: the Azure
hour (19,366 requests, 720 edges) costs milliseconds. Requests are those a schedule completes; what it refuses is not
work.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard.slo import Floats, Slo


@dataclass(frozen=True, slots=True)
class Window:
    """Least and most of one kind of work that can be done by each slot edge."""

    least: Floats
    most: Floats


@dataclass(frozen=True, slots=True)
class SoloTimes:
    """Per request, the least seconds at the top clock: of its prompt, of each later token, and of all of it.

    `prefill_token` is the least of any one token of any prompt.
    """

    prefill: Floats
    token: Floats
    residence: Floats
    prefill_token: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What the linear program knows of the requests, by slot or by edge.

    Attributes:
        edges: slot edges, seconds; slot k is from edge k to edge k+1.
        work: `decode` (answer tokens after the first), `held` (tokens in the cache, summed over each of those),
            `pair` (half the squares of prompt lengths, with which their attention goes) and, by class of prompt
            length, `prefill` tokens; no class without requests.
        live: per slot, how many requests can be decoding in it and still meet their SLO.
        idle_seconds: per slot, time in which a work-conserving engine can be idle.
        late_tokens: the most tokens that steps can decode of requests which may miss.
        requests: how many there are.
    """

    edges: Floats
    work: Mapping[str, Window]
    live: Floats
    idle_seconds: Floats
    late_tokens: float
    requests: int


def prefill_class(shortest: int) -> str:
    """The name of the work on prompts of at least so many tokens, up to the next class."""
    return f"prefill {shortest}"


def demand(
    trace: Sequence[TraceRequest],
    slo: Slo,
    *,
    misses: int,
    edges: Floats,
    solo: SoloTimes,
    classes: Sequence[int],
) -> Demand:
    """The windows of all kinds of work.

    Args:
        trace: the requests that are completed, by arrival.
        slo: what all but `misses` of them meet.
        misses: how many may miss.
        edges: slot edges, from 0 to the common end.
        solo: least times of each request.
        classes: the shortest prompt of each class, rising from 1.
    """
    arrival = np.array([request.arrival_seconds for request in trace])
    prompt = np.array([request.prompt_tokens for request in trace], dtype=float)
    later = np.array([request.output_tokens - 1 for request in trace], dtype=float)
    first_due = arrival + slo.ttft_seconds
    due = first_due + later * slo.tpot_seconds
    # The last token of a prompt may be computed in a step that counts it as an answer's (docs/scoreboard.md), so
    # it is required of neither and allowed in both.
    chunked = prompt - 1.0
    # Token j after the first reads prompt + j - 1 tokens.
    held = later * prompt + later * (later - 1.0) / 2.0
    ready = arrival + solo.prefill

    def window(work: Floats, *, either: Floats, arrived: Floats, least: Floats, most: Floats, late: Floats) -> Window:
        total = float(work.sum())
        most = np.clip(most, 0.0, total) + _steps(arrived, either, edges)
        most[-1] = total + float(either.sum())
        least = np.clip(least - late, 0.0, most)
        least[-1] = total
        return Window(least, most)

    pairs = chunked**2 / 2.0
    decode_tail, held_tail = later * solo.token, held / np.maximum(prompt + later, 1.0) * solo.token
    work = {
        "pair": window(
            pairs,
            either=prompt**2 / 2.0 - pairs,
            arrived=arrival,
            least=_steps(first_due, pairs, edges),
            most=_steps(arrival, pairs, edges),
            late=_largest_due(first_due, pairs, edges, misses),
        ),
        "decode": window(
            later,
            either=np.ones_like(later),
            arrived=arrival,
            least=_ramps(due - decode_tail, decode_tail, 1.0 / solo.token, edges),
            most=_ramps(ready, decode_tail, 1.0 / solo.token, edges),
            late=_largest_due(due - decode_tail, later, edges, misses),
        ),
        "held": window(
            held,
            either=prompt,
            arrived=arrival,
            least=_ramps(due - held_tail, held_tail, (prompt + later) / solo.token, edges),
            # What q tokens have read is convex in q, so below the line to what all of them read.
            most=_ramps(ready, decode_tail, held / np.maximum(decode_tail, 1e-12), edges),
            late=_largest_due(due - held_tail, held, edges, misses),
        ),
    }
    member = np.searchsorted(np.asarray(classes), prompt, side="right") - 1
    for index, shortest in enumerate(classes):
        mine = member == index
        if not mine.any():
            continue
        tokens, come = chunked[mine], arrival[mine]
        slope = np.full_like(tokens, 1.0 / solo.prefill_token)
        work[prefill_class(shortest)] = window(
            tokens,
            either=np.ones_like(tokens),
            arrived=come,
            least=_steps(first_due[mine], tokens, edges),
            most=_ramps(come, tokens * solo.prefill_token, slope, edges),
            late=_largest_due(first_due[mine], tokens, edges, misses),
        )
    return Demand(
        edges=edges,
        work=work,
        live=_live(arrival, due, edges),
        idle_seconds=_uncovered(arrival, arrival + solo.residence, edges),
        late_tokens=float(np.sort(later)[::-1][:misses].sum()) + misses,
        requests=len(trace),
    )


def _steps(times: Floats, amounts: Floats, edges: Floats) -> Floats:
    """The sum of amounts whose time is at or before each edge."""
    order = np.argsort(times, kind="stable")
    sums = np.concatenate(([0.0], np.cumsum(amounts[order])))
    return np.asarray(sums[np.searchsorted(times[order], edges, side="right")])


def _positive_parts(starts: Floats, slopes: Floats, edges: Floats) -> Floats:
    """The sum of slope * max(0, edge - start)."""
    order = np.argsort(starts, kind="stable")
    slope_sums = np.concatenate(([0.0], np.cumsum(slopes[order])))
    moment_sums = np.concatenate(([0.0], np.cumsum((slopes * starts)[order])))
    index = np.searchsorted(starts[order], edges, side="right")
    return np.asarray(edges * slope_sums[index] - moment_sums[index])


def _ramps(starts: Floats, seconds: Floats, slopes: Floats, edges: Floats) -> Floats:
    """The sum of lines that start at 0, rise by their slope for some seconds and stay."""
    return _positive_parts(starts, slopes, edges) - _positive_parts(starts + seconds, slopes, edges)


def _largest_due(due: Floats, amounts: Floats, edges: Floats, count: int) -> Floats:
    """At each edge, the sum of the `count` largest amounts among the requests that have something due by then."""
    result = np.zeros_like(edges)
    if count == 0:
        return result
    kept: list[float] = []
    total = 0.0
    order = np.argsort(due, kind="stable")
    position = 0
    for slot, edge in enumerate(edges):
        while position < len(order) and due[order[position]] <= edge:
            amount = float(amounts[order[position]])
            position += 1
            if len(kept) < count:
                heapq.heappush(kept, amount)
                total += amount
            elif amount > kept[0]:
                total += amount - heapq.heapreplace(kept, amount)
        result[slot] = total
    return result


def _live(ready: Floats, due: Floats, edges: Floats) -> Floats:
    """Per slot, how many windows [ready, due] meet it."""
    begun = np.searchsorted(np.sort(ready), edges[1:], side="left")
    over = np.searchsorted(np.sort(due), edges[:-1], side="left")
    return np.asarray(np.maximum(0.0, (begun - over).astype(float)))


def _uncovered(begins: Floats, ends: Floats, edges: Floats) -> Floats:
    """Per slot, its seconds outside the union of intervals."""
    order = np.argsort(begins, kind="stable")
    reach = np.maximum.accumulate(ends[order])
    # Gaps lie between the furthest end so far and the next begin.
    gap_begins = np.concatenate(([edges[0]], reach))
    gap_ends = np.concatenate((begins[order], [edges[-1]]))
    gap_ends = np.clip(gap_ends, edges[0], edges[-1])
    gap_begins = np.clip(gap_begins, edges[0], edges[-1])
    real = gap_ends > gap_begins
    gap_begins, gap_ends = gap_begins[real], gap_ends[real]
    until = _ramps(gap_begins, gap_ends - gap_begins, np.ones_like(gap_begins), edges)
    return np.asarray(np.maximum(0.0, np.diff(until)))
