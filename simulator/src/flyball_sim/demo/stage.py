"""Sets the demo up, runs its three phases and takes it down again."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flyball_api.kube import KubeApi
from flyball_sim.controlplane.cluster import LocalCluster
from flyball_sim.demo import engines, manifests
from flyball_sim.demo.manifests import (
    APP,
    ENGINE_NAMESPACE,
    ENGINE_PORT,
    FLYBALL_NAMESPACE,
    POLICY,
    PROFILES_CONFIG_MAP,
    Scenario,
)
from flyball_sim.demo.report import Phase, Served
from flyball_sim.demo.sampling import Sampler
from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.load import client
from flyball_sim.load.endpoints import PodEndpoints
from flyball_sim.load.results import Distribution, Slo, summarise
from flyball_sim.load.traces import TraceRequest
from flyball_sim.node.fleet import Fleet

READY_SECONDS = 120
RELEASE_SECONDS = 60
CUT_AFTER_SECONDS = 10.0


class DemoError(RuntimeError):
    """The demo cannot go on; the message says what was found and what to do."""


@dataclass(frozen=True)
class Run:
    """One phase to run.

    Attributes:
        name: What the table calls it.
        requests: What the client sends.
        budget_watts: The budget at its begin; None while only observing.
        cut_watts: What the budget is cut to while it runs; None: it is not.
    """

    name: str
    requests: Sequence[TraceRequest]
    budget_watts: int | None = None
    cut_watts: int | None = None


class Stage:
    """Prints every command it runs and its answer; all waiting has a deadline.

    What it applies it writes into `manifests_directory` first, so that a person can run the same command.
    """

    def __init__(
        self,
        console: Console,
        cluster: LocalCluster,
        fleet: Fleet,
        *,
        files: Sequence[GpuStateFile],
        scenario: Scenario,
        chart: Path,
        manifests_directory: Path,
    ) -> None:
        self._console = console
        self._cluster = cluster
        self._fleet = fleet
        self._files = files
        self._scenario = scenario
        self._chart = chart
        self._manifests = manifests_directory

    def say(self, text: str) -> None:
        """Tell what comes next."""
        self._console.print(f"\n[cyan]# {text}[/]", highlight=False, soft_wrap=True)

    def apply(self, name: str, manifest: Mapping[str, Any], *, show: bool = False) -> None:
        """Write an object into a file and apply it; `show` prints the file as well."""
        path = self._manifests / name
        text = yaml.safe_dump(manifest, sort_keys=False)
        path.write_text(text, encoding="utf-8")
        if show:
            self._console.print(f"\n[bold]$ cat {path}[/]", highlight=False, soft_wrap=True)
            self._console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)
        self.kubectl("apply", "-f", str(path))

    def kubectl(self, *args: str, quiet: bool = False) -> str:
        """Run kubectl as a user would, show it, and return what it printed.

        Raises:
            CommandFailedError: it failed.
        """
        if not quiet:
            shown = " ".join(f"'{arg}'" if set(arg) & set(" {}\"'") else arg for arg in args)
            self._console.print(f"\n[bold]$ kubectl {shown}[/]", highlight=False, soft_wrap=True)
        answer = self._cluster.kubectl(*args, check=True).stdout
        if not quiet:
            self._console.print(answer.rstrip(), highlight=False, markup=False, soft_wrap=True)
        return answer

    def helm(self, *args: str) -> None:
        """Run helm and show its command and the first lines of its answer."""
        self._console.print(f"\n[bold]$ helm {' '.join(args)}[/]", highlight=False, soft_wrap=True)
        with self._console.status("waiting for helm"):
            answer = self._cluster.helm(*args, check=True).stdout
        for line in answer.splitlines()[:6]:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def wait(self, what: str, met: Callable[[], bool], seconds: float = READY_SECONDS) -> float:
        """Wait until `met`; returns the seconds it took.

        Raises:
            DemoError: the deadline passed.
        """
        began = time.monotonic()
        with self._console.status(f"waiting for {what}"):
            while not met():
                if time.monotonic() - began > seconds:
                    raise DemoError(
                        f"{what}: not within {seconds:.0f} s; the logs of the pods are under {self._fleet.directory}"
                    )
                time.sleep(0.25)
        return time.monotonic() - began

    def condition(self, kind: str, policy: str = POLICY) -> str:
        """The status of one of a policy's conditions, or an empty text."""
        path = f'jsonpath={{.status.conditions[?(@.type=="{kind}")].status}}'
        return self._cluster.kubectl("get", "epol", policy, "-o", path).stdout.strip()

    def enforced(self, policy: str) -> bool:
        """Whether every GPU of a policy is enforced and read back."""
        return self.condition("Enforced", policy) == "True"

    def install(self) -> None:
        """Install the chart, start the engines, and apply the policy in mode Observe."""
        self.install_flyball()
        self.say(f"{self._scenario.engines} engine pods of one GPU each, which answer as vLLM does")
        self.kubectl("create", "namespace", ENGINE_NAMESPACE)
        self.apply("engines.yaml", manifests.engine_deployment(self._scenario))
        self.await_engines(APP, self._scenario.engines)
        self.kubectl("get", "pods", "-A")
        self.kubectl("get", "nodeenergyplans")
        self.say("a policy that only observes: it changes nothing")
        self.apply("policy.yaml", manifests.policy(self._scenario), show=True)
        self.wait("the policy to be observed", lambda: self.condition("Ready") == "True")
        self.kubectl("get", "energypolicies")

    def install_flyball(self, profiles: Path | None = None) -> None:
        """Install the chart.

        Args:
            profiles: directory whose files become the ConfigMap that agents read profiles from; None: there is none.
        """
        self.say("Flyball: the actuator is uid 0 with SYS_ADMIN, so its namespace must admit privileged pods")
        self.kubectl("create", "namespace", FLYBALL_NAMESPACE)
        self.kubectl("label", "namespace", FLYBALL_NAMESPACE, "pod-security.kubernetes.io/enforce=privileged")
        if profiles is not None:
            # Before the agents: a kubelet brings a ConfigMap that is made later within a minute.
            source = f"--from-file={profiles}"
            self.kubectl("create", "configmap", PROFILES_CONFIG_MAP, "-n", FLYBALL_NAMESPACE, source)
        own = [] if os.geteuid() == 0 else ["--set", f"agent.uid={os.geteuid()}"]
        if own:
            self.say("without root every pod runs as you, so the actuator is told to serve your uid")
        self.helm("install", "flyball", str(self._chart), "-n", FLYBALL_NAMESPACE, *own, "--wait", "--timeout=120s")

    def await_engines(self, deployment: str, engines: int) -> None:
        """Wait until a Deployment of engines is ready."""
        with self._console.status("waiting for the engines to be ready"):
            # Not the condition Available, which holds already with three quarters of the engines.
            ready = f"--for=jsonpath={{.status.readyReplicas}}={engines}"
            self.kubectl("wait", ready, f"deployment/{deployment}", "-n", ENGINE_NAMESPACE, "--timeout=120s")

    @property
    def slo(self) -> Slo:
        """The policy's objectives, as the client judges them."""
        return Slo(self._scenario.ttft_milliseconds / 1000, self._scenario.itl_milliseconds / 1000)

    def governed_gpus(self) -> list[str]:
        """UUIDs of the policy's GPUs, from the plans."""
        plans = json.loads(self.kubectl("get", "nep", "-o", "json", quiet=True))["items"]
        return [gpu["uuid"] for plan in plans for gpu in plan["spec"].get("gpus", []) if gpu["policy"] == POLICY]

    def enforce(self) -> float:
        """Switch the policy to Enforce; returns the seconds until every GPU was enforced and read back."""
        self.kubectl("patch", "epol", POLICY, "--type=merge", "-p", '{"spec":{"mode":"Enforce"}}')
        seconds = self.wait("every GPU to be enforced and read back", lambda: self.condition("Enforced") == "True")
        self._console.print(f"enforced and read back on every GPU after {seconds:.1f} s (polled with kubectl)")
        self.kubectl("get", "energypolicies")
        return seconds

    def explain(self) -> None:
        """Show why each card is set as it is, in its controller's words."""
        self.say("why each GPU is set as it is, in its controller's words")
        path = '{range .items[*].status.gpus[?(@.pod)]}{.pod.name}{": "}{.because}{"\\n"}{end}'
        self.kubectl("get", "nep", "-o", f"jsonpath={path}")

    def cut(self, watts: int) -> None:
        """Cut the budget under load."""
        patch = json.dumps({"spec": {"powerBudget": {"watts": watts}}})
        self.kubectl("patch", "epol", POLICY, "--type=merge", "-p", patch)

    def restore(self) -> None:
        """Delete every policy and prove from the cards' own state that everything is back."""
        held = touched(self._files)
        self._console.print(f"\n{len(held)} simulated cards hold a lock or a cap of ours before the policy goes")
        self.kubectl("delete", "energypolicies", "--all", f"--timeout={RELEASE_SECONDS}s")
        left = touched(self._files)
        if left:
            raise DemoError(f"no policy is left and cards still hold a lock or a cap: {', '.join(left)}")
        self._console.print("the cards' own state: every clock unlocked, every cap at its default")

    def uninstall(self) -> None:
        """Uninstall the chart."""
        self.helm("uninstall", "flyball", "-n", FLYBALL_NAMESPACE, "--wait", "--timeout=180s")


def touched(files: Sequence[GpuStateFile]) -> list[str]:
    """The cards that hold a clock lock, or a cap other than their default, by node and index."""
    return [
        f"{file.node_name}/{slot.index}"
        for file in files
        for slot in file.gpus
        if slot.locked_sm_mhz is not None or slot.read("cap_requested_mw") != slot.read("cap_default_mw")
    ]


async def perform(stage: Stage, api: KubeApi, sampler: Sampler, run: Run, console: Console) -> Phase:
    """Replay one phase's requests, cutting the budget meanwhile if the run says so; the sampler runs beside it."""
    provider = PodEndpoints(api, ENGINE_NAMESPACE, f"app={manifests.APP}", ENGINE_PORT)
    urls = await provider.ready()
    before, first = await engines.read(urls), sampler.take()
    budgets = [] if run.budget_watts is None else [(first.seconds, run.budget_watts)]

    async def cut(watts: int) -> None:
        await asyncio.sleep(CUT_AFTER_SECONDS)
        budgets.append((sampler.now(), watts))
        await asyncio.to_thread(stage.cut, watts)

    with Progress(
        TextColumn(f"{run.name}: {{task.description}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("requests", total=len(run.requests))

        def on_progress(progress: client.Progress) -> None:
            bar.update(task, completed=progress.finished)

        async with asyncio.TaskGroup() as tasks:
            if run.cut_watts is not None:
                tasks.create_task(cut(run.cut_watts))
            result = await client.replay(run.requests, provider, on_progress=on_progress)
    last = sampler.take()
    after = await engines.read(urls)
    during = [sample for sample in sampler.samples if first.seconds <= sample.seconds <= last.seconds]
    summary = summarise(result, stage.slo)
    return Phase(
        name=run.name,
        begin_seconds=first.seconds,
        end_seconds=last.seconds,
        requests=summary.requests,
        errors=summary.requests - summary.succeeded,
        output_tokens=summary.output_tokens,
        attainment_percent=100 * summary.slo_attainment,
        percentiles={
            "ttft": _median_and_p99(summary.ttft),
            "tpot": _median_and_p99(summary.itl),
            "e2e": _median_and_p99(summary.e2e),
        },
        budgets=budgets,
        client_lag_seconds=summary.late.highest if summary.late else 0.0,
        energy_joules=last.energy_joules - first.energy_joules,
        peak_draw_watts=max(sample.draw_watts for sample in during),
        peak_cap_watts=max(sample.cap_watts for sample in during),
        end_cap_watts=last.cap_watts,
        engine_lag_percent=after.lag_percent_since(before),
        sm_mhz=(
            min(sample.sm_mhz[0] for sample in during),
            sum(sample.sm_mhz[1] for sample in during) / len(during),
            max(sample.sm_mhz[2] for sample in during),
        ),
        lock_writes=last.lock_writes - first.lock_writes,
        served=[
            Served(first.seconds + request.arrival_seconds, request.ttft_seconds, request.itl_mean_seconds)
            for request in result.requests
        ],
    )


def _median_and_p99(values: Distribution | None) -> tuple[float, float]:
    if values is None:
        return (math.nan, math.nan)
    return (values.percentiles[50], values.percentiles[99])
