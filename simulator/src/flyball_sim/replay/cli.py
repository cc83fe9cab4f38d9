"""`flyball-sim replay`: what would this policy save on my traffic?"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from flyball_sim.replay.question import Question

DEFAULT_DRAWS = 20
DEFAULT_SEED = 1
QUICK_SECONDS = 600.0
QUICK_DRAWS = 5

_REMADE = (
    "policy", "trace", "slo", "data", "start", "seconds", "speed", "rate", "quick",
    "cluster", "model", "gpu", "dtype", "tp", "engines", "models", "router", "fault", "seed", "draws", "out",
)  # fmt: skip
"""Options that the command on the page repeats."""

_EPILOG = """\
examples:
  flyball-sim replay --policy chat.yaml --trace azure2023_conv.csv --out report
  flyball-sim replay --policy chat.yaml --trace poisson:rate=4,seconds=1800 --quick
  flyball-sim replay --policy chat.yaml --trace trace.csv --cluster cluster.yaml --slo ttft=500ms,tpot=25ms

exit status: 0 answered, 1 failed, 2 something given is wrong (a sentence says what, and how to mend it)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_argument_group("what is asked")
    what.add_argument(
        "--policy", type=Path, required=True, metavar="FILE", help="the EnergyPolicy, as you would apply it"
    )
    what.add_argument("--trace", required=True, metavar="T", help="a CSV in the Azure trace's format, or a generator")
    what.add_argument("--slo", metavar="ttft=..,tpot=..", help="judge by these bounds (default: the policy's slo)")
    what.add_argument("--data", type=Path, metavar="DIR", help="directory of measured data that a trace may name")
    cut = parser.add_argument_group("how much of the trace")
    cut.add_argument("--start", type=float, metavar="SECONDS", help="begin here (default: 0)")
    cut.add_argument("--seconds", type=float, metavar="SECONDS", help="replay so much (default: all)")
    cut.add_argument("--speed", type=float, metavar="FACTOR", help="arrivals so many times as dense; lengths stay")
    cut.add_argument("--rate", type=float, metavar="PER_SECOND", help="thin to at most this mean rate")
    cut.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SECONDS:g} s of it and {QUICK_DRAWS} draws, for a first look"
    )
    where = parser.add_argument_group("on what cluster")
    where.add_argument("--cluster", type=Path, metavar="FILE", help="your cluster (default: one sized for the trace)")
    where.add_argument("--model", help="model of the assumed cluster's engines (default: llama-3.1-8b)")
    where.add_argument("--gpu", help="GPU type of the assumed cluster (default: H100-SXM5)")
    where.add_argument("--dtype", help="data type of its weights (default: bf16)")
    where.add_argument("--tp", type=int, metavar="N", help="GPUs per engine of the assumed cluster (default: fewest)")
    where.add_argument("--engines", type=int, metavar="N", help="engines of the assumed cluster (default: as sized)")
    where.add_argument("--models", type=Path, metavar="FILE", help="models of your own, as `calibrate` writes them")
    where.add_argument("--router", default="least-requests", help="how requests find engines (default: %(default)s)")
    where.add_argument("--fault", action="append", default=[], metavar="F", help="a fault to inject; can be repeated")
    sure = parser.add_argument_group("how sure")
    sure.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="N", help="of all that is drawn (default: 1)")
    sure.add_argument("--draws", type=int, metavar="N", help=f"parameter draws (default: {DEFAULT_DRAWS}; 0: no band)")
    sure.add_argument("--jobs", type=int, metavar="N", help="processes at once (default: one per core)")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--out", type=Path, metavar="DIR", help="write report.html and result.json here")
    out.add_argument("--requests", action="store_true", help="write requests.csv there too: every request, both runs")
    out.add_argument("--json", action="store_true", help="print result.json instead of the table")


def run(args: argparse.Namespace) -> int:
    """Ask, run, answer: 0 answered, 1 it failed, 2 something given is wrong."""
    # Late, so that --help does not wait for numpy and pydantic.
    from flyball_sim.replay import asking  # noqa: PLC0415
    from flyball_sim.replay.writing import OutputError, prepare  # noqa: PLC0415
    from flyball_sim.world.cluster import ClusterError  # noqa: PLC0415
    from flyball_sim.world.faults import FaultError  # noqa: PLC0415

    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        options = asking.Options.of(args)
        question = asking.ask(options)
        if args.out is not None:
            prepare(args.out)
        elif args.requests:
            raise ValueError("--requests writes into the directory of --out: give --out DIR too")
    except (ValueError, LookupError, OutputError) as error:
        return _refuse(errors, error, 2)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _answer(args, question, errors)
    except OutputError as error:
        return _refuse(errors, error, 1)
    except (ClusterError, FaultError) as error:
        return _refuse(errors, error, 2)
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(errors: Console, error: Exception, status: int) -> int:
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    errors.print(f"flyball-sim replay: {text}", style="red", markup=False)
    return status


def _answer(args: argparse.Namespace, question: Question, errors: Console) -> int:
    from flyball_sim.replay import page, running, table  # noqa: PLC0415
    from flyball_sim.replay.requests_csv import to_csv  # noqa: PLC0415
    from flyball_sim.replay.result import to_json  # noqa: PLC0415
    from flyball_sim.replay.worldrun import simulate  # noqa: PLC0415
    from flyball_sim.replay.writing import write_all  # noqa: PLC0415

    began = time.monotonic()
    processes = args.jobs or len(os.sched_getaffinity(0))
    answer = running.run(question, simulate, processes=processes, console=errors)
    result = running.document(
        question,
        answer,
        command=command(args),
        seconds=time.monotonic() - began,
        processes=processes,
    )
    if args.out is not None:
        files = {"report.html": page.render(question, answer, result), "result.json": to_json(result)}
        if args.requests:
            files["requests.csv"] = to_csv(answer)
        write_all(args.out, files)
    if args.json:
        sys.stdout.write(to_json(result) + "\n")
        return 0
    console = Console(highlight=False)
    console.print(table.render(question, answer, result.answer))
    if args.out is None:
        console.print("--out DIR adds a page with plots and a JSON of everything.", style="dim")
    else:
        console.print(f"page: {args.out / 'report.html'}; numbers: {args.out / 'result.json'}", soft_wrap=True)
    return 0


def command(args: argparse.Namespace) -> str:
    """The command that asks the same again. Where it writes, and with how many processes, is the reader's own."""
    words = ["flyball-sim", "replay"]
    given: dict[str, Any] = vars(args)
    for name in _REMADE:
        value = given.get(name)
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list):
            words += [word for item in value for word in (f"--{name}", str(item))]
        elif value not in (None, False):
            words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
