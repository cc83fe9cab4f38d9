"""The simulated GPU types by name; `catalogue.py` holds their numbers, `kind.py` what those mean."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from flyball_sim.gpu.catalogue import CATALOGUE
from flyball_sim.gpu.kind import MIB, GpuType, PowerModel, Provenance

__all__ = ["GPU_TYPES", "MIB", "GpuType", "PowerModel", "Provenance", "UnknownGpuTypeError", "gpu_type"]

GPU_TYPES: Mapping[str, GpuType] = MappingProxyType({kind.name: kind for kind in CATALOGUE})


class UnknownGpuTypeError(LookupError):
    """A GPU type nobody described; the message names the nearest one that exists."""


def gpu_type(name: str) -> GpuType:
    """The type called `name`.

    Raises:
        UnknownGpuTypeError: there is none; the message names the nearest and all others.
    """
    if name in GPU_TYPES:
        return GPU_TYPES[name]
    nearest = difflib.get_close_matches(name.upper(), GPU_TYPES, n=1, cutoff=0.0)[0]
    raise UnknownGpuTypeError(
        f"GPU type {name!r} is unknown: did you mean {nearest!r}? Known types: {', '.join(GPU_TYPES)}"
    )
