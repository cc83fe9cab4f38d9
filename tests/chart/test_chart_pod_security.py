"""Which pod security standard each of the chart's pods meets, as the API server's own admission judges it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

CHART = Path(__file__).parents[2] / "helm" / "flyball"


@pytest.fixture(scope="module", params=["restricted", "privileged"])
def namespace(cluster, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    name = f"pods-{request.param}"
    cluster.kubectl("create", "namespace", name, check=True)
    cluster.kubectl("label", "namespace", name, f"pod-security.kubernetes.io/enforce={request.param}", check=True)
    for account in ("flyball-operator", "flyball-agent"):
        cluster.kubectl("create", "serviceaccount", account, "-n", name, check=True)
    yield name, request.param
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def admit(cluster, namespace: str, template: dict) -> subprocess.CompletedProcess[str]:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "candidate", "namespace": namespace},
        "spec": template["spec"],
    }
    return cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))


def pods(cluster) -> dict[str, dict]:
    text = cluster.helm("template", "flyball", str(CHART), check=True).stdout
    found = {}
    for document in filter(None, yaml.safe_load_all(text)):
        if document["kind"] in {"Deployment", "DaemonSet", "Job"}:
            found[document["metadata"]["name"]] = document["spec"]["template"]
        elif document["kind"] == "Pod":
            found[document["metadata"]["name"]] = document
    return found


@pytest.mark.parametrize("name", ["flyball-operator", "flyball-release", "flyball-check"])
def test_everything_but_the_agent_meets_the_restricted_standard(cluster, namespace: tuple[str, str], name: str) -> None:
    answer = admit(cluster, namespace[0], pods(cluster)[name])
    assert answer.returncode == 0, answer.stderr


def test_the_agent_needs_a_privileged_namespace_for_its_actuator_alone(cluster, namespace: tuple[str, str]) -> None:
    answer = admit(cluster, namespace[0], pods(cluster)["flyball-agent"])
    if namespace[1] == "privileged":
        assert answer.returncode == 0, answer.stderr
        return
    assert "violates PodSecurity" in answer.stderr
    assert 'container "actuator"' in answer.stderr
    assert 'container "agent"' not in answer.stderr
