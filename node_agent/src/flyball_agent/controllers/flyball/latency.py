"""How long an engine's steps take by batch, KV cache in use, prompt tokens and SM clock; learnt while it serves.

A decode step takes `host + D(x) (a + b batch + c cache)`, and each prompt token in it `p G(x)` more, at the share x of
the highest clock. Physics of the factors: memory bandwidth falls in proportion to the clock below a knee, and a share
of the time goes as 1/x; prefill is nearly all compute. The KV cache is measured in shares of the cache, not in tokens,
because /metrics says the one and not the other: c is the time that reading a full cache takes.
"""

from __future__ import annotations

from typing import Final

from flyball_agent.controllers.flyball.cards import Prior
from flyball_agent.controllers.flyball.gains import LogGains

HOST_SECONDS: Final = 0.0004
"""Of each step, whatever the clock is: vLLM's scheduler (0.2-1.0 ms between public intercepts and kernel times)."""
_PREFILL_CLOCK_SHARE: Final = 0.92
_A, _B, _C, _P, _KNEE, _SHARE = range(6)
_STEP_NOISE: Final = 0.05
_PREFILL_NOISE: Final = 0.35
"""Prompt tokens are counted when their prompt is done, not when each is computed."""


class LatencyModel:
    """Step times with learnt coefficients.

    Args:
        prior: what is believed at first.
    """

    def __init__(self, prior: Prior) -> None:
        self.gains = LogGains(
            [
                prior.step_seconds,
                prior.sequence_seconds,
                prior.cache_seconds,
                prior.prefill_seconds,
                min(prior.knee_share, 0.9),
                prior.decode_clock_share,
            ],
            [0.25, 0.8, 0.6, 0.35, 0.2, 0.6],
            together=((0.9, (_A, _B, _P)),),
            low=[0.02, 0.01, 0.02, 0.02, 0.4, 0.1],
            high=[50.0, 50.0, 20.0, 50.0, 1.6, 8.0],
            drift=0.004,
        )

    def decode_factor(self, share: float) -> float:
        """Time of a decode step on the cards over that at the highest clock."""
        values = self.gains.values
        return (1.0 - values[_SHARE]) * max(1.0, values[_KNEE] / share) + values[_SHARE] / share

    def prefill_factor(self, share: float) -> float:
        """Time of a prompt token over that at the highest clock."""
        memory = max(1.0, self.gains.values[_KNEE] / share)
        return (1.0 - _PREFILL_CLOCK_SHARE) * memory + _PREFILL_CLOCK_SHARE / share

    def base(self, share: float) -> float:
        """Seconds of a step that decodes next to nothing."""
        return HOST_SECONDS + self.decode_factor(share) * self.gains.values[_A]

    def slope(self, share: float, cache_per_sequence: float) -> float:
        """Seconds that each sequence adds, which holds this share of the KV cache."""
        values = self.gains.values
        return self.decode_factor(share) * (values[_B] + values[_C] * cache_per_sequence)

    def decode_seconds(self, batch: float, cache: float, share: float) -> float:
        """Of a step that decodes `batch` sequences which hold the share `cache` of the KV cache."""
        values = self.gains.values
        return HOST_SECONDS + self.decode_factor(share) * (values[_A] + values[_B] * batch + values[_C] * cache)

    def prompt_seconds(self, share: float) -> float:
        """Of one prompt token."""
        return self.gains.values[_P] * self.prefill_factor(share)

    def bandwidth(self, share: float) -> float:
        """Memory bandwidth over its peak."""
        return min(1.0, share / self.gains.values[_KNEE])

    @property
    def prompt_spread(self) -> float:
        """Standard deviation of the logarithm of a prompt token's time."""
        return self.gains.spread(_P)

    def learn_steps(
        self, seconds: float, *, batch: float, cache: float, prompt_tokens: float, share: float, varied: bool
    ) -> float:
        """Learn from the mean length of some steps.

        Args:
            seconds: their mean.
            batch: sequences in decode, on average.
            cache: share of the KV cache in use.
            prompt_tokens: computed in each of them, on average.
            share: of the highest clock.
            varied: the clock has moved lately, so that its effect can be told from the rest.

        Returns:
            The residual in its standard deviations; above 0: slower than thought.
        """
        a, b, c, p, knee, clock = self.gains.values
        factor, prefill = self.decode_factor(share), self.prefill_factor(share)
        work = a + b * batch + c * cache
        prompt = p * prefill * prompt_tokens
        predicted = HOST_SECONDS + factor * work + prompt
        slopes = [factor * a, factor * b * batch, factor * c * cache, prompt, 0.0, 0.0]
        if varied:
            below = knee > share
            memory = max(1.0, knee / share)
            if below:
                slopes[_KNEE] = (1.0 - clock) * memory * work + (
                    1.0 - _PREFILL_CLOCK_SHARE
                ) * memory * p * prompt_tokens
            slopes[_SHARE] = clock * (1.0 / share - memory) * work
        noise = _STEP_NOISE * predicted + _PREFILL_NOISE * prompt
        return self.gains.learn(seconds, predicted, slopes, noise)

    def learn_first_token(self, seconds: float, *, prompt_tokens: float, queued: float, share: float) -> float:
        """Learn from the mean time to first token of an engine that only prefills.

        Args:
            seconds: their mean.
            prompt_tokens: of a prompt, on average.
            queued: how much longer than alone a prompt took, as a factor.
            share: of the highest clock.

        Returns:
            The residual in its standard deviations; above 0: slower than thought.
        """
        step = self.base(share)
        prompt = self.prompt_seconds(share) * prompt_tokens
        predicted = step + prompt * queued
        slopes = [step, 0.0, 0.0, prompt * queued, 0.0, 0.0]
        return self.gains.learn(seconds, predicted, slopes, 0.3 * predicted)
