"""A process that keeps other processes and ends them when its owner ends, however the owner ends.

The keeper is a small single-threaded Python process between the owner and the children. Its standard input is a pipe
whose other end only the owner holds, so the kernel closes it on a clean exit and on `kill -9` alike; the keeper then
ends the children and removes the scratch directory. `PR_SET_PDEATHSIG` alone would not do for the owner: it fires when
the parent *thread* that forked ends, leaves no one to clean up, and does not exist outside Linux. Between keeper and
children none of that hurts, so there (on Linux) it covers the keeper itself being killed.

The protocol is one JSON object per line each way. A child forked (not executed) by the owner would hold the pipe
open too: owners use subprocess, whose children inherit no such descriptor.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

DEFAULT_GRACE_SECONDS = 5.0


class KeeperError(RuntimeError):
    """The keeper is gone or refused a request."""


class Keeper:
    """The owner's handle: start, signal and look at children that cannot outlive the owner."""

    def __init__(self, scratch: Path | None = None, grace_seconds: float = DEFAULT_GRACE_SECONDS) -> None:
        """Start the keeper.

        Args:
            scratch: removed, whatever is in it, after the last child has ended.
            grace_seconds: how long all children together have between SIGTERM and SIGKILL at the end.
        """
        command = [sys.executable, "-m", "flyball_sim.controlplane.keeper", "--grace-seconds", str(grace_seconds)]
        if scratch is not None:
            command += ["--scratch", str(scratch)]
        self._lock = threading.Lock()
        # A session of its own: Ctrl-C on the owner's terminal must reach the owner only, which then ends us in order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd="/"
        )

    @property
    def pid(self) -> int:
        """The keeper's own process id."""
        return self._process.pid

    def start(self, name: str, argv: Sequence[str | Path], log: Path, environ: Mapping[str, str]) -> int:
        """Start a child with exactly this environment, output appended to `log`; returns its process id."""
        answer = self._ask(
            op="start", name=name, argv=[str(part) for part in argv], log=str(log), environ=dict(environ)
        )
        return int(answer["pid"])

    def stop(
        self,
        name: str,
        with_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = DEFAULT_GRACE_SECONDS,
    ) -> int:
        """Signal a child, kill it if it lives on after the grace; returns its exit status (-N: signal N)."""
        answer = self._ask(op="stop", name=name, signal=int(with_signal), grace_seconds=grace_seconds)
        return int(answer["returncode"])

    def children(self) -> dict[str, tuple[int, int | None]]:
        """Return name -> (process id, exit status or None while it runs)."""
        found = self._ask(op="children")["children"]
        return {name: (int(pid), returncode) for name, (pid, returncode) in found.items()}

    def close(self) -> None:
        """End every child and the keeper. Harmless when called twice."""
        with self._lock:
            if self._process.stdin is not None and not self._process.stdin.closed:
                self._process.stdin.close()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        with self._lock:
            if self._process.stdin is None or self._process.stdout is None or self._process.stdin.closed:
                raise KeeperError(f"{request['op']}: the keeper has been closed; make a new one")
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except OSError as error:
                raise KeeperError(f"{request['op']}: the keeper {self.pid} does not answer: {error}") from error
        if not line:
            raise KeeperError(f"{request['op']}: the keeper {self.pid} has ended, and its children with it")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise KeeperError(f"{request['op']} {request.get('name', '')}: {answer['error']}")
        return answer


class _Children:
    """The keeper's side: the children and what can be asked about them."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request:
            case {"op": "start", "name": name, "argv": argv, "log": log, "environ": environ}:
                return self._start(name, argv, Path(log), environ)
            case {"op": "stop", "name": name, "signal": number, "grace_seconds": grace}:
                return self._stop(name, number, grace)
            case {"op": "children"}:
                return {"children": {name: (p.pid, p.poll()) for name, p in self._processes.items()}}
        return {"error": f"unknown request {dict(request)!r}"}

    def _start(self, name: str, argv: list[str], log: Path, environ: dict[str, str]) -> dict[str, Any]:
        running = self._processes.get(name)
        if running is not None and running.poll() is None:
            return {"error": f"already runs as {running.pid}; stop it first"}
        with log.open("ab") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=log.parent,
                preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509 - this process has one thread
            )
        self._processes[name] = process
        return {"pid": process.pid}

    def _stop(self, name: str, number: int, grace_seconds: float) -> dict[str, Any]:
        process = self._processes.get(name)
        if process is None:
            return {"error": f"not known; started so far: {', '.join(self._processes) or 'none'}"}
        process.send_signal(number)
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return {"returncode": process.returncode}

    def end(self, grace_seconds: float) -> None:
        """End all, the last started first, within one grace for them together."""
        deadline = time.monotonic() + grace_seconds
        living = [process for process in reversed(self._processes.values()) if process.poll() is None]
        for process in living:
            process.terminate()
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def die_with_parent(parent: int) -> Callable[[], None] | None:
    """Return what a child runs between fork and exec so that the kernel kills it when `parent` ends (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arm() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return arm


def main() -> int:
    """Serve requests until standard input ends or SIGTERM comes; then end the children and clear up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--grace-seconds", type=float, required=True)
    arguments = parser.parse_args()
    scratch: Path | None = arguments.scratch

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    children = _Children()
    try:
        for line in sys.stdin:
            try:
                answer = children.handle(json.loads(line))
            except (OSError, ValueError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    except BrokenPipeError:
        pass  # the owner ended between asking and reading
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        children.end(arguments.grace_seconds)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
