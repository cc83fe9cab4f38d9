"""What a user of the API sees through kubectl, and what the two writers of a plan can and cannot do to each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from flyball_api.energypolicy import EnergyPolicy
from flyball_api.kube import ENERGY_POLICIES, NODE_ENERGY_PLANS, InvalidError, KubeApi, NotFoundError
from flyball_api.names import AGENT_FIELD_MANAGER, API_VERSION, OPERATOR_FIELD_MANAGER
from flyball_api.nodeenergyplan import NodeEnergyPlan

CHART = Path(__file__).resolve().parents[2] / "helm" / "flyball"

pytestmark = pytest.mark.usefixtures("flyball_crds")


@pytest.fixture
async def kube(cluster):
    async with await KubeApi.from_environment(cluster.kubeconfig, None, {}) as api:
        yield api
        for resource, name in ((ENERGY_POLICIES, "chat"), (NODE_ENERGY_PLANS, "gpu-node-1")):
            try:
                await api.delete(resource, name)
            except NotFoundError:
                continue


def policy(**changes):
    spec = {
        "selector": {"matchLabels": {"app": "chat"}},
        "controller": {"type": "Fixed", "fixed": {}},
        "powerBudget": {"watts": 5600},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "EnergyPolicy",
        "metadata": {"name": "chat"},
        "spec": spec | changes,
    }


def plan(**body):
    return {"apiVersion": API_VERSION, "kind": "NodeEnergyPlan", "metadata": {"name": "gpu-node-1"}, **body}


def grant(uuid, **more):
    return {"uuid": uuid, "grant": 1, "action": "Enforce", "policy": "chat", **more}


POLICIES = [{"name": "chat", "uid": "1b2c", "controller": {"type": "Fixed", "fixed": {}}}]


def test_explain_tells_what_an_slo_is(cluster):
    text = " ".join(cluster.kubectl("explain", "energypolicy.spec.slo", check=True).stdout.split())
    assert "Service-level objectives: latencies that a share of the requests must stay within" in text
    for field in (
        "timeToFirstToken <Object>",
        "interTokenLatency <Object>",
        "endToEnd <Object>",
        "attainment <Object>",
    ):
        assert field in text


def test_explain_tells_type_bounds_unit_and_default(cluster):
    text = " ".join(cluster.kubectl("explain", "epol.spec", "--recursive=false", check=True).stdout.split())
    assert "One of Observe, Enforce. Default Observe." in text
    assert "selector <Object> -required-" in text
    text = " ".join(cluster.kubectl("explain", "epol.spec.powerBudget.watts", check=True).stdout.split())
    assert "FIELD: watts <integer>" in text
    assert "From 1 to 100000000 W." in text


@pytest.mark.parametrize("part", ["epol.spec", "epol.status", "nep.spec.gpus", "nep.status.gpus"])
def test_explain_is_silent_about_no_field(cluster, part):
    text = cluster.kubectl("explain", part, check=True).stdout
    assert "FIELDS:" in text
    assert "<no description>" not in text


async def test_get_reads_like_a_dashboard(cluster, kube):
    await kube.create(ENERGY_POLICIES, policy())
    status = {
        "targets": {"pods": 12, "gpus": 24, "nodes": 3},
        "drawWatts": 4310,
        "ledger": {
            "budgetWatts": 5600, "enforcedWatts": 4800, "inFlightWatts": 0, "unknownWatts": 0, "reservedWatts": 300,
            "freeWatts": 500,
        },
        "slo": {"attainmentPercent": 99.4, "windowSeconds": 300},
        "joulesPerToken": 0.42,
        "conditions": [
            {
                "type": "Ready", "status": "True", "reason": "Working", "message": "24 of 24 GPUs",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }  # fmt: skip
    await kube.merge_patch(ENERGY_POLICIES, "chat", {"status": status}, subresource="status")
    header, row = cluster.kubectl("get", "epol", "chat", check=True).stdout.splitlines()
    assert header.split() == [
        "NAME", "MODE", "CONTROLLER", "GPUS", "DRAW(W)", "BUDGET(W)", "SLO(%)", "J/TOKEN", "READY", "AGE",
    ]  # fmt: skip
    assert row.split()[:-1] == ["chat", "Observe", "Fixed", "24", "4310", "5600", "99.4", "0.42", "True"]
    wide = cluster.kubectl("get", "epol", "chat", "-o", "wide", check=True).stdout
    assert "24 of 24 GPUs" in wide


async def test_the_category_lists_both_kinds(cluster, kube):
    await kube.create(ENERGY_POLICIES, policy())
    await kube.create(NODE_ENERGY_PLANS, plan(spec={"leaderEpoch": 1}))
    listed = cluster.kubectl("get", "flyball", "-o", "name", check=True).stdout.split()
    assert {"energypolicy.flyball.dev/chat", "nodeenergyplan.flyball.dev/gpu-node-1"} <= set(listed)


def test_discovery_tells_short_names_scope_and_status(cluster):
    group = json.loads(cluster.kubectl("get", "--raw", f"/apis/{API_VERSION}", check=True).stdout)
    found = {resource["name"]: resource for resource in group["resources"]}
    assert found.keys() >= {"energypolicies/status", "nodeenergyplans/status"}
    for plural, short in (("energypolicies", "epol"), ("nodeenergyplans", "nep")):
        assert found[plural]["shortNames"] == [short]
        assert found[plural]["categories"] == ["flyball"]
        assert found[plural]["namespaced"] is False


async def test_status_and_spec_are_written_apart(kube):
    created = await kube.create(ENERGY_POLICIES, policy() | {"status": {"drawWatts": 1}})
    assert "status" not in created
    patch = {"spec": {"mode": "Enforce"}, "status": {"drawWatts": 4310}}
    written = await kube.merge_patch(ENERGY_POLICIES, "chat", patch, subresource="status")
    assert written["status"]["drawWatts"] == 4310
    assert written["spec"]["mode"] == "Observe"
    assert written["metadata"]["generation"] == created["metadata"]["generation"]


async def test_defaults_are_stored_and_empty_parts_are_not(kube):
    spec = (await kube.create(ENERGY_POLICIES, policy()))["spec"]
    assert spec["mode"] == "Observe"
    assert spec["engine"] == {"type": "vLLM", "port": 8000, "metricsPath": "/metrics"}
    assert spec["failSafe"] == {"metricsStaleSeconds": 5, "actuatorLeaseSeconds": 3}
    assert spec.keys().isdisjoint({"limits", "slo", "roles"})


async def test_a_refused_change_leaves_the_policy_as_it_was(kube):
    before = await kube.create(ENERGY_POLICIES, policy())
    with pytest.raises(InvalidError, match="-5 W is outside 1 to 100000000 W"):
        await kube.merge_patch(ENERGY_POLICIES, "chat", {"spec": {"mode": "Enforce", "powerBudget": {"watts": -5}}})
    assert await kube.get(ENERGY_POLICIES, "chat") == before


async def test_a_bad_object_of_a_file_does_not_hold_back_the_good_one(cluster, kube):
    bad = policy(mode="Off")
    bad["metadata"] = {"name": "code"}
    answer = cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all([bad, policy()]))
    assert answer.returncode != 0
    assert '"Off" is unknown: give Observe or Enforce' in answer.stderr
    assert (await kube.get(ENERGY_POLICIES, "chat"))["spec"]["mode"] == "Observe"
    with pytest.raises(NotFoundError):
        await kube.get(ENERGY_POLICIES, "code")


async def test_an_older_leader_is_refused(kube):
    await kube.apply(NODE_ENERGY_PLANS, plan(spec={"leaderEpoch": 3}), field_manager=OPERATOR_FIELD_MANAGER)
    sentence = "leader epoch 2 is older than 3: end this leader, for a newer one has taken over"
    with pytest.raises(InvalidError, match=sentence):
        await kube.apply(NODE_ENERGY_PLANS, plan(spec={"leaderEpoch": 2}), field_manager=OPERATOR_FIELD_MANAGER)
    for epoch in (3, 4):
        stored = await kube.apply(
            NODE_ENERGY_PLANS, plan(spec={"leaderEpoch": epoch}), field_manager=OPERATOR_FIELD_MANAGER
        )
        assert stored["spec"]["leaderEpoch"] == epoch


async def test_operator_and_agent_apply_one_plan_and_touch_only_their_own(kube):
    spec = {"leaderEpoch": 1, "policies": POLICIES, "gpus": [grant("GPU-a", capWatts=500), grant("GPU-b")]}
    await kube.apply(NODE_ENERGY_PLANS, plan(spec=spec), field_manager=OPERATOR_FIELD_MANAGER)
    status = {
        "agentSession": "s1",
        "gpus": [{"uuid": "GPU-a", "acknowledged": {"leaderEpoch": 1, "grant": 1}}, {"uuid": "GPU-b"}],
    }
    await kube.apply(NODE_ENERGY_PLANS, plan(status=status), field_manager=AGENT_FIELD_MANAGER, subresource="status")
    fewer = plan(spec=spec | {"gpus": [grant("GPU-b", grant=2)]})
    stored = await kube.apply(NODE_ENERGY_PLANS, fewer, field_manager=OPERATOR_FIELD_MANAGER)
    assert [gpu["uuid"] for gpu in stored["spec"]["gpus"]] == ["GPU-b"]
    assert stored["status"] == status

    stored = await kube.apply(
        NODE_ENERGY_PLANS,
        plan(status={"agentSession": "s2"}),
        field_manager=AGENT_FIELD_MANAGER,
        subresource="status",
    )
    assert stored["status"] == {"agentSession": "s2"}
    assert [gpu["uuid"] for gpu in stored["spec"]["gpus"]] == ["GPU-b"]
    owners = {entry["manager"]: entry.get("subresource", "") for entry in stored["metadata"]["managedFields"]}
    assert owners == {OPERATOR_FIELD_MANAGER: "", AGENT_FIELD_MANAGER: "status"}


async def test_applying_what_is_stored_writes_nothing(kube):
    spec = {"leaderEpoch": 1, "policies": POLICIES, "gpus": [grant("GPU-a", capWatts=500)]}
    mine = NodeEnergyPlan.model_validate(plan(spec=spec)).spec
    first = await kube.apply(NODE_ENERGY_PLANS, plan(spec=mine.to_json()), field_manager=OPERATOR_FIELD_MANAGER)
    read = NodeEnergyPlan.model_validate(first).spec
    assert read == mine
    again = await kube.apply(NODE_ENERGY_PLANS, plan(spec=read.to_json()), field_manager=OPERATOR_FIELD_MANAGER)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_what_the_models_write_the_api_server_stores_unchanged(kube):
    written = EnergyPolicy.model_validate(policy(limits={"capWatts": {"min": 200, "max": 700}}))
    body = policy() | {"spec": written.spec.to_json()}
    assert EnergyPolicy.model_validate(await kube.create(ENERGY_POLICIES, body)).spec == written.spec


@pytest.mark.parametrize("name", ["energypolicies", "nodeenergyplans"])
def test_the_chart_brings_the_same_crd_and_keeps_it(cluster, name):
    shown = cluster.helm(
        "template", "flyball", str(CHART), f"--show-only=templates/crds/{name}.yaml", check=True
    ).stdout
    crd = yaml.safe_load(shown)
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd["metadata"].pop("labels")["app.kubernetes.io/name"] == "flyball"
    assert crd == yaml.safe_load((CHART.parents[1] / "crds" / f"{name}.yaml").read_text())


def test_the_chart_leaves_the_crds_out_when_told(cluster):
    shown = cluster.helm("template", "flyball", str(CHART), "--set=crds.install=false", check=True).stdout
    assert "kind: CustomResourceDefinition" not in shown
