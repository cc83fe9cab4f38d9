"""`flyball-sim cluster`, as a person uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flyball_sim.controlplane.cluster import ClusterError
from flyball_sim.controlplane.named import NamedCluster

COMMAND = [sys.executable, "-m", "flyball_sim.cli", "cluster"]


class Shell:
    """Runs the command with a state directory of its own."""

    def __init__(self, state: Path, programs: Path):
        self.environ = {**os.environ, "XDG_STATE_HOME": str(state), "KUBEBUILDER_ASSETS": str(programs)}
        self.root = state / "flyball" / "clusters"

    def start(self, *arguments):
        return subprocess.Popen(
            [*COMMAND, *arguments], env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments):
        with self.start(*arguments) as process:
            output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors


@pytest.fixture
def shell(tmp_path, local_cluster):
    made = Shell(tmp_path / "state", local_cluster.bin)
    yield made
    made("down")
    made("down", "--name", "second")


def pids_of(status: str) -> dict[str, int]:
    return {line.split()[0]: int(line.split()[1]) for line in status.splitlines()[1:]}


def test_up_status_kubeconfig_down(shell, is_alive):
    code, said, _ = shell("up")
    assert code == 0
    assert "export KUBECONFIG=" in said

    code, again, _ = shell("up")
    assert (code, again) == (0, said), "a second up finds the first one's cluster"

    code, status, _ = shell("status")
    assert code == 0
    assert status.count("running   healthy") == 4

    code, path, _ = shell("kubeconfig")
    assert code == 0
    assert f"export KUBECONFIG={path.strip()}\n" in said
    kubectl = [f"{shell.environ['KUBEBUILDER_ASSETS']}/kubectl", "--kubeconfig", path.strip()]
    assert subprocess.run([*kubectl, "get", "--raw", "/readyz"], capture_output=True, check=True).stdout == b"ok"

    code, said, _ = shell("down")
    assert (code, said) == (0, "cluster 'flyball' has ended, its data is removed\n")
    assert not Path(path.strip()).exists()
    assert not any(is_alive(pid) for pid in pids_of(status).values())


def test_what_is_not_up_is_said_with_the_command_that_starts_it(shell):
    for action in ("status", "kubeconfig"):
        code, said, errors = shell(action, "--name", "second")
        assert (code, said) == (1, "")
        assert "start it with: flyball-sim cluster up --name second" in errors
    assert shell("down")[:2] == (0, "cluster 'flyball' is not up\n")


def test_two_up_at_once_make_one_cluster(shell):
    with shell.start("up") as first, shell.start("up") as second:
        answers = [process.communicate(timeout=120) for process in (first, second)]

    assert (first.returncode, second.returncode) == (0, 0), answers
    assert answers[0][0] == answers[1][0]


def test_status_is_not_well_when_a_component_has_been_killed(shell, eventually):
    shell("up")
    os.kill(pids_of(shell("status")[1])["kube-scheduler"], signal.SIGKILL)

    eventually("status says so", lambda: "ended     not healthy" in shell("status")[1])
    assert shell("status")[0] == 1


def test_a_killed_supervisor_takes_its_cluster_along_and_up_starts_afresh(shell, eventually, is_alive):
    shell("up")
    pids = pids_of(shell("status")[1])
    os.kill(NamedCluster("flyball", shell.root).state().pid, signal.SIGKILL)

    eventually("its components have ended", lambda: not any(is_alive(pid) for pid in pids.values()))
    assert shell("status")[0] == 1
    assert shell("up")[0] == 0


def test_in_the_foreground_ctrl_c_ends_it_and_leaves_nothing(shell, eventually):
    with shell.start("up", "--foreground", "--name", "second") as process:
        eventually(
            "it is up",
            lambda: (
                NamedCluster("second", shell.root).state() is not None
                and NamedCluster("second", shell.root).state().ready
            ),
        )
        code, _, errors = shell("up", "--foreground", "--name", "second")
        assert code == 1
        assert "cluster 'second' is up already" in errors
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)

    assert process.returncode == 0
    assert not (shell.root / "second").exists()


def test_a_start_that_fails_shows_why(shell, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for each in Path(shell.environ["KUBEBUILDER_ASSETS"]).iterdir():
        (programs / each.name).symlink_to(each)
    (programs / "etcd").unlink()
    (programs / "etcd").write_text("#!/bin/sh\necho this is why\nexit 7\n")
    (programs / "etcd").chmod(0o755)
    shell.environ["KUBEBUILDER_ASSETS"] = str(programs)

    code, _, errors = shell("up")

    assert code == 1
    assert "etcd (pid" in errors
    assert "this is why" in errors
    assert not (shell.root / "flyball").exists()


def test_a_name_that_is_no_name_is_refused():
    with pytest.raises(ClusterError, match=r"cluster name '\.\./x': give 1 to 40 lower-case letters"):
        NamedCluster("../x")
