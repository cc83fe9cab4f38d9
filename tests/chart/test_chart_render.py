"""What the chart renders, and which values it refuses; Helm itself, no cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flyball_sim.controlplane.assets import find_assets

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "flyball"

Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def helm() -> Path:
    return find_assets() / "helm"


def render(helm: Path, *values: str) -> subprocess.CompletedProcess[str]:
    settings = [argument for value in values for argument in ("--set", value)]
    return subprocess.run(
        [helm, "template", "flyball", CHART, "--namespace", "flyball-system", "--kube-version", "1.36.2", *settings],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def objects(helm: Path, *values: str) -> Objects:
    answer = render(helm, *values)
    assert answer.returncode == 0, answer.stderr
    found = [document for document in yaml.safe_load_all(answer.stdout) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


def containers(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {container["name"]: container for container in workload["spec"]["template"]["spec"]["containers"]}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("operator.replicas=0", "at '/operator/replicas': minimum: got 0, want 1"),
        ("operator.replicas=two", "at '/operator/replicas': got string, want integer"),
        ("agent.port=80", "at '/agent/port': minimum: got 80, want 1,024"),
        ("agent.uid=0", "at '/agent/uid': minimum: got 0, want 1"),
        ("gpuAccess.mode=request", "at '/gpuAccess/mode': value must be one of 'driverRoot', 'runtimeClass'"),
        ("gpuAccess.driverRoot=driver", "at '/gpuAccess/driverRoot': 'driver' does not match pattern '^/'"),
        ("writes=on", "at '/writes': value must be one of 'enabled', 'stopped', 'release'"),
        ("operater.replicas=1", "additional properties 'operater' not allowed"),
        ("agent.log=json", "additional properties 'log' not allowed"),
    ],
)
def test_a_bad_value_is_refused_with_its_path_and_what_would_do(helm: Path, value: str, complaint: str) -> None:
    answer = render(helm, value)
    assert answer.returncode != 0
    assert complaint in answer.stderr


def test_the_agent_has_no_privileges_and_only_the_actuator_has_sys_admin(helm: Path) -> None:
    pod = containers(objects(helm)["DaemonSet", "flyball-agent"])
    agent, actuator = pod["agent"]["securityContext"], pod["actuator"]["securityContext"]
    assert agent["runAsNonRoot"] is True
    assert agent["allowPrivilegeEscalation"] is False
    assert agent["capabilities"] == {"drop": ["ALL"]}
    assert actuator["runAsUser"] == 0
    assert actuator["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN"]}
    assert "privileged" not in actuator


def test_nobody_requests_a_gpu(helm: Path) -> None:
    for workload in (("DaemonSet", "flyball-agent"), ("Deployment", "flyball-operator")):
        for container in containers(objects(helm)[workload]).values():
            assert "nvidia.com/gpu" not in str(container["resources"])


def test_only_the_driver_library_itself_is_loaded_from_the_host(helm: Path) -> None:
    actuator = containers(objects(helm, "gpuAccess.driverRoot=/")["DaemonSet", "flyball-agent"])["actuator"]
    assert "--nvml-library=/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1" in actuator["args"]
    assert "LD_LIBRARY_PATH" not in {entry["name"] for entry in actuator["env"]}


def test_with_a_runtime_class_nothing_of_the_driver_is_mounted(helm: Path) -> None:
    daemon_set = objects(helm, "gpuAccess.mode=runtimeClass")["DaemonSet", "flyball-agent"]
    assert daemon_set["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    assert "driver" not in {volume["name"] for volume in daemon_set["spec"]["template"]["spec"]["volumes"]}
    environment = {entry["name"]: entry.get("value") for entry in containers(daemon_set)["actuator"]["env"]}
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_the_agent_reads_profiles_if_there_are_any_and_keeps_what_its_controllers_learn(helm: Path) -> None:
    daemon_set = objects(helm)["DaemonSet", "flyball-agent"]
    agent = containers(daemon_set)["agent"]
    volumes = {volume["name"]: volume for volume in daemon_set["spec"]["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in agent["volumeMounts"]}
    assert mounts["/etc/flyball/profiles"]["configMap"] == {"name": "flyball-profiles", "optional": True}
    assert "--profiles-dir=/etc/flyball/profiles" in agent["args"]
    assert mounts["/var/lib/flyball-agent"]["emptyDir"] == {"sizeLimit": "16Mi"}
    assert "--state-file=/var/lib/flyball-agent/controllers.json" in agent["args"]


def test_profiles_and_what_was_learnt_are_out_of_the_actuators_reach(helm: Path) -> None:
    actuator = containers(objects(helm)["DaemonSet", "flyball-agent"])["actuator"]
    assert not {"learnt", "profiles"} & {mount["name"] for mount in actuator["volumeMounts"]}


def test_the_crds_are_templates_that_an_uninstall_keeps(helm: Path) -> None:
    for name in ("energypolicies.flyball.dev", "nodeenergyplans.flyball.dev"):
        crd = objects(helm)["CustomResourceDefinition", name]
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert ("CustomResourceDefinition", "energypolicies.flyball.dev") not in objects(helm, "crds.install=false")


def test_of_configmaps_only_the_switch_is_within_reach(helm: Path) -> None:
    for (kind, name), document in objects(helm).items():
        for entry in document.get("rules", ()) if kind in {"Role", "ClusterRole"} else ():
            if "configmaps" in entry["resources"]:
                assert entry["resourceNames"] == ["flyball-switch"], f"{kind} {name}: {entry}"


def test_no_rule_of_rbac_has_a_wildcard(helm: Path) -> None:
    for (kind, name), document in objects(helm).items():
        if kind in {"Role", "ClusterRole"}:
            for entry in document["rules"]:
                for part in ("apiGroups", "resources", "verbs"):
                    assert "*" not in entry[part], f"{kind} {name}: {entry}"
