"""`flyball-sim validate`: the simulator's numbers beside published measurements."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flyball_sim.validation.rows import Row


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = "Exit status: 0 every gate that was run holds, 1 a gate is missed, 2 the command line is wrong."
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="directory of measured data, with calibration/ in it; without it the rows that need it say so",
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="rewrite the report in this Markdown page as well")
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each row")


def run(args: argparse.Namespace) -> int:
    """Print the table: 0 every gate that was run holds, 1 one is missed, 2 the data cannot be read."""
    # The models load only once they are used.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    from flyball_sim.gpu.fits import CalibrationDataError  # noqa: PLC0415
    from flyball_sim.validation import plan, table  # noqa: PLC0415

    rows: list[Row] = []
    errors = Console(stderr=True)
    try:
        parts = plan.parts(plan.checked_data(args.data))
        shown = track(parts, "validating", console=errors, transient=True, disable=not errors.is_terminal)
        for _, work in shown:
            rows += work()
    except (plan.DataError, CalibrationDataError) as error:
        print(f"flyball-sim validate: --data: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(table.json_lines(rows))
    else:
        print(plan.report(rows))
    if args.page is not None:
        try:
            args.page.write_text(plan.rewritten(args.page.read_text("utf-8"), rows), "utf-8")
        except (OSError, UnicodeDecodeError, plan.DataError) as error:
            print(f"flyball-sim validate: --page {args.page}: {error}", file=sys.stderr)
            return 2
    return 1 if any(row.fails for row in rows) else 0
