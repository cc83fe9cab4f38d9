"""What a user of Kubernetes expects of a node holds on a simulated one, with a real API server."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path

import grpc
import pytest

from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.node.podresources import decode

TOKEN_SCRIPT = """
import json, os, ssl, urllib.request
account = os.environ["ACCOUNT"]
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
with open(account + "/token") as file:
    token = file.read()
body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
request = urllib.request.Request(
    f"https://{host}:{port}/apis/authentication.k8s.io/v1/selfsubjectreviews",
    data=json.dumps(body).encode(),
    headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"},
)
context = ssl.create_default_context(cafile=account + "/ca.crt")
answer = json.load(urllib.request.urlopen(request, context=context))
print(json.dumps({"user": answer["status"]["userInfo"], "uid": os.getuid(), "env": dict(os.environ)}))
"""

SERVER_SCRIPT = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists(sys.argv[2]) else 503)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer((sys.argv[1], 8000), Handler).serve_forever()
"""


@pytest.fixture
def namespace(cluster, fleet, request):
    """A namespace of the test's own; it depends on the fleet, so that its pods can end before their nodes."""
    del fleet
    name = f"t-{next(_numbers)}-{request.node.name.replace('_', '-')[:40].strip('-')}"
    cluster.kubectl("create", "namespace", name, check=True)
    yield name
    # Whatever would make new pods goes with them; the namespace's own deletion would begin after seconds only.
    cluster.kubectl("delete", "deployments,daemonsets,jobs,pods", "--all", "-n", name, timeout_seconds=60)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


_numbers = itertools.count()


class Namespace:
    """kubectl in one namespace."""

    def __init__(self, cluster, name, eventually):
        self.cluster, self.name, self.eventually = cluster, name, eventually

    def apply(self, *objects):
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.cluster.kubectl("apply", "-n", self.name, "-f", "-", input=json.dumps(document), check=True)

    def kubectl(self, *words):
        return self.cluster.kubectl(*words, "-n", self.name)

    def get(self, kind, name):
        answer = self.kubectl("get", kind, name, "-o", "json")
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def wait(self, what, kind, name, condition, within_seconds=30.0):
        self.eventually(
            f"{what}: {self.get(kind, name)}",
            lambda: bool((found := self.get(kind, name)) and condition(found)),
            within_seconds,
        )
        return self.get(kind, name)


@pytest.fixture
def here(cluster, namespace, eventually):
    return Namespace(cluster, namespace, eventually)


def pod(name, script=None, **changes):
    container = {"name": "c", "image": "example/test:1", "command": ["python", "-c", script or "input"]}
    container.update(changes.pop("container", {}))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": [container], **changes},
    }


def template_of(found, app):
    return {"metadata": {"labels": {"app": app}}, "spec": found["spec"]}


SLEEP = "import time; time.sleep(600)"


def phase(wanted):
    return lambda found: found.get("status", {}).get("phase") == wanted


def is_ready(found):
    conditions = {entry["type"]: entry["status"] for entry in found.get("status", {}).get("conditions", ())}
    return conditions.get("Ready") == "True"


def container_of(found):
    return found["status"]["containerStatuses"][0]


def node_of(fleet, found):
    return fleet.node(found["spec"]["nodeName"])


def host_container(fleet, found):
    name = f"{found['metadata']['namespace']}/{found['metadata']['name']}"
    return node_of(fleet, found).container(name, "c")


def is_alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nodes_are_ready_and_have_gpus(cluster, fleet, eventually):
    del fleet
    node = json.loads(cluster.kubectl("get", "node", "gpu-0", "-o", "json", check=True).stdout)
    ready = next(entry for entry in node["status"]["conditions"] if entry["type"] == "Ready")
    assert ready["status"] == "True"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.36.2"
    assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    duration = ("get", "lease", "gpu-0", "-n", "kube-node-lease", "-o", "jsonpath={.spec.leaseDurationSeconds}")
    eventually("its Lease", lambda: cluster.kubectl(*duration).stdout == "40")


def test_a_deployment_becomes_available_when_its_readiness_probe_holds(here, fleet):
    template = pod(
        "",
        container={
            "command": ["python", "-c", SERVER_SCRIPT],
            "args": ["$(POD_IP)", "/data/ready"],
            "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
            "ports": [{"name": "http", "containerPort": 8000}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        },
        volumes=[{"name": "data", "hostPath": {"path": "/srv/data"}}],
    )
    template = template_of(template, "web")
    here.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template},
        }
    )

    def pods():
        return json.loads(here.kubectl("get", "pods", "-l", "app=web", "-o", "json").stdout)["items"]

    def running():
        statuses = [each["status"].get("containerStatuses", [{"state": {}}])[0] for each in pods()]
        return len(statuses) == 2 and all("running" in status["state"] for status in statuses)

    here.eventually("two running pods", running)
    assert not any(is_ready(each) for each in pods())
    for node in fleet.nodes.values():
        data = node.rootfs / "srv/data"
        data.mkdir(parents=True, exist_ok=True)
        (data / "ready").touch()
    found = here.wait("available", "deployment", "web", lambda each: each["status"].get("availableReplicas") == 2)
    assert found["status"]["readyReplicas"] == 2
    addresses = {each["status"]["podIP"] for each in pods()}
    assert len(addresses) == 2
    assert all(address.startswith("127.") for address in addresses)


def test_a_pods_token_names_its_pod_and_its_node(here, fleet):
    mount = "/var/run/secrets/kubernetes.io/serviceaccount"
    here.apply(
        pod(
            "me",
            container={
                "command": ["python", "-c", TOKEN_SCRIPT],
                "env": [{"name": "ACCOUNT", "value": mount}],
            },
            restartPolicy="Never",
            securityContext={"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532, "runAsNonRoot": True},
        )
    )
    found = here.wait("its end", "pod", "me", lambda each: each["status"].get("phase") in {"Succeeded", "Failed"})
    log = Path(host_container(fleet, found)["log"]).read_text()
    assert found["status"]["phase"] == "Succeeded", log
    answer = json.loads(log)
    assert answer["user"]["username"] == f"system:serviceaccount:{here.name}:default"
    extra = answer["user"]["extra"]
    assert extra["authentication.kubernetes.io/pod-name"] == ["me"]
    assert extra["authentication.kubernetes.io/node-name"] == [found["spec"]["nodeName"]]
    assert answer["uid"] == (65532 if os.geteuid() == 0 else os.geteuid())
    inherited = set(answer["env"]) & set(os.environ)
    assert inherited <= {"PATH", "HOME", "LANG", "TZ", "LC_CTYPE", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}


def test_volumes_and_env_reach_the_process(here, fleet):
    script = """
import os, pathlib, sys
for path in sys.argv[1:]:
    print(pathlib.Path(path).read_text())
print(os.environ["LEVEL"], os.environ["PLACE"])
"""
    mounts = {"settings": "/etc/settings", "keys": "/etc/keys", "info": "/etc/info"}
    here.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"level": "high"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"word": "hush"}},
        pod(
            "reader",
            container={
                "command": ["python", "-c", script],
                "args": ["/etc/settings/level", "/etc/keys/word", "/etc/info/name"],
                "env": [
                    {"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "level"}}},
                    {"name": "PLACE", "value": "$(LEVEL)-place"},
                ],
                "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
            },
            restartPolicy="Never",
            volumes=[
                {"name": "settings", "configMap": {"name": "m"}},
                {"name": "keys", "secret": {"secretName": "s"}},
                {
                    "name": "info",
                    "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]},
                },
            ],
        ),
    )
    found = here.wait("its end", "pod", "reader", phase("Succeeded"))
    log = Path(host_container(fleet, found)["log"]).read_text()
    assert log.split() == ["high", "hush", "reader", "high", "high-place"]


def test_a_pod_waits_for_a_config_map_and_starts_when_it_comes(here):
    here.apply(
        pod(
            "late",
            "import sys; print(open(sys.argv[1]).read())",
            container={"args": ["/etc/m/k"], "volumeMounts": [{"name": "m", "mountPath": "/etc/m"}]},
            restartPolicy="Never",
            volumes=[{"name": "m", "configMap": {"name": "late"}}],
        )
    )
    found = here.wait(
        "an explanation",
        "pod",
        "late",
        lambda each: (
            "late"
            in each["status"].get("containerStatuses", [{}])[0].get("state", {}).get("waiting", {}).get("message", "")
        ),
    )
    assert found["status"]["phase"] == "Pending"
    here.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}, "data": {"k": "v"}})
    here.wait("its end", "pod", "late", phase("Succeeded"))


def test_a_crash_looping_container_backs_off(here):
    here.apply(pod("crash", "raise SystemExit(3)"))
    found = here.wait(
        "the second restart",
        "pod",
        "crash",
        lambda each: "containerStatuses" in each["status"] and container_of(each)["restartCount"] >= 2,
    )
    found = here.wait(
        "the wait for the next one", "pod", "crash", lambda each: "waiting" in container_of(each)["state"]
    )
    state = container_of(found)
    assert state["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert state["lastState"]["terminated"]["exitCode"] == 3
    assert found["status"]["phase"] == "Running"


def test_a_killed_container_is_started_again(here, fleet):
    here.apply(pod("victim", SLEEP))
    found = here.wait("ready", "pod", "victim", is_ready)
    here.eventually("its process in the status file", lambda: host_container(fleet, found)["pid"] is not None)
    old = host_container(fleet, found)["pid"]
    os.kill(old, signal.SIGKILL)
    found = here.wait(
        "ready again", "pod", "victim", lambda each: is_ready(each) and container_of(each)["restartCount"] == 1
    )
    assert container_of(found)["lastState"]["terminated"]["exitCode"] == 137
    here.eventually("a new process", lambda: host_container(fleet, found)["pid"] not in {old, None})


def test_a_deleted_pod_gets_term_and_time_to_end(here, fleet, tmp_path):
    mark = tmp_path / "ended-well"
    script = f"""
import signal, sys, time
def end(*_):
    time.sleep(0.5)
    open({str(mark)!r}, "w").write("yes")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(600)
"""
    here.apply(pod("polite", script))
    found = here.wait("ready", "pod", "polite", is_ready)
    here.eventually("it to run", lambda: Path(host_container(fleet, found)["log"]).read_text() == "up\n")
    here.kubectl("delete", "pod", "polite", "--timeout=20s")
    assert here.get("pod", "polite") is None
    assert mark.read_text() == "yes"


def test_a_deaf_pod_is_killed_after_its_grace(here, fleet):
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    here.apply(pod("deaf", script, terminationGracePeriodSeconds=1))
    found = here.wait("ready", "pod", "deaf", is_ready)
    here.eventually("it to run", lambda: "deaf" in Path(host_container(fleet, found)["log"]).read_text())
    pid = host_container(fleet, found)["pid"]
    here.kubectl("delete", "pod", "deaf", "--timeout=20s")
    assert here.get("pod", "deaf") is None
    assert not is_alive(pid)


def test_a_job_completes_and_a_failing_one_fails(here):
    for name, code in (("good", 0), ("bad", 4)):
        template = template_of(pod("", f"raise SystemExit({code})", restartPolicy="Never"), name)
        here.apply(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": name},
                "spec": {"backoffLimit": 0, "template": template},
            }
        )
    here.wait("success", "job", "good", lambda each: each["status"].get("succeeded") == 1)
    here.wait("failure", "job", "bad", lambda each: each["status"].get("failed") == 1)


def test_a_daemon_set_runs_on_every_node(here):
    template = template_of(pod("", SLEEP), "d")
    here.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "d"},
            "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template},
        }
    )
    found = here.wait("two ready pods", "daemonset", "d", lambda each: each["status"].get("numberReady") == 2)
    assert found["status"]["desiredNumberScheduled"] == 2


def test_init_containers_run_first_and_sidecars_beside(here, fleet):
    write = "open(__import__('sys').argv[1], 'a').write('init ')"
    shared = {"volumeMounts": [{"name": "work", "mountPath": "/work"}], "image": "x"}
    found = pod(
        "steps",
        "import sys; print(open(sys.argv[1]).read() + 'main')",
        container={"args": ["/work/log"], **shared},
        restartPolicy="Never",
        volumes=[{"name": "work", "emptyDir": {}}],
        initContainers=[
            {"name": "one", "command": ["python", "-c", write, "/work/log"], **shared},
            {"name": "side", "command": ["python", "-c", SLEEP], "restartPolicy": "Always", **shared},
            {"name": "two", "command": ["python", "-c", write, "/work/log"], **shared},
        ],
    )
    here.apply(found)
    found = here.wait("success", "pod", "steps", phase("Succeeded"))
    assert Path(host_container(fleet, found)["log"]).read_text().strip() == "init init main"


def test_a_liveness_probe_that_fails_restarts_the_container(here):
    probe = {"exec": {"command": ["test", "-e", "/work/alive"]}, "periodSeconds": 1, "failureThreshold": 1}
    here.apply(
        pod(
            "sick",
            SLEEP,
            container={"livenessProbe": probe, "volumeMounts": [{"name": "work", "mountPath": "/work"}]},
            volumes=[{"name": "work", "emptyDir": {}}],
        )
    )
    here.wait(
        "a restart",
        "pod",
        "sick",
        lambda each: "containerStatuses" in each["status"] and container_of(each)["restartCount"] >= 1,
    )


def test_a_pods_events_tell_its_life(here):
    here.apply(pod("story", SLEEP))
    here.wait("ready", "pod", "story", is_ready)
    here.kubectl("delete", "pod", "story", "--timeout=20s")

    def reasons():
        events = json.loads(here.kubectl("get", "events", "-o", "json").stdout)["items"]
        return {each["reason"] for each in events if each["involvedObject"]["name"] == "story"}

    here.eventually("the events", lambda: reasons() >= {"Scheduled", "Started", "Killing"}, 10)


def test_an_image_nobody_knows_is_explained(here):
    odd = pod("odd")
    del odd["spec"]["containers"][0]["command"]
    here.apply(odd)
    found = here.wait(
        "the reason",
        "pod",
        "odd",
        lambda each: (
            container_of(each)["state"].get("waiting", {}).get("reason") == "ErrImagePull"
            if "containerStatuses" in each["status"]
            else False
        ),
    )
    assert "give the container a command" in container_of(found)["state"]["waiting"]["message"]


def devices_on(node):
    """{namespace/pod: {container: [device ids]}} as PodResources lists them."""
    with grpc.insecure_channel(
        f"unix:{node.podresources_socket}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        answer = channel.unary_unary("/v1.PodResourcesLister/List")(b"", timeout=5)
    found = {}
    for _, pod_bytes in decode(answer):
        fields = decode(pod_bytes)
        texts = {number: value.decode() for number, value in fields if number in {1, 2}}
        containers = {}
        for number, container in fields:
            if number == 3:
                parts = decode(container)
                name = next(value for key, value in parts if key == 1).decode()
                devices = [decode(value) for key, value in parts if key == 2]
                containers[name] = [value.decode() for device in devices for key, value in device if key == 2]
        found[f"{texts[2]}/{texts[1]}"] = containers
    return found


def test_gpus_are_allocated_and_told_by_pod_resources(here, fleet):
    script = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'], flush=True); " + SLEEP
    limits = {"resources": {"limits": {"nvidia.com/gpu": 2}}}
    here.apply(pod("engine", script, container=limits, nodeName="gpu-1"))
    found = here.wait("ready", "pod", "engine", is_ready)
    node = fleet.node("gpu-1")
    with GpuStateFile.open(node.gpu_state) as state:
        uuids = [gpu.uuid for gpu in state.gpus]
    listed = devices_on(node)[f"{here.name}/engine"]["c"]
    assert listed == uuids[:2]
    here.eventually(
        "what the container sees",
        lambda: Path(host_container(fleet, found)["log"]).read_text().strip() == ",".join(listed),
    )
    here.kubectl("delete", "pod", "engine", "--grace-period=1", "--timeout=20s")
    assert f"{here.name}/engine" not in devices_on(node)


def test_a_pod_that_asks_for_more_gpus_than_a_node_has_fails_there(here):
    limits = {"resources": {"limits": {"nvidia.com/gpu": 9}}}
    # Bound by hand: the scheduler would not.
    here.apply(pod("greedy", SLEEP, container=limits, nodeName="gpu-0"))
    found = here.wait("failure", "pod", "greedy", phase("Failed"))
    assert found["status"]["reason"] == "UnexpectedAdmissionError"
    assert "asks for 9 GPUs" in found["status"]["message"]


def test_the_gpus_run_beside_the_pods(fleet, eventually):
    with GpuStateFile.open(fleet.node("gpu-0").gpu_state, writable=False) as state:
        before = state.gpus[0].energy_joules
        eventually("energy to be used", lambda: state.gpus[0].energy_joules > before, 5)
