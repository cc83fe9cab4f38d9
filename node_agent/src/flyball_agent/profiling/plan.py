"""What to measure of an engine: a pure plan that leaves something usable wherever it is cut short.

Three tables (DESIGN 5). Decode: batch x KV tokens at several clocks; prefill: prompt lengths at several clocks; load:
power cap x batch, the engine kept full. A long decode is started once and measured at one clock after the other, for
on a real engine its prompts cost more time than the windows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Final, TypeVar

BATCHES: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
PROMPTS: Final = (32, 128, 512, 1024, 2048, 4096, 8192)
HELD_PROMPTS: Final = (64, 512, 2048, 6144)
"""Prompt tokens of each sequence of a decode batch: they set its KV tokens."""
CLOCKS: Final = 14
CAPS: Final = 11
LOWEST_CAP_SHARE: Final = 0.375
"""Of the card's highest cap: the lowest that load is measured at (PALS: 150 of 400 W), if the card takes it."""
LOAD_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOAD_PROMPT: Final = 512
LOAD_OUTPUT: Final = 160
LOAD_ROUNDS: Final = 3
DECODE_ROOM: Final = 1024
"""Tokens left to each sequence of a decode batch to be measured in."""
KV_SHARE: Final = 0.9
"""Most of the KV cache that a batch may hold at its end: a preempted batch would measure something else."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ground:
    """What is to be profiled, as far as the plan depends on it.

    Attributes:
        clocks_mhz: SM clocks that every card takes, ascending.
        cap_min_watts: lowest cap of a card.
        cap_max_watts: highest.
        gpus: cards of the group.
        max_batch_limit: most sequences the engine runs at once.
        max_model_len: most tokens of a sequence.
        kv_tokens: tokens its KV cache holds; 0: not known.
    """

    clocks_mhz: tuple[int, ...]
    cap_min_watts: float
    cap_max_watts: float
    gpus: int
    max_batch_limit: int
    max_model_len: int
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """A batch that decodes, to be measured at several clocks, the first one first.

    Attributes:
        running: sequences.
        prompt_tokens: of each.
        clocks_mhz: locks to measure at.
    """

    running: int
    prompt_tokens: int
    clocks_mhz: tuple[int, ...]

    def key(self, sm_mhz: int) -> str:
        """The name of one of its points."""
        return f"decode/{self.running}/{self.prompt_tokens}/{sm_mhz}"


@dataclass(frozen=True, slots=True)
class PrefillTask:
    """Prompts of one length, one at a time, to be measured at several clocks."""

    prompt_tokens: int
    clocks_mhz: tuple[int, ...]

    def key(self, sm_mhz: int) -> str:
        """The name of one of its points."""
        return f"prefill/{self.prompt_tokens}/{sm_mhz}"


@dataclass(frozen=True, slots=True)
class LoadTask:
    """A closed loop that keeps as many requests in the engine as the batch may have.

    So the batch is bounded by what is there, which any engine obeys; a limit set at run time with a longer queue
    gives the same batch.

    Attributes:
        cap_watts: of each card.
        batch_limit: requests kept in the engine.
        lengths: (prompt, output) tokens of the requests, in order, from the beginning again when used up.
    """

    cap_watts: int
    batch_limit: int
    lengths: tuple[tuple[int, int], ...]

    @property
    def requests(self) -> int:
        """How many are measured, after as many as the batch has to warm up."""
        return LOAD_ROUNDS * self.batch_limit + 16

    def key(self) -> str:
        """The name of its point."""
        return f"load/{self.cap_watts}/{self.batch_limit}"


Task = DecodeTask | PrefillTask | LoadTask


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Tasks in the order of their use: cut anywhere, the ends of every range come before what is between."""

    tasks: tuple[Task, ...]

    def names(self) -> tuple[str, ...]:
        """The names of all points."""
        return tuple(chain.from_iterable(keys_of(task) for task in self.tasks))


def keys_of(task: Task) -> tuple[str, ...]:
    """The names of a task's points."""
    if isinstance(task, LoadTask):
        return (task.key(),)
    return tuple(task.key(sm_mhz) for sm_mhz in task.clocks_mhz)


def make_plan(
    ground: Ground,
    *,
    clocks: Sequence[int] = (),
    batches: Sequence[int] = BATCHES,
    caps: Sequence[int] = (),
    load_batches: Sequence[int] = LOAD_BATCHES,
    seed: int = 0,
) -> SweepPlan:
    """The plan for an engine.

    Args:
        ground: the engine and its cards.
        clocks: SM clocks to measure at; none: `CLOCKS` of the cards', evenly spread.
        batches: decode batches; those beyond the engine's are left out.
        caps: caps to measure at; none: `CAPS` up to the cards' highest.
        load_batches: batches of the load; those beyond the engine's are left out.
        seed: of the lengths of the load.

    Raises:
        ValueError: a clock or cap is not the cards'.
    """
    measured = tuple(clocks) or tuple(evenly(ground.clocks_mhz, CLOCKS))
    for sm_mhz in measured:
        if sm_mhz not in ground.clocks_mhz:
            raise ValueError(
                f"clock {sm_mhz} MHz is none of the card's {len(ground.clocks_mhz)} from {ground.clocks_mhz[0]} to"
                f" {ground.clocks_mhz[-1]} MHz: give one of them"
            )
    low, high = ground.cap_min_watts, ground.cap_max_watts
    least = max(low, LOWEST_CAP_SHARE * high)
    capped = tuple(caps) or tuple(round(least + (high - least) * step / (CAPS - 1)) for step in range(CAPS))
    for cap in capped:
        if not low <= cap <= high:
            raise ValueError(f"cap {cap} W is outside the card's {low:g} to {high:g} W: give one within")
    decode = [
        DecodeTask(running, prompt, tuple(spread(measured)))
        for prompt in spread(HELD_PROMPTS)
        for running in spread([batch for batch in batches if batch <= ground.max_batch_limit])
        if _fits(ground, running, prompt)
    ]
    prefill = [
        PrefillTask(prompt, tuple(spread(measured)))
        for prompt in spread([prompt for prompt in PROMPTS if prompt < ground.max_model_len])
    ]
    lengths = draw_lengths(256, ground.max_model_len, seed)
    load = [
        LoadTask(cap, batch, lengths)
        for batch in spread([batch for batch in load_batches if batch <= ground.max_batch_limit])
        for cap in spread(capped)
    ]
    mixed = chain.from_iterable(zip_longest(decode, prefill, load))
    return SweepPlan(tuple(task for task in mixed if task is not None))


def _fits(ground: Ground, running: int, prompt: int) -> bool:
    room = prompt + DECODE_ROOM
    return room <= ground.max_model_len and (not ground.kv_tokens or running * room <= KV_SHARE * ground.kv_tokens)


def evenly(values: Sequence[int], count: int) -> list[int]:
    """So many of the values, both ends among them, evenly spread; all where there are no more."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def spread(values: Sequence[_T]) -> list[_T]:
    """The same values: both ends first, then the middle of each gap, and so on."""
    if len(values) <= 2:
        return list(values)
    order, gaps = [0, len(values) - 1], [(0, len(values) - 1)]
    while gaps:
        deeper = []
        for left, right in gaps:
            middle = (left + right) // 2
            if middle > left:
                order.append(middle)
                deeper += [(left, middle), (middle, right)]
        gaps = deeper
    return [values[index] for index in order]


def draw_lengths(count: int, max_model_len: int, seed: int) -> tuple[tuple[int, int], ...]:
    """(prompt, output) tokens of requests: log-normal about `LOAD_PROMPT` and `LOAD_OUTPUT`, as chats spread."""
    rng = random.Random(seed)  # noqa: S311 - lengths, no secrets

    def draw(mean: int, most: int) -> int:
        return max(8, min(round(mean * rng.lognormvariate(-0.18, 0.6)), 4 * mean, most))

    return tuple((draw(LOAD_PROMPT, max_model_len // 2), draw(LOAD_OUTPUT, max_model_len // 4)) for _ in range(count))
