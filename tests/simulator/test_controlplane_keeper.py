from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from flyball_sim.controlplane.keeper import Keeper, KeeperError

ENVIRON = {"PATH": os.defpath}

# An owner that starts a child through a thread, says who is who, and then does nothing for ever.
OWNER = """
import sys, threading, time
from pathlib import Path
from flyball_sim.controlplane.keeper import Keeper
directory = Path(sys.argv[1])
keeper = Keeper(scratch=directory)
def start():
    print(keeper.pid, keeper.start("child", ["sleep", "600"], directory / "log", {"PATH": "/usr/bin:/bin"}), flush=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path):
    """A process with a keeper and a child: (process, scratch directory, keeper's pid, child's pid)."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen([sys.executable, "-c", OWNER, str(scratch)], stdout=subprocess.PIPE, text=True) as process:
        keeper, child = map(int, process.stdout.readline().split())
        yield process, scratch, keeper, child
        process.kill()


def test_a_child_outlives_the_thread_that_started_it(owner, is_alive):
    _, _, _, child = owner

    assert is_alive(child)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_owner_ends_the_child_ends_and_the_scratch_directory_goes(owner, eventually, number, is_alive):
    process, scratch, keeper, child = owner

    process.send_signal(number)
    process.wait()

    eventually("keeper and child have ended", lambda: not is_alive(keeper) and not is_alive(child))
    assert not scratch.exists()


def test_when_the_keeper_is_killed_the_child_ends(owner, eventually, is_alive):
    _, _, keeper, child = owner

    os.kill(keeper, signal.SIGKILL)

    eventually("the child has ended", lambda: not is_alive(child))


def test_closing_ends_a_child_that_ignores_sigterm(tmp_path, is_alive):
    with Keeper(grace_seconds=0.1) as keeper:
        ready = tmp_path / "ready"
        script = f"trap '' TERM; touch {ready}; while :; do sleep 0.05; done"
        child = keeper.start("stubborn", ["sh", "-c", script], tmp_path / "log", ENVIRON)

    assert not is_alive(child)


def test_a_stopped_child_tells_how_it_ended_and_can_be_started_again(tmp_path):
    with Keeper() as keeper:
        first = keeper.start("child", ["sleep", "600"], tmp_path / "log", ENVIRON)

        assert keeper.stop("child", signal.SIGKILL) == -signal.SIGKILL
        assert keeper.children() == {"child": (first, -signal.SIGKILL)}

        second = keeper.start("child", ["sleep", "600"], tmp_path / "log", ENVIRON)
        assert keeper.children() == {"child": (second, None)}


def test_a_child_gets_exactly_the_environment_it_is_given(tmp_path, eventually):
    with Keeper() as keeper:
        keeper.start("env", ["env"], tmp_path / "log", {"PATH": os.defpath, "ONLY": "this"})
        eventually("it has ended", lambda: keeper.children()["env"][1] == 0)

    assert sorted((tmp_path / "log").read_text().splitlines()) == ["ONLY=this", f"PATH={os.defpath}"]


def test_what_cannot_be_done_is_refused_with_the_name_and_the_reason(tmp_path):
    with Keeper() as keeper:
        keeper.start("child", ["sleep", "600"], tmp_path / "log", ENVIRON)

        with pytest.raises(KeeperError, match=r"start child: already runs as \d+; stop it first"):
            keeper.start("child", ["sleep", "600"], tmp_path / "log", ENVIRON)
        with pytest.raises(KeeperError, match="stop nobody: not known; started so far: child"):
            keeper.stop("nobody")
        with pytest.raises(KeeperError, match=r"start ghost: .*No such file.*/no/such/program"):
            keeper.start("ghost", ["/no/such/program"], tmp_path / "log", ENVIRON)


def test_a_closed_keeper_says_so():
    keeper = Keeper()
    keeper.close()
    keeper.close()

    with pytest.raises(KeeperError, match="has been closed"):
        keeper.children()
