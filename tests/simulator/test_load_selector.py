"""`flyball-sim load --selector` finds its engines through the real API server."""

import json
import subprocess
import sys
import uuid

import pytest


@pytest.fixture
def namespace(cluster):
    name = f"load-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name, check=True)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_requests_go_to_the_ready_pods_of_the_selector_and_to_no_other(cluster, namespace, eventually, tmp_path):
    command = ["engine", "--model", "llama-3.1-8b", "--gpu-type", "H100-SXM5", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "flyball_sim.cli", *command], stdout=subprocess.PIPE, text=True
    ) as engine:
        try:
            assert engine.stdout is not None
            port = json.loads(engine.stdout.readline())["address"].rpartition(":")[2]
            for name, address, ready in (("served", "127.0.0.1", "True"), ("starting", "127.0.0.2", "False")):
                pod = {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": name, "namespace": namespace, "labels": {"app": "chat"}},
                    # no scheduler takes it: its status is ours to write
                    "spec": {"schedulerName": "none", "containers": [{"name": "engine", "image": "none"}]},
                }
                status = {
                    "podIP": address,
                    "podIPs": [{"ip": address}],
                    "conditions": [{"type": "Ready", "status": ready}],
                }
                eventually(
                    f"pod {name} is created (its service account takes a moment)",
                    lambda pod=pod: cluster.kubectl("apply", "-f", "-", input=json.dumps(pod)).returncode == 0,
                )
                patch = ["patch", "pod", name, "--subresource=status", "--type=merge", "-p"]
                cluster.kubectl("-n", namespace, *patch, json.dumps({"status": status}), check=True)
            load = [
                *("load", "--selector", "app=chat", "--namespace", namespace, "--port", port),
                *("--kubeconfig", str(cluster.kubeconfig), "--duration", "3", "--rate-limit", "2"),
                *("--seed", "7", "--out", str(tmp_path / "out.json")),
            ]
            done = subprocess.run(
                [sys.executable, "-m", "flyball_sim.cli", *load],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        finally:
            engine.terminate()
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["summary"]["succeeded"] == len(result["requests"]) > 0
    assert {request["endpoint"] for request in result["requests"]} == {f"http://127.0.0.1:{port}"}


def test_a_selector_without_ready_pods_ends_with_a_sentence(cluster, namespace):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "flyball_sim.cli", "load", "--selector", "app=none", "--namespace", namespace),
            *("--kubeconfig", str(cluster.kubeconfig)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"no ready pod in namespace '{namespace}' matches 'app=none'" in done.stderr
