"""The control plane itself: always one of our own, because its parts are killed here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flyball_sim.controlplane.cluster import ClusterError, LocalCluster
from flyball_sim.controlplane.components import COMPONENTS

OWNER = """
import time
from flyball_sim.controlplane.cluster import LocalCluster
with LocalCluster() as cluster:
    print(cluster.directory, *(status.pid for status in cluster.status()), flush=True)
    time.sleep(600)
"""

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: waits-for-a-node}
spec:
  selector: {matchLabels: {app: waits}}
  template:
    metadata: {labels: {app: waits}}
    spec: {containers: [{name: main, image: none}]}
"""


def test_the_api_server_and_kubectl_say_their_version(local_cluster):
    versions = json.loads(local_cluster.kubectl("version", "--output=json", check=True).stdout)

    assert versions["serverVersion"]["gitVersion"] == "v1.36.2"
    assert (versions["serverVersion"]["major"], versions["serverVersion"]["minor"]) == ("1", "36")
    assert versions["clientVersion"]["gitVersion"] == "v1.36.2"


def test_helm_knows_its_own_version_and_the_clusters(local_cluster):
    assert local_cluster.helm("version", "--short", check=True).stdout.startswith("v4.2.4")
    assert local_cluster.helm("list", "--all-namespaces", check=True).returncode == 0


def test_the_default_service_account_is_there_when_the_start_returns(local_cluster):
    local_cluster.kubectl("get", "serviceaccount", "default", check=True)


def test_every_component_is_well_and_has_a_log(local_cluster):
    status = local_cluster.status()

    assert tuple(each.name for each in status) == COMPONENTS
    assert all(each.running and each.healthy and each.log.stat().st_size for each in status)


def test_controllers_make_pods_and_the_scheduler_looks_for_a_node(local_cluster, eventually):
    local_cluster.kubectl("apply", "-f", "-", input=DEPLOYMENT, check=True)

    def unschedulable() -> bool:
        pods = json.loads(local_cluster.kubectl("get", "pods", "-l", "app=waits", "-o", "json", check=True).stdout)
        conditions = [c for pod in pods["items"] for c in pod["status"].get("conditions", [])]
        return any(c["type"] == "PodScheduled" and c["reason"] == "Unschedulable" for c in conditions)

    eventually("the pod is found to fit no node", unschedulable)
    local_cluster.kubectl("delete", "deployment", "waits-for-a-node", check=True)


def test_keys_are_for_their_owner_only(local_cluster):
    readable = [path for path in (local_cluster.directory / "pki").iterdir() if path.stat().st_mode & 0o077]

    assert readable == []
    assert local_cluster.kubeconfig.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("way", ["restart", "kill -9"])
def test_objects_and_address_survive_the_end_of_the_api_server(local_cluster, way):
    server, before = local_cluster.server, {each.name: each.pid for each in local_cluster.status()}
    name = f"kept-over-{way.replace(' ', '')}"
    local_cluster.kubectl("create", "configmap", name, check=True)

    if way == "kill -9":
        local_cluster.kill("kube-apiserver")
        assert not {each.name: each for each in local_cluster.status()}["kube-apiserver"].running
    local_cluster.restart("kube-apiserver")

    after = {each.name: each.pid for each in local_cluster.status()}
    assert local_cluster.server == server
    assert [name for name in COMPONENTS if after[name] != before[name]] == ["kube-apiserver"]
    local_cluster.kubectl("get", "configmap", name, check=True)


def test_objects_survive_the_kill_of_etcd(local_cluster):
    local_cluster.kubectl("create", "configmap", "kept-over-etcd", check=True)

    local_cluster.kill("etcd")
    local_cluster.restart("etcd")

    local_cluster.kubectl("get", "configmap", "kept-over-etcd", check=True)


def test_an_unknown_component_is_refused_with_the_known_ones(local_cluster):
    with pytest.raises(ClusterError, match="no component 'kubelet'; there are etcd, kube-apiserver"):
        local_cluster.kill("kubelet")


def test_when_the_owner_is_killed_every_component_ends_and_the_data_goes(local_cluster, eventually, is_alive):
    environ = {**os.environ, "KUBEBUILDER_ASSETS": str(local_cluster.bin)}
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environ) as owner:
        directory, *pids = owner.stdout.readline().split()
        assert all(is_alive(int(pid)) for pid in pids)
        owner.send_signal(signal.SIGKILL)

    eventually("all components have ended", lambda: not any(is_alive(int(pid)) for pid in pids), within_seconds=10)
    eventually("the directory is gone", lambda: not Path(directory).exists(), within_seconds=10)


def test_an_audited_cluster_records_who_wrote_what(local_cluster, tmp_path):
    with LocalCluster(tmp_path / "audited", audit=True, programs=local_cluster.bin) as cluster:
        cluster.kubectl("create", "configmap", "noted", check=True)
        events = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]

    found = [e for e in events if e["verb"] == "create" and e["objectRef"].get("name") == "noted"]
    assert [(e["user"]["username"], e["level"]) for e in found] == [("flyball-admin", "Metadata")]
    assert (tmp_path / "audited").is_dir(), "a directory that was given is kept"
    with pytest.raises(ClusterError, match="holds another cluster's data; delete it or name another"):
        LocalCluster(tmp_path / "audited", programs=local_cluster.bin).start()


def test_a_component_that_cannot_start_is_named_with_the_end_of_its_log(local_cluster, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for each in local_cluster.bin.iterdir():
        (programs / each.name).symlink_to(each)
    (programs / "kube-apiserver").unlink()
    (programs / "kube-apiserver").write_text("#!/bin/sh\necho this is why\nexit 7\n")
    (programs / "kube-apiserver").chmod(0o755)

    with pytest.raises(ClusterError, match=r"(?s)kube-apiserver \(pid \d+\) ended with 7.*this is why"):
        LocalCluster(tmp_path / "data", programs=programs).start()


def test_a_start_that_takes_too_long_is_given_up_and_ended(local_cluster, tmp_path):
    with pytest.raises(ClusterError, match="waited 0 s in vain for the API server to be ready"):
        LocalCluster(tmp_path / "data", programs=local_cluster.bin, start_seconds=0.2).start()
