"""What tests against the real API server share: Flyball's CRDs, installed for as long as a test file runs."""

from __future__ import annotations

from pathlib import Path

import pytest

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
