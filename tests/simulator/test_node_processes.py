"""Containers are real processes: with the right user, an end when told, and none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flyball_sim.node.podspec import Identity, ProcessSpec
from flyball_sim.node.processes import ProcessTable, StartError, Sweeper, interpreter_directories, veils_for

ENV = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}


@pytest.fixture
def sweeper():
    helper = Sweeper()
    yield helper
    helper.close()


@pytest.fixture
def table(sweeper, tmp_path):
    return ProcessTable(sweeper, [*interpreter_directories(), tmp_path])


def spec(tmp_path, *argv, identity=None):
    return ProcessSpec(argv, ENV, str(tmp_path), identity)


def is_alive(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


async def test_output_and_exit_code_are_kept(table, tmp_path):
    process = table.start(spec(tmp_path, "sh", "-c", "echo out; echo err >&2; exit 7"), tmp_path / "log")
    assert await process.wait() == 7
    assert process.exit_code == 7
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]


async def test_a_process_ended_by_a_signal_has_the_runtimes_exit_code(table, tmp_path):
    process = table.start(spec(tmp_path, "sleep", "100"), tmp_path / "log")
    assert await process.stop(10) == 128 + signal.SIGTERM


async def test_a_process_that_ignores_term_is_killed_after_the_grace(table, tmp_path, eventually):
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(100)"
    process = table.start(spec(tmp_path, "python", "-c", script), tmp_path / "log")
    await asyncio.to_thread(eventually, "it to be deaf", lambda: "deaf" in (tmp_path / "log").read_text(), 20)
    assert await process.stop(0.2) == 128 + signal.SIGKILL


async def test_a_containers_other_processes_end_with_its_first(table, tmp_path, eventually):
    process = table.start(spec(tmp_path, "sh", "-c", "sleep 100 & echo $!; exit 0"), tmp_path / "log")
    assert await process.wait() == 0
    child = int((tmp_path / "log").read_text())
    eventually("the child to end", lambda: not is_alive(child), 5)


async def test_an_unknown_program_is_an_error_that_names_it(table, tmp_path):
    with pytest.raises(StartError, match='"no-such-program": executable file not found'):
        table.start(spec(tmp_path, "no-such-program"), tmp_path / "log")


async def test_the_environment_is_only_what_is_given(table, tmp_path):
    await table.start(spec(tmp_path, "env"), tmp_path / "log").wait()
    names = {line.split("=", 1)[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert names - {"PWD", "SHLVL", "_"} == {"PATH"}


def test_a_killed_node_leaves_no_process_of_its_containers(tmp_path, eventually):
    """The sweeper works through kill -9 of its parent, for whole process groups."""
    script = f"""
import asyncio, pathlib, sys
from flyball_sim.node.podspec import ProcessSpec
from flyball_sim.node.processes import ProcessTable, Sweeper
async def main():
    table = ProcessTable(Sweeper(), [])
    spec = ProcessSpec(("sh", "-c", "sleep 300 & echo $$ $!; wait"), {ENV!r}, "/", None)
    await table.start(spec, pathlib.Path({str(tmp_path / "log")!r})).wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script]) as node:
        log = tmp_path / "log"
        eventually("the container to start", lambda: log.exists() and len(log.read_text().split()) == 2)
        pids = [int(word) for word in log.read_text().split()]
        assert all(is_alive(pid) for pid in pids)
        node.kill()
    eventually("its processes to end", lambda: not any(is_alive(pid) for pid in pids), 5)


def test_a_directory_closed_to_the_user_is_veiled_with_what_is_needed_below(tmp_path):
    closed = tmp_path / "closed"
    for needed in ("python/lib", "python", "node"):
        (closed / needed).mkdir(parents=True, exist_ok=True)
    closed.chmod(0o700)
    stranger = Identity(65532, 65532)
    veils = veils_for(stranger, [closed / "python/lib", closed / "python", closed / "node"])
    # A directory above (the test's own temporary one) may be closed as well: the topmost counts.
    (top,) = veils
    assert Path(top) == closed or closed.is_relative_to(top)
    assert veils[top] == [str(closed / "node"), str(closed / "python")]


def test_an_open_path_needs_no_veil():
    assert veils_for(Identity(65532, 65532), [Path("/usr/bin"), Path("/")]) == {}


def test_a_directory_open_to_a_group_of_the_user_needs_no_veil(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    tmp_path.chmod(0o710)
    member = Identity(os.getuid() + 1, 1, (tmp_path.stat().st_gid,))
    assert str(tmp_path) not in veils_for(member, [inner])


@pytest.mark.parametrize("gid", [65532])
async def test_a_container_runs_as_the_user_it_names(table, tmp_path, gid):
    """Root changes users; anybody else runs containers as themselves, which the node then does not ask for."""
    identity = Identity(65532, gid, (7,)) if os.geteuid() == 0 else None
    script = "import os, json; print(json.dumps([os.getuid(), os.getgid(), os.getgroups()]))"
    process = table.start(spec(tmp_path, "python", "-c", script, identity=identity), tmp_path / "log")
    assert await process.wait() == 0, (tmp_path / "log").read_text()
    expected = [65532, gid, [7]] if identity else [os.getuid(), os.getgid(), os.getgroups()]
    assert (tmp_path / "log").read_text().strip() == str(expected)


async def test_a_program_behind_a_link_in_a_closed_directory_can_be_reached(sweeper, tmp_path):
    if os.geteuid() != 0:
        # Nobody else changes users, so nothing is closed to the node's containers that is open to the node.
        assert interpreter_directories()
        return
    closed = tmp_path / "closed"
    real = closed / "real"
    real.mkdir(parents=True)
    (real / "word").write_text("found")
    (closed / "link").symlink_to(real)
    closed.chmod(0o700)
    table = ProcessTable(sweeper, [*interpreter_directories(), closed / "link"])
    read = spec(tmp_path, "cat", str(closed / "link/word"), str(real / "word"), identity=Identity(65532, 65532))
    assert await table.start(ProcessSpec(read.argv, ENV, "/", read.identity), tmp_path / "log").wait() == 0
    assert (tmp_path / "log").read_text() == "foundfound"
    hidden = ProcessSpec(("cat", str(closed / "no")), ENV, "/", read.identity)
    assert await table.start(hidden, tmp_path / "log").wait() == 1
