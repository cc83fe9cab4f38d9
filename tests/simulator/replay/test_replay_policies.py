"""The policy file of a replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from flyball_sim.admission.policies import check
from flyball_sim.replay.policies import PolicyFileError, read

HEAD = "apiVersion: flyball.dev/v1alpha1\nkind: EnergyPolicy\nmetadata: {name: %s}\n"
SPEC = "spec: {selector: {matchLabels: {app: chat}}, controller: {type: Fixed, fixed: {}}%s}\n"
GOOD = HEAD % "chat" + SPEC % ""


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(PolicyFileError) as refused:
        read(path, check)
    return str(refused.value)


def test_every_policy_of_the_file_is_read_with_the_api_servers_defaults(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"{GOOD}---\n# only a comment\n---\n{HEAD % 'code'}{SPEC % ', mode: Enforce, priority: 5'}")
    chat, code = read(path, check)
    assert (chat.name, chat.spec.mode, chat.spec.priority) == ("chat", "Observe", 0)
    assert (code.name, code.spec.mode, code.spec.priority) == ("code", "Enforce", 5)
    assert "mode" not in chat.document["spec"]


def test_a_policy_that_the_api_server_would_refuse_is_refused_in_its_words(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    text = GOOD + "---\n" + HEAD % "code" + SPEC % ", limits: {capWatts: {max: 7000}}, powerBudget: {watts: 0}"
    assert refusal(path, text) == (
        f'{path}: the API server would refuse EnergyPolicy "code":\n'
        "  spec.limits.capWatts.max: Invalid value: 7000: 7000 W is outside 50 to 3000 W:"
        " give a value from 50 to 3000 W\n"
        "  spec.powerBudget.watts: Invalid value: 0: 0 W is outside 1 to 100000000 W:"
        " give a value from 1 to 100000000 W"
    )


def test_other_kinds_are_named_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    text = f"{GOOD}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: chat}}\n---\n[1]\n---\nname: x\n"
    assert refusal(path, text) == (
        f"{path} holds a Namespace as document 2, a list as document 3, a document without a kind as document 4: "
        "a replay takes EnergyPolicy only, move the rest to a file of its own"
    )


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    assert refusal(path, "# nothing\n") == (
        f"{path} is empty: write an EnergyPolicy into it, as `kubectl apply` would take it"
    )


def test_a_file_that_is_not_yaml_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    text = refusal(path, GOOD + "spec: {a: [}\n")
    assert text.startswith(f"{path}: not YAML (")
    assert "line 5" in text
    assert text.endswith("give a YAML file with an EnergyPolicy")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    with pytest.raises(PolicyFileError) as refused:
        read(path, check)
    assert str(refused.value) == f"{path}: No such file or directory: give a YAML file with an EnergyPolicy"


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    assert refusal(path, f"{GOOD}---\n{GOOD}") == (
        f'{path} holds EnergyPolicy "chat" twice: the second would replace the first, keep one'
    )
