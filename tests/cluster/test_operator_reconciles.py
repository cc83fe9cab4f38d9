"""The operator's processes on a real API server; the nodes' agents are scripted and write plan statuses themselves."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from flyball_api.kube import ENERGY_POLICIES, LEASES, NODE_ENERGY_PLANS, KubeApi, KubeError, NotFoundError
from flyball_api.lease import Heartbeat
from flyball_api.names import AGENT_FIELD_MANAGER, API_VERSION, FINALIZER, agent_lease_name

NAMESPACE = "operator-test"
NODES = ("opnode-0", "opnode-1")
GPUS = 2
CAP_DEFAULT = 700


@dataclass
class FakeNode:
    """One node's agent: carries plans out at once, and says so, unless told to hold back."""

    name: str
    session: str
    caps: dict[str, int]
    holding: bool = False
    silent: bool = False
    done: dict[str, tuple[int, int]] = field(default_factory=dict)

    def carry_out(self, spec):
        for entry in spec.get("gpus", ()):
            wanted = CAP_DEFAULT if entry["action"] == "Release" else entry.get("capWatts")
            if wanted is not None:
                self.caps[entry["uuid"]] = wanted
            self.done[entry["uuid"]] = (spec["leaderEpoch"], entry["grant"])

    def status(self):
        gpus = []
        for index, (uuid, cap) in enumerate(self.caps.items()):
            gpu = {
                "uuid": uuid,
                "index": index,
                "product": "NVIDIA H100 80GB HBM3",
                "capMinWatts": 200,
                "capMaxWatts": CAP_DEFAULT,
                "capDefaultWatts": CAP_DEFAULT,
                "enforcedCapWatts": cap,
                "drawWatts": 80,
                "pod": {"namespace": NAMESPACE, "name": f"{self.name}-pod-{index}", "container": "main"},
            }
            if uuid in self.done:
                epoch, grant = self.done[uuid]
                gpu["acknowledged"] = {"leaderEpoch": epoch, "grant": grant}
            gpus.append(gpu)
        return {"agentSession": self.session, "gpus": gpus}


class FakeAgents(threading.Thread):
    """All agents in one thread with a loop of its own."""

    def __init__(self, kubeconfig):
        super().__init__(daemon=True)
        self.kubeconfig = kubeconfig
        self.nodes = {
            name: FakeNode(name, f"session-{name}", {f"GPU-{name}-{i}": CAP_DEFAULT for i in range(GPUS)})
            for name in NODES
        }
        self.ended = threading.Event()

    def run(self):
        asyncio.run(self.serve())

    async def serve(self):
        async with await KubeApi.from_environment(self.kubeconfig, None, {}, requests_per_second=500) as kube:
            await asyncio.gather(*(self.serve_node(kube, node) for node in self.nodes.values()))

    async def serve_node(self, kube, node):
        beat = Heartbeat(kube, NAMESPACE, agent_lease_name(node.name), node.session)
        beaten, said = 0.0, None
        while not self.ended.is_set():
            await asyncio.sleep(0.03)
            if node.silent:
                continue
            with suppress(KubeError):
                if time.monotonic() - beaten > 1:
                    await beat.beat()
                    beaten = time.monotonic()
                try:
                    plan = await kube.get(NODE_ENERGY_PLANS, node.name)
                except NotFoundError:
                    continue
                if node.holding:
                    continue
                node.carry_out(plan["spec"])
                if (plan["metadata"]["uid"], node.status()) != said:
                    body = {
                        "apiVersion": API_VERSION,
                        "kind": "NodeEnergyPlan",
                        "metadata": {"name": node.name},
                        "status": node.status(),
                    }
                    await kube.apply(NODE_ENERGY_PLANS, body, field_manager=AGENT_FIELD_MANAGER, subresource="status")
                    said = (plan["metadata"]["uid"], node.status())


class Rig:
    """What a test does to the cluster and sees of it."""

    def __init__(self, cluster, directory, agents):
        self.cluster = cluster
        self.directory = directory
        self.agents = agents
        self.ports = {}

    def kubectl(self, *arguments, **options):
        return self.cluster.kubectl(*arguments, check=True, **options).stdout

    def create(self, *objects):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", input=text)

    def start_operator(self, identity):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.ports[identity] = port
        command = [sys.executable, "-m", "flyball_operator.main", "run", "--kubeconfig", str(self.cluster.kubeconfig)]
        command += ["--namespace", NAMESPACE, "--bind-address=127.0.0.1", f"--port={port}", f"--identity={identity}"]
        with (self.directory / f"{identity}.log").open("ab") as log:
            return subprocess.Popen(command, stderr=log)

    @contextmanager
    def operator(self, identity):
        process = self.start_operator(identity)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(15)

    def command(self, *arguments):
        command = [sys.executable, "-m", "flyball_operator.main", *arguments]
        command += ["--kubeconfig", str(self.cluster.kubeconfig), "--namespace", NAMESPACE]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    def policy(self, name):
        answer = self.cluster.kubectl("get", "energypolicy", name, "-o", "json")
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def condition(self, name, kind):
        """(status, reason, message); empty texts while there is none."""
        conditions = ((self.policy(name) or {}).get("status") or {}).get("conditions") or []
        found = next((entry for entry in conditions if entry["type"] == kind), {})
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")

    def is_(self, name, kind, status, reason=None):
        found = self.condition(name, kind)
        return found[0] == status and reason in {None, found[1]}

    def plan(self, node):
        answer = self.cluster.kubectl("get", "nodeenergyplan", node, "-o", "json")
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def granted(self):
        return {gpu["uuid"]: gpu for node in NODES for gpu in (self.plan(node) or {"spec": {}})["spec"].get("gpus", ())}

    def caps(self):
        return {uuid: cap for node in self.agents.nodes.values() for uuid, cap in node.caps.items()}

    def epoch(self):
        return min((self.plan(node) or {"spec": {"leaderEpoch": 0}})["spec"]["leaderEpoch"] for node in NODES)

    def switch(self, writes):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"writes": writes}}
        self.create(body | {"metadata": {"name": "flyball-switch", "namespace": NAMESPACE}})


def policy_object(name, tier="gold", **spec):
    base = {
        "mode": "Enforce",
        "selector": {"namespaces": [NAMESPACE], "matchLabels": {"tier": tier}},
        "controller": {"type": "Fixed", "fixed": {}},
        "powerBudget": {"watts": 1600, "reserveWatts": 0},
    }
    return {"apiVersion": API_VERSION, "kind": "EnergyPolicy", "metadata": {"name": name}, "spec": base | spec}


@pytest.fixture(scope="module")
def rig(cluster, flyball_crds, tmp_path_factory):  # noqa: ARG001 - a fixture cannot use usefixtures
    agents = FakeAgents(cluster.kubeconfig)
    made = Rig(cluster, tmp_path_factory.mktemp("operator"), agents)
    made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    label = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    made.create(*({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": label}} for name in NODES))
    for name in NODES:
        patch = json.dumps({"status": {"capacity": {"nvidia.com/gpu": str(GPUS)}}})
        made.kubectl("patch", "node", name, "--subresource=status", "--type=merge", f"--patch={patch}")
        for index in range(GPUS):
            made.create(pod_object(name, index))
            patch = json.dumps({"status": {"phase": "Running", "podIP": "127.0.0.1"}})
            pod = f"{name}-pod-{index}"
            made.kubectl(
                "patch", "pod", pod, f"--namespace={NAMESPACE}", "--subresource=status", "--type=merge", f"-p={patch}"
            )
    agents.start()
    yield made
    agents.ended.set()
    agents.join()
    made.kubectl("delete", "nodeenergyplan", *NODES, "--ignore-not-found")
    made.kubectl("delete", "node", *NODES)
    made.kubectl("delete", "pods", "--all", f"--namespace={NAMESPACE}", "--force", "--grace-period=0")
    made.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def pod_object(node, index):
    limits = {"nvidia.com/gpu": "1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{node}-pod-{index}",
            "namespace": NAMESPACE,
            "labels": {"tier": "gold" if index == 0 else "plain", "all": "yes"},
        },
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "engine", "resources": {"limits": limits}}],
            "tolerations": [{"operator": "Exists"}],
        },
    }


@pytest.fixture
def operator(rig):
    with rig.operator("first") as process:
        yield process


@pytest.fixture
def with_policies(rig):
    """Applies policies, and deletes them when the test ends, however it ends."""
    names = []

    def apply(*objects):
        names.extend(entry["metadata"]["name"] for entry in objects)
        rig.create(*objects)

    yield apply
    for node in rig.agents.nodes.values():
        node.holding = node.silent = False
    rig.switch("enabled")
    existing = [name for name in dict.fromkeys(names) if rig.policy(name)]
    if existing:
        rig.kubectl("delete", "energypolicy", *existing, "--timeout=40s")


def test_a_policy_is_enforced_and_deleting_it_restores_every_cap(rig, operator, with_policies, eventually):
    with_policies(policy_object("all", selector={"namespaces": [NAMESPACE], "matchLabels": {"all": "yes"}}))
    eventually("the policy is ready", lambda: rig.is_("all", "Ready", "True"))
    found = rig.policy("all")
    assert found["metadata"]["finalizers"] == [FINALIZER]
    assert set(rig.caps().values()) == {400}
    assert found["status"]["targets"] == {"pods": 4, "gpus": 4, "nodes": 2, "lostPods": 0, "enforcedGpus": 4}
    assert found["status"]["ledger"]["enforcedWatts"] == 1600
    assert rig.is_("all", "BudgetRespected", "True")
    columns = rig.kubectl("get", "epol", "all", "--no-headers").split()
    assert columns[:6] == ["all", "Enforce", "Fixed", "4", "320", "1600"]
    assert operator.poll() is None

    rig.kubectl("delete", "energypolicy", "all", "--timeout=20s")
    assert set(rig.caps().values()) == {CAP_DEFAULT}
    eventually("no plan holds anything", lambda: rig.granted() == {})
    events = rig.kubectl("get", "events", "--namespace=default", "-o", "jsonpath={.items[*].reason}")
    assert {"Enforced", "Released"} <= set(events.split())


@pytest.mark.usefixtures("operator")
def test_a_cut_budget_is_enforced_and_said_within_a_second_and_a_half(rig, with_policies, eventually):
    with_policies(policy_object("cut", selector={"namespaces": [NAMESPACE], "matchLabels": {"all": "yes"}}))
    eventually("the policy is ready", lambda: rig.is_("cut", "Ready", "True"))
    taken = []

    async def measure():
        async with await KubeApi.from_environment(rig.cluster.kubeconfig, None, {}, requests_per_second=500) as kube:
            for watts in (1200, 1600, 1000, 2000, 1200, 2400, 1600, 1000, 1800, 1200):
                began = time.monotonic()
                patch = {"spec": {"powerBudget": {"watts": watts}}}
                await kube.merge_patch(ENERGY_POLICIES, "cut", patch)
                while not said(await kube.get(ENERGY_POLICIES, "cut"), watts):
                    assert time.monotonic() - began < 10
                    await asyncio.sleep(0.01)
                taken.append(time.monotonic() - began)

    def said(policy, watts):
        status = policy["status"]
        conditions = {entry["type"]: entry for entry in status["conditions"]}
        return (
            status["ledger"]["budgetWatts"] == watts
            and status["ledger"]["enforcedWatts"] == watts
            and conditions["Enforced"]["status"] == conditions["BudgetRespected"]["status"] == "True"
            and conditions["Enforced"]["observedGeneration"] == policy["metadata"]["generation"]
        )

    asyncio.run(measure())
    print(f"apply to status: median {statistics.median(taken):.3f} s, worst {max(taken):.3f} s")
    assert max(taken) <= 1.5
    assert sum(rig.caps().values()) == 1200


@pytest.mark.usefixtures("operator")
def test_of_two_policies_the_higher_priority_wins_a_pod_and_the_other_says_so(rig, with_policies, eventually):
    everything = {"namespaces": [NAMESPACE], "matchLabels": {"all": "yes"}}
    with_policies(policy_object("low", selector=everything), policy_object("high", priority=5))
    eventually("both are ready", lambda: rig.is_("low", "Ready", "True") and rig.is_("high", "Ready", "True"))
    owners = {uuid: gpu["policy"] for uuid, gpu in rig.granted().items()}
    assert owners == {f"GPU-{node}-{index}": ("high", "low")[index] for node in NODES for index in range(2)}
    status, reason, message = rig.condition("low", "Accepted")
    assert (status, reason) == ("True", "Overlapped")
    assert "2 pods selected here but governed by high" in message


@pytest.mark.usefixtures("operator")
def test_a_spec_that_cannot_be_acted_on_is_refused_in_status_and_the_last_one_stays(rig, with_policies, eventually):
    with_policies(policy_object("bad"))
    eventually("the policy is ready", lambda: rig.is_("bad", "Ready", "True"))
    before = rig.granted()
    broken = {"namespaces": [NAMESPACE], "matchLabels": {"no such key!": "x"}}
    patch = json.dumps({"spec": {"selector": broken | {"matchLabels": {"no such key!": "x", "tier": None}}}})
    rig.kubectl("patch", "energypolicy", "bad", "--type=merge", f"--patch={patch}")
    eventually("the spec is refused", lambda: rig.is_("bad", "Accepted", "False", "NotActedOn"))
    assert "'no such key!' cannot be a label key" in rig.condition("bad", "Accepted")[2]
    assert rig.granted() == before


@pytest.mark.usefixtures("operator")
def test_a_policy_from_enforce_to_observe_gives_everything_back(rig, with_policies, eventually):
    with_policies(policy_object("observed"))
    eventually("the policy is ready", lambda: rig.is_("observed", "Ready", "True", "Enforced"))
    rig.kubectl("patch", "energypolicy", "observed", "--type=merge", '--patch={"spec":{"mode":"Observe"}}')
    eventually("the policy observes", lambda: rig.is_("observed", "Ready", "True", "Observing"))
    assert set(rig.caps().values()) == {CAP_DEFAULT}
    assert {gpu["action"] for gpu in rig.granted().values()} == {"Observe"}
    eventually("the finalizer is off", lambda: "finalizers" not in rig.policy("observed")["metadata"])


@pytest.mark.usefixtures("operator")
def test_a_quiet_cluster_is_not_written_to(rig, with_policies, eventually):
    with_policies(policy_object("quiet"))
    eventually("the policy is ready", lambda: rig.is_("quiet", "Ready", "True"))

    def versions():
        objects = [rig.policy("quiet"), *(rig.plan(node) for node in NODES)]
        return [entry["metadata"]["resourceVersion"] for entry in objects]

    seen = {"at": time.monotonic(), "versions": versions()}

    def quiet_for_seven_seconds():
        now = versions()
        if now != seen["versions"]:
            seen.update(at=time.monotonic(), versions=now)
        return time.monotonic() - seen["at"] > 7

    eventually("nothing but Leases is written", quiet_for_seven_seconds)


@pytest.mark.usefixtures("operator")
def test_the_switch_stops_all_writing_of_plans(rig, with_policies, eventually):
    with_policies(policy_object("stoppable"))
    eventually("the policy is ready", lambda: rig.is_("stoppable", "Ready", "True"))
    rig.switch("stopped")
    eventually("the policy says so", lambda: rig.is_("stoppable", "Ready", "False", "WritesStopped"))
    before = rig.granted()
    rig.kubectl("patch", "energypolicy", "stoppable", "--type=merge", '--patch={"spec":{"powerBudget":{"watts":1000}}}')
    eventually(
        "the new budget is judged",
        lambda: rig.policy("stoppable")["status"]["ledger"]["budgetWatts"] == 1000,
    )
    assert rig.granted() == before
    rig.switch("enabled")
    eventually("the policy is ready again", lambda: rig.is_("stoppable", "Ready", "True"))
    assert {gpu["capWatts"] for gpu in rig.granted().values()} == {500}


@pytest.mark.usefixtures("operator")
def test_check_passes_on_a_working_installation_and_names_what_does_not(rig, with_policies, eventually):
    with_policies(policy_object("checked"))
    eventually("the policy is ready", lambda: rig.is_("checked", "Ready", "True"))
    passed = rig.command("check", "--timeout=40")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert f"ok   node {NODES[0]}: its agent lives, 2 GPUs reported, 1 enforced and read back" in passed.stdout
    rig.agents.nodes[NODES[1]].silent = True
    failed = rig.command("check", "--timeout=4")
    assert failed.returncode == 1
    assert f"FAIL node {NODES[1]}" in failed.stdout


@pytest.mark.usefixtures("operator")
def test_release_restores_everything_and_takes_the_finalizers_off(rig, with_policies, eventually):
    with_policies(policy_object("released"))
    eventually("the policy is ready", lambda: rig.is_("released", "Ready", "True"))
    rig.switch("enabled")
    done = rig.command("release", "--timeout=30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(rig.caps().values()) == {CAP_DEFAULT}
    assert rig.granted() == {}
    assert "finalizers" not in rig.policy("released")["metadata"]
    assert "every GPU is restored and every finalizer is off" in done.stdout


@pytest.mark.usefixtures("operator")
def test_a_node_that_cannot_answer_holds_a_deleted_policy_until_a_person_frees_it(rig, with_policies, eventually):
    with_policies(policy_object("held"))
    eventually("the policy is ready", lambda: rig.is_("held", "Ready", "True"))
    rig.agents.nodes[NODES[1]].silent = True
    rig.kubectl("delete", "energypolicy", "held", "--wait=false")
    eventually("the condition says which node", lambda: rig.is_("held", "Released", "False", "NodeUnreachable"), 60.0)
    message = rig.condition("held", "Released")[2]
    command = f'kubectl annotate nodeenergyplan {NODES[1]} flyball.dev/released-by-hand="<why>"'
    assert command in message
    failed = rig.command("release", "--timeout=3")
    assert failed.returncode == 1
    assert command in failed.stdout
    rig.switch("enabled")
    rig.kubectl(*command.replace('"<why>"', "scrapped").split()[1:])
    eventually("the policy is gone", lambda: rig.policy("held") is None)
    rig.kubectl("annotate", "nodeenergyplan", NODES[1], "flyball.dev/released-by-hand-")
    node = rig.agents.nodes[NODES[1]]
    node.caps = dict.fromkeys(node.caps, CAP_DEFAULT)


def test_when_the_leader_is_killed_the_other_takes_over_with_a_higher_epoch(rig, with_policies, eventually):
    with rig.operator("b") as first:
        eventually("one leads", lambda: rig.epoch() > 0 and leader(rig).startswith("b_"))
        second = rig.start_operator("c")
        try:
            with_policies(policy_object("survivor"))
            eventually("the policy is ready", lambda: rig.is_("survivor", "Ready", "True"))
            old = rig.epoch()
            first.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            eventually("the other leads", lambda: leader(rig).startswith("c_"), 60.0)
            eventually("every plan carries its epoch", lambda: rig.epoch() > old)
            rig.kubectl(
                "patch", "energypolicy", "survivor", "--type=merge", '--patch={"spec":{"powerBudget":{"watts":1000}}}'
            )
            eventually("the new leader acts", lambda: rig.caps()[f"GPU-{NODES[0]}-0"] == 500)
            print(f"killed leader to first act of the next: {time.monotonic() - killed:.1f} s")
            stale = rig.plan(NODES[0])
            stale["spec"]["leaderEpoch"] = old
            stale["metadata"] = {"name": NODES[0]}
            refused = rig.cluster.kubectl(
                "apply", "--server-side", "--force-conflicts", "--filename=-", input=json.dumps(stale)
            )
            assert refused.returncode != 0
            assert f"leader epoch {old} is older than {rig.epoch()}" in refused.stderr
            assert second.poll() is None
        finally:
            rig.kubectl("delete", "energypolicy", "survivor", "--ignore-not-found", "--timeout=40s")
            second.terminate()
            assert second.wait(15) == 0


def leader(rig):
    path = ["get", "lease", "flyball-operator", f"--namespace={NAMESPACE}", "-o", "jsonpath={.spec.holderIdentity}"]
    return rig.cluster.kubectl(*path).stdout


def test_a_leader_whose_lease_is_taken_ends_with_an_exit_code_that_says_so(rig, eventually):
    process = rig.start_operator("robbed")
    try:
        eventually("it leads", lambda: leader(rig).startswith("robbed_"))

        async def rob():
            async with await KubeApi.from_environment(rig.cluster.kubeconfig, None, {}) as kube:
                patch = {"spec": {"holderIdentity": "thief"}}
                await kube.merge_patch(LEASES, "flyball-operator", patch, NAMESPACE)

        asyncio.run(rob())
        assert process.wait(20) == 3
    finally:
        process.kill()
        process.wait()
        rig.kubectl("delete", "lease", "flyball-operator", f"--namespace={NAMESPACE}")


def test_an_api_server_that_restarts_is_survived(rig, local_cluster, request, with_policies, eventually):
    if request.config.getoption("--cluster") == "current":
        return  # somebody else's API server is not ours to restart
    with rig.operator("steady") as process:
        with_policies(policy_object("steady"))
        eventually("the policy is ready", lambda: rig.is_("steady", "Ready", "True"), 60.0)
        local_cluster.restart("kube-apiserver")
        rig.kubectl(
            "patch", "energypolicy", "steady", "--type=merge", '--patch={"spec":{"powerBudget":{"watts":1000}}}'
        )
        eventually("the operator acts again", lambda: rig.caps()[f"GPU-{NODES[0]}-0"] == 500, 60.0)
        assert process.poll() is None
        rig.kubectl("delete", "energypolicy", "steady", "--timeout=40s")
