"""`flyball-sim demo`: set up, run Observe, Enforce and a budget cut, report, take down."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from flyball_api.kube import KubeApi
from flyball_sim.controlplane.cluster import ClusterError, LocalCluster
from flyball_sim.controlplane.toolchain import AssetsError
from flyball_sim.controlplane.tools import CommandFailedError
from flyball_sim.demo import report
from flyball_sim.demo.manifests import POLICY, Scenario
from flyball_sim.demo.report import Phase
from flyball_sim.demo.sampling import Sampler
from flyball_sim.demo.stage import DemoError, Run, Stage, perform
from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.load.traces import TraceRequest
from flyball_sim.load.workload import GENERATED, Workload
from flyball_sim.node.fleet import Fleet, FleetError, NodeSpec

GPUS_PER_NODE = 8
VOID_STATUS = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--trace", default=GENERATED, help="'generated', or a CSV in the Azure trace's format")
    parser.add_argument("--speed", type=float, default=1.0, help="compress arrivals by this factor")
    parser.add_argument("--nodes", type=int, choices=(3, 4, 5, 6), default=3, help="simulated nodes with 8 GPUs each")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of the Observe and of the Enforce phase")
    parser.add_argument("--cut-seconds", type=float, default=45.0, help="length of the phase with the budget cut")
    parser.add_argument("--rate", type=float, default=6.0, help="thin the trace to at most this many requests a second")
    parser.add_argument("--seed", type=int, default=1, help="seed of the trace and of its thinning")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end, until Ctrl-C")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="directory for the report")
    parser.add_argument("--chart", type=Path, default=Path("helm/flyball"), help="the chart to install")


def run(args: argparse.Namespace) -> int:
    """Run the demo: 0 done, 1 something failed, 2 bad options, 3 done and void (the engines ran too far behind)."""
    console = Console()
    try:
        workload = Workload(
            trace=args.trace,
            duration_seconds=args.seconds,
            speed=args.speed,
            max_requests_per_second=args.rate,
            seed=args.seed,
        )
        requests = workload.requests()
        cut_requests = replace(workload, duration_seconds=args.cut_seconds).requests()
        if not (args.chart / "Chart.yaml").is_file():
            raise ValueError(f"--chart {args.chart}: no chart there; run from the root of a checkout or name the chart")
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        console.print(f"flyball-sim demo: {error}", style="red", markup=False)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _run(args, console, requests, cut_requests)
    except KeyboardInterrupt:
        console.print("interrupted: everything is stopped and removed")
        return 128 + signal.SIGINT
    except (AssetsError, ClusterError, CommandFailedError, DemoError, FleetError) as error:
        console.print(f"flyball-sim demo: {error}", style="red", markup=False)
        return 1


def _run(
    args: argparse.Namespace, console: Console, requests: Sequence[TraceRequest], cut_requests: Sequence[TraceRequest]
) -> int:
    scenario = Scenario(engines=4 * args.nodes)
    scenario = replace(
        scenario, budget_watts=scenario.budget_watts * args.nodes // 3, cut_watts=scenario.cut_watts * args.nodes // 3
    )
    began = time.monotonic()
    with ExitStack() as resources:
        directory = Path(resources.enter_context(TemporaryDirectory(prefix="flyball-demo-")))
        console.rule("a real control plane, and nodes without hardware")
        with console.status("starting etcd, the API server, the controller manager and the scheduler"):
            cluster = resources.enter_context(LocalCluster(directory / "cluster"))
        exports = f"  export KUBECONFIG={cluster.kubeconfig}\n  export PATH={cluster.bin}:$PATH    # kubectl and helm"
        console.print(f"API server {cluster.server}; to look around from a shell of yours:", highlight=False)
        console.print(exports, highlight=False, markup=False, soft_wrap=True)
        with console.status(f"starting {args.nodes} nodes with {GPUS_PER_NODE} GPUs each"):
            specs = [NodeSpec(f"node-{n}", gpus=GPUS_PER_NODE) for n in range(1, args.nodes + 1)]
            fleet = resources.enter_context(Fleet(cluster.kubeconfig, specs, directory / "nodes"))
        files = [
            resources.enter_context(GpuStateFile.open(node.gpu_state, writable=False)) for node in fleet.nodes.values()
        ]
        stage = Stage(
            console, cluster, fleet, files=files, scenario=scenario, chart=args.chart, manifests_directory=args.out
        )
        stage.kubectl("get", "nodes")
        stage.install()
        setup_seconds = time.monotonic() - began
        console.print(f"set up in {setup_seconds:.1f} s")
        sampler = Sampler(files, time.monotonic)
        runs = (
            Run("Observe", requests),
            Run("Enforce", requests, scenario.budget_watts),
            Run("Budget cut", cut_requests, scenario.budget_watts, scenario.cut_watts),
        )
        phases = asyncio.run(_phases(console, stage, cluster.kubeconfig, sampler, runs))
        stage.kubectl("describe", "epol", POLICY)
        stage.kubectl("get", "events", "-A", "--field-selector=involvedObject.kind=EnergyPolicy")
        status = _report(args, console, sampler, phases, setup_seconds)
        if args.keep:
            console.print("\nkept running; in a shell of yours:", highlight=False)
            console.print(exports, highlight=False, markup=False, soft_wrap=True)
            console.print("Ctrl-C ends and removes everything", highlight=False)
            with suppress(KeyboardInterrupt):
                signal.pause()
        else:
            stage.restore()
            stage.uninstall()
    console.print("stopped and removed everything")
    return status


async def _phases(
    console: Console, stage: Stage, kubeconfig: Path, sampler: Sampler, runs: tuple[Run, Run, Run]
) -> list[Phase]:
    observe, enforce, cut = runs
    api = await KubeApi.from_environment(kubeconfig, None, os.environ, user_agent="flyball-sim-demo")
    sampler.choose(await asyncio.to_thread(stage.governed_gpus))
    async with api:
        sampling = asyncio.create_task(sampler.run())
        try:
            console.rule(f"Observe: {_amount(observe)}; nothing is written to any GPU")
            phases = [await perform(stage, api, sampler, observe, console)]
            await asyncio.to_thread(stage.kubectl, "get", "energypolicies")
            console.rule(f"Enforce: the same {_amount(enforce)}")
            await asyncio.to_thread(stage.enforce)
            phases.append(await perform(stage, api, sampler, enforce, console))
            await asyncio.to_thread(stage.kubectl, "get", "energypolicies")
            await asyncio.to_thread(stage.explain)
            console.rule(f"Budget cut: {cut.budget_watts} W to {cut.cut_watts} W under load")
            phases.append(await perform(stage, api, sampler, cut, console))
            await asyncio.to_thread(stage.kubectl, "get", "energypolicies")
        finally:
            sampling.cancel()
    return phases


def _amount(run: Run) -> str:
    last = max((request.arrival_seconds for request in run.requests), default=0.0)
    return f"{len(run.requests)} requests in {last:.0f} s"


def _report(
    args: argparse.Namespace, console: Console, sampler: Sampler, phases: Sequence[Phase], setup_seconds: float
) -> int:
    title = f"Flyball on {args.nodes} simulated nodes, trace: {Path(args.trace).stem}"
    facts = {
        "Remake": f"make demo TRACE={args.trace} SPEED={args.speed:g} NODES={args.nodes}",
        "Trace": f"{args.trace}, seed {args.seed}, thinned to at most {args.rate:g} requests a second",
        "Machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "Set-up": f"{setup_seconds:.1f} s",
        "Clocks": "Flyball controller, which learns while it serves; Observe leaves every clock and cap alone",
    }
    picture = args.out / "demo.png"
    report.draw(picture, sampler.samples, phases, title)
    report.write_html(args.out / "demo.html", picture, phases, title, facts)
    raw = {
        "facts": facts,
        "phases": [asdict(phase) for phase in phases],
        "samples": [asdict(s) for s in sampler.samples],
    }
    (args.out / "demo.json").write_text(json.dumps(raw), encoding="utf-8")
    console.print(report.table(phases))
    console.print(
        f"picture: {picture}; page: {args.out / 'demo.html'}; numbers: {args.out / 'demo.json'}", soft_wrap=True
    )
    void = [phase.name for phase in phases if phase.void]
    if void:
        console.print(
            f"VOID: in {', '.join(void)} the engines ran more than {report.MAXIMUM_LAG_PERCENT:g} % behind their own"
            " clock; run it on an idle machine, or lower --rate",
            style="red",
        )
        return VOID_STATUS
    return 0
