"""Flyball as a user has it: installed by Helm on a real control plane, its pods running, engines on simulated GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flyball_sim.controlplane.cluster import LocalCluster
from flyball_sim.demo import manifests
from flyball_sim.demo.manifests import Scenario
from flyball_sim.gpu.statefile import GpuSlot, GpuStateFile
from flyball_sim.node.fleet import Fleet, NodeSpec

CHART = Path(__file__).parents[2] / "helm" / "flyball"
NAMESPACE = manifests.FLYBALL_NAMESPACE
NODES = ("n-0", "n-1")
WITHIN_SECONDS = 60.0
SCENARIO = Scenario(engines=4, sm_mhz=1305, budget_watts=2400, cut_watts=1600)


@dataclass
class Installation:
    """The installed product, and what a test asks of it."""

    cluster: LocalCluster
    fleet: Fleet
    files: Mapping[str, GpuStateFile]
    eventually: Callable[..., Any]
    chart: Path = CHART
    namespace: str = NAMESPACE
    scenario: Scenario = SCENARIO

    def until(self, what: str, met: Callable[[], object]) -> Any:
        return self.eventually(what, met, within_seconds=WITHIN_SECONDS)

    def get(self, *args: str) -> dict[str, Any]:
        answer = self.cluster.kubectl("get", *args, "-o", "json")
        found: dict[str, Any] = json.loads(answer.stdout) if answer.returncode == 0 else {}
        return found

    def apply(self, body: dict[str, Any]) -> None:
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(body), check=True)

    def apply_policy(self, name: str = "chat", **spec: Any) -> None:
        body = manifests.policy(SCENARIO)
        body["metadata"]["name"] = name
        body["spec"] |= spec
        self.apply(body)

    def patch_policy(self, spec: dict[str, Any], name: str = "chat") -> None:
        self.cluster.kubectl("patch", "epol", name, "--type=merge", "-p", json.dumps({"spec": spec}), check=True)

    def condition(self, kind: str, name: str = "chat") -> dict[str, Any]:
        policy = self.get("epol", name)
        conditions = policy.get("status", {}).get("conditions", [])
        fresh = [entry for entry in conditions if entry["observedGeneration"] == policy["metadata"]["generation"]]
        return next((entry for entry in fresh if entry["type"] == kind), {"status": "", "reason": "", "message": ""})

    def holds(self, kind: str, status: str = "True", name: str = "chat") -> bool:
        return bool(self.condition(kind, name)["status"] == status)

    def enforce(self) -> None:
        self.apply_policy(mode="Enforce")
        self.until("the policy is enforced on every GPU", lambda: self.holds("Enforced"))

    def delete_policies(self) -> None:
        self.cluster.kubectl("delete", "epol", "--all", "--timeout=60s", check=True)

    def slots(self, node: str | None = None) -> list[GpuSlot]:
        return [slot for name, file in self.files.items() if node in {None, name} for slot in file.gpus]

    def governed(self, node: str | None = None) -> list[GpuSlot]:
        items = self.get("nep")["items"]
        uuids = {gpu["uuid"] for plan in items for gpu in plan["spec"].get("gpus", []) if gpu["action"] == "Enforce"}
        return [slot for slot in self.slots(node) if slot.uuid in uuids]

    def locked(self, node: str | None = None) -> list[str]:
        return [slot.uuid for slot in self.slots(node) if slot.locked_sm_mhz is not None]

    def capped(self, node: str | None = None) -> list[str]:
        """GPUs whose cap is not the card's default."""
        return [slot.uuid for slot in self.slots(node) if slot.cap_watts != slot.gpu_type.cap_default_watts]

    def container(self, pod: str, container: str, node: str | None = None) -> dict[str, Any]:
        found = [
            state
            for where, key, name, state in self.fleet.containers(lambda key, name: pod in key and name == container)
            if node in {None, where.spec.name}
        ]
        assert found, f"no container {container} of a pod like {pod} runs on {node or 'any node'}"
        return found[0]

    def logs(self) -> str:
        """The end of every Flyball container's log, for a test that fails."""
        found = self.fleet.containers(lambda key, _: key.startswith(NAMESPACE))
        return "\n".join(f"== {key} {name}\n{Path(s['log']).read_text()[-1500:]}" for _, key, name, s in found)


@pytest.fixture(scope="module")
def installation(local_cluster: LocalCluster, eventually: Callable[..., Any]) -> Iterator[Installation]:
    specs = [NodeSpec(name, gpus=4) for name in NODES]
    kubectl = local_cluster.kubectl
    with Fleet(local_cluster.kubeconfig, specs) as fleet:
        files = {name: GpuStateFile.open(fleet.node(name).gpu_state) for name in NODES}
        found = Installation(local_cluster, fleet, files, eventually)
        kubectl("create", "namespace", NAMESPACE, check=True)
        kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=privileged", check=True)
        kubectl("create", "namespace", manifests.ENGINE_NAMESPACE, check=True)
        try:
            # Without root a simulated node cannot give the agent a user of its own.
            own = [] if os.geteuid() == 0 else ["--set", f"agent.uid={os.geteuid()}"]
            install = ("install", "flyball", str(CHART), "-n", NAMESPACE, "--wait", "--timeout=60s", *own)
            local_cluster.helm(*install, check=True)
            found.apply(manifests.engine_deployment(SCENARIO))
            kubectl(
                "rollout", "status", "deployment/chat", "-n", manifests.ENGINE_NAMESPACE, "--timeout=60s", check=True
            )
            yield found
        finally:
            print(found.logs())
            local_cluster.helm("uninstall", "flyball", "-n", NAMESPACE, "--ignore-not-found", "--no-hooks")
            kubectl("patch", "epol", "--all", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
            kubectl("delete", "crd", "energypolicies.flyball.dev", "nodeenergyplans.flyball.dev", "--ignore-not-found")
            kubectl("delete", "namespace", manifests.ENGINE_NAMESPACE, NAMESPACE, "--timeout=60s")
            for file in files.values():
                file.close()
    kubectl("delete", "node", *NODES, "--ignore-not-found")


@pytest.fixture
def enforced(installation: Installation) -> Iterator[Installation]:
    """The policy in mode Enforce, read back on every GPU; gone afterwards."""
    installation.enforce()
    yield installation
    installation.delete_policies()
