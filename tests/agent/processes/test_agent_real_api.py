"""The agent against the real API server: schema, ownership, and the API server's own death."""

import json
from pathlib import Path

import pytest

CRDS = Path(__file__).resolve().parents[3] / "crds"
NAMESPACE = "flyball-system"
WITHIN_SECONDS = 30.0


@pytest.fixture(scope="module")
def api_server(local_cluster, eventually):
    """A control plane of our own with the CRDs and the namespace, both taken away again."""
    kubectl = local_cluster.kubectl
    kubectl("apply", "--server-side", "--force-conflicts", f"--filename={CRDS}", check=True)
    kubectl("wait", "crd", "nodeenergyplans.flyball.dev", "--for=condition=Established", "--timeout=30s", check=True)
    kubectl("create", "namespace", NAMESPACE, check=True)
    eventually("plans are served", lambda: kubectl("get", "nep").returncode == 0)
    yield local_cluster
    kubectl("delete", "nep", "--all", check=True)
    kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")
    kubectl("delete", "crd", "energypolicies.flyball.dev", "nodeenergyplans.flyball.dev", "--timeout=60s")


@pytest.fixture
def on_cluster(node, api_server, eventually):
    """Actuator and agent of `node-a`, its GPU 0 under a grant that is acknowledged."""

    def plan(spec):
        body = {
            "apiVersion": "flyball.dev/v1alpha1",
            "kind": "NodeEnergyPlan",
            "metadata": {"name": "node-a"},
            "spec": spec,
        }
        api_server.kubectl(
            "apply",
            "--server-side",
            "--field-manager=flyball-operator",
            "-f",
            "-",
            input=json.dumps(body),
            check=True,
        )

    def get():
        answer = api_server.kubectl("get", "nep", "node-a", "-o", "json", "--show-managed-fields")
        return json.loads(answer.stdout) if answer.returncode == 0 else {}

    node.engine = node.add_engine()
    node.plan, node.get_plan = plan, get
    node.status = lambda: get().get("status", {})
    node.told = lambda index=0: next((g for g in node.status().get("gpus", ()) if g.get("index", 0) == index), {})
    plan({"leaderEpoch": 1})
    node.start_actuator()
    node.start_agent(kubeconfig=api_server.kubeconfig)
    plan(node.spec(slo={"timeToFirstToken": {"thresholdMilliseconds": 250}}))
    eventually("acknowledged", lambda: node.told().get("acknowledged", {}).get("grant") == 1, WITHIN_SECONDS)
    yield node
    api_server.kubectl("delete", "nep", "node-a", check=True)


def test_the_schema_takes_every_part_of_a_status_and_the_agent_owns_it(on_cluster, eventually):
    on_cluster.gpus[0].change_cap_externally(300, 1)
    eventually("fault told", lambda: [fault["code"] for fault in on_cluster.told().get("faults", ())] == ["ForeignCap"])
    plan = on_cluster.get_plan()
    assert plan["spec"]["gpus"][0]["capWatts"] == 500
    owners = {
        entry["manager"]: entry["subresource"] for entry in plan["metadata"]["managedFields"] if "subresource" in entry
    }
    assert owners == {"flyball-agent": "status"}
    assert plan["status"]["policies"][0]["timeToFirstToken"]["interpolated"] is False


def test_the_agents_heartbeat_is_a_lease_of_its_session(on_cluster, api_server, eventually):
    def holder():
        answer = api_server.kubectl("get", "lease", "-n", NAMESPACE, "flyball-agent-node-a", "-o", "json")
        return json.loads(answer.stdout)["spec"]["holderIdentity"] if answer.returncode == 0 else None

    eventually("lease", lambda: holder() == on_cluster.status()["agentSession"])


def test_the_switch_config_map_stops_writing_and_its_deletion_enables_it(on_cluster, api_server, eventually):
    api_server.kubectl(
        "create", "configmap", "flyball-switch", "-n", NAMESPACE, "--from-literal=writes=stopped", check=True
    )
    reasons = lambda: [each["reason"] for each in on_cluster.status()["conditions"]]  # noqa: E731
    eventually("stopped", lambda: "Stopped" in reasons())
    on_cluster.plan(on_cluster.spec(grant=2, cap=300))
    api_server.kubectl("delete", "configmap", "flyball-switch", "-n", NAMESPACE, check=True)
    eventually("carried on", lambda: on_cluster.told().get("acknowledged", {}).get("grant") == 2)
    assert on_cluster.gpus[0].cap_watts == 300


def test_with_the_api_server_dead_the_node_controls_on_and_tells_afterwards(on_cluster, api_server, eventually):
    api_server.kill("kube-apiserver")
    try:
        on_cluster.processes[0].kill()
        on_cluster.processes[0].wait()
        on_cluster.start_actuator()
        eventually("locked again", lambda: on_cluster.gpus[0].locked_sm_mhz == (1200, 1395), 10)
        on_cluster.engine.status = 500
        eventually("fail-safe works", lambda: on_cluster.gpus[0].locked_sm_mhz is None, 10)
        assert on_cluster.gpus[0].cap_watts == 500
        assert on_cluster.get("/healthz")[0] == 200
    finally:
        api_server.restart("kube-apiserver")
    eventually(
        "told afterwards",
        lambda: "MetricsStale" in [fault["code"] for fault in on_cluster.told().get("faults", ())],
        60,
    )
    on_cluster.plan(on_cluster.spec(grant=2, cap=300))
    eventually("follows plans again", lambda: on_cluster.told().get("acknowledged", {}).get("grant") == 2, 60)
