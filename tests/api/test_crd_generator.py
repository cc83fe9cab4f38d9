"""The generator: what it writes is structural, explains itself, and is what is checked in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import Field

from flyball_api import crdgen
from flyball_api.common import ApiModel, Unit
from flyball_api.crdschema import CrdError, structural_schema

ROOT = Path(__file__).resolve().parents[2]
CRDS = [crdgen.custom_resource_definition(model) for model in crdgen.RESOURCES]
SCHEMAS = {crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for crd in CRDS}
SIDES = [
    pytest.param(schema["properties"][side], id=f"{kind}.{side}")
    for kind, schema in SCHEMAS.items()
    for side in ("spec", "status")
]


def nodes(schema, path=""):
    """Yield every node of a schema with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if part in schema:
            yield from nodes(schema[part], f"{path}[]")


def model_with(**spec_fields):
    """Return a resource whose spec has these fields, each `(type, Field)`."""
    spec = type(
        "Spec",
        (ApiModel,),
        {
            "__doc__": "What is wanted.",
            "__annotations__": {name: kind for name, (kind, _) in spec_fields.items()},
            **{name: field for name, (_, field) in spec_fields.items()},
        },
    )

    class Status(ApiModel):
        """What is."""

    class Thing(ApiModel):
        """A thing."""

        spec: spec
        status: Status = Status()

    return Thing


class Knot(ApiModel):
    """A node that holds nodes."""

    below: tuple[Knot, ...] = Field(default=(), max_length=2, description="More of them.")


def test_the_checked_in_files_are_what_the_models_say():
    assert crdgen.drifted(ROOT) == [], crdgen.MEND


def test_check_names_the_drifted_file_and_the_mend(tmp_path, capsys):
    for path in crdgen.generated_files(ROOT):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    drifted = tmp_path / "crds" / "energypolicies.yaml"
    drifted.write_text(drifted.read_text().replace("maxItems: 64", "maxItems: 65"))
    assert crdgen.main(["--check", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == "crds/energypolicies.yaml is not what the models say: run `make crds` and commit what it writes\n"

    assert crdgen.main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "wrote crds/energypolicies.yaml\n"
    assert crdgen.main(["--check", "--root", str(tmp_path)]) == 0


def test_outside_a_checkout_it_says_where_to_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        crdgen.main(["--root", str(tmp_path)])
    assert "run in the root of a checkout" in capsys.readouterr().err


@pytest.mark.parametrize("schema", SIDES)
def test_every_node_has_a_type_and_only_structural_keywords(schema):
    allowed = {
        "additionalProperties", "default", "description", "enum", "format", "items", "maxItems", "maxLength",
        "maxProperties", "maximum", "minLength", "minimum", "properties", "required", "type",
        "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-validations",
    }  # fmt: skip
    for path, node in nodes(schema):
        assert "type" in node, path
        assert node.keys() <= allowed, path


@pytest.mark.parametrize("schema", SIDES)
def test_every_list_map_and_text_is_bounded(schema):
    for path, node in nodes(schema):
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "string":
            assert "maxLength" in node or "enum" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@pytest.mark.parametrize("schema", SIDES)
def test_every_field_is_described_in_a_sentence(schema):
    for path, node in nodes(schema):
        for name, child in node.get("properties", {}).items():
            assert child["description"].endswith("."), f"{path}.{name}"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_status_has_neither_defaults_nor_cel(kind):
    for path, node in nodes(SCHEMAS[kind]["properties"]["status"]):
        assert not node.keys() & {"default", "x-kubernetes-validations"}, path


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_rule_of_a_spec_has_a_sentence_with_a_mend(kind):
    found = 0
    for path, node in nodes(SCHEMAS[kind]["properties"]["spec"]):
        for rule in node.get("x-kubernetes-validations", []):
            sentence = rule.get("message") or rule["messageExpression"]
            assert ": " in sentence, path
            assert " + " not in sentence, f"{path}: concatenation exceeds the API server's CEL cost budget"
            found += 1
    assert found > 10


def test_generating_twice_gives_the_same_bytes():
    assert crdgen.generated_files(ROOT) == crdgen.generated_files(ROOT)


def test_the_chart_ships_the_crds_as_templates_that_are_kept():
    for crd in CRDS:
        text = crdgen.chart_template(crd)
        assert text.splitlines()[1] == "{{- if .Values.crds.install }}"
        body = "\n".join(line for line in text.splitlines() if "{{" not in line and line != "  labels:")
        shipped = yaml.safe_load(body)
        assert shipped["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert shipped == crd


def test_text_that_helm_would_run_is_not_shipped():
    crd = crdgen.custom_resource_definition(crdgen.RESOURCES[0])
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "a {{ template }}"
    with pytest.raises(CrdError, match="which Helm would run"):
        crdgen.chart_template(crd)


def test_an_optional_field_may_be_absent_and_not_null():
    schema = structural_schema(model_with(port=(int | None, Field(default=None, description="A port."))))
    assert schema["properties"]["spec"]["properties"]["port"] == {"description": "A port.", "type": "integer"}


def test_a_bounded_number_is_refused_with_value_bound_and_mend():
    schema = structural_schema(model_with(share=(float, Field(ge=0.5, le=1, description="A share."))))
    assert schema["properties"]["spec"]["properties"]["share"] == {
        "description": "A share. From 0.5 to 1.",
        "type": "number",
        "x-kubernetes-validations": [
            {
                "rule": "self >= 0.5 && self <= 1.0",
                "messageExpression": "'%s is outside 0.5 to 1: give a value from 0.5 to 1'.format([self])",
            }
        ],
    }


def test_a_unit_of_percent_is_no_placeholder():
    percent = Annotated[int, Field(ge=0, le=100), Unit("%")]
    schema = structural_schema(model_with(share=(percent, Field(description="A share."))))
    (rule,) = schema["properties"]["spec"]["properties"]["share"]["x-kubernetes-validations"]
    assert rule["messageExpression"] == "'%s %% is outside 0 to 100 %%: give a value from 0 to 100 %%'.format([self])"


def test_a_number_with_one_bound_names_that_bound():
    schema = structural_schema(model_with(grants=(int, Field(ge=1, description="Grants."))))
    (rule,) = schema["properties"]["spec"]["properties"]["grants"]["x-kubernetes-validations"]
    assert rule["rule"] == "self >= 1"
    assert rule["messageExpression"] == "'%s is below 1: give at least 1'.format([self])"


@pytest.mark.parametrize(
    ("kind", "mend"),
    [
        pytest.param(Knot, "bound the depth", id="recursion"),
        pytest.param(int | str, "model it with plain types", id="union"),
        pytest.param(str, "give max_length", id="unbounded text"),
        pytest.param(tuple[int, ...], "give max_length", id="unbounded list"),
        pytest.param(dict[str, int], "give max_length", id="unbounded map"),
        pytest.param(Annotated[str, Field(max_length=9, pattern="^a")], "model it with plain types", id="pattern"),
    ],
)
def test_what_no_structural_schema_can_say_is_an_error_with_the_mend(kind, mend):
    with pytest.raises(CrdError, match=mend):
        structural_schema(model_with(field=(kind, Field(description="A field."))))


def test_a_field_without_description_is_an_error():
    with pytest.raises(CrdError, match=r"spec\.port has no description"):
        structural_schema(model_with(port=(int, Field())))
