"""What a result depends on: the code it ran, module by module, so that editing one controller spares all other rows."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

OWN = ("flyball_sim", "flyball_agent", "flyball_api")
"""Packages whose code is looked at; versions of others are the caller's to add."""
_DATA_ROOMS = frozenset({"engine", "gpu", "latency", "load"})


@lru_cache(maxsize=256)
def code_digest(roots: tuple[str, ...], packages: tuple[str, ...] = OWN) -> str:
    """A digest of these modules, all they import, and the data beside them; comments and docstrings do not count.

    Args:
        roots: names of modules.
        packages: only modules of these count.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    digest = hashlib.sha256()
    rooms: set[Path] = set()
    for name, path in sorted(_closure(roots, packages).items()):
        digest.update(f"{name}\0{_meaning(path)}\0".encode())
        if path.parent.name in _DATA_ROOMS:
            rooms.add(path.parent)
    for room in sorted(rooms):
        for path in sorted(each for each in room.rglob("*") if each.suffix in {".csv", ".json"}):
            digest.update(f"{path.relative_to(room.parent).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _closure(roots: Iterable[str], packages: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    coming = list(roots)
    while coming:
        name = coming.pop()
        if name in found or name.partition(".")[0] not in packages:
            continue
        path = _path_of(name)
        if path is None:
            raise ModuleNotFoundError(f"no module named {name!r}", name=name)
        found[name] = path
        coming += _imported(path)
    return found


@lru_cache(maxsize=1024)
def _path_of(name: str) -> Path | None:
    """Its source, also where what is imported is compiled: both give the same results."""
    top, *parts = name.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(spec.submodule_search_locations[0], *parts)
    for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
        if path.is_file() and (parts or path.name == "__init__.py"):
            return path
    return None


@lru_cache(maxsize=1024)
def _imported(path: Path) -> tuple[str, ...]:
    return tuple(name for name in _names(ast.parse(path.read_bytes())) if _path_of(name) is not None)


def _names(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in it; a name taken from a package may be one."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.partition(".")[0] in OWN)


@lru_cache(maxsize=1024)
def _meaning(path: Path) -> str:
    """The module as the interpreter reads it, without docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
