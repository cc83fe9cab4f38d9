"""`python -m flyball_sim.gpu.describe [TYPE]`: what each simulated type is made of, and what no measurement fixes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass

from flyball_sim.gpu.ranges import PARAMETERS
from flyball_sim.gpu.types import GPU_TYPES, GpuType, UnknownGpuTypeError, gpu_type


def summary() -> str:
    """All types, one a line under a heading."""
    rows = [("TYPE", "PROVENANCE", "SM MHz", "CAP W", "IDLE W", "FLOOR W", "k", "KNEE MHz")]
    rows += [
        (
            kind.name,
            kind.provenance,
            f"{kind.sm_min_mhz}-{kind.sm_max_mhz}",
            f"{kind.cap_min_watts:.0f}-{kind.cap_max_watts:.0f}",
            f"{kind.idle_watts:g}",
            f"{kind.active_floor_watts:g}",
            f"{kind.power.clock_exponent:g}",
            f"{kind.memory_knee_mhz:g}",
        )
        for kind in GPU_TYPES.values()
    ]
    return _table(rows)


def description(kind: GpuType) -> str:
    """Every number of one type, and the open ones with their ranges."""
    rows = [("OPEN", "NOMINAL", "LOW", "HIGH", "UNIT", "SOURCE OF THE RANGE")]
    rows += [
        (open_.name, f"{open_.nominal:g}", f"{open_.low:g}", f"{open_.high:g}", open_.unit, open_.source)
        for open_ in PARAMETERS
        if open_.gpu == kind.name
    ]
    return f"{_table(_numbers(kind))}\n\n{_table(rows)}"


def _numbers(kind: GpuType) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for field in fields(kind):
        value = getattr(kind, field.name)
        if is_dataclass(value):
            found.extend((f"power.{part.name}", f"{getattr(value, part.name):g}") for part in fields(value))
        else:
            found.append((field.name, f"{value:g}" if isinstance(value, float) else str(value)))
    return found


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print all types, or one whole; 2 where it is unknown."""
    parser = argparse.ArgumentParser(prog="python -m flyball_sim.gpu.describe", description=__doc__)
    parser.add_argument("type", nargs="?", help="a type's name; all in short by default")
    name = parser.parse_args(argv).type
    try:
        print(summary() if name is None else description(gpu_type(name)))
    except UnknownGpuTypeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
