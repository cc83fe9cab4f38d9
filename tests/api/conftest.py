"""A fake API server for what a real one will not do on demand: expire, hang, reset, forget to tell."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from flyball_api.kube import KubeApi
from flyball_api.kube_credentials import KubeCredentials


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Fault:
    """Answers the next `times` requests that `matches` instead of the server."""

    matches: Callable[[web.Request], bool]
    answer: Callable[[web.Request], Any]
    times: int


@dataclass
class Watch:
    path: str
    request: web.Request
    queue: asyncio.Queue = field(default_factory=asyncio.Queue)


def merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def is_watch(request: web.Request) -> bool:
    return "watch" in request.query


def is_list(request: web.Request) -> bool:
    return request.method == "GET" and not is_watch(request)


class FakeApiServer:
    """Objects with resource versions, paged lists, watches with bookmarks, 409, 410, minimal server-side apply."""

    is_watch = staticmethod(is_watch)
    is_list = staticmethod(is_list)

    def __init__(self):
        self.version = 100
        self.oldest_watchable = 0
        self.objects: dict[str, dict[str, dict]] = {}
        self.log: list[tuple[int, str, str, dict]] = []
        self.watches: list[Watch] = []
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.snapshots: dict[str, tuple[int, list[dict]]] = {}
        self.accepted_token: str | None = None
        self._ids = itertools.count(1)
        self._runner: web.AppRunner | None = None
        self.port = 0

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self):
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self):
        self.end_watches()
        await self._runner.cleanup()

    def client(self, source=None, credentials=None, **options) -> KubeApi:
        credentials = credentials or KubeCredentials(server=f"http://127.0.0.1:{self.port}")
        return KubeApi(source or FixedSource(credentials), credentials, **options)

    # -- what a test does behind the clients' backs -------------------------------------------------------------

    def put(self, collection: str, name: str, tell: bool = True, **content):
        """Create or change one object; without `tell` no watch ever hears of it."""
        old = self.objects.get(collection, {}).get(name)
        self._store(collection, name, {**(old or {}), **content}, tell)

    def remove(self, collection: str, name: str, tell: bool = True):
        self.version += 1
        gone = self.objects[collection].pop(name)
        gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
        if tell:
            self._tell(collection, "DELETED", gone)

    def bookmark(self):
        for watch in self.watches:
            watch.queue.put_nowait({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}})

    def expire_history(self):
        self.oldest_watchable = self.version

    def send_to_watches(self, event):
        for watch in self.watches:
            watch.queue.put_nowait(event)

    def end_watches(self):
        self.send_to_watches(None)

    def reset_watches(self):
        for watch in self.watches:
            watch.request.transport.abort()

    def fail(self, status, *, times=1, matches=lambda _: True, headers=None, **body):
        def answer(_request):
            return web.json_response({"kind": "Status", "code": status, **body}, status=status, headers=headers)

        self.faults.append(Fault(matches, answer, times))

    def answer_raw(self, raw: bytes, *, status=200, matches=lambda _: True):
        self.faults.append(Fault(matches, lambda _: web.Response(body=raw, status=status), 1))

    def hang(self, *, times=1, matches=lambda _: True):
        async def answer(_request):
            await asyncio.sleep(3600)

        self.faults.append(Fault(matches, answer, times))

    def requests(self, method=None, watch=None):
        return [
            seen
            for seen in self.seen
            if (method is None or seen.method == method) and (watch is None or ("watch" in seen.query) == watch)
        ]

    # -- the server ---------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        self.seen.append(Seen(request.method, request.path, dict(request.query), dict(request.headers), body))
        for fault in self.faults:
            if fault.times > 0 and fault.matches(request):
                fault.times -= 1
                answer = fault.answer(request)
                return await answer if asyncio.iscoroutine(answer) else answer
        if self.accepted_token not in (None, request.headers.get("Authorization", "").removeprefix("Bearer ")):
            return self._status(401, "Unauthorized", "no")
        if is_watch(request):
            return await self._watch(request)
        collection, name = self._split(request.path)
        handler = getattr(self, f"_{request.method.lower()}")
        return handler(request, collection, name, body)

    def _split(self, path: str) -> tuple[str, str | None]:
        parts = path.strip("/").split("/")
        start = 3 if parts[0] == "apis" else 2
        if len(parts) > start and parts[start] == "namespaces":
            start += 2
        name = parts[start + 1] if len(parts) > start + 1 else None
        return "/" + "/".join(parts[: start + 1]), name

    def _status(self, code, reason, message):
        return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": message}, status=code)

    def _get(self, request, collection, name, _body):
        if name is not None:
            found = self.objects.get(collection, {}).get(name)
            return web.json_response(found) if found else self._status(404, "NotFound", f"{name} not found")
        token = request.query.get("continue")
        if token is not None and token not in self.snapshots:
            return self._status(410, "Expired", "the continue token is too old")
        version, items = self.snapshots.pop(token) if token else (self.version, self._items(collection))
        limit = int(request.query.get("limit", 0)) or len(items)
        metadata = {"resourceVersion": str(version)}
        if len(items) > limit:
            metadata["continue"] = str(next(self._ids))
            self.snapshots[metadata["continue"]] = (version, items[limit:])
        return web.json_response({"metadata": metadata, "items": items[:limit]})

    def _items(self, collection):
        return [copy.deepcopy(item) for _, item in sorted(self.objects.get(collection, {}).items())]

    def _post(self, _request, collection, _name, body):
        name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{next(self._ids)}"
        if name in self.objects.get(collection, {}):
            return self._status(409, "AlreadyExists", f"{name} already exists")
        return web.json_response(self._store(collection, name, body), status=201)

    def _put(self, _request, collection, name, body):
        old = self.objects.get(collection, {}).get(name)
        if old is None:
            return self._status(404, "NotFound", f"{name} not found")
        sent = body["metadata"].get("resourceVersion")
        if sent and sent != old["metadata"]["resourceVersion"]:
            return self._status(409, "Conflict", "the object has been modified")
        return web.json_response(self._store(collection, name, body))

    def _patch(self, request, collection, name, body):
        old = self.objects.get(collection, {}).get(name)
        if old is None and request.content_type != "application/apply-patch+yaml":
            return self._status(404, "NotFound", f"{name} not found")
        return web.json_response(self._store(collection, name, merged(old, body)))

    def _delete(self, _request, collection, name, body):
        old = self.objects.get(collection, {}).get(name)
        if old is None:
            return self._status(404, "NotFound", f"{name} not found")
        for key, value in (body.get("preconditions") or {}).items():
            if old["metadata"][key] != value:
                return self._status(409, "Conflict", f"precondition {key} failed")
        self.remove(collection, name)
        return web.json_response({"kind": "Status", "status": "Success"})

    def _store(self, collection, name, content, tell=True):
        self.version += 1
        known = self.objects.setdefault(collection, {})
        kind = "MODIFIED" if name in known else "ADDED"
        metadata = {"uid": f"uid-{next(self._ids)}", **known.get(name, {}).get("metadata", {})}
        metadata |= content.get("metadata", {}) | {"name": name, "resourceVersion": str(self.version)}
        stored = {**content, "metadata": metadata}
        known[name] = stored
        if tell:
            self._tell(collection, kind, stored)
        return stored

    def _tell(self, collection, kind, item):
        self.log.append((self.version, collection, kind, copy.deepcopy(item)))
        for watch in self.watches:
            if watch.path == collection:
                watch.queue.put_nowait({"type": kind, "object": copy.deepcopy(item)})

    async def _watch(self, request):
        collection, _ = self._split(request.path)
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        if since < self.oldest_watchable:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        watch = Watch(collection, request)
        for version, path, kind, item in self.log:
            if version > since and path == collection:
                watch.queue.put_nowait({"type": kind, "object": item})
        self.watches.append(watch)
        try:
            while (event := await watch.queue.get()) is not None:
                raw = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
                await response.write(raw)
        except ConnectionResetError:
            pass
        finally:
            self.watches.remove(watch)
        return response


class FixedSource:
    """Gives what it was given; counts how often it was asked."""

    def __init__(self, *credentials: KubeCredentials):
        self.reads = 0
        self._credentials = list(credentials)

    async def read(self) -> KubeCredentials:
        self.reads += 1
        return self._credentials[min(self.reads, len(self._credentials)) - 1]


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is in another party's hands
            await asyncio.sleep(0.005)


@pytest.fixture
async def api_server() -> AsyncIterator[FakeApiServer]:
    server = FakeApiServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def kube(api_server: FakeApiServer) -> AsyncIterator[KubeApi]:
    async with api_server.client() as client:
        yield client


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable:
    return eventually


@pytest.fixture(name="fixed_source")
def fixed_source_fixture() -> type[FixedSource]:
    return FixedSource


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)
