"""A node without Kubernetes: the real actuator and agent over the real C library, between stand-ins for the rest."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
import yaml
from aiohttp import web

from flyball_sim.gpu.driver import GpuDriver
from flyball_sim.gpu.library import build_library
from flyball_sim.gpu.statefile import GpuStateFile
from flyball_sim.gpu.types import GPU_TYPES

BIN = Path(sys.executable).parent
NODE = "node-a"


class FakeEngine:
    """Serves a vLLM metrics page that a test can change, break or delay."""

    def __init__(self, host="127.0.0.1"):
        self.generated = 0.0
        self.prompt = 0.0
        self.first_tokens = {0.25: 0, 0.5: 0, float("inf"): 0}
        self.without = ()
        self.status = 200
        self.requests = 0
        self.accepts = []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                engine.requests += 1
                engine.accepts.append(self.headers.get("Accept"))
                body = engine.page()
                self.send_response(engine.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                """A killed agent resets its connections: no news."""

        self.server = Server((host, 0), Handler)
        self.server.daemon_threads = True
        self.host, self.port = host, self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def page(self):
        labels = 'engine="0",model_name="llama"'
        lines = {
            "num_requests_running": f"vllm:num_requests_running{{{labels}}} 3.0",
            "num_requests_waiting": f"vllm:num_requests_waiting{{{labels}}} 0.0",
            "kv_cache_usage_perc": f"vllm:kv_cache_usage_perc{{{labels}}} 0.25",
            "prompt_tokens_total": f"vllm:prompt_tokens_total{{{labels}}} {self.prompt}",
            "generation_tokens_total": f"vllm:generation_tokens_total{{{labels}}} {self.generated}",
        }
        for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
            rows = [
                f'vllm:{name}_bucket{{{labels},le="{"+Inf" if bound == float("inf") else bound}"}} {count}'
                for bound, count in self.first_tokens.items()
            ]
            rows += [
                f"vllm:{name}_sum{{{labels}}} 1.5",
                f"vllm:{name}_count{{{labels}}} {max(self.first_tokens.values())}",
            ]
            lines[name] = "\n".join(rows)
        kept = [text for name, text in lines.items() if name not in self.without]
        return ("# HELP vllm:num_requests_running Requests.\n" + "\n".join(kept) + "\n").encode()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def _field(number, content):
    size, head = len(content), bytes([number << 3 | 2])
    while size > 0x7F:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + content


def encode_list(*pods):
    """A ListPodResourcesResponse of (namespace, pod, container, resource, device ids)."""
    answer = b""
    for namespace, pod, container, resource, devices in pods:
        ids = b"".join(_field(2, device.encode()) for device in devices)
        held = _field(2, _field(1, resource.encode()) + ids)
        topology = bytes([3 << 3 | 0, 7])  # a field we do not read
        body = _field(1, container.encode()) + topology + held
        answer += _field(1, _field(1, pod.encode()) + _field(2, namespace.encode()) + _field(3, body))
    return answer


class FakeKubelet:
    """PodResources v1 by grpcio, so that our HTTP/2 speaks with a real gRPC server."""

    def __init__(self, path):
        self.pods = []
        kubelet = self

        class Handler(grpc.GenericRpcHandler):
            def service(self, details):
                if details.method != "/v1.PodResourcesLister/List":
                    return None
                return grpc.unary_unary_rpc_method_handler(lambda _request, _context: encode_list(*kubelet.pods))

        self.server = grpc.server(ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((Handler(),))
        self.server.add_insecure_port(f"unix:{path}")
        self.server.start()

    def close(self):
        self.server.stop(None).wait()


class FakeApi:
    """The few requests that the agent makes of the API server, and a switch to make it go away."""

    def __init__(self, port=0):
        self.plan = None
        self.switch = None
        self.version = 10
        self.statuses = []
        self.lease_writes = 0
        self.failing = False
        self.lease = None
        self._watchers = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = port
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def status(self):
        return self.statuses[-1] if self.statuses else {}

    def gpu(self, index):
        return next((gpu for gpu in self.status.get("gpus", ()) if gpu.get("index", 0) == index), {})

    def put_plan(self, spec):
        self._loop.call_soon_threadsafe(self._put_plan, spec)

    def put_switch(self, value):
        self._loop.call_soon_threadsafe(self._put_switch, value)

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _put_plan(self, spec):
        self.version += 1
        kind = "MODIFIED" if self.plan else "ADDED"
        status = self.plan.get("status", {}) if self.plan else {}
        metadata = {"name": NODE, "uid": "u", "resourceVersion": str(self.version)}
        self.plan = {"metadata": metadata, "spec": spec, "status": status}
        self._tell("nodeenergyplans", kind, self.plan)

    def _put_switch(self, value):
        self.version += 1
        kind = "MODIFIED" if self.switch else "ADDED"
        metadata = {"name": "flyball-switch", "namespace": "flyball-system", "resourceVersion": str(self.version)}
        self.switch = {"metadata": metadata, "data": {"writes": value}}
        self._tell("configmaps", kind, self.switch)

    def _tell(self, plural, kind, item):
        for wanted, queue in self._watchers:
            if wanted == plural:
                queue.put_nowait({"type": kind, "object": item})

    def _serve(self):
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        plans = "/apis/flyball.dev/v1alpha1/nodeenergyplans"
        leases = "/apis/coordination.k8s.io/v1/namespaces/flyball-system/leases"
        app.router.add_get(plans, self._plans)
        app.router.add_patch(plans + "/{name}/status", self._apply)
        app.router.add_get("/api/v1/namespaces/flyball-system/configmaps", self._switches)
        app.router.add_get(leases + "/{name}", self._get_lease)
        app.router.add_post(leases, self._put_lease)
        app.router.add_put(leases + "/{name}", self._put_lease)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        self._loop.run_until_complete(site.start())
        self.port = site._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(runner.cleanup())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _plans(self, request):
        return await self._list(request, "nodeenergyplans", self.plan)

    async def _switches(self, request):
        return await self._list(request, "configmaps", self.switch)

    async def _list(self, request, plural, item):
        if self.failing:
            return web.json_response({"kind": "Status", "code": 500, "message": "injected"}, status=500)
        if "watch" not in request.query:
            items = [item] if item else []
            return web.json_response({"items": items, "metadata": {"resourceVersion": str(self.version)}})
        queue = asyncio.Queue()
        self._watchers.append((plural, queue))
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                event = await queue.get()
                await response.write(json.dumps(event).encode() + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            self._watchers.remove((plural, queue))
            raise

    async def _apply(self, request):
        if self.failing or self.plan is None:
            code = 500 if self.failing else 404
            return web.json_response({"kind": "Status", "code": code, "message": "injected"}, status=code)
        body = yaml.safe_load(await request.text())
        assert request.query["fieldManager"] == "flyball-agent"
        self.statuses.append(body["status"])
        self.plan["status"] = body["status"]
        return web.json_response(self.plan)

    async def _get_lease(self, _):
        if self.lease is None:
            return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)
        return web.json_response(self.lease)

    async def _put_lease(self, request):
        self.lease_writes += 1
        self.lease = await request.json()
        self.lease["metadata"]["resourceVersion"] = str(self.lease_writes)
        return web.json_response(self.lease)


class Line:
    """A plain client of the actuator's socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")
        self.number = 0

    def ask(self, op, **fields):
        self.number += 1
        self.raw(json.dumps({"op": op, "id": self.number, **fields}).encode() + b"\n")
        return self.hear()

    def raw(self, line):
        self.socket.sendall(line)

    def hear(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def close(self):
        self.file.close()
        self.socket.close()


class AgentNode:
    """Simulated GPUs, the kubelet's socket, and Flyball's two processes."""

    def __init__(self, directory, library, gpus):
        self.directory = directory
        self.library = library
        self.state = GpuStateFile.create(
            directory / "flyball-gpus.state", [GPU_TYPES["H100-SXM5"]] * gpus, seed=7, node_name=NODE
        )
        self.gpus = self.state.gpus
        self.socket = directory / "actuator.sock"
        self.relay = directory / "podresources.sock"
        self.kubelet_socket = directory / "kubelet.sock"
        self.record = directory / "state" / "actuator.json"
        self.kubelet = FakeKubelet(self.kubelet_socket)
        self._api = None
        self.engines = []
        self.processes = []
        self.lines = []
        self.log_path = directory / "log"
        self._stop = threading.Event()
        self.busy = set()
        self._driver = GpuDriver(self.state)
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()

    @property
    def api(self):
        if self._api is None:
            self._api = FakeApi()
        return self._api

    def _tick(self):
        while not self._stop.wait(0.05):
            for index in self.busy:
                self.gpus[index].write_load(0.6, 0.5, 1.0, time.monotonic_ns(), os.getpid())
            self._driver.tick()

    def start_actuator(self, *arguments, wait=True, environment=None, agent_uid=None):
        command = [
            BIN / "flyball-actuator",
            f"--socket={self.socket}",
            f"--podresources-socket={self.relay}",
            f"--kubelet-podresources={self.kubelet_socket}",
            f"--record={self.record}",
            f"--agent-uid={os.getuid() if agent_uid is None else agent_uid}",
            f"--nvml-library={self.library}",
            *arguments,
        ]
        if wait:
            self.socket.unlink(missing_ok=True)
        started = self._start(command, environment)
        deadline = time.monotonic() + 15
        while wait and not self._answers():
            assert started.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)
        return started

    def _kubeconfig(self):
        kubeconfig = self.directory / "kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.api.port}"}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        return kubeconfig

    def start_agent(self, *arguments, kubeconfig=None):
        self.http_port = _free_port()
        command = [
            BIN / "flyball-agent",
            f"--node-name={NODE}",
            "--bind-address=127.0.0.1",
            f"--port={self.http_port}",
            f"--actuator-socket={self.socket}",
            f"--podresources-socket={self.relay}",
            f"--kubeconfig={kubeconfig or self._kubeconfig()}",
            f"--service-account-dir={self.directory / 'none'}",
            *arguments,
        ]
        return self._start(command, None)

    def _start(self, command, environment):
        values = {**os.environ, "FLYBALL_NVML_STATE": str(self.state.path), **(environment or {})}
        with self.log_path.open("ab") as log:
            started = subprocess.Popen([str(part) for part in command], env=values, stdout=log, stderr=log)
        self.processes.append(started)
        return started

    def _answers(self):
        try:
            line = Line(self.socket)
        except OSError:
            return False
        try:
            return bool(line.ask("status"))
        finally:
            line.close()

    def log(self):
        return self.log_path.read_text()

    def line(self):
        line = Line(self.socket)
        self.lines.append(line)
        return line

    def add_engine(self):
        engine = FakeEngine()
        self.engines.append(engine)
        return engine

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def spec(self, *, epoch=1, grant=1, clocks=(1200, 1400), cap=500, action="Enforce", gpus=None, slo=None, **gpu):
        """A plan that puts the first engines' pods on the first GPUs."""
        entries = []
        for index in range(len(self.engines)) if gpus is None else gpus:
            engine = self.engines[index]
            entry = {
                "uuid": self.gpus[index].uuid,
                "grant": grant,
                "action": action,
                "policy": f"p{index}",
                "podIp": engine.host,
                **gpu,
            }
            if cap is not None and action != "Release":
                entry |= {"capWatts": cap, "ceilingWatts": max(cap, 700)}
            entries.append(entry)
        policies = [
            {
                "name": f"p{index}",
                "uid": f"uid-{index}",
                "engine": {"port": engine.port},
                "controller": {
                    "type": "Fixed",
                    "fixed": {"clocks": [{"role": "unified", "minMegahertz": clocks[0], "maxMegahertz": clocks[1]}]},
                },
                "failSafe": {"metricsStaleSeconds": 2, "actuatorLeaseSeconds": 2},
                **({"slo": slo} if slo else {}),
            }
            for index, engine in enumerate(self.engines)
        ]
        return {"leaderEpoch": epoch, "policies": policies, "gpus": entries}

    def close(self):
        for line in self.lines:
            line.close()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for engine in self.engines:
            engine.close()
        if self._api is not None:
            self._api.close()
        self.kubelet.close()
        self._stop.set()
        self._ticker.join()
        self.state.close()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def nvml_library():
    return build_library()


@pytest.fixture
def make_node(tmp_path, nvml_library):
    nodes = []

    def make(gpus=2):
        node = AgentNode(tmp_path, nvml_library, gpus)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def node(make_node):
    return make_node()


@pytest.fixture
def memory_of():
    """Resident set of a process in MB, and the CPU seconds it has used."""

    def measure(pid):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        tasks = Path(f"/proc/{pid}/task").iterdir()
        seconds = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        return int(re.search(r"Rss:\s+(\d+)", rollup)[1]) / 1024, seconds

    return measure
