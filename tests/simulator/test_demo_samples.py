"""The docs' sample policies as `flyball-sim samples` takes them, and the policies that the demo applies."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pytest

from flyball_api.controllers.union import PARAMETERS
from flyball_sim.admission.policies import PolicyError, check
from flyball_sim.demo import samples
from flyball_sim.demo.manifests import Scenario, engine_deployment, policy

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SAMPLES = samples.read_samples(EXAMPLES)


def test_there_is_a_sample_for_every_controller_but_the_fixed_clock() -> None:
    assert {sample.policy.spec.controller.type for sample in SAMPLES} == set(PARAMETERS) - {"Fixed"}


def test_no_two_samples_want_the_same_pods() -> None:
    assert len({sample.app for sample in SAMPLES}) == len(SAMPLES) == len({sample.name for sample in SAMPLES})


def test_a_sample_that_tells_roles_apart_gets_an_engine_for_each() -> None:
    pods = {sample.name: len(sample.pods) for sample in SAMPLES}
    assert Counter(pods.values()) == {1: 4, 2: 1}
    (search,) = [sample for sample in SAMPLES if len(sample.pods) == 2]
    deployments = [engine_deployment(samples.ENGINE, search.app, labels) for labels in search.pods]
    assert [each["metadata"]["name"] for each in deployments] == ["search-prefill", "search-decode"]
    roles = search.policy.spec.roles
    assert roles is not None
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in deployments]
    assert labels == [{"app": "search", roles.label_key: value.value} for value in roles.values]


def test_all_samples_share_one_profile() -> None:
    assert len(samples.profile_names(SAMPLES)) == 1


def test_a_directory_without_the_samples_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"flyball\.yaml: .*give the file of an EnergyPolicy"):
        samples.read_samples(tmp_path)
    arguments = argparse.Namespace(policies=tmp_path, seconds=1.0, rate=1.0, chart=tmp_path)
    assert samples.run(arguments) == 2


def test_each_engine_gets_its_rate_of_requests() -> None:
    load = samples.workload(SAMPLES, seconds=100.0, rate=2.0)
    sent = len(load.requests())
    assert 0.8 * 1200 < sent < 1.2 * 1200


@pytest.mark.parametrize(("sm_mhz", "controller"), [(None, "Flyball"), (1305, "Fixed")])
def test_the_demo_asks_for_flyball_unless_a_clock_is_given(sm_mhz: int | None, controller: str) -> None:
    document = policy(Scenario(sm_mhz=sm_mhz))
    assert document["spec"]["controller"]["type"] == controller
    assert not check(document)
