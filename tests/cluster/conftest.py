"""What tests against the real API server share, for as long as a test file runs: Flyball's CRDs, simulated nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flyball_sim.node.fleet import Fleet, NodeSpec

CRDS = Path(__file__).resolve().parents[2] / "crds"
NAMES = ("energypolicies.flyball.dev", "nodeenergyplans.flyball.dev")


@pytest.fixture(scope="module")
def flyball_crds(cluster, eventually):
    """The CRDs of this checkout; taken away again where there were none, so that a chart can bring its own."""
    present = cluster.kubectl("get", "crd", *NAMES, "--ignore-not-found", "-o", "name", check=True).stdout
    cluster.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={CRDS}", check=True)
    cluster.kubectl("wait", "crd", *NAMES, "--for=condition=Established", "--timeout=30s", check=True)
    # Established means served; kubectl explain and apply read the schema that is published after that.
    eventually("the API server publishes both schemas", lambda: _published(cluster))
    yield
    if not present:
        cluster.kubectl("delete", "crd", *NAMES, "--timeout=60s", check=True)


def _published(cluster):
    answer = cluster.kubectl("get", "--raw", "/openapi/v3/apis/flyball.dev/v1alpha1")
    return all(f"dev.flyball.v1alpha1.{kind}" in answer.stdout for kind in ("EnergyPolicy", "NodeEnergyPlan"))


@pytest.fixture(scope="module")
def fleet(cluster) -> Iterator[Fleet]:
    """Two nodes with 8 GPUs each, `gpu-0` and `gpu-1`."""
    with Fleet(cluster.kubeconfig, [NodeSpec("gpu-0"), NodeSpec("gpu-1")]) as nodes:
        yield nodes
    cluster.kubectl("delete", "node", *nodes.nodes, "--ignore-not-found")


@pytest.fixture
def start_fleet(cluster) -> Iterator[Callable[..., Fleet]]:
    """Starts nodes of one test's own (to be killed), and takes their Node objects away afterwards."""
    fleets: list[Fleet] = []

    def start(*specs: NodeSpec) -> Fleet:
        fleet = Fleet(cluster.kubeconfig, specs)
        fleets.append(fleet)
        fleet.start()
        fleet.wait_ready()
        return fleet

    yield start
    for fleet in fleets:
        fleet.stop()
        cluster.kubectl("delete", "node", *fleet.nodes, "--ignore-not-found")
