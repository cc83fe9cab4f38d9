"""Clusters with a name, which live on after the command that started them: one supervisor process each.

A supervisor holds a lock of the kernel as long as it lives, so "is it up?" never depends on a stale process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import filelock
import platformdirs

from flyball_sim.controlplane.assets import find_assets
from flyball_sim.controlplane.cluster import START_SECONDS, ClusterError, HealthProbe, LocalCluster
from flyball_sim.controlplane.components import Layout
from flyball_sim.controlplane.toolchain import tail

END_SECONDS = 30.0
POLL_SECONDS = 0.1
WATCH_SECONDS = 2.0


@dataclass(frozen=True)
class Member:
    """One component as the supervisor recorded it."""

    name: str
    pid: int
    health_url: str
    log: str


@dataclass(frozen=True)
class State:
    """What a supervisor tells other processes; `members` is empty until the cluster is ready."""

    pid: int
    kubeconfig: str = ""
    programs: str = ""
    server: str = ""
    members: tuple[Member, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether the start has succeeded."""
        return bool(self.members)


@dataclass(frozen=True)
class MemberStatus:
    """One component as another process sees it now."""

    member: Member
    running: bool
    healthy: bool


class NamedCluster:
    """The cluster of one name and user."""

    def __init__(self, name: str, root: Path | None = None) -> None:
        """Name a cluster.

        Args:
            name: 1 to 40 lower-case letters, digits and hyphens.
            root: where clusters are kept; None: Flyball's directory under the user's state directory.

        Raises:
            ClusterError: the name cannot be one.
        """
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
            raise ClusterError(f"cluster name {name!r}: give 1 to 40 lower-case letters, digits and hyphens")
        self.name = name
        self._root = root or Path(platformdirs.user_state_dir("flyball")) / "clusters"
        self.directory = self._root / name
        self.log = self._root / f"{name}.log"
        self._lock_path = self._root / f"{name}.lock"
        self._state_path = self.directory / "state.json"

    def state(self) -> State | None:
        """Return what the living supervisor has written, None when none lives."""
        return self._read_state() if self._is_supervised() else None

    def up(self, *, audit: bool) -> State:
        """Start a supervisor that outlives this process, or find it running; returns once the cluster is ready.

        Raises:
            AssetsError: the programs cannot be had.
            ClusterError: the start failed; the message holds the end of the supervisor's log.
        """
        supervisor = None
        if not self._is_supervised():
            find_assets()  # here, where a person can watch it build
            supervisor = self._spawn(audit=audit)
        deadline = time.monotonic() + START_SECONDS + END_SECONDS
        while True:
            supervised = self._is_supervised()
            state = self._read_state() if supervised else None
            if state is not None and state.ready:
                return state
            # A supervisor that lost a race against another `up` has ended too; then we wait for the winner.
            ended = supervisor is None or supervisor.poll() is not None
            if (ended and not supervised) or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace") if self.log.exists() else ""
                raise ClusterError(f"cluster {self.name!r} did not come up. The end of {self.log}:\n{tail(said)}")
            time.sleep(POLL_SECONDS)

    def serve(self, ready: Callable[[State], None], *, audit: bool) -> None:
        """Be the supervisor: run the cluster until SIGTERM or Ctrl-C, then remove its data.

        Args:
            ready: called once, when the cluster is up.
            audit: see `LocalCluster`.

        Raises:
            ClusterError: another supervisor runs, or the start failed.
        """
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(self._lock_path)
        try:
            lock.acquire(timeout=2)  # a status command may be holding it for an instant
        except filelock.Timeout as error:
            raise ClusterError(
                f"cluster {self.name!r} is up already; see flyball-sim cluster status --name {self.name}"
            ) from error
        with contextlib.ExitStack() as undo:
            undo.callback(lock.release)
            undo.enter_context(_ended_by_signal())
            shutil.rmtree(self.directory, ignore_errors=True)  # of a supervisor that was killed
            self.directory.mkdir(mode=0o700)
            undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self._write_state(State(pid=os.getpid()))
            cluster = undo.enter_context(LocalCluster(self.directory / "cluster", audit=audit))
            state = _state_of(cluster)
            self._write_state(state)
            ready(state)
            _watch(cluster)

    def down(self) -> bool:
        """End the supervisor and remove the cluster's data; returns whether it was up.

        Raises:
            ClusterError: it does not end.
        """
        was_up = False
        deadline = time.monotonic() + END_SECONDS
        while self._is_supervised():
            state = self._read_state()
            if state is not None:
                # TERM again and again is harmless; KILL near the end is safe, as the keeper ends what is left
                late = time.monotonic() > deadline - END_SECONDS / 3
                with contextlib.suppress(ProcessLookupError):
                    os.kill(state.pid, signal.SIGKILL if late else signal.SIGTERM)
                was_up = True
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"cluster {self.name!r} did not end in {END_SECONDS:.0f} s; "
                    f"look for the process that holds {self._lock_path}"
                )
            time.sleep(POLL_SECONDS)
        shutil.rmtree(self.directory, ignore_errors=True)
        return was_up

    def status(self) -> list[MemberStatus]:
        """Return the health of each component; empty when the cluster is not up."""
        state = self.state()
        if state is None or not state.ready:
            return []
        probe = HealthProbe(Layout(Path(state.kubeconfig).parent))
        return [
            MemberStatus(member, running=_runs(member.pid), healthy=probe.ok(member.health_url))
            for member in state.members
        ]

    def _is_supervised(self) -> bool:
        if not self._lock_path.exists():
            return False
        lock = filelock.FileLock(self._lock_path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return True
        lock.release()
        return False

    def _spawn(self, *, audit: bool) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "flyball_sim.cli", "cluster", "up", "--foreground", "--name", self.name]
        if audit:
            command.append("--audit")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )

    def _read_state(self) -> State | None:
        try:
            document = json.loads(self._state_path.read_text())
        except FileNotFoundError:
            return None
        members = tuple(Member(**member) for member in document.pop("members"))
        return State(**document, members=members)

    def _write_state(self, state: State) -> None:
        fresh = self._state_path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(state)))
        fresh.replace(self._state_path)


def _state_of(cluster: LocalCluster) -> State:
    members = tuple(Member(status.name, status.pid, status.health_url, str(status.log)) for status in cluster.status())
    return State(os.getpid(), str(cluster.kubeconfig), str(cluster.bin), cluster.server, members)


def _watch(cluster: LocalCluster) -> None:
    """Stay until a signal comes; say which component has ended, once each."""
    ended: set[str] = set()
    while True:
        time.sleep(WATCH_SECONDS)
        for status in cluster.status():
            if not status.running and status.name not in ended:
                ended.add(status.name)
                print(f"{status.name} (pid {status.pid}) has ended; its log is {status.log}", flush=True)


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into an orderly way out of the block, wherever it is."""

    class Ended(BaseException):
        """Not an Exception: nothing but this block may catch it."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the way out must not be interrupted
        raise Ended

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Ended:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
