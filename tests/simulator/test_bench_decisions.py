"""What a controller's decisions are timed on: one recording for all, shown as an agent shows it."""

import pytest

from flyball_agent.profiles import Profile
from flyball_sim.bench.decisions import cost, record
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import step_model

MODEL = step_model(gpu_type("H100-SXM5"), "llama-3.1-8b", 1)
PROFILE = Profile("none", MODEL.gpu.product_name, "llama-3.1-8b", 1, "0", "2026-11-21")


@pytest.fixture(scope="module")
def recording():
    return record(MODEL, 1, 20.0)


def test_the_recording_is_of_a_busy_engine_whose_clock_moves(recording):
    assert len(recording) == 200
    assert recording[-1].page.values["generation_tokens"] > 100
    assert len({moment.gpus[0].sm_mhz for moment in recording}) > 1
    assert record(MODEL, 1, 20.0)[-1].page == recording[-1].page


@pytest.mark.parametrize(("kind", "least", "most"), [("Fixed", 1, 1), ("Flyball", 38, 42), ("AGFT", 20, 200)])
def test_every_controller_is_asked_as_often_as_it_wants_to_be(recording, kind, least, most):
    spent = cost(kind, MODEL, PROFILE, recording, seed=1)
    assert least <= len(spent.microseconds) <= most
    assert min(spent.microseconds) > 0
