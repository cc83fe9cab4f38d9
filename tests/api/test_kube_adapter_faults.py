"""The adapter against a server that misbehaves on demand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from flyball_api.kube import (
    CONFIGMAPS,
    EVENTS,
    LEASES,
    NODE_ENERGY_PLANS,
    NODES,
    PODS,
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    KubeCredentials,
    KubeError,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
)
from flyball_api.kube_http import Pace

NODE_PATH = "/api/v1/nodes"


async def collect(events, count):
    found = []
    async for event in events:
        found.append(event)
        if len(found) == count:
            break
    await events.aclose()
    return found


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "BadRequest", InvalidError),
        (401, "Unauthorized", UnauthorizedError),
        (403, "Forbidden", ForbiddenError),
        (404, "NotFound", NotFoundError),
        (409, "Conflict", ConflictError),
        (409, "AlreadyExists", AlreadyExistsError),
        (410, "Expired", GoneError),
        (422, "Invalid", InvalidError),
        (500, "InternalError", KubeError),
        (504, "Timeout", KubeError),
    ],
)
async def test_a_refusal_has_a_class_and_says_what_was_asked_and_why(api_server, kube, status, reason, kind):
    api_server.fail(status, times=2, reason=reason, message="because")
    with pytest.raises(kind, match=r"GET /api/v1/nodes/a: because") as caught:
        await kube.get(NODES, "a")
    assert (type(caught.value), caught.value.status, caught.value.reason) == (kind, status, reason)


async def test_words_of_a_proxy_that_are_not_json_still_reach_the_reader(api_server, kube):
    api_server.answer_raw(b"<html>bad gateway</html>", status=502)
    with pytest.raises(KubeError, match="bad gateway"):
        await kube.get(NODES, "a")


async def test_an_answer_that_is_no_json_is_no_answer(api_server, kube):
    api_server.answer_raw(b"{")
    with pytest.raises(UnreachableError):
        await kube.get(NODES, "a")


async def test_a_refused_connection_is_unreachable(api_server, kube):
    await api_server.stop()
    with pytest.raises(UnreachableError, match="GET /api/v1/nodes/a"):
        await kube.get(NODES, "a")


async def test_a_hanging_request_is_bounded(api_server):
    api_server.hang()
    async with api_server.client(request_timeout_seconds=0.2) as kube:
        with pytest.raises(UnreachableError, match="Timeout"):
            await kube.get(NODES, "a")


async def test_a_busy_server_is_asked_once_more_after_the_time_it_named(api_server):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    api_server.put(NODE_PATH, "a")
    api_server.fail(429, headers={"Retry-After": "3"})
    async with api_server.client(sleep=sleep) as kube:
        assert (await kube.get(NODES, "a"))["metadata"]["name"] == "a"
        api_server.fail(429, times=2, headers={"Retry-After": "999"})
        with pytest.raises(TooManyRequestsError):
            await kube.get(NODES, "a")
    assert waits == [3.0, 30.0]


async def test_a_token_replaced_on_disk_is_used_after_the_server_refused_the_old_one(api_server, fixed_source):
    server = f"http://127.0.0.1:{api_server.port}"
    old, new = KubeCredentials(server=server, token="old"), KubeCredentials(server=server, token="new")
    api_server.put(NODE_PATH, "a")
    api_server.accepted_token = "new"
    source = fixed_source(new)
    async with api_server.client(source, old) as kube:
        await kube.get(NODES, "a")
        await kube.get(NODES, "a")
    assert source.reads == 1


async def test_a_token_is_read_again_every_minute(api_server, fixed_source):
    now = [0.0]
    server = f"http://127.0.0.1:{api_server.port}"
    source = fixed_source(KubeCredentials(server=server, token="new"))
    api_server.put(NODE_PATH, "a")
    client = api_server.client(source, KubeCredentials(server=server, token="old"), clock=lambda: now[0])
    async with client as kube:
        for moment in (0.0, 59.0, 60.0, 61.0):
            now[0] = moment
            await kube.get(NODES, "a")
    sent = [seen.headers["Authorization"] for seen in api_server.seen]
    assert sent == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]


async def test_a_list_arrives_in_pages_of_one_resource_version(api_server, kube):
    for index in range(7):
        api_server.put(NODE_PATH, f"n{index}")
    pages = []
    async for items, version in kube.list_pages(NODES, chunk=3):
        pages.append((len(items), version))
        api_server.put(NODE_PATH, "later")
    assert pages == [(3, "107"), (3, "107"), (1, "107")]


async def test_a_list_whose_continue_token_expired_is_read_in_one_piece(api_server, kube):
    for index in range(5):
        api_server.put(NODE_PATH, f"n{index}")
    api_server.fail(410, matches=lambda request: "continue" in request.query, reason="Expired")
    items, _ = await kube.list(NODES, chunk=2)
    assert len(items) == 5
    assert "limit" not in api_server.seen[-1].query


async def test_a_watch_yields_changes_after_its_version_and_bookmarks(api_server, kube, eventually):
    api_server.put(NODE_PATH, "before")
    task = asyncio.create_task(collect(kube.watch(NODES, str(api_server.version)), 3))
    await eventually(lambda: len(api_server.watches) == 1)
    api_server.put(NODE_PATH, "a")
    api_server.bookmark()
    api_server.remove(NODE_PATH, "before")
    assert [event["type"] for event in await task] == ["ADDED", "BOOKMARK", "DELETED"]


async def test_a_watch_passes_an_object_of_megabytes_cut_into_pieces(api_server, kube, eventually):
    task = asyncio.create_task(collect(kube.watch(NODES, "0"), 1))
    await eventually(lambda: len(api_server.watches) == 1)
    api_server.put(NODE_PATH, "big", data="x" * 3_000_000)
    assert len((await task)[0]["object"]["data"]) == 3_000_000


async def test_a_watch_from_a_forgotten_version_is_gone(api_server, kube):
    api_server.expire_history()
    with pytest.raises(GoneError, match="too old resource version"):
        await collect(kube.watch(NODES, "5"), 1)


async def test_a_watch_that_is_reset_is_unreachable(api_server, kube, eventually):
    task = asyncio.create_task(collect(kube.watch(NODES, "0"), 1))
    await eventually(lambda: len(api_server.watches) == 1)
    api_server.reset_watches()
    with pytest.raises(UnreachableError):
        await task


async def test_a_watch_cut_inside_an_event_does_not_pass_half_of_it(api_server, kube, eventually):
    task = asyncio.create_task(collect(kube.watch(NODES, "0"), 1))
    await eventually(lambda: len(api_server.watches) == 1)
    api_server.send_to_watches(b'{"type":"ADDED","obj')
    api_server.end_watches()
    with pytest.raises(UnreachableError, match="cut inside an event"):
        await task


async def test_a_silent_watch_is_given_up(api_server):
    async with api_server.client(watch_silence_seconds=0.2) as kube:
        with pytest.raises(UnreachableError, match="Timeout"):
            await collect(kube.watch(NODES, "0"), 1)


async def test_a_watch_closed_by_its_reader_leaves_no_connection_behind(api_server, kube, eventually):
    watch = kube.watch(NODES, "0")
    reading = asyncio.create_task(anext(watch))
    await eventually(lambda: len(api_server.watches) == 1)
    api_server.bookmark()
    await reading
    await watch.aclose()
    api_server.bookmark()
    await eventually(lambda: not kube._session.connector._acquired)


async def test_apply_names_its_manager_and_lets_no_unknown_field_pass(api_server, kube):
    plan = {"apiVersion": "flyball.dev/v1alpha1", "kind": "NodeEnergyPlan", "metadata": {"name": "n"}}
    await kube.apply(NODE_ENERGY_PLANS, {**plan, "status": {}}, field_manager="flyball-agent", subresource="status")
    seen = api_server.seen[-1]
    assert seen.path == "/apis/flyball.dev/v1alpha1/nodeenergyplans/n/status"
    assert seen.headers["Content-Type"] == "application/apply-patch+yaml"
    assert seen.query == {"fieldManager": "flyball-agent", "force": "true", "fieldValidation": "Strict"}


async def test_a_replace_of_an_older_version_conflicts(api_server, kube):
    api_server.put("/api/v1/namespaces/d/configmaps", "c", metadata={"namespace": "d"}, data={"a": "1"})
    read = await kube.get(CONFIGMAPS, "c", "d")
    await kube.merge_patch(CONFIGMAPS, "c", {"data": {"a": "2"}}, "d")
    with pytest.raises(ConflictError):
        await kube.replace(CONFIGMAPS, read)


async def test_a_delete_meant_for_one_object_spares_its_successor(api_server, kube):
    api_server.put(NODE_PATH, "a")
    with pytest.raises(ConflictError):
        await kube.delete(NODES, "a", uid="of-another-life")
    await kube.delete(NODES, "a", uid=api_server.objects[NODE_PATH]["a"]["metadata"]["uid"])
    assert not api_server.objects[NODE_PATH]


async def test_an_event_about_a_cluster_scoped_object_is_posted_to_default(api_server, kube):
    await kube.post_event(
        regarding={"apiVersion": "flyball.dev/v1alpha1", "kind": "EnergyPolicy", "name": "p", "uid": "u"},
        kind="Warning",
        reason="BudgetExceeded",
        note="ü" * 2000,
        action="Divide",
        controller="flyball.dev/operator",
        instance="operator-1",
        now=datetime(2026, 11, 21, 10, 0, tzinfo=UTC),
    )
    seen = api_server.seen[-1]
    assert seen.path == "/apis/events.k8s.io/v1/namespaces/default/events"
    assert seen.body["eventTime"] == "2026-11-21T10:00:00.000000Z"
    assert len(seen.body["note"].encode()) == 1024


def test_a_path_names_group_namespace_name_and_subresource():
    assert NODES.path() == "/api/v1/nodes"
    assert PODS.path("ns", "a", "status") == "/api/v1/namespaces/ns/pods/a/status"
    assert PODS.path() == "/api/v1/pods"
    assert EVENTS.path("ns") == "/apis/events.k8s.io/v1/namespaces/ns/events"


def test_a_path_refuses_a_namespace_where_there_is_none_and_its_absence_where_one_is_needed():
    with pytest.raises(ValueError, match="cluster-scoped: drop the namespace 'ns'"):
        NODES.path("ns")
    with pytest.raises(ValueError, match="pass its namespace"):
        PODS.path(None, "a")


def test_requests_are_spaced_once_the_burst_is_spent():
    now = [0.0]
    pace = Pace(10.0, 3, lambda: now[0])
    assert [pytest.approx(pace.reserve()) for _ in range(5)] == [0.0, 0.0, 0.0, 0.1, 0.2]
    now[0] = 100.0
    assert [pytest.approx(pace.reserve()) for _ in range(4)] == [0.0, 0.0, 0.0, 0.1]


async def test_a_lease_does_not_queue_behind_other_writes(api_server):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    api_server.put(NODE_PATH, "a")
    api_server.put("/apis/coordination.k8s.io/v1/namespaces/d/leases", "l")
    async with api_server.client(sleep=sleep, requests_per_second=0.5, burst=1, clock=lambda: 0.0) as kube:
        await kube.get(NODES, "a")
        await kube.get(LEASES, "l", "d")
        assert not waits
        await kube.get(NODES, "a")
    assert waits == [2.0]


async def test_cancelling_the_caller_is_not_mistaken_for_an_unreachable_server(api_server, kube, eventually):
    api_server.hang()
    task = asyncio.create_task(kube.get(NODES, "a"))
    await eventually(lambda: len(api_server.seen) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
