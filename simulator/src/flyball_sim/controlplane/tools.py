"""kubectl and helm against one cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class CommandFailedError(RuntimeError):
    """A command that had to succeed did not; the message holds what it printed."""


@dataclass(frozen=True)
class ClusterTools:
    """Runs kubectl and helm with one kubeconfig and one environment."""

    kubeconfig: Path
    kubectl_path: Path
    helm_path: Path
    environ: Mapping[str, str]

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - the name subprocess gives it
        check: bool = False,
        timeout_seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; see `_run`."""
        return self._run([str(self.kubectl_path), *args], input, timeout_seconds, check=check)

    def helm(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - the name subprocess gives it
        check: bool = False,
        timeout_seconds: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run helm; see `_run`."""
        return self._run([str(self.helm_path), *args], input, timeout_seconds, check=check)

    def _run(
        self, command: Sequence[str], text: str | None, timeout_seconds: float, *, check: bool
    ) -> subprocess.CompletedProcess[str]:
        """Run one command with `text` on its standard input and return its output.

        Raises:
            CommandFailedError: it did not exit with 0 and `check` was asked for.
            subprocess.TimeoutExpired: it took longer than `timeout_seconds`; it has been killed.
        """
        done = subprocess.run(
            command,
            input="" if text is None else text,
            env={**self.environ, "KUBECONFIG": str(self.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        if check and done.returncode != 0:
            raise CommandFailedError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done
