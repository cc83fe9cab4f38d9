"""The compiled engine is the plain one, faster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flyball_sim.engine.compiling import SWITCH, CompileError, build, cache_directory, prefer_compiled

RUN = """
import flyball_sim.engine.stepping as stepping
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits, EngineRequest
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.load.conversation import generate

machine = Machine(step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1), EngineLimits(131_072), seed=4)
for number, request in enumerate(generate(60.0, seed=2)):
    machine.submit(EngineRequest(str(number), request.prompt_tokens, request.output_tokens), request.arrival_seconds)
    if number == 100:
        machine.set_cap(machine.now_seconds, 400.0)
    if number == 200:
        machine.set_lock(machine.now_seconds, (345, 1200))
machine.advance(120.0)
print(stepping.__file__.endswith(".so"))
print(machine.energy_joules, machine.page(), machine.readings(), machine.take_finished())
"""


def run(switch: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN], env={**os.environ, SWITCH: switch}, capture_output=True, text=True, check=True
    )
    compiled, _, numbers = done.stdout.partition("\n")
    return compiled, numbers


def test_a_build_runs_wherever_the_engine_is_imported_and_gives_the_same_numbers_to_the_last_digit():
    assert build() == cache_directory()
    compiled, plain = run("1"), run("0")
    assert (compiled[0], plain[0]) == ("True", "False")
    assert compiled[1] == plain[1]


def test_a_source_that_does_not_compile_is_said_to_run_uncompiled(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("flyball_sim.engine.compiling.MODULES", ("no_such_module",))
    with pytest.raises(CompileError, match=r"install mypy, setuptools and a C compiler \(cc\), or run without"):
        build(tmp_path)
    assert not cache_directory(tmp_path).exists()


@pytest.mark.parametrize(("mode", "taken"), [(0o755, True), (0o775, False), (0o777, False)])
def test_a_build_is_taken_only_from_where_nobody_else_could_put_it(tmp_path: Path, monkeypatch, mode, taken):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    cache_directory().mkdir(parents=True)
    cache_directory().parent.chmod(0o755)
    cache_directory().chmod(mode)
    package_path = ["plain"]
    prefer_compiled(package_path)
    assert (len(package_path) == 2) is taken


def test_a_cache_that_cannot_be_used_leaves_the_plain_modules(tmp_path: Path, monkeypatch):
    (tmp_path / "flyball").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package_path = ["plain"]
    prefer_compiled(package_path)
    assert package_path == ["plain"]
