"""What a reflector's store may be relied on for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from flyball_api.kube import NODES, KubeApi
from flyball_api.reflector import Backoff, Reflector, object_key

PATH = "/api/v1/nodes"


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    gpus: int


def project(item):
    return Node(item["metadata"]["name"], int(item["gpus"]))


@asynccontextmanager
async def running(kube: KubeApi, project=project, **options):
    options.setdefault("uniform", lambda _low, high: min(high, 0.01) if high < 1.0 else 1.0)
    reflector = Reflector(kube, NODES, project, **options)
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def server(api_server):
    for name in ("a", "b", "c"):
        api_server.put(PATH, name, gpus=8)
    return api_server


@pytest.mark.usefixtures("server")
async def test_it_holds_projections_of_all_objects_once_synced(kube):
    async with running(kube, chunk=2) as reflector:
        assert not reflector.synced
        assert reflector.stale
        await reflector.wait_synced()
        assert dict(reflector.store) == {name: Node(name, 8) for name in "abc"}
        assert not reflector.stale
        assert reflector.relists_total == 0


async def test_it_follows_changes_and_tells_what_changed(server, kube, eventually):
    changes = []
    async with running(kube, on_change=lambda *change: changes.append(change)) as reflector:
        await reflector.wait_synced()
        await eventually(lambda: len(server.watches) == 1)
        changes.clear()
        server.put(PATH, "d", gpus=4)
        server.put(PATH, "a", gpus=2)
        server.remove(PATH, "b")
        await eventually(lambda: len(changes) == 3)
        assert changes == [
            ("d", None, Node("d", 4)),
            ("a", Node("a", 8), Node("a", 2)),
            ("b", Node("b", 8), None),
        ]
        assert sorted(reflector.store) == ["a", "c", "d"]


async def test_a_change_that_the_projection_does_not_show_wakes_nobody(server, kube, eventually):
    changes = []
    async with running(kube, on_change=lambda *change: changes.append(change)) as reflector:
        await reflector.wait_synced()
        await eventually(lambda: len(server.watches) == 1)
        changes.clear()
        server.put(PATH, "a", heartbeat="now")
        server.put(PATH, "b", gpus=1)
        await eventually(lambda: len(changes) == 1)
        assert changes == [("b", Node("b", 8), Node("b", 1))]


async def test_a_deletion_missed_while_the_watch_was_down_is_found_by_the_sweep(server, kube, eventually):
    changes = []
    async with running(kube, on_change=lambda *change: changes.append(change)) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        changes.clear()
        server.remove(PATH, "b", tell=False)
        server.put(PATH, "e", tell=False, gpus=1)
        server.expire_history()
        server.reset_watches()
        await eventually(lambda: reflector.relists_total == 1)
        assert sorted(reflector.store) == ["a", "c", "e"]
        assert sorted(changes) == [("b", Node("b", 8), None), ("e", None, Node("e", 1))]


async def test_a_version_that_expires_in_the_stream_leads_to_a_list(server, kube, eventually):
    gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "old"}}
    async with running(kube) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        server.remove(PATH, "a", tell=False)
        server.send_to_watches(gone)
        await eventually(lambda: reflector.relists_total == 1)
        assert sorted(reflector.store) == ["b", "c"]


async def test_a_stream_that_ends_is_resumed_from_the_last_bookmark_without_a_list(server, kube, eventually):
    async with running(kube) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        server.put("/api/v1/pods", "moves-the-version-on")
        server.bookmark()
        server.end_watches()
        await eventually(lambda: len(server.requests(watch=True)) == 2)
        await eventually(lambda: len(server.watches) == 1)
        assert server.requests(watch=True)[-1].query["resourceVersion"] == str(server.version)
        assert reflector.relists_total == 0
        server.put(PATH, "a", gpus=1)
        await eventually(lambda: reflector.store["a"].gpus == 1)


async def test_a_stream_that_is_reset_after_it_spoke_is_resumed_and_misses_nothing(server, kube, eventually):
    async with running(kube) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        server.put(PATH, "a", gpus=1)
        await eventually(lambda: reflector.store["a"].gpus == 1)
        server.put(PATH, "b", gpus=1)
        server.reset_watches()
        await eventually(lambda: reflector.store["b"].gpus == 1)
        assert reflector.relists_total == 0


async def test_with_the_server_gone_the_last_known_state_stays_and_is_called_stale(server, kube, eventually):
    async with running(kube) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        await server.stop()
        await eventually(lambda: reflector.stale)
        assert reflector.synced
        assert sorted(reflector.store) == ["a", "b", "c"]
        server.remove(PATH, "a", tell=False)
        await server.start()
        await eventually(lambda: not reflector.stale)
        assert sorted(reflector.store) == ["b", "c"]


async def test_silence_grows_old_by_the_clock(server, kube, eventually):
    now = [1000.0]
    async with running(kube, clock=lambda: now[0]) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        now[0] = 1149.0
        assert reflector.last_event_age_seconds() == 149.0
        assert not reflector.stale
        now[0] = 1151.0
        assert reflector.stale
        server.bookmark()
        await eventually(lambda: reflector.last_event_age_seconds() == 0.0)
        assert not reflector.stale


async def test_an_object_that_cannot_be_projected_is_named_and_the_others_are_followed(server, kube, eventually):
    server.put(PATH, "bad", gpus="many")
    async with running(kube) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        assert sorted(reflector.store) == ["a", "b", "c"]
        assert "many" in reflector.unreadable["bad"]
        server.put(PATH, "a", gpus="few")
        await eventually(lambda: "a" in reflector.unreadable)
        assert reflector.store["a"].gpus == 8
        assert reflector.projection_errors_total == 2
        server.put(PATH, "a", gpus=4)
        server.remove(PATH, "bad")
        await eventually(lambda: not reflector.unreadable)
        assert reflector.store["a"].gpus == 4


async def test_an_object_whose_projection_is_none_is_not_held(server, kube, eventually):
    async with running(kube, lambda item: project(item) if item["gpus"] else None) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        server.put(PATH, "a", gpus=0)
        await eventually(lambda: sorted(reflector.store) == ["b", "c"])


async def test_a_list_that_breaks_between_two_pages_deletes_nothing(server, kube, eventually):
    server.put(PATH, "d", gpus=8)
    async with running(kube, chunk=2) as reflector:
        await eventually(lambda: len(server.watches) == 1)
        server.fail(500, matches=lambda request: "continue" in request.query, times=3)
        server.expire_history()
        server.put("/api/v1/pods", "p")
        server.expire_history()
        server.reset_watches()
        await eventually(lambda: reflector.relists_total == 1)
        assert sorted(reflector.store) == ["a", "b", "c", "d"]


async def test_a_refused_watch_backs_off_instead_of_listing_in_a_circle(server, kube, eventually):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        await asyncio.sleep(0)

    server.fail(403, times=6, matches=server.is_watch, reason="Forbidden")
    async with running(kube, sleep=sleep, uniform=lambda _low, high: high):
        await eventually(lambda: len(server.watches) == 1)
    assert waits == [pytest.approx(seconds) for seconds in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)]


async def test_streams_that_end_at_once_are_not_opened_in_a_circle(server, kube, eventually):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        await asyncio.sleep(0)

    server.answer_raw(b"", matches=server.is_watch)
    server.answer_raw(b"", matches=server.is_watch)
    async with running(kube, sleep=sleep, uniform=lambda _low, high: high):
        await eventually(lambda: len(server.watches) == 1)
    assert waits == [pytest.approx(0.2), pytest.approx(0.4)]


def test_backoff_draws_from_a_range_that_doubles_up_to_its_limit_and_starts_anew():
    ranges = []

    def uniform(low, high):
        ranges.append((low, high))
        return high

    backoff = Backoff(1.0, 5.0, uniform)
    for _ in range(4):
        backoff.next_seconds()
    backoff.reset()
    backoff.next_seconds()
    assert ranges == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.0, 5.0), (0.0, 1.0)]


def test_a_key_carries_the_namespace_when_there_is_one():
    assert object_key("a") == "a"
    assert object_key("a", "ns") == "ns/a"
