"""The engine's hot modules as machine code, where somebody has had them compiled.

`make compiled` compiles them with mypyc, once per source, into the user's cache; from then on every process that
imports `flyball_sim.engine` takes them from there. They are the same modules with the same results, some two and a
half times as fast. A build belongs to one state of the sources, of those the modules import too, for mypyc may take
constants over: after an edit the plain modules run again until the next build. FLYBALL_SIM_COMPILED=0 has the plain
ones run in any case.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

SWITCH = "FLYBALL_SIM_COMPILED"
MODULES = ("batch", "clocks", "core", "kvcache", "machine", "power", "stepping", "tallies", "work")
_HERE = Path(__file__).resolve().parent
_SOURCE_ROOT = _HERE.parents[1]
_TIMEOUT_SECONDS = 600
_SCRIPT = """
import sys
from mypyc.build import mypycify
from setuptools import setup
out, scratch, *files = sys.argv[1:]
options = ["--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={scratch}/mypy"]
modules = mypycify([*options, *files], opt_level="3", debug_level="0", target_dir=f"{scratch}/c")
setup(name="flyball-sim-engine", ext_modules=modules, packages=[], script_args=[
    "-q", "build_ext", "--build-lib", out, "--build-temp", f"{scratch}/o"])
"""


class CompileError(Exception):
    """The modules could not be compiled; the message says what to do."""


def cache_directory(cache: Path | None = None) -> Path:
    """Where a build of the present sources belongs.

    Args:
        cache: directory to keep builds in, the user's cache directory by default.
    """
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {platform.machine()}".encode())
    for file in _sources():
        digest.update(f"{file.parent.name}/{file.name}\0".encode() + file.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flyball"
    return (home if cache is None else cache) / "engine" / digest.hexdigest()[:16]


def _sources() -> list[Path]:
    """The modules, and all of the project that they import."""
    rooms = [file for room in ("engine", "gpu", "latency") for file in sorted((_HERE.parent / room).glob("*.py"))]
    agent = find_spec("flyball_agent")
    folders = [] if agent is None else agent.submodule_search_locations or []
    return [*rooms, *(Path(folder) / name for folder in folders for name in ("scanner.py", "controllers/base.py"))]


def prefer_compiled(package_path: list[str]) -> None:
    """Let the package find its compiled modules first, where there are any.

    Args:
        package_path: the package's `__path__`.
    """
    if os.environ.get(SWITCH) == "0":
        return
    try:
        built = cache_directory()
        safe = _is_ours(built) and _is_ours(built.parent)
    except (OSError, RuntimeError):  # no home, or a cache that cannot be read: the plain modules will do
        return
    if safe:
        package_path.insert(0, str(built / "flyball_sim" / "engine"))
        sys.path.append(str(built))  # what the modules share lies beside the package


def _is_ours(directory: Path) -> bool:
    """Whether nobody else can have put code there."""
    try:
        status = directory.stat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in {0, os.geteuid()} and not status.st_mode & 0o022


def build(cache: Path | None = None) -> Path:
    """Compile the present sources unless that was done already; safe against builds at once and cut short.

    Raises:
        CompileError: mypyc, setuptools or a C compiler is missing, or refuses the source.
    """
    target = cache_directory(cache)
    if target.is_dir():
        return target
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        out = Path(scratch) / "out"
        files = [f"flyball_sim/engine/{name}.py" for name in MODULES]
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(out), scratch, *files],
            cwd=_SOURCE_ROOT,
            env={**os.environ, SWITCH: "0"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            umask=0o022,
        )
        if done.returncode:
            raise CompileError(
                "mypyc did not compile the engine: install mypy, setuptools and a C compiler (cc), or run without; "
                f"it said: {(done.stderr or done.stdout).strip()[-2000:]}"
            )
        try:
            out.rename(target)
        except OSError:  # another build of the same source was there first
            shutil.rmtree(out, ignore_errors=True)
    return target


def main() -> int:
    """Compile, and say where to; 1 where that is not possible."""
    try:
        print(f"the engine's compiled modules are in {build()}")
    except CompileError as error:
        print(f"the engine runs uncompiled: {error}", file=sys.stderr)
        return 1
    return 0
