"""`flyball-sim samples`: the docs' sample policies at once on one simulated node, and what became of each."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console

from flyball_agent.profiles import Profile
from flyball_api.energypolicy import EnergyPolicy
from flyball_api.kube import KubeApi
from flyball_sim.admission.policies import PolicyError, read_policy
from flyball_sim.controlplane.cluster import ClusterError, LocalCluster
from flyball_sim.controlplane.toolchain import AssetsError
from flyball_sim.controlplane.tools import CommandFailedError
from flyball_sim.demo import manifests
from flyball_sim.demo.manifests import ENGINE_NAMESPACE, ENGINE_PORT, Scenario
from flyball_sim.demo.stage import DemoError, Stage
from flyball_sim.engine.models import BLOCK_TOKENS, step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.gpu.types import gpu_type
from flyball_sim.load import client
from flyball_sim.load.client import ReplayOptions
from flyball_sim.load.endpoints import PodEndpoints
from flyball_sim.load.workload import Workload
from flyball_sim.node.fleet import Fleet, FleetError, NodeSpec
from flyball_sim.profiling.virtual import profile_engine

SAMPLES: Final = ("flyball", "agft", "voltanallm", "throttllem", "pals")
GPU_TYPE: Final = "H100-SXM5"
ENGINE: Final = Scenario(engines=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """A policy of the docs and the engines it selects.

    Attributes:
        path: Its file.
        policy: What is in it.
        pods: Labels of each engine beside `app`, one pod each: one for every role it tells apart, else one.
    """

    path: Path
    policy: EnergyPolicy
    pods: tuple[Mapping[str, str], ...]

    @property
    def name(self) -> str:
        """The policy's name."""
        return self.policy.metadata.name

    @property
    def app(self) -> str:
        """The label `app` that it selects."""
        return self.policy.spec.selector.match_labels["app"]


def read_samples(directory: Path) -> tuple[Sample, ...]:
    """The sample policies, one for each controller.

    Raises:
        PolicyError: one is missing or the API server would not take it.
    """
    samples = []
    for stem in SAMPLES:
        path = directory / f"{stem}.yaml"
        policy = read_policy(path)
        roles = policy.spec.roles
        pods = ({},) if roles is None else tuple({roles.label_key: entry.value} for entry in roles.values)
        samples.append(Sample(path, policy, pods))
    return tuple(samples)


def profile_names(samples: Sequence[Sample]) -> set[str]:
    """The profiles that the policies name."""
    found = (getattr(sample.policy.spec.controller.parameters, "profile", None) for sample in samples)
    return {name for name in found if name is not None}


def demo_profile() -> Profile:
    """What `flyball profile` would make of one of the demo's engines, modelled; a few seconds of CPU."""
    model = step_model(gpu_type(GPU_TYPE), ENGINE.model, 1)
    longest = min(model.model.context_tokens, model.kv_blocks * BLOCK_TOKENS)
    return profile_engine(model, EngineLimits(max_model_len=longest))


def write_profiles(samples: Sequence[Sample], directory: Path) -> Path:
    """Write the profile that the samples name into a directory of its own, as the ConfigMap's keys; returns that."""
    profile = demo_profile()
    folder = directory / "profiles"
    folder.mkdir(exist_ok=True)
    for name in sorted(profile_names(samples)):
        (folder / f"{name}.json").write_text(replace(profile, name=name).to_json(), encoding="utf-8")
    return folder


def start_engines(stage: Stage, samples: Sequence[Sample]) -> None:
    """Start the engines of every sample and wait until they are ready."""
    stage.kubectl("create", "namespace", ENGINE_NAMESPACE)
    deployments = [
        manifests.engine_deployment(ENGINE, sample.app, labels) for sample in samples for labels in sample.pods
    ]
    for deployment in deployments:
        stage.apply(f"engine-{deployment['metadata']['name']}.yaml", deployment)
    for deployment in deployments:
        stage.await_engines(deployment["metadata"]["name"], ENGINE.engines)


def workload(samples: Sequence[Sample], *, seconds: float, rate: float) -> Workload:
    """Conversations for all engines together: `rate` requests a second for each."""
    engines = sum(len(sample.pods) for sample in samples)
    return Workload(trace=f"poisson:rate={rate * engines:g},seconds={seconds:g}", duration_seconds=seconds)


async def serve(kubeconfig: Path, requests: Workload) -> None:
    """Send the requests to the engines in turn, until all are answered."""
    api = await KubeApi.from_environment(kubeconfig, None, os.environ, user_agent="flyball-sim-samples")
    async with api:
        provider = PodEndpoints(api, ENGINE_NAMESPACE, "app", ENGINE_PORT)
        await client.replay(requests.requests(), provider, ReplayOptions(round_robin=True))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--policies", type=Path, default=Path("docs/examples"), help="directory of the sample policies")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long requests are sent")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second for each engine")
    parser.add_argument("--chart", type=Path, default=Path("helm/flyball"), help="the chart to install")


def run(args: argparse.Namespace) -> int:
    """Run them: 0 done, 1 something failed, 2 bad options."""
    console = Console()
    try:
        samples = read_samples(args.policies)
        requests = workload(samples, seconds=args.seconds, rate=args.rate)
        requests.requests()
    except (PolicyError, ValueError) as error:
        console.print(f"flyball-sim samples: {error}", style="red", markup=False)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _run(args, console, samples, requests)
    except KeyboardInterrupt:
        console.print("interrupted: everything is stopped and removed")
        return 128 + signal.SIGINT
    except (AssetsError, ClusterError, CommandFailedError, DemoError, FleetError) as error:
        console.print(f"flyball-sim samples: {error}", style="red", markup=False)
        return 1
    return 0


def _run(args: argparse.Namespace, console: Console, samples: Sequence[Sample], requests: Workload) -> None:
    with ExitStack() as resources:
        directory = Path(resources.enter_context(TemporaryDirectory(prefix="flyball-samples-")))
        console.rule("a real control plane, and one node without hardware")
        cluster = resources.enter_context(LocalCluster(directory / "cluster"))
        specs = [NodeSpec("node-1", gpu_type=GPU_TYPE)]
        fleet = resources.enter_context(Fleet(cluster.kubeconfig, specs, directory / "nodes"))
        files = [
            resources.enter_context(GpuStateFile.open(node.gpu_state, writable=False)) for node in fleet.nodes.values()
        ]
        stage = Stage(
            console, cluster, fleet, files=files, scenario=ENGINE, chart=args.chart, manifests_directory=directory
        )
        stage.say("the profile that three of the controllers choose by (modelled; on a live engine: flyball profile)")
        stage.install_flyball(write_profiles(samples, directory))
        start_engines(stage, samples)
        console.rule("five policies, a controller each")
        for sample in samples:
            stage.kubectl("apply", "-f", str(sample.path))
        for sample in samples:
            stage.wait(f"{sample.name} to be enforced", partial(stage.enforced, sample.name))
        with console.status(f"{args.seconds:g} s of requests"):
            asyncio.run(serve(cluster.kubeconfig, requests))
        stage.kubectl("get", "energypolicies")
        stage.kubectl("get", "energypolicies", "-o", f"jsonpath={WHY}")
        stage.explain()
        stage.restore()
        stage.uninstall()
    console.print("stopped and removed everything")


WHY: Final = (
    '{range .items[*]}{.metadata.name}{": "}{.spec.controller.type}{": "}'
    '{.status.conditions[?(@.type=="Ready")].message}{"\\n"}{end}'
)
"""Each policy's controller, and the message of its condition Ready."""
