"""`flyball-sim scoreboard`: controllers over worlds, traces, loads and SLOs."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flyball_sim.scoreboard import cli_tune

if TYPE_CHECKING:
    from flyball_sim.scoreboard.cells import Cell

_ERROR = 2
_FILE_COLUMNS = 170


class _WrongFilterError(ValueError):
    pass


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("play", "tune"),
        default="play",
        help="play cells (unless told otherwise), or tune controllers' parameters on traces the board does not play",
    )
    cli_tune.configure(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a few cells that differ in everything")
    which.add_argument("--published", action="store_true", help="the cells and rows of docs/scoreboard-results.md")
    parser.add_argument("--json", action="store_true", help="one object a line, as each cell is done, and no table")
    parser.add_argument("--data", type=Path, help="directory of the measured data; adds the Azure conversation trace")
    parser.add_argument(
        "--out", type=Path, help="file that keeps finished cells; a run that finds them goes on from there"
    )
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument(
        "--draws", type=_count, default=0, help="parameter draws for the band of each energy (default: %(default)s)"
    )
    parser.add_argument("--seed", type=_count, default=1, help="of traces, draws and intervals (default: %(default)s)")
    parser.add_argument(
        "--warm", action="store_true", help="play rows of controllers after 30 unscored minutes as well"
    )
    parser.add_argument("--goals", action="store_true", help="print Flyball's goals, exceptions and ranking as well")
    parser.add_argument("--page", type=Path, help="file that gets all tables as Markdown")
    for name in ("world", "trace", "slo", "controller"):
        parser.add_argument(f"--{name}", action="append", default=[], help=f"only this {name}; may be given again")
    parser.add_argument(
        "--load",
        action="append",
        default=[],
        type=_positive,
        help="only this percent of SLO capacity; may be given again",
    )


def run(args: argparse.Namespace) -> int:
    """Play the cells: 0 done, 2 the command line or a file it names is wrong."""
    if args.action == "tune":
        return cli_tune.run_tune(args)
    from rich.console import Console  # noqa: PLC0415 - so that --help is quick

    from flyball_sim.load.traces import TraceError  # noqa: PLC0415
    from flyball_sim.scoreboard import published  # noqa: PLC0415
    from flyball_sim.scoreboard.board import run_board  # noqa: PLC0415
    from flyball_sim.scoreboard.catalog import HEADLINE, QUICK, ROWS, WARM  # noqa: PLC0415
    from flyball_sim.scoreboard.cells import QUICK_SECONDS, SECONDS  # noqa: PLC0415
    from flyball_sim.scoreboard.contest import QUICK_RUNS, SEARCH_RUNS, Options  # noqa: PLC0415
    from flyball_sim.scoreboard.page import page, summary  # noqa: PLC0415
    from flyball_sim.scoreboard.store import Store, StoreError  # noqa: PLC0415
    from flyball_sim.scoreboard.table import table  # noqa: PLC0415
    from flyball_sim.scoreboard.tuned import tuned  # noqa: PLC0415

    errors = Console(stderr=True)
    try:
        cells = _cells(args)
        rows = _known("controller", args.controller, ROWS) or [
            *(QUICK if args.quick else published.ROWS if args.published else HEADLINE),
            *(WARM if args.warm else ()),
        ]
    except _WrongFilterError as error:
        errors.print(f"flyball-sim scoreboard: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return _ERROR
    runs = QUICK_RUNS if args.quick else SEARCH_RUNS
    seconds = QUICK_SECONDS if args.quick else SECONDS
    options = Options(seed=args.seed, draws=args.draws, data=args.data, seconds=seconds, search_runs=runs)
    records: list[dict[str, Any]] = []
    try:
        with Store(args.out) as store, _Bar(errors) as bar:
            for record in run_board(cells, options, store, jobs=args.jobs, rows=rows, watcher=bar):
                records.append(record)
                if args.json:
                    sys.stdout.write(json.dumps(record) + "\n")
                    sys.stdout.flush()
    except (StoreError, TraceError) as error:
        errors.print(f"flyball-sim scoreboard: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return _ERROR
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    if not args.json:
        console = Console()
        # A table in a file or a pipe has no terminal to fit.
        console = console if console.is_terminal else Console(width=_FILE_COLUMNS)
        console.print(table(records, f"seed {args.seed}, {len(cells)} cells; {machine}"), soft_wrap=True)
        if args.goals:
            console.print(summary(records), markup=False, highlight=False, soft_wrap=True)
    if args.page is not None:
        text = page(records, command=_command(args), machine=machine, tuned=tuned())
        args.page.write_text(text)
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command that makes the same results again."""
    words = ["flyball-sim scoreboard", *(f"--{name}" for name in ("quick", "published", "warm") if getattr(args, name))]
    words += ["--data DATA"] if args.data is not None else []
    for name in ("world", "trace", "slo", "controller", "load"):
        words += [f"--{name} {value}" for value in getattr(args, name)]
    return " ".join([*words, f"--draws {args.draws}" if args.draws else "", f"--seed {args.seed}"]).replace("  ", " ")


def _cells(args: argparse.Namespace) -> Sequence[Cell]:
    from flyball_sim.scoreboard import published  # noqa: PLC0415
    from flyball_sim.scoreboard.cells import LOADS, QUICK, TRACES, WORLDS, all_cells, chosen  # noqa: PLC0415

    if args.data is not None and not args.data.is_dir():
        raise _WrongFilterError(
            f"--data {args.data} is no directory: give the one that holds traces/azure2023_conv.csv"
        )
    slos = {slo.name for world in WORLDS.values() for slo in world.slos}
    filters: dict[str, Sequence[str | int]] = {
        "world": _known("world", args.world, WORLDS),
        "trace": _known("trace", args.trace, TRACES),
        "slo": _known("slo", args.slo, sorted(slos)),
        "load": args.load,
    }
    for load in args.load:
        if load not in LOADS:
            raise _WrongFilterError(f"--load {load} is not played: give one of {', '.join(map(str, LOADS))}")
    data = args.data is not None
    every = QUICK if args.quick else published.cells(data=data) if args.published else all_cells(data=data)
    cells = chosen(every, filters)
    if not cells:
        within = next((f" of --{name}" for name in ("quick", "published") if getattr(args, name)), "")
        mend = "give --data for the Azure trace, or other filters" if args.data is None else "give other filters"
        raise _WrongFilterError(f"no cell{within} passes the filters: {mend}")
    return cells


def _known(what: str, given: Sequence[str], names: Iterable[str]) -> list[str]:
    names = list(names)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
            raise _WrongFilterError(f"--{what} {name!r} is unknown: give {' or '.join(near)}")
    return list(given)


def _positive(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 0 or more")
    return int(text)


class _Bar:
    """A progress bar on stderr."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("cells")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, cells: int) -> None:
        """How many cells there are."""
        self._progress.update(self._task, total=cells)

    def finished(self, cell: Cell, rows: Sequence[dict[str, Any]]) -> None:
        """A cell is done; one without rows has no capacity, which nobody should have to guess."""
        name = " ".join(map(str, cell.key.values()))
        if not rows:
            self._progress.console.print(
                f"{name}: left out, for unlocked clocks attain 99.5 % at no load: its SLO is too tight for this world",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
        self._progress.update(self._task, advance=1, description=name)
