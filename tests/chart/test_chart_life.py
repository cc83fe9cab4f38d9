"""The life of an installation: install, observe, enforce, cut, switch off, upgrade, leave."""

from __future__ import annotations

import json

POLICY_COLUMNS = ["NAME", "MODE", "CONTROLLER", "GPUS", "DRAW(W)", "BUDGET(W)", "SLO(%)", "J/TOKEN", "READY", "AGE"]


def sum_of_caps(installation):
    return sum(slot.enforced_cap_watts for slot in installation.governed())


def switch(installation, value):
    patch = json.dumps({"data": {"writes": value}})
    installation.cluster.kubectl(
        "patch", "configmap", "flyball-switch", "-n", installation.namespace, "--type=merge", "-p", patch, check=True
    )


def test_after_the_install_helm_test_says_that_all_is_well(installation):
    installation.cluster.helm("test", "flyball", "-n", installation.namespace, "--timeout=60s", check=True)


def test_observe_writes_nothing_and_says_what_enforce_would_do(installation):
    writes = [(slot.lock_set_calls, slot.cap_set_calls) for slot in installation.slots()]
    installation.apply_policy(mode="Observe")
    installation.until("the policy is observed", lambda: installation.holds("Ready"))
    installation.until(
        "the plans say what would be done",
        lambda: any(
            gpu.get("would", {}).get("smClock")
            == {"min": installation.scenario.sm_mhz, "max": installation.scenario.sm_mhz}
            for plan in installation.get("nep")["items"]
            for gpu in plan["status"].get("gpus", [])
        ),
    )
    assert [(slot.lock_set_calls, slot.cap_set_calls) for slot in installation.slots()] == writes
    assert "finalizers" not in installation.get("epol", "chat")["metadata"]
    installation.delete_policies()


def test_enforce_locks_the_clocks_and_keeps_the_caps_within_the_budget(enforced):
    governed = enforced.governed()
    assert len(governed) == enforced.scenario.engines
    assert {slot.locked_sm_mhz for slot in governed} == {(enforced.scenario.sm_mhz, enforced.scenario.sm_mhz)}
    assert sum_of_caps(enforced) <= enforced.scenario.budget_watts
    assert {slot.uuid for slot in governed} == set(enforced.locked()), "only the policy's own GPUs are touched"


def test_kubectl_get_reads_like_a_dashboard(enforced):
    table = enforced.cluster.kubectl("get", "epol").stdout.splitlines()
    assert table[0].split() == POLICY_COLUMNS
    cells = table[1].split()
    assert cells[:4] == ["chat", "Enforce", "Fixed", str(enforced.scenario.engines)]
    assert cells[5] == str(enforced.scenario.budget_watts)
    assert cells[-2] == "True"


def test_a_cut_budget_is_in_force_on_the_cards_before_status_says_so(enforced):
    enforced.patch_policy({"powerBudget": {"watts": enforced.scenario.cut_watts}})
    enforced.until(
        "the ledger has the new budget and no deficit",
        lambda: (
            enforced.get("epol", "chat")["status"]["ledger"]["budgetWatts"] == enforced.scenario.cut_watts
            and enforced.holds("BudgetRespected")
        ),
    )
    assert sum_of_caps(enforced) <= enforced.scenario.cut_watts
    ledger = enforced.get("epol", "chat")["status"]["ledger"]
    parts = ("enforcedWatts", "inFlightWatts", "unknownWatts", "reservedWatts", "freeWatts")
    assert sum(ledger[part] for part in parts) == ledger["budgetWatts"] + ledger["deficitWatts"]


def test_back_to_observe_releases_exactly_as_deletion_does(enforced):
    enforced.patch_policy({"mode": "Observe"})
    enforced.until("clocks and caps are back", lambda: not enforced.locked() and not enforced.capped())
    enforced.until("the finalizer is gone", lambda: "finalizers" not in enforced.get("epol", "chat")["metadata"])


def test_a_deleted_policy_is_gone_only_when_every_card_is_restored(enforced):
    assert enforced.locked()
    assert enforced.capped()
    enforced.cluster.kubectl("delete", "epol", "chat", "--timeout=60s", check=True)
    assert not enforced.locked()
    assert not enforced.capped()


def test_a_stopped_switch_keeps_everybody_from_writing(enforced):
    before = {slot.uuid: slot.locked_sm_mhz for slot in enforced.slots()}
    switch(enforced, "stopped")
    try:
        enforced.until(
            "the policy says that writing is stopped",
            lambda: any(
                "stop" in (entry["reason"] + entry["message"]).lower()
                for entry in enforced.get("epol", "chat")["status"]["conditions"]
            ),
        )
        enforced.patch_policy(
            {"controller": {"fixed": {"clocks": [{"role": "unified", "minMegahertz": 1500, "maxMegahertz": 1500}]}}}
        )
        enforced.until("the status has seen the change", lambda: bool(enforced.condition("Ready")["status"]))
        assert {slot.uuid: slot.locked_sm_mhz for slot in enforced.slots()} == before
    finally:
        switch(enforced, "enabled")
    enforced.until(
        "the change is carried out", lambda: {slot.locked_sm_mhz for slot in enforced.governed()} == {(1500, 1500)}
    )


def test_an_upgrade_keeps_the_switch_and_ends_with_everything_enforced(enforced):
    switch(enforced, "stopped")
    try:
        enforced.cluster.helm(
            "upgrade",
            "flyball",
            str(enforced.chart),
            "-n",
            enforced.namespace,
            "--set=agent.logFormat=console",
            "--reuse-values",
            "--wait",
            "--timeout=120s",
            check=True,
        )
        found = enforced.get("configmap", "flyball-switch", "-n", enforced.namespace)
        assert found["data"]["writes"] == "stopped"
    finally:
        switch(enforced, "enabled")
    enforced.until(
        "the clocks are locked again by the new agents",
        lambda: len(enforced.locked()) == enforced.scenario.engines and enforced.holds("Enforced"),
    )


def test_a_stolen_agent_token_cannot_touch_another_node(installation):
    kubectl = installation.cluster.kubectl
    agents = installation.get("pods", "-n", installation.namespace, "-l", "app.kubernetes.io/component=agent")["items"]
    thief = next(pod for pod in agents if pod["spec"]["nodeName"] == "n-0")
    token = kubectl(
        "create",
        "token",
        "flyball-agent",
        "-n",
        installation.namespace,
        "--bound-object-kind=Pod",
        f"--bound-object-name={thief['metadata']['name']}",
        f"--bound-object-uid={thief['metadata']['uid']}",
        check=True,
    ).stdout.strip()

    def steal(*args):
        # The administrator's client certificate would win over the token, so the token goes without a kubeconfig.
        server = ["--kubeconfig=/dev/null", f"--server={installation.cluster.server}", "--insecure-skip-tls-verify"]
        return kubectl(*server, f"--token={token}", *args)

    patch = ["--subresource=status", "--type=merge", "-p", '{"status":{"driverVersion":"stolen"}}']
    own = steal("patch", "nep", "n-0", *patch)
    assert own.returncode == 0, own.stderr
    other = steal("patch", "nep", "n-1", *patch)
    assert other.returncode != 0
    assert "an agent on node n-0 may write n-0 only, not n-1" in other.stderr
    spec = steal("patch", "nep", "n-0", "--type=merge", "-p", '{"spec":{"leaderEpoch":9000}}')
    assert "forbidden" in spec.stderr.lower()
    lease = steal(
        "patch",
        "lease",
        "flyball-agent-n-1",
        "-n",
        installation.namespace,
        "--type=merge",
        "-p",
        '{"spec":{"holderIdentity":"stolen"}}',
    )
    assert "an agent on node n-0 may write flyball-agent-n-0 only" in lease.stderr
    leader = steal(
        "patch",
        "lease",
        "flyball-operator",
        "-n",
        installation.namespace,
        "--type=merge",
        "-p",
        '{"spec":{"holderIdentity":"stolen"}}',
    )
    assert leader.returncode != 0
    for verb in (["get", "secrets", "-A"], ["delete", "nep", "n-0"], ["get", "epol"], ["get", "pods", "-A"]):
        assert "forbidden" in steal(*verb).stderr.lower(), verb


def test_uninstalling_restores_every_card_first_and_keeps_the_policies(installation):
    installation.enforce()
    installation.cluster.helm(
        "uninstall", "flyball", "-n", installation.namespace, "--wait", "--timeout=120s", check=True
    )
    assert not installation.locked()
    assert not installation.capped()
    policy = installation.get("epol", "chat")
    assert "finalizers" not in policy["metadata"]
    assert installation.get("crd", "energypolicies.flyball.dev")
    installation.cluster.kubectl("delete", "epol", "chat", "--timeout=10s", check=True)
