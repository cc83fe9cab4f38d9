"""The decisions of throttLL'eM as pure functions: SLO check, admission, lost requests, least feasible clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, NamedTuple

from flyball_agent.controllers.throttllem.performance import Performance, Piece
from flyball_agent.controllers.throttllem.projection import Entry, fits, segments_of

TbtReading = Literal["Average", "Strict"]


@dataclass(frozen=True, slots=True)
class Engine:
    """What the projections are of.

    Attributes:
        performance: M.
        clocks: indices of the clocks that may be used, ascending.
        block_tokens: of a KV block.
        kv_blocks: of the engine; 0: not known, and not checked.
        tbt_seconds: bound of the time between tokens.
        tbt_reading: of every iteration, or of their running mean, which is what the paper's SLO is stated on.
        slower: factor of all predicted times; the paper has none (1).
        count_prefill: whether prompts that wait to be computed come first; the paper does not count them.
    """

    performance: Performance
    clocks: tuple[int, ...]
    block_tokens: int
    kv_blocks: int
    tbt_seconds: float
    tbt_reading: TbtReading = "Average"
    slower: float = 1.0
    count_prefill: bool = False


class Check(NamedTuple):
    """One look at a scoreboard at one clock.

    Attributes:
        tbt: whether the time between tokens holds.
        deadlines: whether every deadline that counts is met.
        tbt_seconds: predicted.
        late_seconds: the worst lateness of a deadline that counts; negative: the least slack; minus infinity: none.
    """

    tbt: bool
    deadlines: bool
    tbt_seconds: float
    late_seconds: float

    @property
    def ok(self) -> bool:
        """Both."""
        return self.tbt and self.deadlines


class Choice(NamedTuple):
    """What is to be done.

    Attributes:
        clock: index in the profile's clocks; None: the highest the cards take, for a request is lost.
        admit: how many of those that wait may enter.
        lost: names of requests that cannot be in time any more.
        check: at that clock.
        feasible: whether `check` is met, or nothing better was to be had.
    """

    clock: int | None
    admit: int
    lost: frozenset[str]
    check: Check
    feasible: bool


def check(engine: Engine, pieces: Sequence[Piece], clock: int, prompt_tokens: int = 0) -> Check:
    """The paper's checks 2 and 3: the time between tokens, and every deadline.

    Args:
        engine: what it is of.
        pieces: the projection.
        clock: index of the clock.
        prompt_tokens: still to be computed, where they are counted.
    """
    first = engine.performance.prefill_seconds_per_token[clock] * prompt_tokens if engine.count_prefill else 0.0
    pace = engine.performance.walk(clock, pieces, first_seconds=first, slower=engine.slower)
    tbt = pace.mean_seconds if engine.tbt_reading == "Average" else pace.slowest_seconds
    return Check(tbt <= engine.tbt_seconds, pace.late_seconds <= 0.0, tbt, pace.late_seconds)


def lost_of(engine: Engine, entries: Sequence[Entry], prompt_tokens: int = 0) -> frozenset[str]:
    """Requests whose own deadline cannot be met even at the highest clock, and those that were lost already."""
    clock = engine.clocks[-1]
    segments = segments_of(entries)
    first = 0.0
    if engine.count_prefill:
        first = engine.performance.prefill_seconds_per_token[clock] * prompt_tokens * engine.slower
    times = engine.performance.ends(clock, segments, slower=engine.slower)
    ends = list(accumulate([segment.steps for segment in segments]))
    return frozenset(
        [
            entry.name
            for entry in entries
            if entry.lost or first + times[bisect_left(ends, entry.left_tokens)] > entry.due_seconds
        ]
    )


def least_clock(engine: Engine, passes: Callable[[int], bool]) -> int | None:
    """Binary search for the least of `engine.clocks` that passes; None: none does. What passes must be monotone."""
    clocks = engine.clocks
    low, high = 0, len(clocks)
    while low < high:
        middle = (low + high) // 2
        if passes(clocks[middle]):
            high = middle
        else:
            low = middle + 1
    return clocks[low] if low < len(clocks) else None


def decide(
    engine: Engine,
    running: Sequence[Entry],
    waiting: Sequence[Entry],
    *,
    prompts: Sequence[int] = (),
    running_prompts: int = 0,
    most_admitted: int = 32,
) -> Choice:
    """Who of the waiting may enter, and the least clock at which all in the batch end in time.

    Args:
        engine: what it is of.
        running: requests in the batch; lost ones marked.
        waiting: those that wait, the oldest first.
        prompts: of each of those, prompt tokens still to be computed.
        running_prompts: the same of the batch, all together.
        most_admitted: at one time.
    """
    scene = _scene(engine, running, running_prompts)
    admitted = 0
    for request, prompt in zip(waiting[:most_admitted], prompts or [0] * len(waiting), strict=False):
        tried = [*scene.entries, request]
        segments = segments_of(tried)
        if scene.entries and engine.kv_blocks and not fits(tried, segments, engine.block_tokens, engine.kv_blocks):
            break
        pending = scene.prompt_tokens + prompt
        pieces = engine.performance.pieces(segments)
        found = check(engine, pieces, engine.clocks[-1], pending)
        if found.ok or not scene.entries:
            scene = _Scene(tried, pieces, found, pending)
        elif not found.deadlines and request.name in lost_of(engine, tried, pending):
            # It can only get later: in it goes, and nobody waits for it.
            scene = _scene(engine, tried, pending)
        else:
            break
        admitted += 1
    lost = frozenset([entry.name for entry in scene.entries if entry.lost])
    if lost:
        return Choice(None, admitted, lost, scene.at_top, feasible=False)
    seen = {engine.clocks[-1]: scene.at_top}

    def passes(clock: int) -> bool:
        found = seen.get(clock)
        if found is None:
            found = seen[clock] = check(engine, scene.pieces, clock, scene.prompt_tokens)
        return found.ok

    clock = least_clock(engine, passes)
    if clock is None:
        return Choice(engine.clocks[-1], admitted, lost, scene.at_top, feasible=False)
    return Choice(clock, admitted, lost, seen[clock], feasible=True)


class _Scene(NamedTuple):
    """A scoreboard and what it comes to at the highest clock."""

    entries: list[Entry]
    pieces: list[Piece]
    at_top: Check
    prompt_tokens: int


def _scene(engine: Engine, entries: Sequence[Entry], prompt_tokens: int) -> _Scene:
    """With those marked that are lost."""
    pieces = engine.performance.pieces(segments_of(entries))
    at_top = check(engine, pieces, engine.clocks[-1], prompt_tokens)
    if at_top.deadlines:
        return _Scene(list(entries), pieces, at_top, prompt_tokens)
    lost = lost_of(engine, entries, prompt_tokens)
    marked = [entry._replace(lost=True) if entry.name in lost else entry for entry in entries]
    pieces = engine.performance.pieces(segments_of(marked))
    return _Scene(marked, pieces, check(engine, pieces, engine.clocks[-1], prompt_tokens), prompt_tokens)


def with_clocks(engine: Engine, clocks: Sequence[int]) -> Engine:
    """The same engine at other clocks."""
    return replace(engine, clocks=tuple(clocks))
