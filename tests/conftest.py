"""What tests of every room share: the cluster they run against."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flyball_sim.controlplane.assets import find_assets
from flyball_sim.controlplane.cluster import LocalCluster
from flyball_sim.controlplane.toolchain import AssetsError
from flyball_sim.controlplane.tools import ClusterTools


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster",
        choices=("local", "current"),
        default="local",
        help="API server of the tests that need one: a control plane of our own (default), or the one your "
        "kubeconfig's current context names, for instance made by kind",
    )


def pytest_configure() -> None:
    """Let tests interrupt what they start: a shell's background job ignores the signal, and so would its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Get what the fixtures need before the first test, so that no test's time limit holds a build of minutes."""
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    current = session.config.getoption("--cluster") == "current"
    if "local_cluster" in wanted or ("cluster" in wanted and not current):
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            try:
                find_assets()
            except AssetsError as error:
                raise pytest.UsageError(str(error)) from error
    if "cluster" in wanted and current:
        _check_current()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait for a condition of another process: polled, with a deadline, and named when it does not come."""

    def wait(what: str, condition: Callable[[], bool], within_seconds: float = 30.0) -> None:
        deadline = time.monotonic() + within_seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_seconds:.0f} s: {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def is_alive() -> Callable[[int], bool]:
    """Whether a process id runs; one that has ended and is not reaped yet does not."""

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    return alive


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[LocalCluster]:
    """A control plane of our own, whatever --cluster says: for tests that kill its parts."""
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> LocalCluster | ClusterTools:
    """The API server under test, with .kubeconfig, .kubectl(...) and .helm(...)."""
    if request.config.getoption("--cluster") == "current":
        return _current_tools()
    started: LocalCluster = request.getfixturevalue("local_cluster")
    return started


def _current_tools() -> ClusterTools:
    found = {name: shutil.which(name) for name in ("kubectl", "helm")}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise pytest.UsageError(
            f"--cluster=current: no {' and no '.join(missing)} on PATH; install it, or leave the option out"
        )
    kubeconfig = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return ClusterTools(Path(kubeconfig), Path(str(found["kubectl"])), Path(str(found["helm"])), dict(os.environ))


def _check_current() -> None:
    tools = _current_tools()
    try:
        answer = tools.kubectl("get", "--raw", "/readyz", timeout_seconds=30)
    except subprocess.TimeoutExpired as error:
        raise pytest.UsageError(f"--cluster=current: {tools.kubeconfig}: no answer in 30 s") from error
    if answer.returncode != 0:
        raise pytest.UsageError(
            f"--cluster=current: the cluster of {tools.kubeconfig} does not answer: {answer.stderr.strip()} "
            "Set KUBECONFIG to one that does, or leave the option out to run a local control plane."
        )
