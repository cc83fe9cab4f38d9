"""`flyball-sim scoreboard tune`: fifty trials for a controller on the tuning traces."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flyball_sim.scoreboard.tuning import Trial

_ERROR = 2


def run_tune(args: argparse.Namespace) -> int:
    """Tune the controllers asked for, all that can be unless some are: 0 done, 2 the command line is wrong."""
    from flyball_sim.scoreboard.rivals import CONTENDERS  # noqa: PLC0415 - so that --help is quick
    from flyball_sim.scoreboard.spaces import SPACES  # noqa: PLC0415
    from flyball_sim.scoreboard.store import Store, StoreError  # noqa: PLC0415
    from flyball_sim.scoreboard.tuned import write_tuned  # noqa: PLC0415
    from flyball_sim.scoreboard.tuning import entry_of, tune  # noqa: PLC0415

    names = args.controller or list(SPACES)
    unknown = [name for name in names if name not in SPACES]
    if unknown:
        print(
            f"flyball-sim scoreboard tune: --controller {unknown[0]!r} is not tuned: give one of {', '.join(SPACES)}",
            file=sys.stderr,
        )
        return _ERROR
    try:
        with Store(args.out) as store:
            for name in names:
                watch = _Said(name, json_lines=args.json)
                trials = tune(CONTENDERS[name], SPACES[name], store, trials=args.trials, watch=watch)
                entry = entry_of(trials)
                print(json.dumps({name: entry}) if args.json else _summary(name, entry))
                if args.write is not None:
                    write_tuned(args.write, name, entry)
    except StoreError as error:
        print(f"flyball-sim scoreboard tune: {error}", file=sys.stderr)
        return _ERROR
    return 0


class _Said:
    """Says how a trial went, on standard error."""

    def __init__(self, name: str, *, json_lines: bool) -> None:
        self._name, self._quiet = name, json_lines

    def __call__(self, trial: Trial) -> None:
        if not self._quiet:
            worst = 100 * min(trial.attainment)
            what = json.dumps(dict(trial.parameters)) if trial.parameters else "defaults"
            print(f"{self._name} {trial.number:2d}: {trial.objective:.4f}, worst {worst:.2f} % {what}", file=sys.stderr)


def _summary(name: str, entry: dict[str, object]) -> str:
    return (
        f"{name}: {entry['objective']} (defaults {entry['objective_of_defaults']}) at trial {entry['trial']} of"
        f" {entry['trials']}: {json.dumps(entry['parameters'])}"
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options that only tuning has."""
    parser.add_argument("--trials", type=int, default=50, help="of `tune`: trials of each controller (%(default)s)")
    parser.add_argument(
        "--write", type=Path, help="of `tune`: file of tuned parameters that the best is written to (tuned.json)"
    )
