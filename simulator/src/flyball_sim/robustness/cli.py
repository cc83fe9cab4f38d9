"""`flyball-sim robustness`: every controller under every fault."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flyball_sim.robustness.trials import Trial


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = (
        "Exit status: 0 Flyball holds its objectives wherever unlocked clocks do, 1 it does not, 2 the command line is"
        " wrong."
    )
    parser.add_argument("--controller", action="append", default=[], help="only this type; may be given again")
    parser.add_argument("--fault", action="append", default=[], help="only this fault; may be given again")
    parser.add_argument("--seed", type=int, default=1, help="of requests, noise and delays (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=_positive, default=1, help="seeds from that one on; the table has the worst (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each run")


def run(args: argparse.Namespace) -> int:
    """Print the table: 0 Flyball holds, 1 it does not, 2 a name is unknown."""
    # The models load only once they are used.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    from flyball_sim.robustness.faults import FAULTS  # noqa: PLC0415
    from flyball_sim.robustness.table import json_lines, legend, markdown, misses, verdict  # noqa: PLC0415
    from flyball_sim.robustness.trials import KINDS, trials  # noqa: PLC0415

    for what, asked, known in (("controller", args.controller, KINDS), ("fault", args.fault, FAULTS)):
        for name in asked:
            if name not in known:
                print(
                    f"flyball-sim robustness: --{what} {name!r}: there is no such {what}; give one of"
                    f" {', '.join(known)}",
                    file=sys.stderr,
                )
                return 2
    kinds, faults = args.controller or list(KINDS), args.fault or list(FAULTS)
    errors = Console(stderr=True)
    seeds = range(args.seed, args.seed + args.repeat)
    coming = (one for seed in seeds for one in trials(kinds, faults, seed=seed))
    total = len(kinds) * len(faults) * args.repeat
    shown = track(
        coming, "playing", total=total, console=errors, transient=True, disable=not errors.is_terminal or args.json
    )
    done: list[Trial] = []
    for trial in shown:
        done.append(trial)
        if args.json:
            print(json_lines([trial]), flush=True)
    if not args.json:
        print("\n\n".join((markdown(done), legend(done), verdict(done))))
    return 1 if misses(done) else 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1: give a whole number from 1")
    return number
