"""What no measurement fixes: every such number by name, with its range, and draws of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from flyball_sim.gpu.dies import DEFAULT_SPREAD, DieSpread
from flyball_sim.gpu.kind import GpuType
from flyball_sim.gpu.types import GPU_TYPES

EVERY_GPU = "*"
NOMINAL_INDEX = -1


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number no measurement fixes.

    `gpu` is a type's name or `EVERY_GPU`; `why` says what leaves it open, `source` where the range is from.
    """

    name: str
    gpu: str
    nominal: float
    low: float
    high: float
    unit: str
    why: str
    source: str

    @property
    def key(self) -> str:
        """Its name in a `Draw`."""
        return f"{self.gpu}.{self.name}"


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


def _of(kind: GpuType) -> tuple[Parameter, ...]:
    return (
        Parameter(
            "decode_clock_share",
            kind.name,
            kind.decode_clock_share,
            0.0,
            0.2,
            "1",
            "no step times by clock are public for this part",
            "roofline: 0.05-0.2 above the knee; 2605.11999 saw < 0.1 % from 1590 to 1980 MHz",
        ),
    )


PARAMETERS: tuple[Parameter, ...] = tuple(parameter for kind in GPU_TYPES.values() for parameter in _of(kind))


def nominal() -> Draw:
    """Every parameter at its nominal value; `apply` of it changes nothing."""
    return Draw(MappingProxyType({parameter.key: parameter.nominal for parameter in PARAMETERS}), NOMINAL_INDEX)


def draw(seed: int, index: int) -> Draw:
    """Draw number `index`, each parameter uniform in its range.

    Depends on the seed, the index and the parameter's key only: not on other draws, their order or their number.
    """
    return Draw(
        MappingProxyType(
            {
                parameter.key: parameter.low + (parameter.high - parameter.low) * _uniform(seed, index, parameter.key)
                for parameter in PARAMETERS
            }
        ),
        index,
    )


def apply(gpu_type: GpuType, values: Draw) -> GpuType:
    """`gpu_type` with the draw's values in place of its own."""
    key = f"{gpu_type.name}.decode_clock_share"
    return replace(gpu_type, decode_clock_share=values[key]) if key in values else gpu_type


def die_spread(_values: Draw) -> DieSpread:
    """How far dies differ in this draw."""
    return DEFAULT_SPREAD


def _uniform(seed: int, index: int, key: str) -> float:
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") + 0.5) / (1 << 64)
