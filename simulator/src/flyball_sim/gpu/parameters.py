"""What no measurement fixes: every such number by name, with its range, and draws of all of them.

What data fix only jointly is drawn jointly. On H100 and H200 the exponent k of the power law and its static power
P_s are drawn along the line the MLPerf cap pairs leave (k in 1.8 to 2.5), and memory and tensor watts follow P_s so
that the power at the highest clock stays the measured one; the split of memory watts between HBM and SMs is drawn on
its own. Of these draws only those are taken that agree with the one public figure of a Hopper card under a clock lock:
the best lock saves an H200 25-40 % of decode energy at little loss (arXiv 2605.11999), and an H100 not more than that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from flyball_sim.gpu.anchors import best_decode_lock_saving
from flyball_sim.gpu.dies import DieSpread
from flyball_sim.gpu.kind import GpuType
from flyball_sim.gpu.ranges import DIES, EVERY_GPU, PARAMETERS, Effect, Parameter
from flyball_sim.gpu.types import GPU_TYPES

__all__ = [
    "EVERY_GPU",
    "NOMINAL_INDEX",
    "PARAMETERS",
    "Draw",
    "Effect",
    "Parameter",
    "apply",
    "die_spread",
    "draw",
    "nominal",
]

NOMINAL_INDEX = -1


@dataclass(frozen=True, slots=True)
class Draw(Mapping[str, float]):
    """One value for every parameter, by `Parameter.key`; `draw_index` is `NOMINAL_INDEX` for the nominal ones."""

    values_by_key: Mapping[str, float]
    draw_index: int

    def __getitem__(self, key: str) -> float:
        return self.values_by_key[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_key)

    def __len__(self) -> int:
        return len(self.values_by_key)


@dataclass(frozen=True, slots=True)
class _Line:
    """How the other coefficients follow the static power: watts per watt."""

    memory_slope: float
    tensor_slope: float


_LINE_STATIC_WATTS = (75.0, 100.0, 126.0, 150.0, 175.0, 197.0)
_LINE_EXPONENTS = (1.78, 1.89, 2.02, 2.15, 2.31, 2.48)
"""(P_s, k) that reproduce the six MLPerf v4.1 cap pairs of eight H200 alike."""
_ON_THE_LINE: Mapping[str, _Line] = MappingProxyType(
    {"H100-SXM5": _Line(-1.365, -1.290), "H200-SXM": _Line(-1.255, -1.290)}
)
"""Slopes of `fits.fit_power` and `fits.fit_kernel_memory_watts` in their static power."""
_LARGEST_HBM_SHARE = 0.85
_DECODE_LOCK_SAVING: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"H100-SXM5": (0.0, 0.40), "H200-SXM": (0.25, 0.40)}
)
"""What the best clock lock may save of decode energy at little loss, as a share."""
_MOST_ATTEMPTS = 5000


def nominal() -> Draw:
    """Every parameter at its nominal value; `apply` of it changes nothing."""
    return Draw(MappingProxyType({parameter.key: parameter.nominal for parameter in PARAMETERS}), NOMINAL_INDEX)


def draw(seed: int, index: int) -> Draw:
    """Draw number `index`, each parameter uniform in its range; those of a Hopper card together, see above.

    Depends on the seed, the index and the parameter's key only: not on other draws, their order or their number.
    """
    values = {parameter.key: _drawn(parameter, seed, index, 0) for parameter in PARAMETERS}
    for name, (least, most) in _DECODE_LOCK_SAVING.items():
        own = [parameter for parameter in PARAMETERS if parameter.gpu == name and parameter.effect in {"power", "time"}]
        for attempt in range(1, _MOST_ATTEMPTS):
            if least <= best_decode_lock_saving(apply(GPU_TYPES[name], Draw(values, index))) <= most:
                break
            values |= {parameter.key: _drawn(parameter, seed, index, attempt) for parameter in own}
    return Draw(MappingProxyType(values), index)


def _drawn(parameter: Parameter, seed: int, index: int, attempt: int) -> float:
    return parameter.low + (parameter.high - parameter.low) * _uniform(seed, index, f"{parameter.key}/{attempt}")


def apply(gpu_type: GpuType, values: Draw) -> GpuType:
    """`gpu_type` with the draw's values in place of its own."""
    if values.draw_index == NOMINAL_INDEX:
        return gpu_type
    prefix = f"{gpu_type.name}."
    own: dict[str, Any] = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    power = replace(gpu_type.power, **{field: own.pop(field) for field in _POWER_FIELDS if field in own})
    drawn = replace(gpu_type, power=power, **own)
    line = _ON_THE_LINE.get(gpu_type.name)
    waiting = drawn.idle_watts + drawn.context_watts
    if line is None:
        return replace(drawn, power=replace(power, static_watts=max(power.static_watts, waiting)))
    # No static power is below what a waiting card draws, so the lowest exponents are out of some draws' reach.
    static = max(_along(power.clock_exponent, _LINE_EXPONENTS, _LINE_STATIC_WATTS), waiting)
    more = static - gpu_type.power.static_watts
    memory = gpu_type.power.hbm_watts + gpu_type.power.sm_watts + line.memory_slope * more
    hbm = min(power.hbm_watts, _LARGEST_HBM_SHARE * memory)
    return replace(
        drawn,
        power=replace(
            power,
            static_watts=static,
            hbm_watts=hbm,
            sm_watts=memory - hbm,
            clock_exponent=max(power.clock_exponent, _along(waiting, _LINE_STATIC_WATTS, _LINE_EXPONENTS)),
            tensor_watts=gpu_type.power.tensor_watts + line.tensor_slope * more,
        ),
    )


def die_spread(values: Draw) -> DieSpread:
    """How far dies differ in this draw."""
    return DieSpread(*(values[parameter.key] for parameter in DIES))


_POWER_FIELDS = ("clock_exponent", "voltage_floor_mhz", "hbm_watts", "sm_watts", "tensor_watts")


def _along(place: float, places: Sequence[float], values: Sequence[float]) -> float:
    """Straight between the points of a line, and on beyond its ends."""
    upper = next((index for index in range(1, len(places)) if place <= places[index]), len(places) - 1)
    share = (place - places[upper - 1]) / (places[upper] - places[upper - 1])
    return values[upper - 1] + (values[upper] - values[upper - 1]) * share


def _uniform(seed: int, index: int, key: str) -> float:
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") + 0.5) / (1 << 64)
