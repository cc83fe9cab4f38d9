"""What a group draws by load and SM clock; learnt from its energy counters.

Watts of a card: `idle + clock s(x) + busy u + (memory + decode s(x)) w(x) d + prefill s(x) q` where u, d and q are the
shares of time with kernels, in decode and in prefill, w(x) the memory bandwidth left at the share x of the highest
clock, and s(x) the power of switching: x to some power above the clock from which on the voltage rises, and
proportional to x below it.
"""

from __future__ import annotations

import math
from typing import Final

from flyball_agent.controllers.flyball.cards import Prior
from flyball_agent.controllers.flyball.gains import LogGains

_EXPONENT: Final = 2.1
"""Six MLPerf v4.1 pairs under caps leave 1.8-2.5."""
_VOLTAGE_FLOOR: Final = 0.52
"""Of the highest clock; A100 and A40 stand at their lowest voltage near it (public nvidia-smi logs)."""
_NOISE: Final = 0.06


def switching(share: float) -> float:
    """Power of switching over that at the highest clock."""
    if share >= _VOLTAGE_FLOOR:
        return math.pow(share, _EXPONENT)
    return math.pow(_VOLTAGE_FLOOR, _EXPONENT) * share / _VOLTAGE_FLOOR


class PowerModel:
    """Watts of a group with learnt coefficients.

    Args:
        prior: what is believed of one card at first.
        gpus: cards of the group.
    """

    def __init__(self, prior: Prior, gpus: int) -> None:
        watts = (
            prior.idle_watts,
            prior.clock_watts,
            prior.busy_watts,
            prior.memory_watts,
            prior.decode_watts,
            prior.prefill_watts,
        )
        self.gains = LogGains(
            [gpus * value for value in watts],
            [0.25, 0.4, 0.4, 0.4, 0.4, 0.3],
            together=((0.2, range(6)),),
            low=[0.2] * 6,
            high=[4.0] * 6,
            drift=0.002,
        )

    def watts(self, *, busy: float, prefill: float, bandwidth: float, share: float) -> float:
        """Mean watts of the group.

        Args:
            busy: share of time with a step under way.
            prefill: share of time that goes to prompts.
            bandwidth: of memory over its peak.
            share: of the highest clock.
        """
        return math.fsum(self._parts(busy=busy, prefill=prefill, bandwidth=bandwidth, share=share))

    def waiting_watts(self, share: float) -> float:
        """Of a group that does nothing."""
        return self.gains.values[0] + self.gains.values[1] * switching(share)

    def learn(self, measured: float, *, busy: float, prefill: float, bandwidth: float, share: float) -> None:
        """Learn from mean watts."""
        parts = self._parts(busy=busy, prefill=prefill, bandwidth=bandwidth, share=share)
        predicted = math.fsum(parts)
        self.gains.learn(measured, predicted, parts, _NOISE * predicted)

    def _parts(self, *, busy: float, prefill: float, bandwidth: float, share: float) -> tuple[float, ...]:
        idle, clock, kernels, memory, decode, prompt = self.gains.values
        scale = switching(share)
        decoding = max(0.0, busy - prefill) * bandwidth
        return (
            idle,
            clock * scale,
            kernels * busy,
            memory * decoding,
            decode * scale * decoding,
            prompt * scale * prefill,
        )
