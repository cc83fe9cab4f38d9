"""How long answers will be: a plug-in, as in the paper (section IV-C), which injects errors into the true lengths.

Only a simulated engine knows the true length. There `Injected` stands for any predictor with that error; with none it
is the paper's oracle. A real engine does not say, and `History` answers from what came before.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from flyball_agent.controllers.base import RequestView

_P95: Final = 1.959964
"""95 % of a normal distribution's values are nearer to its mean than this many standard deviations."""
_REMEMBERED: Final = 256
_ENOUGH: Final = 16
_QUANTILE: Final = 0.9


class LengthPredictor(Protocol):
    """Predicts answers."""

    def predict(self, request: RequestView) -> int | None:
        """Output tokens of a request, the conservative inflation of the paper included; None: no idea."""
        ...


class Injected:
    """The true length, off by a drawn error that is the same whenever the request is looked at.

    Args:
        error: 95 % of the predictions are off by no more than this share (the paper: 0, 0.15, 0.3).
        seed: of the errors.
        inflated: whether the prediction is made that much longer, so that few requests outlive it.
    """

    def __init__(self, error: float, seed: int, *, inflated: bool = True) -> None:
        self._error = error
        self._seed = seed
        self._factor = 1.0 + error if inflated else 1.0

    def predict(self, request: RequestView) -> int | None:
        """See `LengthPredictor`."""
        true = request.output_tokens
        if true is None or not self._error:
            return true
        rng = random.Random(f"{self._seed}/{request.request_id}")  # noqa: S311 - errors of a predictor
        guess = true * max(0.0, 1.0 + rng.gauss(0.0, self._error / _P95))
        return max(1, math.ceil(guess * self._factor))


class History:
    """The 90th percentile of the answers that ended here, the newest 256."""

    def __init__(self, lengths: Iterable[int] = ()) -> None:
        self._lengths = deque(lengths, maxlen=_REMEMBERED)
        self._guess: int | None = None
        self._count()

    @property
    def lengths(self) -> tuple[int, ...]:
        """What it remembers."""
        return tuple(self._lengths)

    def learn(self, output_tokens: int) -> None:
        """An answer ended."""
        self._lengths.append(output_tokens)
        self._count()

    def _count(self) -> None:
        known = len(self._lengths)
        self._guess = None if known < _ENOUGH else sorted(self._lengths)[math.ceil(_QUANTILE * known) - 1]

    def predict(self, request: RequestView) -> int | None:  # noqa: ARG002 - it does not look at the request
        """See `LengthPredictor`."""
        return self._guess
