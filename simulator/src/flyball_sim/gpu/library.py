"""Compiling `libnvidia-ml.so.1` from the C source beside this package, once per source and compiler."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import filelock
import platformdirs

SOURCE_DIRECTORY = Path(__file__).resolve().parents[3] / "nvml"
LIBRARY_NAME = "libnvidia-ml.so.1"
STATE_FILE_NAME = "flyball-gpus.state"
"""What the library looks for beside itself where $FLYBALL_NVML_STATE names no file."""

_FLAGS = (
    "-shared",
    "-fPIC",
    "-O2",
    "-std=gnu11",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
    f"-Wl,-soname,{LIBRARY_NAME}",
    "-Wl,-z,defs",  # pynvml loads with RTLD_NOW: a symbol missing here would be a library that does not load
)
_LOCK_TIMEOUT_SECONDS = 120
_COMPILE_TIMEOUT_SECONDS = 100


class LibraryBuildError(Exception):
    """The NVML library could not be built; the message says what to do."""


def build_library(cache: Path | None = None) -> Path:
    """The compiled library, from the cache or built into it; safe against builds at once and cut short.

    Args:
        cache: directory to keep builds in, the user's cache directory by default.

    Raises:
        LibraryBuildError: there is no C compiler, or it refuses the source.
    """
    compiler = _compiler()
    sources = sorted(SOURCE_DIRECTORY.glob("*.c"))
    if not sources:
        raise LibraryBuildError(f"no C source in {SOURCE_DIRECTORY}: run from a checkout of the workspace")
    digest = hashlib.sha256("\0".join((*compiler, *_FLAGS, platform.machine())).encode())
    for file in (*sources, *sorted(SOURCE_DIRECTORY.glob("*.h"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    root = Path(platformdirs.user_cache_dir("flyball")) if cache is None else cache
    directory = root / "nvml" / digest.hexdigest()[:16]
    library = directory / LIBRARY_NAME
    if library.exists():
        return library
    directory.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(directory / "build.lock", timeout=_LOCK_TIMEOUT_SECONDS):
        if not library.exists():
            _compile(compiler, sources, library)
    return library


def _compiler() -> tuple[str, ...]:
    """The compiler's command: $CC (which may carry options), else the first of cc, gcc and clang."""
    chosen = os.environ.get("CC", "").strip()
    candidates = [shlex.split(chosen)] if chosen else [["cc"], ["gcc"], ["clang"]]
    for command in candidates:
        found = shutil.which(command[0])
        if found is not None:
            return (found, *command[1:])
    tried = f"CC={chosen!r}" if chosen else "cc, gcc and clang"
    raise LibraryBuildError(
        f"no C compiler for {LIBRARY_NAME} (tried {tried}): install one (Debian: apt-get install gcc libc6-dev), "
        "or name one in CC"
    )


def _compile(compiler: tuple[str, ...], sources: list[Path], library: Path) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".building-", dir=library.parent)
    os.close(descriptor)
    unfinished = Path(name)
    try:
        command = [*compiler, *_FLAGS, *map(str, sources), "-ldl", "-o", name]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_SECONDS, check=False)
        if result.returncode != 0:
            raise LibraryBuildError(
                f"{compiler[0]} could not build {LIBRARY_NAME} (status {result.returncode}): install the C "
                f"library's headers, or name another compiler in CC. It said:\n{result.stderr.strip()}"
            )
        unfinished.chmod(0o755)
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)
