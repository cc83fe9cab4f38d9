"""Start, watch and end host processes that stand for containers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import structlog

from flyball_sim.node.podspec import Identity, ProcessSpec

_HERE = Path(__file__).parent


class StartError(Exception):
    """The process could not be started; the message says why."""


class Sweeper:
    """Handle of the helper process that kills the containers' process groups should this process die."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process = self._spawn()

    def add(self, group: int) -> None:
        """A container's process group has started."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """It has ended."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End the helper; it kills what is still listed."""
        self._input.close()
        self._process.wait()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101 - spawned with a pipe
        return self._process.stdin

    def _spawn(self) -> subprocess.Popen[bytes]:
        # A session of its own: what kills the node's process group must leave its sweeper to do its work.
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_HERE / "sweeper.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )

    def _tell(self, line: str) -> None:
        try:
            self._input.write(line.encode())
        except BrokenPipeError:
            structlog.get_logger().warning("sweeper_replaced", old_pid=self._process.pid)
            self._process.wait()
            self._process = self._spawn()
            self._input.write("".join(f"+{group}\n" for group in sorted(self._groups)).encode())


class RunningProcess:
    """One started process, leader of its own process group and session."""

    def __init__(self, popen: subprocess.Popen[bytes], sweeper: Sweeper) -> None:
        self._popen = popen
        self._sweeper = sweeper
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Process id; also the process group's."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """As a container runtime says it (128 + signal); None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait for the end; may be cancelled and called again. Returns the exit code as `exit_code` has it."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """TERM to the first process, as a container runtime does it."""
        if not self._ended.done():
            self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """KILL to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> int:
        """TERM, then KILL after the grace; returns the exit code."""
        self.terminate()
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()

    def _reap(self) -> None:
        status = self._popen.poll()
        if status is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        # A container ends with its first process; here its other processes have to be told.
        self.kill()
        self._sweeper.remove(self.pid)
        self._ended.set_result(128 - status if status < 0 else status)


class ProcessTable:
    """Starts processes with the user, environment and log they are to have.

    Args:
        sweeper: Told of every process group.
        reachable: Directories that every process must be able to reach, whatever its user (interpreter, node root).
    """

    def __init__(self, sweeper: Sweeper, reachable: Sequence[Path]) -> None:
        self._sweeper = sweeper
        # By both names: a path may lead through a symbolic link that stands in a closed directory itself.
        self._reachable = [Path(name) for path in reachable for name in {str(path), os.path.realpath(path)}]
        self._veils: dict[Identity, dict[str, list[str]]] = {}

    def start(self, spec: ProcessSpec, log: Path) -> RunningProcess:
        """Start a process; its output is appended to `log`.

        Raises:
            StartError: No such program, no such directory, or the kernel refuses.
        """
        program = shutil.which(spec.argv[0], path=spec.env.get("PATH"))
        if program is None:
            raise StartError(f'exec: "{spec.argv[0]}": executable file not found in $PATH')
        command = [program, *spec.argv[1:]]
        identity = spec.identity
        veils = self._veils_for(identity) if identity else {}
        if identity and veils:
            wanted = {"uid": identity.uid, "gid": identity.gid, "groups": identity.groups, "veils": veils}
            command = [sys.executable, "-I", "-S", str(_HERE / "launch.py"), json.dumps(wanted), *command]
            identity = None
        with log.open("ab") as output:
            try:
                popen = subprocess.Popen(
                    command,
                    env=dict(spec.env),
                    cwd=spec.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    user=identity.uid if identity else None,
                    group=identity.gid if identity else None,
                    extra_groups=identity.groups if identity else None,
                )
            except OSError as error:
                raise StartError(f'exec: "{spec.argv[0]}" in {spec.cwd}: {error}') from error
        self._sweeper.add(popen.pid)
        return RunningProcess(popen, self._sweeper)

    def _veils_for(self, identity: Identity) -> dict[str, list[str]]:
        if identity.uid == 0:
            return {}
        if identity not in self._veils:
            self._veils[identity] = veils_for(identity, self._reachable)
        return self._veils[identity]


def interpreter_directories() -> list[Path]:
    """Directories this Python and its packages live in."""
    found = [Path(path) for path in (sys.prefix, sys.base_prefix, *sys.path) if path]
    program = Path(sys.executable)
    while program.is_symlink():
        program = program.parent / program.readlink()
        found.append(program.parent.parent)
    return [path.absolute() for path in found if path.is_dir()]


def veils_for(identity: Identity, needed: Sequence[Path]) -> dict[str, list[str]]:
    """Directories closed to a user that stand above directories it needs: {closed: [needed, ...]}.

    The topmost closed directory of each path counts; of nested needed directories only the outer one is named.
    """
    veils: dict[str, list[str]] = {}
    for path in sorted(set(needed)):
        closed = next((above for above in reversed(path.parents) if not _may_pass(identity, above)), None)
        if closed is None:
            continue
        entries = veils.setdefault(str(closed), [])
        if not any(path.is_relative_to(outer) for outer in entries):
            entries.append(str(path))
    return veils


def _may_pass(identity: Identity, directory: Path) -> bool:
    found = directory.stat()
    if found.st_uid == identity.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid in {identity.gid, *identity.groups}:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)
