"""What is left of a node, its pods and its GPUs when something dies."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.node.fleet import Fleet, FleetError, NodeSpec


def sleeper(name, node):
    command = ["python", "-c", "import time; time.sleep(600)"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "x", "command": command}],
        },
    }


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def tools(cluster, eventually):
    """Start pods on a node and look at them; what is started is taken away."""

    class Tools:
        def __init__(self):
            self.names = []

        def start(self, fleet, name, node):
            cluster.kubectl("apply", "-f", "-", input=json.dumps(sleeper(name, node)), check=True)
            self.names.append(name)
            eventually("the pod to run", lambda: self.pid(fleet, name, node) is not None)
            eventually("the pod to be ready", lambda: self.ready(name) == "True")
            return self.pid(fleet, name, node)

        def pid(self, fleet, name, node):
            container = fleet.node(node).container(f"default/{name}", "c")
            return container and container["pid"]

        def ready(self, name):
            path = '{.status.conditions[?(@.type=="Ready")].status}'
            return cluster.kubectl("get", "pod", name, "-o", f"jsonpath={path}").stdout

        def node_ready(self, name):
            path = '{.status.conditions[?(@.type=="Ready")].status}'
            return cluster.kubectl("get", "node", name, "-o", f"jsonpath={path}").stdout

        def field(self, name, path):
            return cluster.kubectl("get", "pod", name, "-o", f"jsonpath={path}").stdout

    yield (made := Tools())
    if made.names:
        cluster.kubectl("delete", "pod", *made.names, "--grace-period=0", "--force", "--ignore-not-found")


def test_a_killed_nodes_containers_end_and_its_pods_come_back_with_it(start_fleet, tools, eventually):
    fleet = start_fleet(NodeSpec("kill-0", gpus=0))
    pid = tools.start(fleet, "survivor", "kill-0")
    address = tools.field("survivor", "{.status.podIP}")
    fleet.kill("kill-0", signal.SIGKILL)
    eventually("the container to end", lambda: not is_alive(pid), 5)
    fleet.start("kill-0")
    fleet.wait_ready()
    eventually("the pod to run again", lambda: tools.pid(fleet, "survivor", "kill-0") not in {None, pid})
    eventually(
        "a restart counted", lambda: tools.field("survivor", "{.status.containerStatuses[0].restartCount}") == "1"
    )
    last = "{.status.containerStatuses[0].lastState.terminated.reason}"
    assert tools.field("survivor", last) == "ContainerStatusUnknown"
    assert tools.field("survivor", "{.status.podIP}") == address


def test_a_stopped_node_ends_its_containers_and_says_so(start_fleet, tools):
    fleet = start_fleet(NodeSpec("stop-0", gpus=0))
    pid = tools.start(fleet, "stopped", "stop-0")
    fleet.kill("stop-0", signal.SIGTERM)
    process = fleet.node("stop-0").process
    assert process is not None
    assert process.wait(20) == 0
    assert not is_alive(pid)
    assert tools.node_ready("stop-0") == "False"


def test_pods_outlive_the_api_server_and_deletions_missed_meanwhile_are_caught_up(
    local_cluster, cluster, start_fleet, tools, eventually
):
    if cluster is not local_cluster:
        # Nothing of ours is to be killed there; the claim is shown on the local control plane.
        return
    fleet = start_fleet(NodeSpec("away-0", gpus=0))
    staying = tools.start(fleet, "staying", "away-0")
    leaving = tools.start(fleet, "leaving", "away-0")
    cluster.kill("kube-apiserver")
    eventually("the node to notice", lambda: "API server not followed" in fleet.node("away-0").log.read_text(), 20)
    assert is_alive(staying)
    assert is_alive(leaving)
    # The node is frozen over the restart: it cannot see the deletion as it happens.
    fleet.kill("away-0", signal.SIGSTOP)
    cluster.restart("kube-apiserver")
    cluster.kubectl("delete", "pod", "leaving", "--grace-period=0", "--force", check=True)
    fleet.kill("away-0", signal.SIGCONT)
    eventually("the deleted pod to end", lambda: not is_alive(leaving), 20)
    assert is_alive(staying)
    eventually("the other to be ready", lambda: tools.ready("staying") == "True")
    assert tools.field("staying", "{.status.containerStatuses[0].restartCount}") == "0"


def test_gpu_settings_outlive_the_node_process_and_end_with_a_reboot(start_fleet, cluster):
    def boot_id():
        return cluster.kubectl("get", "node", "boot-0", "-o", "jsonpath={.status.nodeInfo.bootID}").stdout

    fleet = start_fleet(NodeSpec("boot-0", gpus=2))
    first = boot_id()
    with GpuStateFile.open(fleet.node("boot-0").gpu_state) as state:
        state.gpus[0].change_cap_externally(400.0, 0)
        fleet.kill("boot-0", signal.SIGKILL)
        fleet.start("boot-0")
        fleet.wait_ready()
        assert state.gpus[0].cap_watts == 400.0
        assert boot_id() == first
        fleet.reboot("boot-0")
        fleet.wait_ready()
        assert state.gpus[0].cap_watts == 700.0
        assert boot_id() != first


def test_a_node_whose_parent_is_gone_ends(start_fleet, tools):
    fleet = start_fleet(NodeSpec("orphan-0", gpus=0))
    pid = tools.start(fleet, "orphan", "orphan-0")
    process = fleet.node("orphan-0").process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
    assert not is_alive(pid)


def test_a_root_too_long_for_sockets_is_refused(tmp_path, cluster):
    fleet = Fleet(cluster.kubeconfig, [NodeSpec("long-0", gpus=0)], tmp_path / ("x" * 80))
    fleet.start()
    with pytest.raises(FleetError, match="choose a root of at most"):
        fleet.wait_ready()
    fleet.stop()


def test_a_second_node_with_the_same_index_is_refused(start_fleet, cluster):
    fleet = start_fleet(NodeSpec("index-0", gpus=0))
    index = int(fleet.node("index-0").status()["host_ip"].split(".")[1]) - 1
    second = Fleet(cluster.kubeconfig, [NodeSpec("index-1", index, gpus=0)])
    second.start()
    with pytest.raises(FleetError, match=f"index {index} is in use"):
        second.wait_ready()
    second.stop()
