"""Profiles that policies name are made of the simulated engines they govern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from flyball_agent.profiles import Profile
from flyball_api.energypolicy import EnergyPolicySpec
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency.steps import step_model
from flyball_sim.replay import profiles, sizing, verdict
from flyball_sim.replay.answer import run_measures
from flyball_sim.replay.bands import Pair
from flyball_sim.replay.policies import ReplayPolicy
from flyball_sim.replay.question import Question
from flyball_sim.replay.worldrun import owners
from flyball_sim.world.layout import lay_out

MODEL = step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1)


def policy(name: str, controller: Mapping[str, Any]) -> ReplayPolicy:
    spec = {"selector": {"matchLabels": {"app": name}}, "controller": controller, "powerBudget": {"watts": 700}}
    return ReplayPolicy(name, EnergyPolicySpec.model_validate(spec), {})


OFFLINE = policy("offline", {"type": "PALS", "pals": {"profile": "mine"}})
SUMMARIES = policy("summaries", {"type": "AGFT"})
STRANGER = policy("stranger", {"type": "PALS", "pals": {"profile": "of-nothing"}})


@pytest.fixture(scope="module")
def made() -> dict[str, Profile]:
    layout = lay_out(sizing.cluster(MODEL, [(each.name, each.spec) for each in (OFFLINE, SUMMARIES)], 2, None))
    asked = [OFFLINE, SUMMARIES, STRANGER]
    return profiles.make(asked, layout, owners(asked, layout), 1)


def test_a_profile_fits_the_engine_and_the_controller_that_it_was_named_for(made: dict[str, Profile]) -> None:
    profile = made["mine"]
    assert profile.name == "mine"
    assert profile.check(MODEL.gpu.product_name, 1, MODEL.model.name) == ""
    assert set(profile.fits) == {"PALS"}


def test_a_policy_that_governs_no_engine_gets_none_and_one_that_names_none_neither(made: dict[str, Profile]) -> None:
    assert set(made) == {"mine"}


def test_the_reader_is_told_where_the_profile_is_from(
    question: Question, make_record: Any, made: dict[str, Profile]
) -> None:
    question = replace(question, policies=(OFFLINE,), profiles=made)
    observe, enforce = make_record("Observe"), make_record("Enforce", watts=400.0)
    pair = Pair(None, run_measures(observe, question), run_measures(enforce, question))
    (told,) = [note for note in verdict.notes(question, observe, enforce, pair) if note.startswith("Profile ")]
    assert told.startswith("Profile 'mine' of 'offline' (PALS) was made of the simulated engine")
