"""`python -m flyball_sim.gpu.show STATEFILE`: what each simulated GPU is set to and does, from its own state."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flyball_sim.gpu.model import REASON_IDLE, REASON_SW_POWER_CAP
from flyball_sim.gpu.statefile import GpuSlot, GpuStateFile, StateFileError

_COLUMNS = ("GPU", "UUID", "SM MHz", "LOCK", "CAP W", "ENFORCED W", "WATTS", "JOULES", "REASONS")


def row(gpu: GpuSlot) -> tuple[str, ...]:
    """One GPU as the cells of `table`; a dash is a lock that is not set, a star a value not the default."""
    lock = gpu.locked_sm_mhz
    reasons = gpu.event_reasons
    names = [name for bit, name in ((REASON_IDLE, "idle"), (REASON_SW_POWER_CAP, "sw-power-cap")) if reasons & bit]
    cap_mark = "" if gpu.cap_watts == gpu.gpu_type.cap_default_watts else "*"
    return (
        str(gpu.index),
        gpu.uuid,
        str(gpu.sm_mhz),
        "-" if lock is None else f"{lock[0]}-{lock[1]}*",
        f"{gpu.cap_watts:.0f}{cap_mark}",
        f"{gpu.enforced_cap_watts:.0f}",
        f"{gpu.power_watts:.0f}",
        f"{gpu.energy_joules:.0f}",
        ",".join(names) or "-",
    )


def table(statefile: GpuStateFile) -> str:
    """All GPUs of a node, one a line under a heading."""
    rows = [_COLUMNS, *(row(gpu) for gpu in statefile.gpus)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of the state files named; 1 where one cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m flyball_sim.gpu.show", description=__doc__)
    parser.add_argument("statefile", type=Path, nargs="+", help="a node's flyball-gpus.state")
    status = 0
    for path in parser.parse_args(argv).statefile:
        try:
            with GpuStateFile.open(path, writable=False) as statefile:
                print(f"node {statefile.node_name}\n{table(statefile)}")
        except StateFileError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
