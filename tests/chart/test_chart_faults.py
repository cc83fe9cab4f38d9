"""What breaks while the product runs: every process killed, pods deleted, the API server gone, a node lost."""

from __future__ import annotations

import os
import signal
import time

import pytest


def wait_enforced(installation):
    installation.until(
        "every governed card is locked and capped within the budget again",
        lambda: (
            len(installation.locked()) == installation.scenario.engines
            and installation.holds("Enforced")
            and sum(slot.enforced_cap_watts for slot in installation.governed()) <= installation.scenario.budget_watts
        ),
    )


def kill(installation, pod, container, node=None):
    victim = installation.container(pod, container, node)
    os.kill(victim["pid"], signal.SIGKILL)
    return victim


def recovered(installation, pod, container, victim, node=None):
    def met():
        found = installation.container(pod, container, node)
        return found["pid"] not in {None, 0, victim["pid"]} and found["ready"]

    installation.until(f"{container} is back", met)


def highest_sum_of_caps(installation, until):
    """The highest sum of caps seen while waiting: the promise that no fault of software may break."""
    highest = 0.0
    deadline = time.monotonic() + 60
    while not until():
        highest = max(highest, sum(slot.enforced_cap_watts for slot in installation.governed()))
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return highest


@pytest.mark.parametrize(("pod", "container"), [("flyball-agent", "agent"), ("flyball-agent", "actuator")])
def test_a_killed_node_process_strands_no_clock_and_frees_no_cap(enforced, pod, container):
    caps = {slot.uuid: slot.enforced_cap_watts for slot in enforced.slots("n-0")}
    locked = [slot for slot in enforced.slots("n-0") if slot.locked_sm_mhz is not None]
    resets = [slot.lock_reset_calls for slot in locked]
    victim = kill(enforced, pod, container, "n-0")
    # Counted, not seen: they may be locked again within milliseconds.
    enforced.until(
        "the clocks of that node are unlocked",
        lambda: all(slot.lock_reset_calls > before for slot, before in zip(locked, resets, strict=True)),
    )
    assert {slot.uuid: slot.enforced_cap_watts for slot in enforced.slots("n-0")} == caps
    recovered(enforced, pod, container, victim, "n-0")
    wait_enforced(enforced)


def test_a_deleted_agent_pod_keeps_its_caps_and_its_successor_takes_over(enforced):
    caps = {slot.uuid: slot.enforced_cap_watts for slot in enforced.slots("n-0")}
    agents = enforced.get("pods", "-n", enforced.namespace, "-l", "app.kubernetes.io/component=agent")["items"]
    victim = next(pod["metadata"]["name"] for pod in agents if pod["spec"]["nodeName"] == "n-0")
    enforced.cluster.kubectl("delete", "pod", victim, "-n", enforced.namespace, "--timeout=60s", check=True)
    assert {slot.uuid: slot.enforced_cap_watts for slot in enforced.slots("n-0")} == caps
    wait_enforced(enforced)


def test_a_killed_operator_changes_nothing_on_the_nodes_and_comes_back_with_a_higher_epoch(enforced):
    epochs = [plan["spec"]["leaderEpoch"] for plan in enforced.get("nep")["items"]]
    before = {slot.uuid: (slot.locked_sm_mhz, slot.enforced_cap_watts) for slot in enforced.slots()}
    victim = kill(enforced, "flyball-operator", "operator")
    recovered(enforced, "flyball-operator", "operator", victim)
    enforced.until(
        "a new leader has fenced every plan",
        lambda: all(plan["spec"]["leaderEpoch"] > max(epochs) for plan in enforced.get("nep")["items"]),
    )
    assert {slot.uuid: (slot.locked_sm_mhz, slot.enforced_cap_watts) for slot in enforced.slots()} == before
    enforced.patch_policy({"powerBudget": {"watts": enforced.scenario.cut_watts}})
    enforced.until("the new leader carries out a cut", lambda: enforced.holds("BudgetRespected"))
    assert sum(slot.enforced_cap_watts for slot in enforced.governed()) <= enforced.scenario.cut_watts


def test_a_killed_engine_is_governed_again_when_it_is_back(enforced):
    victim = kill(enforced, "chat-", "vllm", "n-1")
    recovered(enforced, "chat-", "vllm", victim, "n-1")
    wait_enforced(enforced)


def test_a_deleted_engine_pod_leaves_no_lock_behind_on_a_card_that_nobody_uses(enforced):
    pods = enforced.get("pods", "-n", "serving", "-l", "app=chat")["items"]
    enforced.cluster.kubectl("delete", "pod", pods[0]["metadata"]["name"], "-n", "serving", check=True)
    wait_enforced(enforced)
    governed = {slot.uuid for slot in enforced.governed()}
    assert set(enforced.locked()) == governed
    assert set(enforced.capped()) <= governed


def test_without_the_api_server_the_nodes_keep_what_they_were_granted(enforced):
    before = {slot.uuid: (slot.locked_sm_mhz, slot.enforced_cap_watts) for slot in enforced.slots()}
    agent = enforced.container("flyball-agent", "agent", "n-0")
    enforced.cluster.kill("kube-apiserver")
    time.sleep(5)  # the outage itself: longer than every lease between agent and actuator
    assert {slot.uuid: (slot.locked_sm_mhz, slot.enforced_cap_watts) for slot in enforced.slots()} == before
    enforced.cluster.restart("kube-apiserver")
    wait_enforced(enforced)
    assert enforced.container("flyball-agent", "agent", "n-0")["pid"] == agent["pid"], "the agent ran through it"


def test_a_rebooted_node_is_capped_again_and_the_budget_says_so_meanwhile(enforced):
    enforced.fleet.reboot("n-0")
    enforced.fleet.wait_ready()
    wait_enforced(enforced)


def test_a_node_that_cannot_answer_is_named_with_the_command_that_releases_it(enforced):
    # The operator's own node stays: Kubernetes moves a pod from a lost node only after minutes.
    operators = enforced.get("pods", "-n", enforced.namespace, "-l", "app.kubernetes.io/component=operator")["items"]
    lost, other = ("n-1", "n-0") if operators[0]["spec"]["nodeName"] == "n-0" else ("n-0", "n-1")
    enforced.fleet.kill(lost)
    try:
        enforced.cluster.kubectl("delete", "epol", "chat", "--wait=false", check=True)
        enforced.until(
            "the condition names the node and the command that releases it by hand",
            lambda: (
                f"kubectl annotate nodeenergyplan {lost} flyball.dev/released-by-hand="
                in enforced.condition("Released")["message"]
                and enforced.condition("Released")["reason"] == "NodeUnreachable"
            ),
        )
        enforced.until("the other node is released", lambda: not enforced.locked(other))
        enforced.cluster.kubectl(
            "annotate", "nep", lost, "flyball.dev/released-by-hand=the node was rebooted by hand", check=True
        )
        enforced.until("the policy is gone", lambda: not enforced.get("epol", "chat"))
    finally:
        enforced.fleet.start(lost)
        enforced.fleet.wait_ready()
        enforced.cluster.kubectl("annotate", "nep", lost, "flyball.dev/released-by-hand-")
    enforced.until("the node's cards are restored when it is back", lambda: not enforced.locked(lost))
