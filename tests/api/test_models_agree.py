"""The models refuse what the API server refuses, in the same words where a rule spans fields."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from flyball_api.common import CapRange, ClockRange
from flyball_api.energypolicy import EnergyPolicy, PodSelector
from flyball_api.nodeenergyplan import NodeEnergyPlan

OBJECTS = Path(__file__).resolve().parents[1] / "cluster" / "objects"
MODELS = {model.KIND: model for model in (EnergyPolicy, NodeEnergyPlan)}
BETWEEN_FIELDS = (
    "energypolicy/clocks-crossed",
    "energypolicy/caps-crossed",
    "energypolicy/fixed-clocks-crossed",
    "energypolicy/fixed-clock-above-limit",
    "energypolicy/fixed-clock-below-limit",
    "energypolicy/controller-flyball-with-end-to-end-only",
    "energypolicy/controller-flyball-with-parameters-of-another",
    "energypolicy/controller-flyball-without-slo",
    "energypolicy/controller-pals-without-budget",
    "energypolicy/controller-pals-without-profile",
    "energypolicy/controller-profile-of-a-path",
    "energypolicy/controller-throttllem-with-half-a-deadline",
    "energypolicy/controller-throttllem-without-profile",
    "energypolicy/controller-throttllem-without-slo",
    "energypolicy/controller-voltanallm-without-profile",
    "energypolicy/controller-voltanallm-without-slo",
    "energypolicy/controller-with-parameters-of-another",
    "energypolicy/controller-without-parameters",
    "energypolicy/reserve-not-below-watts",
    "energypolicy/selector-empty",
    "energypolicy/slo-empty",
    "energypolicy/expression-in-without-values",
    "energypolicy/expression-exists-with-values",
    "energypolicy/engine-path-without-slash",
    "nodeenergyplan/cap-above-ceiling",
    "nodeenergyplan/clocks-crossed",
    "nodeenergyplan/policy-not-held",
)


def paths(quality):
    return [
        pytest.param(path, id=f"{path.parts[-3]}/{path.stem}") for path in sorted(OBJECTS.glob(f"*/{quality}/*.yaml"))
    ]


def read(text):
    document = yaml.safe_load(text)
    return MODELS[document["kind"]].model_validate(document)


@pytest.mark.parametrize("path", paths("bad"))
def test_the_models_refuse_a_bad_object(path):
    text = path.read_text()
    if "\n# read: " in text:
        read(text)
        return
    with pytest.raises(ValidationError):
        read(text)


@pytest.mark.parametrize("path", paths("good"))
def test_a_good_object_survives_reading_and_writing(path):
    document = yaml.safe_load(path.read_text())
    model = MODELS[document["kind"]].model_validate(document)
    again = type(model).model_validate(model.to_json())
    assert again == model
    assert_holds(model.spec.to_json(), document["spec"])


def assert_holds(written, original):
    """Assert that every value of the original is in what is written."""
    if isinstance(original, dict):
        for key, value in original.items():
            assert_holds(written[key], value)
    elif isinstance(original, list):
        for one, other in zip(written, original, strict=True):
            assert_holds(one, other)
    else:
        assert written == original


@pytest.mark.parametrize("name", BETWEEN_FIELDS)
def test_a_rule_between_fields_reads_the_same_from_model_and_api_server(name):
    kind, _, stem = name.partition("/")
    text = (OBJECTS / kind / "bad" / f"{stem}.yaml").read_text()
    _, _, sentence = text.partition("# refused: ")[2].partition("\n")[0].partition(": ")
    with pytest.raises(ValidationError) as refused:
        read(text)
    assert sentence in str(refused.value)


def test_unknown_fields_are_ignored_on_reading():
    assert ClockRange.model_validate({"min": 345, "boost": True}) == ClockRange(min=345)


def test_null_is_the_same_as_absent_and_never_written():
    assert CapRange.model_validate({"min": None, "max": 700}) == CapRange.model_validate({"max": 700})
    assert CapRange.model_validate({"min": None, "max": 700}).to_json() == {"max": 700}


def test_a_repeated_entry_is_named_with_its_key():
    with pytest.raises(ValidationError, match="value 'chat' is given twice: give each value once"):
        PodSelector.model_validate({"namespaces": ["chat", "chat"], "matchLabels": {"app": "chat"}})


def test_models_are_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        ClockRange(min=345).min = 600
