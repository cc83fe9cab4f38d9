"""`flyball-sim bench`: the simulator's speed, controllers' decisions, a policy's latency, processes, idle writes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from flyball_api.kube import KubeApi, KubeError
from flyball_api.kube_types import ENERGY_POLICIES
from flyball_sim.bench import decisions, simulator
from flyball_sim.bench.figures import core_percent, count_writes, percentile, process_figures
from flyball_sim.bench.rows import Row, show, write
from flyball_sim.controlplane.cluster import ClusterError, LocalCluster
from flyball_sim.controlplane.toolchain import AssetsError
from flyball_sim.controlplane.tools import CommandFailedError
from flyball_sim.demo import manifests
from flyball_sim.demo.manifests import ENGINE_NAMESPACE, ENGINE_PORT, FLYBALL_NAMESPACE, POLICY, Scenario
from flyball_sim.demo.stage import DemoError, Stage
from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.load import client
from flyball_sim.load.endpoints import PodEndpoints
from flyball_sim.load.traces import TraceError
from flyball_sim.load.workload import Workload
from flyball_sim.node.fleet import Fleet, FleetError, NodeSpec

PARTS = ("simulator", "decisions", "cluster")
NODES = 3
GPUS_PER_NODE = 8
CHANGE_DEADLINE_SECONDS = 30.0
SETTLE_SECONDS = 60.0
"""After traffic ends: the last counters are written within 10 s, and watts move after needs that are low for 30 s."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--changes", type=int, default=100, help="policy changes to time")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the loaded and of the idle measurement")
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second in the loaded measurement")
    parser.add_argument("--seed", type=int, default=1, help="seed of the load")
    parser.add_argument("--only", choices=PARTS, help="measure one part; all if not given")
    parser.add_argument("--data", type=Path, help="directory of the measured data: the simulator replays its trace")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="directory for bench.json")
    parser.add_argument("--chart", type=Path, default=Path("helm/flyball"), help="the chart to install")


def run(args: argparse.Namespace) -> int:
    """Measure and print: 0 every bound kept, 1 one not kept or something failed."""
    console = Console()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        measures = dict(zip(PARTS, (_simulator, _decisions, _cluster), strict=True))
        rows = [
            row for part, measure in measures.items() if args.only in {None, part} for row in measure(args, console)
        ]
    except TraceError as error:
        console.print(f"flyball-sim bench: --data: {error}", style="red", markup=False)
        return 2
    except (
        AssetsError,
        ClusterError,
        CommandFailedError,
        DemoError,
        FleetError,
        KubeError,
        OSError,
        subprocess.CalledProcessError,
    ) as error:
        console.print(f"flyball-sim bench: {error}", style="red", markup=False)
        return 1
    write(args.out / "bench.json", rows)
    return 0 if all(row.within for row in rows) else 1


def _simulator(args: argparse.Namespace, console: Console) -> list[Row]:
    rows = []
    for row in simulator.measure(args.data, args.seed):
        console.print(f"{row.what.strip()}: {row.figure:.2f} {row.unit}")
        rows.append(row)
    show(console, f"the simulator in virtual time, seed {args.seed}", rows)
    return rows


def _decisions(args: argparse.Namespace, console: Console) -> list[Row]:
    rows = list(decisions.measure(args.seed))
    show(
        console,
        f"a decision of each controller for one engine ({simulator.MODEL} on {simulator.GPU}), seed {args.seed}",
        rows,
    )
    return rows


def _cluster(args: argparse.Namespace, console: Console) -> list[Row]:
    rows = _measure(args, console)
    show(console, f"{NODES} nodes, {NODES * GPUS_PER_NODE} GPUs and engines, seed {args.seed}", rows)
    return rows


def _measure(args: argparse.Namespace, console: Console) -> list[Row]:
    scenario = Scenario(engines=NODES * GPUS_PER_NODE, sm_mhz=1305, budget_watts=12_000, cut_watts=9_000)
    with ExitStack() as resources:
        directory = Path(resources.enter_context(TemporaryDirectory(prefix="flyball-bench-")))
        cluster = resources.enter_context(LocalCluster(directory / "cluster", audit=True))
        specs = [NodeSpec(f"node-{number}", gpus=GPUS_PER_NODE) for number in range(1, NODES + 1)]
        fleet = resources.enter_context(Fleet(cluster.kubeconfig, specs, directory / "nodes"))
        files = [
            resources.enter_context(GpuStateFile.open(node.gpu_state, writable=False)) for node in fleet.nodes.values()
        ]
        stage = Stage(
            console,
            cluster,
            fleet,
            files=files,
            scenario=scenario,
            chart=args.chart,
            manifests_directory=args.out,
        )
        stage.install()
        stage.enforce()
        return asyncio.run(_all(args, console, cluster, fleet))


async def _all(args: argparse.Namespace, console: Console, cluster: LocalCluster, fleet: Fleet) -> list[Row]:
    api = await KubeApi.from_environment(cluster.kubeconfig, None, os.environ, user_agent="flyball-sim-bench")
    async with api:
        console.rule(f"{args.changes} changes of the policy, each until it is enforced and read back on every GPU")
        seconds = [await _change(api, number) for number in range(args.changes)]
        rows = [
            Row(
                "policy change to enforced, p99",
                "no traffic",
                percentile(seconds, 99),
                1.5,
                "s",
                f"{len(seconds)} changes, median {statistics.median(seconds):.2f} s",
            )
        ]
        console.rule(f"{args.seconds:.0f} s of traffic")
        workload = Workload(duration_seconds=args.seconds, max_requests_per_second=args.rate, seed=args.seed)
        provider = PodEndpoints(api, ENGINE_NAMESPACE, f"app={manifests.APP}", ENGINE_PORT)
        loaded = asyncio.create_task(_processes(fleet, args.seconds, f"8 engines a node, {args.rate:g} requests/s"))
        await client.replay(workload.requests(), provider)
        rows += [row for row in await loaded if row.what.startswith(("agent", "actuator"))]
        console.rule(f"{args.seconds:.0f} s idle")
        await asyncio.sleep(SETTLE_SECONDS)
        skip = len(_audit_lines(cluster))
        rows += await _processes(fleet, args.seconds, "idle, policy enforced")
        writes = count_writes(_audit_lines(cluster)[skip:])
    ours = {key: count for key, count in writes.items() if f":{FLYBALL_NAMESPACE}:flyball-" in key[0]}
    others = {key: count for key, count in ours.items() if key[2] != "leases"}
    leases = sum(ours.values()) - sum(others.values())
    for (user, verb, resource), count in others.items():
        console.print(f"idle, yet {count} x {verb} {resource} by {user}", style="yellow")
    rows.append(
        Row("writes beyond Leases", "idle, policy enforced", sum(others.values()), 0, "", f"{leases} Lease renewals")
    )
    return rows


def _audit_lines(cluster: LocalCluster) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return cluster.audit_log.read_text(encoding="utf-8").splitlines()
    return []


async def _change(api: KubeApi, number: int) -> float:
    """Change clocks and budget, and time until the status says that every GPU has both."""
    sm_mhz, watts = (1200 + 15 * (number % 20), 10_000 + 500 * (number % 2))
    clocks = [{"role": "unified", "minMegahertz": sm_mhz, "maxMegahertz": sm_mhz}]
    spec = {"controller": {"fixed": {"clocks": clocks}}, "powerBudget": {"watts": watts}}
    began = time.monotonic()
    patched = await api.merge_patch(ENERGY_POLICIES, POLICY, {"spec": spec})
    generation = patched["metadata"]["generation"]
    if _enforced(patched, generation):
        return time.monotonic() - began
    async with asyncio.timeout(CHANGE_DEADLINE_SECONDS):
        version = patched["metadata"]["resourceVersion"]
        async for event in api.watch(ENERGY_POLICIES, version):
            if event["type"] == "MODIFIED" and _enforced(event["object"], generation):
                return time.monotonic() - began
    raise DemoError(f"generation {generation} of policy {POLICY}: the watch ended before it was enforced")


def _enforced(policy: dict[str, Any], generation: int) -> bool:
    return any(
        condition["type"] == "Enforced"
        and condition["status"] == "True"
        and condition.get("observedGeneration") == generation
        for condition in (policy.get("status") or {}).get("conditions", [])
    )


async def _processes(fleet: Fleet, seconds: float, load: str) -> list[Row]:
    """CPU and memory of operator, agents and actuators over some seconds; the worst of each kind."""
    bounds = {"operator": (1.0, 120.0), "agent": (3.0, 90.0), "actuator": (0.5, 30.0)}
    found = fleet.containers(lambda pod, name: pod.startswith(FLYBALL_NAMESPACE) and name in bounds)
    pids: Sequence[tuple[str, int]] = [(name, container["pid"]) for _, _, name, container in found]
    before = {pid: process_figures(pid) for _, pid in pids}
    began = time.monotonic()
    await asyncio.sleep(seconds)
    elapsed = time.monotonic() - began
    after = {pid: process_figures(pid) for _, pid in pids}
    rows = []
    for kind, (percent, mebibytes) in bounds.items():
        chosen = [pid for name, pid in pids if name == kind]
        if not chosen:
            raise DemoError(f"no {kind} process runs on the nodes; look at their logs under {fleet.directory}")
        sample = f"worst of {len(chosen)}, {elapsed:.0f} s"
        cpu = max(core_percent(before[pid], after[pid], elapsed) for pid in chosen)
        rows.append(Row(f"{kind} CPU", load, cpu, percent, "% of a core", sample))
        rows.append(
            Row(f"{kind} memory", load, max(after[pid].rss_mebibytes for pid in chosen), mebibytes, "MiB", sample)
        )
    return rows
