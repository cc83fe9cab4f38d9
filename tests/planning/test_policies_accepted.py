"""From raw objects to what the planner sees."""

from __future__ import annotations

import pytest

from flyball_operator.accepting import accept
from flyball_operator.projections import agent_lease_of, node_of, plan_of, pod_of, switch_of
from flyball_operator.state import Switch


def raw_policy(generation=1, **spec):
    base = {"selector": {"matchLabels": {"app": "llm"}}, "controller": {"type": "Fixed", "fixed": {}}}
    return {
        "metadata": {"name": "p", "uid": "u", "generation": generation, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": base | spec,
    }


def test_a_good_spec_is_in_force():
    policy = accept(raw_policy(priority=3), None)
    assert policy.refusal == ""
    assert policy.spec.priority == 3


def test_a_spec_this_version_cannot_read_is_refused_and_the_last_one_stays():
    good = accept(raw_policy(priority=3), None)
    bad = accept(raw_policy(2, controller={"type": "Quantum"}), good)
    assert bad.spec == good.spec
    assert bad.generation == 2
    assert "spec.controller.type" in bad.refusal
    assert "'Quantum'" in bad.refusal


def test_what_the_models_refuse_is_refused_in_their_words():
    clocks = [{"role": "decode", "minMegahertz": 1500, "maxMegahertz": 1200}]
    refusal = accept(raw_policy(controller={"type": "Fixed", "fixed": {"clocks": clocks}}), None).refusal
    assert refusal.startswith("spec.controller.fixed.clocks.0: ")
    assert "1500 MHz" in refusal
    assert "Value error" not in refusal


def test_a_namesake_does_not_inherit_the_spec_of_a_deleted_policy():
    good = accept(raw_policy(), None)
    other = raw_policy(controller={"type": "Quantum"})
    other["metadata"]["uid"] = "another"
    assert accept(other, good).spec is None


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ({"matchLabels": {"no key!": "x"}}, "'no key!' cannot be a label key"),
        ({"matchLabels": {"Bad.Prefix/x": "x"}}, "'Bad.Prefix/x' cannot be a label key"),
        ({"matchLabels": {"app": "-x-"}}, "'-x-' cannot be a label value"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b c"]}]}, "'b c' cannot be a label value"),
    ],
)
def test_a_label_that_cannot_exist_is_refused_instead_of_selecting_nothing(selector, said):
    assert said in accept(raw_policy(selector=selector), None).refusal


@pytest.mark.parametrize("key", ["app", "llm-d.ai/role", "a.b_c-d", "A"])
def test_an_ordinary_label_is_accepted(key):
    assert accept(raw_policy(selector={"matchLabels": {key: "v1.2"}}), None).refusal == ""


def test_a_node_without_gpus_is_of_no_interest():
    node = {"metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "X"}}, "status": {"capacity": {"cpu": "4"}}}
    assert node_of(node) is None
    node["status"]["capacity"]["nvidia.com/gpu"] = "8"
    assert (node_of(node).gpus, node_of(node).product) == (8, "X")


def test_a_pod_is_of_interest_while_it_is_bound_and_has_not_ended():
    limits = {"limits": {"nvidia.com/gpu": "2"}}
    pod = {
        "metadata": {"uid": "u", "namespace": "d", "name": "a"},
        "spec": {"nodeName": "n", "containers": [{"resources": limits}, {}]},
        "status": {"phase": "Running", "podIP": "1.2.3.4"},
    }
    assert (pod_of(pod).gpus, pod_of(pod).running, pod_of(pod).key) == (2, True, "d/a")
    assert pod_of(pod | {"status": {"phase": "Succeeded"}}) is None
    assert pod_of(pod | {"spec": {"containers": []}}) is None


def test_an_agents_lease_names_its_node_and_session():
    lease = {"metadata": {"name": "flyball-agent-n0"}, "spec": {"holderIdentity": "s", "renewTime": "t"}}
    assert (agent_lease_of(lease).node, agent_lease_of(lease).session) == ("n0", "s")
    assert agent_lease_of({"metadata": {"name": "flyball-operator"}}) is None


def test_a_plan_that_a_person_vouches_for_carries_why():
    raw = {
        "metadata": {"name": "n0", "resourceVersion": "5", "annotations": {"flyball.dev/released-by-hand": "gone"}},
        "spec": {"leaderEpoch": 1},
    }
    assert plan_of(raw).released_by_hand == "gone"


@pytest.mark.parametrize(
    ("text", "switch"),
    [
        (None, Switch.ENABLED),
        ("enabled", Switch.ENABLED),
        ("stopped", Switch.STOPPED),
        ("release", Switch.RELEASE),
        ("on", Switch.STOPPED),
    ],
)
def test_a_switch_nobody_understands_stops_all_writing(text, switch):
    assert switch_of(text) is switch
