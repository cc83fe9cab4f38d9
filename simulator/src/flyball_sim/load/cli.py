"""`flyball-sim load`: replay a trace against engines over HTTP and say what the clients saw."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from flyball_api.kube import CredentialError, KubeApi, KubeError
from flyball_sim.load.client import Progress, ReplayOptions, replay
from flyball_sim.load.endpoints import EndpointsProvider, FixedEndpoints, PodEndpoints
from flyball_sim.load.results import PERCENTILES, Distribution, LoadResult, Slo, Summary, summarise, to_json
from flyball_sim.load.workload import GENERATED, Workload

if TYPE_CHECKING:
    from flyball_sim.load.traces import TraceRequest


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    where = parser.add_argument_group("engines")
    where.add_argument("--selector", metavar="LABELS", help="label selector of the engines' pods, e.g. app=chat")
    where.add_argument("--namespace", default="default", help="namespace of those pods")
    where.add_argument("--kubeconfig", type=Path, help="kubeconfig (default: $KUBECONFIG)")
    where.add_argument("--port", type=int, default=8000, help="port the pods listen on")
    where.add_argument("--endpoint", action="append", metavar="URL", help="an engine's address, instead of pods")
    where.add_argument("--model", help="model to ask for (default: each engine's first)")
    where.add_argument("--round-robin", action="store_true", help="each in turn, instead of the least outstanding")
    what = parser.add_argument_group("requests")
    what.add_argument(
        "--trace", default=GENERATED, help=f"{GENERATED!r}, a CSV trace, or a generator as in poisson:rate=3"
    )
    what.add_argument("--data", metavar="DIR", help="directory of the measured data, for traces that read it")
    what.add_argument("--start", type=float, default=0.0, metavar="SECONDS", help="where in the trace to begin")
    what.add_argument("--duration", type=float, default=90.0, metavar="SECONDS", help="how long requests are sent")
    what.add_argument("--speed", type=float, default=1.0, help="compress arrivals by this factor; lengths stay")
    what.add_argument("--thin", type=float, default=1.0, metavar="SHARE", help="keep this share of the requests")
    what.add_argument("--rate-limit", type=float, metavar="PER_SECOND", help="thin to at most this mean rate")
    what.add_argument("--seed", type=int, default=1, help="seed of the generated trace and of thinning")
    what.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="longest wait for one answer")
    judged = parser.add_argument_group("results")
    judged.add_argument("--ttft-ms", type=float, help="time to first token a request must hold")
    judged.add_argument("--itl-ms", type=float, help="mean time per output token a request must hold")
    judged.add_argument("--out", type=Path, metavar="FILE.json", help="write every request and the summary here")


def run(args: argparse.Namespace) -> int:
    """Replay and report: 0 when every request was answered, 1 when some failed, 2 when nothing could be replayed."""
    workload = Workload(
        trace=args.trace,
        start_seconds=args.start,
        duration_seconds=args.duration,
        speed=args.speed,
        keep=args.thin,
        max_requests_per_second=args.rate_limit,
        seed=args.seed,
        data=args.data,
    )
    slo = Slo(
        None if args.ttft_ms is None else args.ttft_ms / 1000, None if args.itl_ms is None else args.itl_ms / 1000
    )
    if bool(args.selector) == bool(args.endpoint):
        print("flyball-sim load: give either --selector or --endpoint", file=sys.stderr)
        return 2
    if args.out is not None and not args.out.absolute().parent.is_dir():
        print(f"flyball-sim load: --out {args.out}: there is no such directory, make it first", file=sys.stderr)
        return 2
    try:
        requests = workload.requests()
        result = asyncio.run(_replay(args, requests))
    except (ValueError, KubeError, CredentialError) as error:
        print(f"flyball-sim load: {error}", file=sys.stderr)
        return 2
    if args.out is not None:
        args.out.write_text(json.dumps(to_json(result, slo, asdict(workload))), encoding="utf-8")
    summary = summarise(result, slo)
    Console().print(table(summary, slo))
    return 0 if summary.succeeded == summary.requests else 1


async def _replay(args: argparse.Namespace, requests: tuple[TraceRequest, ...]) -> LoadResult:
    options = ReplayOptions(round_robin=args.round_robin, model=args.model, timeout_seconds=args.timeout)
    bar = ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    async with AsyncExitStack() as resources:
        provider: EndpointsProvider
        if args.endpoint:
            provider = FixedEndpoints(args.endpoint)
        else:
            kubeconfig = args.kubeconfig or Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
            api = await KubeApi.from_environment(kubeconfig, None, os.environ, user_agent="flyball-sim-load")
            await resources.enter_async_context(api)
            provider = PodEndpoints(api, args.namespace, args.selector, args.port)
        if not await provider.ready():
            raise ValueError(
                f"no ready pod in namespace {args.namespace!r} matches {args.selector!r}: "
                "kubectl get pods shows their labels and state"
            )
        with bar:
            task = bar.add_task("requests", total=len(requests), failed=0)

            def show(progress: Progress) -> None:
                bar.update(task, completed=progress.finished, failed=progress.failed)

            return await replay(requests, provider, options, on_progress=show)


def table(summary: Summary, slo: Slo) -> Table:
    """The summary as a table."""
    shown = Table(
        title=f"{summary.succeeded} of {summary.requests} requests answered in {summary.duration_seconds:.1f} s, "
        f"{summary.output_tokens_per_second:.0f} tokens/s",
        caption="; ".join(f"{count} x {error}" for error, count in summary.errors.items()) or None,
    )
    shown.add_column("milliseconds")
    for name in ("mean", *(f"p{percent}" for percent in PERCENTILES), "max", "SLO", "attained"):
        shown.add_column(name, justify="right")
    rows: tuple[tuple[str, Distribution | None, float | None, float], ...] = (
        ("time to first token", summary.ttft, slo.ttft_seconds, summary.ttft_attainment),
        ("time per output token", summary.itl, slo.itl_seconds, summary.itl_attainment),
        ("end to end", summary.e2e, None, 0.0),
        ("sent late by this client", summary.late, None, 0.0),
    )
    for name, values, bound, attained in rows:
        if values is None:
            continue
        numbers = [values.mean, *values.percentiles.values(), values.highest]
        cells = [f"{number * 1000:.1f}" for number in numbers]
        shown.add_row(name, *cells, *(["", ""] if bound is None else [f"{bound * 1000:g}", f"{attained:.1%}"]))
    if slo.ttft_seconds is not None or slo.itl_seconds is not None:
        shown.add_section()
        shown.add_row("requests that hold the SLO", *[""] * (len(PERCENTILES) + 3), f"{summary.slo_attainment:.1%}")
    return shown
