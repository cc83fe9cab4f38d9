"""What a controller's decisions are timed on: an engine that it drives, shown as an agent shows it."""

import pytest

from flyball_agent.profiles import Profile
from flyball_sim.bench.decisions import cost
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import step_model

MODEL = step_model(gpu_type("H100-SXM5"), "llama-3.1-8b", 1)
PROFILE = Profile("none", MODEL.gpu.product_name, "llama-3.1-8b", 1, "0", "2026-11-21")


@pytest.mark.parametrize(("kind", "least", "most"), [("Fixed", 1, 1), ("Flyball", 38, 42), ("AGFT", 20, 200)])
def test_every_controller_is_asked_as_often_as_it_wants_to_be(kind, least, most):
    spent = cost(kind, MODEL, PROFILE, seed=1, seconds=20.0)
    assert least <= len(spent.microseconds) <= most
    assert min(spent.microseconds) > 0
    assert spent.degraded == ()
