"""How long prompts and answers are: mixtures fitted to public distributions, tables of measured ones, or fixed."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Final

from flyball_sim.load import conversation
from flyball_sim.load.measured import SERVEGEN_MODELS, LengthTable, lmsys_lengths, servegen_lengths

Lengths = Callable[[random.Random], tuple[int, int]]
"""Draws the tokens of one prompt and its answer."""

Mixture = Sequence[tuple[float, float, float]]
"""Lognormals: weight, mean and standard deviation of the logarithm of tokens."""

# Fitted by least squares to the cumulative distributions; `python -m flyball_sim.load.fits` prints them again.
SERVEGEN_LARGE_PROMPTS: Final[Mixture] = (
    (0.2819, 6.8728, 0.2124),
    (0.2186, 6.4514, 0.1355),
    (0.1958, 4.3738, 0.3511),
    (0.1803, 6.3870, 1.0282),
    (0.1234, 7.7823, 0.1331),
)
SERVEGEN_LARGE_ANSWERS: Final[Mixture] = ((0.4376, 1.4987, 1.8595), (0.3654, 4.6556, 0.6859), (0.1969, 6.0929, 0.1305))
SERVEGEN_SMALL_PROMPTS: Final[Mixture] = ((0.8174, 3.4232, 0.4368), (0.1826, 5.9853, 0.7799))
SERVEGEN_SMALL_ANSWERS: Final[Mixture] = ((0.7590, 1.4000, 0.6000), (0.2410, 4.0180, 0.7219))
LMSYS_TOKENS: Final[Mixture] = (
    (0.4963, 5.7776, 0.5392),
    (0.2592, 6.9506, 0.5350),
    (0.2153, 4.0851, 0.3000),
    (0.0292, 8.3406, 0.5722),
)

CODE_PROMPTS: Final[Mixture] = ((0.7, 7.6, 0.6), (0.3, 6.2, 1.0))
CODE_ANSWERS: Final[Mixture] = ((0.75, 2.6, 0.5), (0.25, 4.2, 0.9))
"""Of a code assistant's kind, long prompts and short answers: modelled, not fitted to any trace."""

LONGEST_PROMPT_TOKENS: Final = 32_768
LONGEST_ANSWER_TOKENS: Final = 8_192
"""Where the tails of the mixtures are cut."""

_ANSWER_SHARE: Final = (2.0, 3.0)
"""Of a length that is given for prompt and answer together: a beta distribution, mean 0.4; modelled."""


def mixture_tokens(mixture: Mixture, longest: int) -> Callable[[random.Random], int]:
    """Draws whole tokens, at least 1, from a mixture cut at `longest`."""
    cumulative = tuple(accumulate(weight for weight, *_ in mixture))

    def draw(rng: random.Random) -> int:
        _, mean, sigma = rng.choices(mixture, cum_weights=cumulative)[0]
        tokens: int = round(rng.lognormvariate(mean, sigma))
        return min(longest, max(1, tokens))

    return draw


def table_tokens(table: LengthTable) -> Callable[[random.Random], int]:
    """Draws whole tokens from a measured distribution, evenly in the logarithm within each of its steps."""

    def draw(rng: random.Random) -> int:
        share = rng.random() * table.shares[-1]
        index = bisect.bisect_left(table.shares, share)
        low, high = (table.tokens[index - 1] if index else 1.0), table.tokens[index]
        tokens: int = math.ceil(low * (high / low) ** rng.random())
        return max(1, tokens)

    return draw


def _pair(prompt: Callable[[random.Random], int], answer: Callable[[random.Random], int]) -> Lengths:
    return lambda rng: (prompt(rng), answer(rng))


def _divided(total: Callable[[random.Random], int]) -> Lengths:
    def draw(rng: random.Random) -> tuple[int, int]:
        tokens = max(2, total(rng))
        answer = min(tokens - 1, max(1, round(tokens * rng.betavariate(*_ANSWER_SHARE))))
        return tokens - answer, answer

    return draw


def _fitted(prompts: Mixture, answers: Mixture) -> Callable[[Path | None], Lengths]:
    lengths = _pair(mixture_tokens(prompts, LONGEST_PROMPT_TOKENS), mixture_tokens(answers, LONGEST_ANSWER_TOKENS))
    return lambda _: lengths


def _servegen(model: str) -> Callable[[Path | None], Lengths]:
    def read(data: Path | None) -> Lengths:
        prompts, answers = servegen_lengths(data, model)
        return _pair(table_tokens(prompts), table_tokens(answers))

    return read


LENGTHS: Final[Mapping[str, Callable[[Path | None], Lengths]]] = MappingProxyType(
    {
        "conversation": lambda _: conversation.draw_lengths,
        "code": _fitted(CODE_PROMPTS, CODE_ANSWERS),
        "lmsys": lambda _: _divided(mixture_tokens(LMSYS_TOKENS, LONGEST_PROMPT_TOKENS)),
        "servegen-m-large": _fitted(SERVEGEN_LARGE_PROMPTS, SERVEGEN_LARGE_ANSWERS),
        "servegen-m-small": _fitted(SERVEGEN_SMALL_PROMPTS, SERVEGEN_SMALL_ANSWERS),
        "lmsys-measured": lambda data: _divided(table_tokens(lmsys_lengths(data))),
        **{f"servegen-{model}-measured": _servegen(model) for model in SERVEGEN_MODELS},
    }
)
"""By name; the last ones read the data directory."""


def fixed(prompt_tokens: int, answer_tokens: int) -> Lengths:
    """The same lengths each time."""
    return lambda _: (prompt_tokens, answer_tokens)
