"""Elector and heartbeat against a server that hangs, refuses and is written to by others."""

from __future__ import annotations

import asyncio
import time

import pytest

from flyball_api.kube import LEASES
from flyball_api.lease import Heartbeat, LeaderElector, LeadershipLostError, LeaseTiming, SupersededError

PATH = "/apis/coordination.k8s.io/v1/namespaces/flyball-system/leases"
QUICK = LeaseTiming(duration_seconds=1.2, renew_deadline_seconds=0.8, retry_seconds=0.05)


def elector(kube, identity, **options):
    options.setdefault("timing", QUICK)
    return LeaderElector(kube, "flyball-system", "flyball-operator", identity, **options)


def lease(server, name="flyball-operator"):
    return server.objects[PATH][name]


async def test_the_first_candidate_leads_and_says_so_on_the_lease(api_server, kube):
    first = elector(kube, "a")
    assert not first.leads()
    await first.acquire()
    assert first.leads()
    assert (first.epoch, first.leader) == (1, "a")
    spec = lease(api_server)["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"], spec["leaseDurationSeconds"]) == ("a", 1, 1)
    assert spec["acquireTime"] == spec["renewTime"]


async def test_a_second_candidate_leads_when_the_first_falls_silent_not_before(kube):
    first, second = elector(kube, "a"), elector(kube, "b")
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    acquiring = asyncio.create_task(second.acquire())
    await asyncio.wait([acquiring], timeout=2 * QUICK.duration_seconds)
    assert not acquiring.done()
    assert first.leads()
    holding.cancel()
    silent_since = time.monotonic()
    await acquiring
    assert time.monotonic() - silent_since >= QUICK.duration_seconds - QUICK.retry_seconds
    assert not first.leads()
    assert second.leads()
    assert second.epoch == 2


async def test_a_released_lease_passes_on_at_once(api_server, kube):
    first, second = elector(kube, "a"), elector(kube, "b")
    await first.acquire()
    await first.release()
    assert not first.leads()
    assert lease(api_server)["spec"]["holderIdentity"] == ""
    async with asyncio.timeout(QUICK.duration_seconds / 2):
        await second.acquire()
    assert second.epoch == 2


@pytest.mark.parametrize("fault", ["hang", "refuse", "error"])
async def test_loss_is_reported_at_the_renew_deadline_whatever_the_server_does(api_server, kube, fault):
    leader = elector(kube, "a")
    await leader.acquire()
    since = time.monotonic()
    if fault == "hang":
        api_server.hang(times=100)
    elif fault == "refuse":
        await api_server.stop()
    else:
        api_server.fail(500, times=1000)
    with pytest.raises(LeadershipLostError, match="a led with epoch 1"):
        await leader.hold()
    assert not leader.leads()
    assert time.monotonic() - since < QUICK.renew_deadline_seconds + 0.3


async def test_a_leader_whose_name_was_replaced_stops_at_its_next_renewal(api_server, kube):
    leader = elector(kube, "a")
    await leader.acquire()
    usurped = {**lease(api_server)["spec"], "holderIdentity": "b"}
    api_server.put(PATH, "flyball-operator", spec=usurped)
    since = time.monotonic()
    with pytest.raises(LeadershipLostError, match="held now by b"):
        await leader.hold()
    assert time.monotonic() - since < QUICK.renew_deadline_seconds / 2


async def test_a_leader_whose_lease_was_deleted_stops_at_its_next_renewal(api_server, kube):
    leader = elector(kube, "a")
    await leader.acquire()
    api_server.remove(PATH, "flyball-operator")
    with pytest.raises(LeadershipLostError, match="held now by nobody"):
        await leader.hold()


async def test_a_label_put_on_the_lease_costs_nobody_the_leadership_and_stays(api_server, kube, eventually):
    leader = elector(kube, "a")
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    api_server.put(PATH, "flyball-operator", metadata={**lease(api_server)["metadata"], "labels": {"team": "ml"}})
    before = api_server.version
    await eventually(lambda: api_server.version > before + 3)
    assert leader.leads()
    assert lease(api_server)["metadata"]["labels"] == {"team": "ml"}
    holding.cancel()


async def test_a_server_that_cannot_be_reached_is_waited_for(api_server, kube):
    waiting = elector(kube, "a")
    await api_server.stop()
    acquiring = asyncio.create_task(waiting.acquire())
    await asyncio.wait([acquiring], timeout=0.2)
    assert not acquiring.done()
    await api_server.start()
    await acquiring
    assert waiting.leads()


async def test_a_process_that_has_led_and_lost_does_not_lead_again(kube):
    leader = elector(kube, "a")
    await leader.acquire()
    await leader.release()
    with pytest.raises(LeadershipLostError, match="a has led and lost"):
        await leader.acquire()


async def test_the_epoch_is_above_those_in_plans_that_outlived_the_lease(kube):
    leader = elector(kube, "a", epoch_floor=lambda: 41)
    await leader.acquire()
    assert leader.epoch == 42


def heartbeat(kube, identity="session-1", **options):
    options.setdefault("period_seconds", 0.05)
    return Heartbeat(kube, "flyball-system", "flyball-agent-n", identity, **options)


async def test_a_missing_heartbeat_lease_is_created_with_session_and_duration(api_server, kube):
    beating = heartbeat(kube, labels={"app.kubernetes.io/component": "agent"})
    assert beating.age_seconds() == float("inf")
    await beating.beat()
    created = lease(api_server, "flyball-agent-n")
    assert created["spec"]["holderIdentity"] == "session-1"
    assert created["spec"]["leaseDurationSeconds"] == 30
    assert created["metadata"]["labels"] == {"app.kubernetes.io/component": "agent"}
    assert beating.age_seconds() < 1.0


async def test_a_beat_renews_with_a_single_request_and_changes_nothing_else(api_server, kube):
    beating = heartbeat(kube)
    await beating.beat()
    before, asked = lease(api_server, "flyball-agent-n")["spec"], len(api_server.seen)
    await beating.beat()
    after = lease(api_server, "flyball-agent-n")["spec"]
    assert len(api_server.seen) == asked + 1
    assert {key for key in after if after[key] != before[key]} == {"renewTime"}


async def test_a_new_session_takes_the_heartbeat_of_the_last_one_over_at_once(api_server, kube):
    await heartbeat(kube, "session-1").beat()
    await heartbeat(kube, "session-2").beat()
    spec = lease(api_server, "flyball-agent-n")["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("session-2", 1)


async def test_a_session_whose_heartbeat_another_renews_is_told_so(api_server, kube):
    old = heartbeat(kube, "session-1")
    await old.beat()
    await heartbeat(kube, "session-2").beat()
    with pytest.raises(SupersededError, match="session session-2 renews the heartbeat of session session-1"):
        await old.run()
    assert lease(api_server, "flyball-agent-n")["spec"]["holderIdentity"] == "session-2"


async def test_a_deleted_heartbeat_lease_comes_back(api_server, kube, eventually):
    beating = asyncio.create_task(heartbeat(kube).run())
    await eventually(lambda: "flyball-agent-n" in api_server.objects.get(PATH, {}))
    api_server.remove(PATH, "flyball-agent-n")
    await eventually(lambda: "flyball-agent-n" in api_server.objects[PATH])
    beating.cancel()


async def test_a_heartbeat_outlives_a_server_that_hangs_and_refuses(api_server, kube, eventually):
    beating = heartbeat(kube, uniform=lambda _low, high: min(high, 0.05))
    await beating.beat()
    api_server.hang(times=3)
    task = asyncio.create_task(beating.run())
    await eventually(lambda: beating.age_seconds() > 0.2)
    await api_server.stop()
    await eventually(lambda: beating.age_seconds() > 0.5)
    await api_server.start()
    await eventually(lambda: beating.age_seconds() < 0.1)
    task.cancel()


async def test_the_lease_is_asked_for_with_the_name_the_operator_watches(kube):
    await heartbeat(kube).beat()
    assert (await kube.get(LEASES, "flyball-agent-n", "flyball-system"))["spec"]["holderIdentity"] == "session-1"
