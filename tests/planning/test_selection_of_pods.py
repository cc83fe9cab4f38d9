"""Which pods a policy governs, and as what."""

from __future__ import annotations

import pytest
from planning_world import pod_of, policy_of

from flyball_api.energypolicy import PodSelector, Roles
from flyball_operator.selection import assign, role_of, selects


def selector(**parts):
    return PodSelector.model_validate(parts)


def test_a_selector_matches_pods_that_have_all_its_labels():
    assert selects(selector(matchLabels={"app": "llm"}), pod_of("a"))
    assert not selects(selector(matchLabels={"app": "llm", "tier": "gold"}), pod_of("a"))


def test_namespaces_narrow_a_selector():
    chosen = selector(namespaces=["prod"], matchLabels={"app": "llm"})
    assert not selects(chosen, pod_of("a"))
    assert selects(chosen, pod_of("a", namespace="prod"))


@pytest.mark.parametrize(
    ("operator", "values", "labels", "expected"),
    [
        ("In", ["a", "b"], {"x": "a"}, True),
        ("In", ["a", "b"], {"x": "c"}, False),
        ("In", ["a"], {}, False),
        ("NotIn", ["a"], {"x": "a"}, False),
        ("NotIn", ["a"], {"x": "b"}, True),
        ("NotIn", ["a"], {}, True),
        ("Exists", [], {"x": ""}, True),
        ("Exists", [], {}, False),
        ("DoesNotExist", [], {}, True),
        ("DoesNotExist", [], {"x": "a"}, False),
    ],
)
def test_expressions_mean_what_they_mean_in_kubernetes(operator, values, labels, expected):
    expression = {"key": "x", "operator": operator, "values": values}
    assert selects(selector(matchExpressions=[expression]), pod_of("a", labels=labels)) is expected


def test_the_higher_priority_wins_a_pod_and_the_loser_keeps_its_others():
    low = policy_of("low", priority=1)
    high = policy_of("high", priority=2, selector={"matchLabels": {"app": "llm", "tier": "gold"}})
    gold = pod_of("gold", labels={"app": "llm", "tier": "gold"})
    plain = pod_of("plain")
    settled = assign([low, high], [gold, plain])
    assert settled.owners == {"default/gold": "high", "default/plain": "low"}
    assert settled.lost == {"low": (("default/gold", "high"),)}


def test_of_equal_priority_the_older_wins_then_the_name():
    older = policy_of("z", created="2026-01-01T00:00:00Z")
    younger = policy_of("a", created="2026-02-01T00:00:00Z")
    twin = policy_of("b", created="2026-02-01T00:00:00Z")
    assert assign([younger, older], [pod_of("x")]).owners == {"default/x": "z"}
    assert assign([twin, younger], [pod_of("x")]).owners == {"default/x": "a"}


def test_a_policy_being_deleted_competes_for_nothing():
    going = policy_of("going", priority=9, deleting=True)
    assert assign([going, policy_of("staying")], [pod_of("x")]).owners == {"default/x": "staying"}


def test_a_pod_that_does_not_run_is_not_governed():
    assert assign([policy_of()], [pod_of("x", running=False), pod_of("y", node="")]).owners == {}


@pytest.mark.parametrize(
    ("labels", "role"),
    [
        ({"llm-d.ai/role": "prefill"}, "prefill"),
        ({"llm-d.ai/role": "both"}, "unified"),
        ({"nvidia.com/dynamo-component-type": "decode"}, "decode"),
        (
            {"nvidia.com/dynamo-component-type": "worker", "nvidia.com/dynamo-sub-component-type": "prefill"},
            "prefill",
        ),
        ({"role-name": "decode"}, "decode"),
        ({"app.kubernetes.io/component": "llminferenceservice-workload-prefill"}, "prefill"),
        ({}, "unified"),
    ],
)
def test_the_role_is_read_from_the_labels_of_known_projects(labels, role):
    assert role_of(pod_of("x", labels=labels), None) == role


def test_a_policys_own_role_label_overrides_the_known_ones():
    roles = Roles.model_validate({"labelKey": "kind", "values": [{"value": "p", "role": "prefill"}]})
    assert role_of(pod_of("x", labels={"kind": "p", "llm-d.ai/role": "decode"}), roles) == "prefill"
    assert role_of(pod_of("x", labels={"llm-d.ai/role": "decode"}), roles) == "unified"
