"""The loop with a recording fake of the API server: what is written, in which words, and what an answer means."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from flyball_api.kube_errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, UnreachableError
from flyball_api.names import FINALIZER
from flyball_api.nodeenergyplan import NodeEnergyPlanSpec
from flyball_operator.applying import CONCURRENCY, Applier, DeposedError
from flyball_operator.checking import Checker, report
from flyball_operator.loop import ReconcileLoop
from flyball_operator.metrics import OperatorMetrics
from flyball_operator.planning import Actions, ApplyPlan, CreatePlan, SetFinalizer, WriteStatus
from flyball_operator.projections import agent_lease_of, plan_of
from flyball_operator.releasing import release_all
from flyball_operator.state import Memory, Node
from flyball_operator.statuses import PolicyEvent
from flyball_operator.store import ClusterStore, Sources
from flyball_operator.web import application

SPEC = NodeEnergyPlanSpec(leader_epoch=3)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Leads:
    epoch = 3

    def __init__(self):
        self.leading = True

    def leads(self):
        return self.leading


class Followed:
    def __init__(self):
        self.synced, self.stale = True, False


class RecordingKube:
    """Answers every write with the object as it would be then; errors by what is written."""

    def __init__(self):
        self.written = []
        self.errors = {}
        self.at_once = self.most_at_once = 0
        self.version = 100
        self.first_write = asyncio.Event()

    async def _record(self, kind, body):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        self.written.append((kind, body))
        self.first_write.set()
        name = body["metadata"]["name"]
        if name in self.errors:
            raise self.errors[name]
        self.version += 1
        base = {"uid": "u", "generation": 1, "finalizers": []}
        return body | {"metadata": base | body["metadata"] | {"resourceVersion": str(self.version)}}

    async def create(self, resource, body):
        return await self._record(f"create {resource.plural}", body)

    async def apply(self, resource, body, *, field_manager, force=True, subresource=None):
        assert field_manager == "flyball-operator"
        assert force
        return await self._record(f"apply {resource.plural}/{subresource or ''}", body)

    async def post_event(self, **event):
        self.written.append(("event", event))


class Rig:
    def __init__(self):
        self.clock, self.kube, self.leads, self.counts = Clock(), RecordingKube(), Leads(), []
        self.plans, self.leases, self.nodes, self.switch = {}, {}, {}, {}
        self.followed = Followed()
        self.store = ClusterStore(self.clock)
        self.store.connect(
            Sources(self.nodes, {}, self.plans, self.leases, self.switch, (self.followed,), self.followed)
        )
        self.applier = Applier(
            self.kube,
            self.store,
            self.leads,
            instance="me",
            wall=lambda: datetime(2026, 11, 21, tzinfo=UTC),
            count=lambda *entry: self.counts.append(entry),
        )
        self.metrics = OperatorMetrics()
        self.loop = ReconcileLoop(
            self.store,
            self.applier,
            self.leads,
            self.metrics,
            clock=self.clock,
            wall=lambda: datetime(2026, 11, 21, tzinfo=UTC),
        )

    def state(self):
        return self.store.snapshot(3, Memory())


@pytest.fixture
def rig():
    return Rig()


def raw_plan(name="n0", version="5", epoch=3):
    return {"metadata": {"name": name, "resourceVersion": version}, "spec": {"leaderEpoch": epoch}}


def raw_policy(name="p", version="5", **metadata):
    spec = {"selector": {"matchLabels": {"app": "x"}}, "controller": {"type": "Fixed", "fixed": {}}}
    return {"metadata": {"name": name, "uid": f"u-{name}", "resourceVersion": version} | metadata, "spec": spec}


async def test_a_plan_is_applied_on_the_version_it_was_decided_on(rig):
    await rig.applier.apply(Actions(plans=(ApplyPlan("n0", "7", SPEC, "grant"),)))
    kind, body = rig.kube.written[0]
    assert kind == "apply nodeenergyplans/"
    assert body["metadata"] == {"name": "n0", "resourceVersion": "7"}
    assert body["spec"] == {"leaderEpoch": 3, "policies": [], "gpus": []}
    assert rig.state().plans["n0"].resource_version == "101", "known before the watch shows it"


async def test_a_finalizer_and_a_status_are_applied_to_that_very_policy(rig):
    rig.store.policies_listed([raw_policy()], "5")
    status = rig.state().policies["p"].status
    await rig.applier.apply(
        Actions(finalizers=(SetFinalizer("p", "u-p", present=True),), statuses=(WriteStatus("p", "u-p", status),))
    )
    written = dict(rig.kube.written)
    assert written["apply energypolicies/"]["metadata"] == {"name": "p", "uid": "u-p", "finalizers": [FINALIZER]}
    assert written["apply energypolicies/status"]["metadata"] == {"name": "p", "uid": "u-p"}


async def test_an_event_is_posted_about_the_policy(rig):
    await rig.applier.apply(Actions(events=(PolicyEvent("p", "u", "Warning", "BudgetDeficit", "too much"),)))
    (_, event) = rig.kube.written[0]
    assert event["regarding"]["kind"] == "EnergyPolicy"
    assert (event["reason"], event["instance"]) == ("BudgetDeficit", "me")


async def test_at_most_so_many_writes_are_under_way_at_once(rig):
    await rig.applier.apply(Actions(creates=tuple(CreatePlan(f"n{index}", SPEC) for index in range(60))))
    assert rig.kube.most_at_once == CONCURRENCY
    assert len(rig.kube.written) == 60


async def test_nothing_is_written_once_leadership_is_gone(rig):
    rig.leads.leading = False
    await rig.applier.apply(Actions(plans=(ApplyPlan("n0", "7", SPEC, "grant"),)))
    assert rig.kube.written == []
    assert rig.counts == [("plan", "not_leading")]


async def test_a_refused_epoch_deposes_this_leader(rig):
    rig.kube.errors["n0"] = InvalidError(422, "Invalid", "spec: leader epoch 3 is older than 4: a newer leader ...")
    with pytest.raises(DeposedError, match="leader epoch 3 is older than 4"):
        await rig.applier.apply(Actions(plans=(ApplyPlan("n0", "7", SPEC, "grant"),)))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConflictError(409, "Conflict", "changed"), "conflict"),
        (NotFoundError(404, "NotFound", "gone"), "gone"),
        (InvalidError(422, "Invalid", "bad"), "error"),
        (UnreachableError("refused"), "error"),
    ],
)
async def test_a_failed_write_is_counted_and_does_not_keep_the_others_back(rig, error, outcome):
    rig.kube.errors["n0"] = error
    await rig.applier.apply(Actions(plans=(ApplyPlan("n0", "7", SPEC, "grant"), ApplyPlan("n1", "7", SPEC, "grant"))))
    assert set(rig.counts) == {("plan", outcome), ("plan", "ok")}


async def test_a_plan_that_exists_already_is_left_to_the_watch(rig):
    rig.kube.errors["n0"] = AlreadyExistsError(409, "AlreadyExists", "there")
    await rig.applier.apply(Actions(creates=(CreatePlan("n0", SPEC),)))
    assert rig.counts == [("create_plan", "ok")]


async def test_an_unanswered_write_is_uncertain_until_it_shows_or_can_no_longer_come(rig):
    rig.plans["n0"] = plan_of(raw_plan(epoch=2))
    rig.kube.errors["n0"] = UnreachableError("timed out")
    await rig.applier.apply(Actions(plans=(ApplyPlan("n0", "5", SPEC, "grant"),)))
    assert rig.state().uncertain_plans == {"n0"}
    rig.clock.now += 66
    assert rig.state().uncertain_plans == set()
    await rig.applier.apply(Actions(plans=(ApplyPlan("n0", "5", SPEC, "grant"),)))
    rig.plans["n0"] = plan_of(raw_plan(version="6", epoch=3))
    assert rig.state().uncertain_plans == set()


def test_the_picture_is_whole_only_when_everything_was_listed_and_nothing_is_behind(rig):
    assert not rig.store.synced
    rig.store.policies_listed([], "5")
    assert rig.store.synced
    rig.followed.stale = True
    assert not rig.store.synced


def test_a_list_finds_the_deletion_that_no_event_told_of(rig):
    rig.store.policies_listed([raw_policy("a"), raw_policy("b")], "6")
    rig.store.policy_seen(raw_policy("c", version="9"))
    rig.store.policies_listed([raw_policy("a")], "8")
    assert set(rig.state().policies) == {"a", "c"}, "c is younger than the list"


def test_a_late_list_does_not_bring_a_deleted_policy_back(rig):
    rig.store.policies_listed([raw_policy("a")], "6")
    rig.store.policy_gone(raw_policy("a", version="7"))
    rig.store.policies_listed([raw_policy("a")], "6")
    assert rig.state().policies == {}


def test_the_answer_to_taking_the_last_finalizer_off_a_deleted_policy_is_its_end(rig):
    rig.store.policies_listed([raw_policy(finalizers=[FINALIZER], deletionTimestamp="2026-01-01T00:00:00Z")], "5")
    rig.store.policy_seen(raw_policy(version="6", deletionTimestamp="2026-01-01T00:00:00Z"))
    assert rig.state().policies == {}


def lease_of(session="s", renewed="1"):
    raw = {"metadata": {"name": "flyball-agent-n0"}, "spec": {"holderIdentity": session, "renewTime": renewed}}
    return agent_lease_of(raw)


def test_a_lease_proves_life_when_it_is_seen_to_move_and_not_before(rig):
    rig.followed.stale = True
    rig.store.lease_changed("n0", None, lease_of())
    rig.followed.stale = False
    assert rig.state().agents["n0"].changed_seconds is None
    rig.clock.now += 5
    rig.store.dirty.clear()
    rig.store.lease_changed("n0", lease_of(), lease_of(renewed="2"))
    assert rig.state().agents["n0"].changed_seconds == 105
    assert not rig.store.dirty.is_set(), "a beat alone is no reason to plan"
    rig.store.lease_changed("n0", lease_of(), lease_of("t", "3"))
    assert rig.store.dirty.is_set()


def test_while_nobody_can_be_heard_nobodys_silence_counts(rig):
    rig.store.lease_changed("n0", None, lease_of())
    rig.clock.now += 500
    rig.followed.stale = True
    rig.state()
    rig.followed.stale = False
    agent = rig.state().agents["n0"]
    assert (agent.changed_seconds, agent.first_seen_seconds) == (None, 600)


async def test_the_loop_plans_only_while_it_leads_and_sees_everything(rig):
    rig.nodes["n0"] = Node("n0", 8)
    await rig.loop.turn()
    assert rig.kube.written == [], "policies are not listed yet"
    rig.store.policies_listed([], "5")
    rig.leads.leading = False
    await rig.loop.turn()
    assert rig.kube.written == []
    rig.leads.leading = True
    await rig.loop.turn()
    assert [kind for kind, _ in rig.kube.written] == ["create nodeenergyplans"]


async def test_a_plan_with_a_newer_epoch_ends_the_loop(rig):
    rig.store.policies_listed([], "5")
    rig.plans["n0"] = plan_of(raw_plan(epoch=9))
    with pytest.raises(DeposedError, match="leader epoch 9, newer than this one's 3"):
        await rig.loop.turn()


async def test_a_change_wakes_the_loop_at_once(rig):
    rig.store.policies_listed([], "5")
    task = asyncio.create_task(rig.loop.run())
    rig.nodes["n0"] = Node("n0", 8)
    rig.store.changed("n0", None, rig.nodes["n0"])
    async with asyncio.timeout(1):
        await rig.kube.first_write.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_health_fails_only_for_a_loop_that_hangs_and_readiness_for_a_picture_that_is_behind():
    idle, synced = [1.0], [False]
    app = application(idle_seconds=lambda: idle[0], synced=lambda: synced[0], registry=CollectorRegistry())
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/healthz")).status == 200
        assert (await client.get("/readyz")).status == 503
        idle[0], synced[0] = 200.0, True
        assert (await client.get("/healthz")).status == 500
        assert (await client.get("/readyz")).status == 200


async def test_metrics_carry_base_units_and_the_ledger_by_state(rig):
    rig.store.policies_listed([], "5")
    rig.nodes["n0"] = Node("n0", 8)
    await rig.loop.turn()
    app = application(idle_seconds=lambda: 0.0, synced=lambda: True, registry=rig.metrics.registry)
    async with TestClient(TestServer(app)) as client:
        text = await (await client.get("/metrics")).text()
    assert "flyball_leader 1.0" in text
    assert "flyball_reconcile_duration_seconds_count 1.0" in text


class Installation:
    """The API server as `check` and `release` see it."""

    def __init__(self):
        self.gpu = {"uuid": "g", "grant": 2, "action": "Enforce", "policy": "p"}
        self.plan = raw_plan() | {
            "status": {"agentSession": "s", "gpus": [{"uuid": "g", "acknowledged": {"leaderEpoch": 3, "grant": 2}}]}
        }
        self.plan["spec"]["gpus"] = [self.gpu]
        self.plan["spec"]["policies"] = [{"name": "p", "uid": "u", "controller": {"type": "Fixed", "fixed": {}}}]
        self.policy = raw_policy(finalizers=[FINALIZER])
        self.beats = 0
        self.frozen = False
        self.patched = []

    async def list(self, resource):
        node = {"metadata": {"name": "n0"}, "status": {"capacity": {"nvidia.com/gpu": "1"}}}
        items = {"nodes": [node], "energypolicies": [self.policy], "nodeenergyplans": [self.plan]}
        return items[resource.plural], "9"

    async def get(self, resource, name, namespace=None):
        assert (resource.plural, namespace) == ("leases", "ns")
        self.beats += not self.frozen
        holder = "s" if name.startswith("flyball-agent-") else "operator-1"
        return {"metadata": {"name": name}, "spec": {"holderIdentity": holder, "renewTime": str(self.beats)}}

    async def merge_patch(self, resource, name, patch, namespace=None):
        self.patched.append((resource.plural, name, patch, namespace))
        return {}


async def checked(installation, clock):
    lines = []

    async def sleep(seconds):
        clock.now += seconds

    code = await report(
        Checker(installation, "ns", clock=clock), timeout_seconds=10, clock=clock, sleep=sleep, say=lines.append
    )
    return code, lines


async def test_check_says_line_by_line_that_all_is_well():
    code, lines = await checked(Installation(), Clock())
    assert code == 0
    assert lines[1].startswith("ok   operator operator-1 leads")
    assert lines[2] == "ok   node n0: its agent lives, 1 GPUs reported, 1 enforced and read back"


async def test_check_fails_on_a_grant_that_is_not_read_back():
    installation = Installation()
    installation.gpu["grant"] = 3
    code, lines = await checked(installation, Clock())
    assert code == 1
    assert lines[2] == "FAIL node n0: not yet read back: g"


async def test_check_fails_on_a_lease_that_does_not_move():
    installation = Installation()

    installation.frozen = True
    code, lines = await checked(installation, Clock())
    assert code == 1
    assert "has not moved since it is watched" in lines[1]


async def released(installation, timeout_seconds, after=None):
    lines, clock = [], Clock()

    async def sleep(seconds):
        clock.now += seconds
        if after:
            after()

    code = await release_all(
        installation, namespace="ns", timeout_seconds=timeout_seconds, clock=clock, sleep=sleep, say=lines.append
    )
    return code, lines


async def test_release_turns_the_switch_and_waits_until_nothing_is_held():
    installation = Installation()

    def the_operator_works():
        installation.plan["spec"]["gpus"] = []
        installation.policy["metadata"]["finalizers"] = []

    code, lines = await released(installation, 60, the_operator_works)
    assert code == 0
    assert installation.patched == [("configmaps", "flyball-switch", {"data": {"writes": "release"}}, "ns")]
    assert lines[1] == "1 GPU on n0 not yet proved restored; finalizer still on p"
    assert lines[-1] == "every GPU is restored and every finalizer is off"


async def test_release_that_runs_out_of_time_prints_what_is_left_and_the_command():
    code, lines = await released(Installation(), 5)
    assert code == 1
    assert lines[-1] == '  kubectl annotate nodeenergyplan n0 flyball.dev/released-by-hand="<why>"'


async def test_release_without_a_switch_says_how_to_make_it_and_fails():
    installation = Installation()

    async def missing(*_):
        raise NotFoundError(404, "NotFound", 'configmaps "flyball-switch" not found')

    installation.merge_patch = missing
    code, lines = await released(installation, 60)
    assert code == 1
    assert lines[-1] == "  kubectl create configmap flyball-switch -n ns --from-literal=writes=release"
