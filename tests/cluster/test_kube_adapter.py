"""Adapter, reflector and leases against the real API server."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from contextlib import aclosing
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from flyball_api.kube import (
    CONFIGMAPS,
    LEASES,
    NODES,
    PODS,
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeApi,
    NotFoundError,
    Resource,
    UnreachableError,
)
from flyball_api.kube_credentials import KubeconfigSource
from flyball_api.lease import Heartbeat, LeaderElector, LeaseTiming
from flyball_api.reflector import Reflector

THINGS = Resource("adapter.flyball.test", "v1", "things", namespaced=False)
THING_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "things.adapter.flyball.test"},
    "spec": {
        "group": "adapter.flyball.test",
        "scope": "Cluster",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "epoch": {
                                        "type": "integer",
                                        "x-kubernetes-validations": [
                                            {"rule": "self >= oldSelf", "message": "an old leader wrote this"}
                                        ],
                                    },
                                    "note": {"type": "string"},
                                },
                            },
                            "status": {"type": "object", "properties": {"session": {"type": "string"}}},
                        },
                    }
                },
            }
        ],
    },
}


def thing(name, **content):
    return {"apiVersion": "adapter.flyball.test/v1", "kind": "Thing", "metadata": {"name": name}, **content}


async def eventually(condition, seconds=60.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is in the API server's hands
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def namespace(cluster):
    name = f"adapter-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name, check=True)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false", check=True)


@pytest.fixture(scope="module")
def things(cluster):
    cluster.kubectl("apply", "-f", "-", input=json.dumps(THING_CRD), check=True)
    cluster.kubectl("wait", "--for=condition=Established", "crd/things.adapter.flyball.test", check=True)
    yield THINGS
    cluster.kubectl("delete", "crd/things.adapter.flyball.test", check=True)


@pytest.fixture
async def kube(cluster):
    async with await KubeApi.from_environment(cluster.kubeconfig, None, os.environ) as client:
        yield client


@pytest.fixture
def config_map(namespace):
    def make(name, **data):
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}

    return make


async def test_an_object_lives_through_create_patch_replace_and_delete(kube, config_map, namespace):
    created = await kube.create(CONFIGMAPS, config_map("life", a="1"))
    with pytest.raises(AlreadyExistsError):
        await kube.create(CONFIGMAPS, config_map("life"))
    await kube.merge_patch(CONFIGMAPS, "life", {"data": {"a": None, "b": "2"}}, namespace)
    with pytest.raises(ConflictError, match="the object has been modified"):
        await kube.replace(CONFIGMAPS, created)
    test_then_set = [
        {"op": "test", "path": "/data/b", "value": "2"},
        {"op": "replace", "path": "/data/b", "value": "3"},
    ]
    patched = await kube.json_patch(CONFIGMAPS, "life", test_then_set, namespace)
    assert patched["data"] == {"b": "3"}
    with pytest.raises(InvalidError):
        await kube.json_patch(CONFIGMAPS, "life", test_then_set, namespace)
    with pytest.raises(ConflictError):
        await kube.delete(CONFIGMAPS, "life", namespace, uid=str(uuid.uuid4()))
    await kube.delete(CONFIGMAPS, "life", namespace, uid=created["metadata"]["uid"])
    with pytest.raises(NotFoundError, match='configmaps "life" not found'):
        await kube.get(CONFIGMAPS, "life", namespace)


async def test_apply_creates_takes_back_what_is_no_longer_applied_and_keeps_the_two_sides_apart(kube, things):
    await kube.apply(things, thing("t", spec={"epoch": 2, "note": "n"}), field_manager="flyball-operator")
    await kube.apply(things, thing("t", status={"session": "s"}), field_manager="flyball-agent", subresource="status")
    await kube.apply(things, thing("t", spec={"epoch": 3}), field_manager="flyball-operator")
    read = await kube.get(things, "t")
    assert (read["spec"], read["status"]) == ({"epoch": 3}, {"session": "s"})


async def test_an_apply_of_an_old_leader_is_refused_by_the_api_server(kube, things):
    await kube.apply(things, thing("fenced", spec={"epoch": 5}), field_manager="flyball-operator")
    with pytest.raises(InvalidError, match="an old leader wrote this"):
        await kube.apply(things, thing("fenced", spec={"epoch": 4}), field_manager="flyball-operator")


async def test_an_unknown_field_is_refused_not_dropped(kube, things):
    with pytest.raises(InvalidError, match="epock: field not declared in schema"):
        await kube.apply(things, thing("typo", spec={"epock": 1}), field_manager="flyball-operator")


async def test_an_apply_that_changes_nothing_leaves_the_version(kube, things):
    first = await kube.apply(things, thing("same", spec={"epoch": 1}), field_manager="flyball-operator")
    again = await kube.apply(things, thing("same", spec={"epoch": 1}), field_manager="flyball-operator")
    assert first["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]


async def test_a_list_comes_in_chunks_and_a_watch_goes_on_from_it(kube, config_map, namespace):
    for index in range(5):
        body = config_map(f"page-{index}")
        body["metadata"]["labels"] = {"pages": "yes"}
        await kube.create(CONFIGMAPS, body)
    items, version = await kube.list(CONFIGMAPS, namespace, label_selector="pages=yes", chunk=2)
    assert [item["metadata"]["name"] for item in items] == [f"page-{index}" for index in range(5)]
    await kube.delete(CONFIGMAPS, "page-3", namespace)
    watch = kube.watch(CONFIGMAPS, version, namespace, label_selector="pages=yes", timeout_seconds=30)
    async with aclosing(watch) as events:
        event = await anext(events)
    assert (event["type"], event["object"]["metadata"]["name"]) == ("DELETED", "page-3")


async def test_a_watch_ends_at_the_time_it_was_given(kube, namespace):
    _, version = await kube.list(CONFIGMAPS, namespace)
    started = time.monotonic()
    watch = kube.watch(CONFIGMAPS, version, namespace, field_selector="metadata.name=none", timeout_seconds=2)
    assert {event["type"] for event in [event async for event in watch]} <= {"BOOKMARK"}
    assert 1.5 <= time.monotonic() - started <= 8.0


async def test_a_watch_from_the_future_of_a_restored_backup_is_given_up_because_it_stays_silent(cluster):
    """The API server does not refuse it and does not even send bookmarks: it drops all that happens before then."""
    source = KubeconfigSource(cluster.kubeconfig)
    async with KubeApi(source, await source.read(), watch_silence_seconds=3.0) as kube:
        _, version = await kube.list(NODES)
        with pytest.raises(UnreachableError, match="Timeout"):
            await anext(kube.watch(NODES, str(int(version) + 1_000_000)))


async def test_a_pods_token_and_ca_suffice_and_rbac_holds(cluster, namespace, tmp_path):
    admin = await KubeconfigSource(cluster.kubeconfig).read()
    token = cluster.kubectl("create", "token", "default", "--namespace", namespace, check=True).stdout
    (tmp_path / "token").write_text(token)
    (tmp_path / "ca.crt").write_text(admin.ca_pem)
    server = urlsplit(admin.server)
    environ = {"KUBERNETES_SERVICE_HOST": server.hostname, "KUBERNETES_SERVICE_PORT": str(server.port)}
    async with await KubeApi.from_environment(None, tmp_path, environ) as pod:
        with pytest.raises(ForbiddenError, match=f"system:serviceaccount:{namespace}:default"):
            await pod.list(NODES)
        (tmp_path / "token").write_text("forged")
        await pod.fresh_credentials()
        (tmp_path / "token").write_text(token)
        with pytest.raises(ForbiddenError):
            await pod.list(PODS)


async def test_an_event_about_a_cluster_scoped_object_is_seen_by_describe(cluster, kube, things):
    made = await kube.apply(things, thing("told", spec={"epoch": 1}), field_manager="flyball-operator")
    await kube.post_event(
        regarding={
            "apiVersion": "adapter.flyball.test/v1",
            "kind": "Thing",
            "name": "told",
            "uid": made["metadata"]["uid"],
        },
        kind="Warning",
        reason="BudgetExceeded",
        note="500 W are in force under a budget of 400 W",
        action="Divide",
        controller="flyball.dev/operator",
        instance="operator-0",
        now=datetime.now(UTC),
    )
    described = cluster.kubectl("describe", "thing", "told", check=True).stdout
    assert "BudgetExceeded" in described
    assert "500 W are in force under a budget of 400 W" in described


async def test_leadership_passes_on_a_real_lease_with_a_growing_epoch(kube, namespace):
    timing = LeaseTiming(duration_seconds=3.0, renew_deadline_seconds=2.0, retry_seconds=0.2)
    first, second, third = (
        LeaderElector(kube, namespace, "leader", identity, timing=timing) for identity in ("a", "b", "c")
    )
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    waiting = asyncio.create_task(second.acquire())
    await asyncio.wait([waiting], timeout=4.0)
    assert first.leads()
    assert not waiting.done()
    holding.cancel()
    await waiting
    assert not first.leads()
    assert (second.leads(), second.epoch) == (True, 2)
    await second.release()
    async with asyncio.timeout(2.0):
        await third.acquire()
    assert (third.leads(), third.epoch) == (True, 3)


async def test_a_heartbeat_is_a_lease_that_kubectl_reads(cluster, kube, namespace):
    beating = Heartbeat(kube, namespace, "flyball-agent-n", "session-1")
    await beating.beat()
    await beating.beat()
    listed = cluster.kubectl("get", "lease", "flyball-agent-n", "--namespace", namespace, check=True).stdout
    assert "session-1" in listed
    assert (await kube.get(LEASES, "flyball-agent-n", namespace))["spec"]["leaseDurationSeconds"] == 30


async def test_a_reflector_follows_through_a_killed_api_server(local_cluster):
    name = f"killed-{uuid.uuid4().hex[:8]}"
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}
    async with await KubeApi.from_environment(local_cluster.kubeconfig, None, os.environ) as kube:
        reflector = Reflector(
            kube, CONFIGMAPS, lambda item: item["metadata"]["uid"], namespace="default", backoff_limit_seconds=1.0
        )
        following = asyncio.create_task(reflector.run())
        await reflector.wait_synced()
        made = await kube.create(CONFIGMAPS, config_map)
        await eventually(lambda: f"default/{name}" in reflector.store)

        await asyncio.to_thread(local_cluster.kill, "kube-apiserver")
        await eventually(lambda: reflector.stale)
        assert reflector.store[f"default/{name}"] == made["metadata"]["uid"]

        await asyncio.to_thread(local_cluster.restart, "kube-apiserver")
        await eventually(lambda: not reflector.stale)
        await kube.delete(CONFIGMAPS, name, "default")
        await eventually(lambda: f"default/{name}" not in reflector.store)
        following.cancel()
