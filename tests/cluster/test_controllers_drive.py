"""Each of the five controllers, chosen by a sample policy of the docs, drives the cards of a real cluster's engines.

The control plane, chart, agents, actuator and HTTP load are real; the NVML library, its cards and the engines are
simulated, and what was written is read back from that library's own state.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flyball_sim.controlplane.cluster import LocalCluster
from flyball_sim.demo import samples
from flyball_sim.demo.manifests import ENGINE_NAMESPACE, FLYBALL_NAMESPACE
from flyball_sim.demo.stage import Stage
from flyball_sim.gpu.statefile import GpuSlot, GpuStateFile
from flyball_sim.node.fleet import Fleet, NodeSpec

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = samples.read_samples(ROOT / "docs" / "examples")
NODE = "drive-0"
TOP_MHZ = 1980
DEFAULT_CAP_WATTS = 700
WITHIN_SECONDS = 60.0
SLO = {
    "timeToFirstToken": {"thresholdMilliseconds": 500},
    "interTokenLatency": {"thresholdMilliseconds": 25},
}


@dataclass
class World:
    """A cluster under the five sample policies, its engines under load."""

    cluster: LocalCluster
    fleet: Fleet
    cards: GpuStateFile
    eventually: Callable[..., Any]

    def until(self, what: str, met: Callable[[], object]) -> None:
        self.eventually(what, met, within_seconds=WITHIN_SECONDS)

    def get(self, *args: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cluster.kubectl("get", *args, "-o", "json", check=True).stdout)
        return found

    def patch(self, policy: str, spec: dict[str, Any]) -> None:
        body = json.dumps({"spec": spec})
        self.cluster.kubectl("patch", "epol", policy, "--type=merge", "-p", body, check=True)

    def condition(self, policy: str, kind: str) -> dict[str, Any]:
        """The condition as judged on the policy's present spec; an empty one before that."""
        found = self.get("epol", policy)
        generation = found["metadata"]["generation"]
        for entry in found.get("status", {}).get("conditions", []):
            if entry["type"] == kind and entry["observedGeneration"] == generation:
                return dict(entry)
        return {"status": "", "reason": "", "message": ""}

    def holds(self, policy: str, kind: str) -> bool:
        return bool(self.condition(policy, kind)["status"] == "True")

    def entries(self, policy: str) -> dict[str, dict[str, Any]]:
        """What the plan grants the policy's GPUs, by UUID."""
        plan = self.get("nep", NODE)
        return {entry["uuid"]: entry for entry in plan["spec"].get("gpus", []) if entry["policy"] == policy}

    def statuses(self, policy: str) -> list[dict[str, Any]]:
        """What the node says of the policy's GPUs."""
        plan = self.get("nep", NODE)
        mine = {entry["uuid"] for entry in plan["spec"].get("gpus", []) if entry["policy"] == policy}
        return [gpu for gpu in plan["status"]["gpus"] if gpu["uuid"] in mine]

    def slots(self, policy: str) -> list[GpuSlot]:
        """The policy's cards, as the simulated library has them."""
        return [self.cards.by_uuid(uuid) for uuid in sorted(self.entries(policy))]

    def locked_below_the_top(self, policy: str) -> bool:
        locks = [slot.locked_sm_mhz for slot in self.slots(policy)]
        return all(lock is not None and lock[1] < TOP_MHZ for lock in locks)


@pytest.fixture(scope="module")
def world(
    local_cluster: LocalCluster, eventually: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("samples")
    said = io.StringIO()
    kubectl = local_cluster.kubectl
    with (
        Fleet(local_cluster.kubeconfig, [NodeSpec(NODE, gpu_type=samples.GPU_TYPE)]) as fleet,
        GpuStateFile.open(fleet.node(NODE).gpu_state) as cards,
    ):
        stage = Stage(
            Console(file=said),
            local_cluster,
            fleet,
            files=[cards],
            scenario=samples.ENGINE,
            chart=ROOT / "helm" / "flyball",
            manifests_directory=directory,
        )
        try:
            stage.install_flyball(samples.write_profiles(SAMPLES, directory))
            samples.start_engines(stage, SAMPLES)
            for sample in SAMPLES:
                stage.kubectl("apply", "-f", str(sample.path))
            with load(local_cluster.kubeconfig):
                yield World(local_cluster, fleet, cards, eventually)
            stage.restore()
            stage.uninstall()
        finally:
            print(said.getvalue()[-4000:])
            for _, key, name, status in fleet.containers(lambda key, _: key.startswith(FLYBALL_NAMESPACE)):
                print(f"== {key} {name}\n{Path(status['log']).read_text()[-2000:]}")
            local_cluster.helm("uninstall", "flyball", "-n", FLYBALL_NAMESPACE, "--ignore-not-found", "--no-hooks")
            kubectl("patch", "epol", "--all", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
            kubectl("delete", "crd", "energypolicies.flyball.dev", "nodeenergyplans.flyball.dev", "--ignore-not-found")
            kubectl("delete", "namespace", ENGINE_NAMESPACE, FLYBALL_NAMESPACE, "--timeout=60s")
    kubectl("delete", "node", NODE, "--ignore-not-found")


def load(kubeconfig: Path) -> subprocess.Popen[bytes]:
    """Conversations over HTTP, for longer than the tests take; ended with its context."""
    rate = sum(len(sample.pods) for sample in SAMPLES)
    return Ending(
        [
            sys.executable,
            "-m",
            "flyball_sim.cli",
            "load",
            f"--kubeconfig={kubeconfig}",
            f"--namespace={ENGINE_NAMESPACE}",
            "--selector=app",
            "--round-robin",
            f"--trace=poisson:rate={rate},seconds=600",
            "--duration=600",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


class Ending(subprocess.Popen[bytes]):
    """A process that is ended, and not waited for, when its context ends."""

    def __exit__(self, *_: object) -> None:
        self.kill()
        super().__exit__(None, None, None)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.policy.spec.controller.type)
def test_a_sample_policy_is_enforced_and_its_status_names_its_controller(world: World, sample: samples.Sample) -> None:
    world.until(f"{sample.name} is ready", lambda: world.holds(sample.name, "Ready"))
    row = world.cluster.kubectl("get", "epol", sample.name, "--no-headers", check=True).stdout.split()
    assert row[:4] == [sample.name, "Enforce", sample.policy.spec.controller.type, str(len(sample.pods))]
    world.until("its controller says why", lambda: all(gpu.get("because") for gpu in world.statuses(sample.name)))


@pytest.mark.parametrize("sample", SAMPLES[:1] + SAMPLES[2:4], ids=lambda sample: sample.policy.spec.controller.type)
def test_a_controller_that_holds_latencies_locks_its_cards_below_the_top(world: World, sample: samples.Sample) -> None:
    world.until(f"{sample.name}'s cards are locked", lambda: world.locked_below_the_top(sample.name))


def test_agft_moves_its_clock_from_round_to_round(world: World) -> None:
    (card,) = world.slots("summaries")
    world.until("a clock is tried", lambda: card.locked_sm_mhz is not None)
    first = card.locked_sm_mhz
    world.until("another clock is tried", lambda: card.locked_sm_mhz not in {None, first})


def test_voltanallm_gives_each_role_one_of_its_two_clocks(world: World) -> None:
    assert {entry["role"] for entry in world.entries("search").values()} == {"prefill", "decode"}
    world.until("both are locked", lambda: all(slot.locked_sm_mhz for slot in world.slots("search")))
    assert {slot.locked_sm_mhz for slot in world.slots("search")} <= {(1410, 1410), (TOP_MHZ, TOP_MHZ)}


def test_pals_holds_a_cap_below_the_granted_one(world: World) -> None:
    def capped() -> bool:
        granted = world.entries("overnight")
        return all(slot.enforced_cap_watts < granted[slot.uuid]["capWatts"] for slot in world.slots("overnight"))

    world.until("the cap is PALS's own", capped)


def test_another_controller_takes_over_a_live_policy_without_unlocking(world: World) -> None:
    world.until("Flyball has locked", lambda: world.locked_below_the_top("assistant"))
    (card,) = world.slots("assistant")
    resets = card.lock_reset_calls
    fixed = {"clocks": [{"role": "unified", "minMegahertz": 1200, "maxMegahertz": 1200}]}
    world.patch("assistant", {"controller": {"type": "Fixed", "fixed": fixed}})
    world.until("the fixed clock is enforced", lambda: world.holds("assistant", "Enforced"))
    world.until("the fixed clock is locked", lambda: card.locked_sm_mhz == (1200, 1200))
    assert card.lock_reset_calls == resets
    voltana = {"profile": samples.profile_names(SAMPLES).pop()}
    world.patch("assistant", {"controller": {"type": "VoltanaLLM", "fixed": None, "voltanaLLM": voltana}})
    world.until("VoltanaLLM has locked", lambda: card.locked_sm_mhz in {(mhz, mhz) for mhz in (1410, TOP_MHZ)})
    world.until("it is enforced", lambda: world.holds("assistant", "Enforced"))


def test_the_parameters_of_the_old_controller_must_go_with_it(world: World) -> None:
    answer = world.cluster.kubectl(
        "patch", "epol", "summaries", "--type=merge", "-p", '{"spec":{"controller":{"type":"PALS"}}}'
    )
    assert "controller type PALS comes with parameters of type AGFT: take them out or change the type" in answer.stderr
    assert world.get("epol", "summaries")["spec"]["controller"]["type"] == "AGFT"


def test_a_controller_that_caps_nothing_gets_the_card_with_its_default_cap(world: World) -> None:
    (card,) = world.slots("overnight")
    controller = {"type": "Flyball", "pals": None}
    world.patch("overnight", {"controller": controller, "slo": SLO, "powerBudget": None, "limits": None})
    world.until("Flyball is enforced", lambda: world.holds("overnight", "Enforced"))
    world.until("Flyball has locked", lambda: world.locked_below_the_top("overnight"))
    assert card.enforced_cap_watts == DEFAULT_CAP_WATTS


def test_a_profile_that_is_not_there_is_named_and_the_clocks_are_let_go(world: World) -> None:
    world.patch("search", {"controller": {"voltanaLLM": {"profile": "nobody-made-it"}}})
    world.until("its cards are unlocked", lambda: not any(slot.locked_sm_mhz for slot in world.slots("search")))
    world.until("it is said", lambda: "nobody-made-it" in world.condition("search", "Degraded")["message"])
    assert world.condition("search", "Degraded")["reason"] == "ControllerDegraded"
    world.patch("search", {"controller": {"voltanaLLM": {"profile": samples.profile_names(SAMPLES).pop()}}})
    world.until("it drives again", lambda: all(slot.locked_sm_mhz for slot in world.slots("search")))
    world.until("nothing is said any more", lambda: world.condition("search", "Degraded")["status"] == "False")
