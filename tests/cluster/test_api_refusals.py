"""Every constraint of the API, asked of the real API server: a bad object is refused in one sentence, its twin taken.

The objects are in `objects/<kind>/bad` and `objects/<kind>/good`, twins under one name. A bad one says on its first
line what the API server is to answer, as `# refused: <field>: <sentence>`. A line `# read: <why>` marks what the models
read all the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kubernetes import client
from kubernetes.config import new_client_from_config
from pydantic import ValidationError

from flyball_api.controllers.needs import PROFILED
from flyball_api.controllers.union import PARAMETERS, Controller
from flyball_api.energypolicy import EnergyPolicy
from flyball_api.names import API_VERSION, GROUP, VERSION
from flyball_api.nodeenergyplan import NodeEnergyPlan

OBJECTS = Path(__file__).parent / "objects"
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "energypolicy.md"
EXAMPLES = DOCS / "examples"
MODELS = {model.KIND: model for model in (EnergyPolicy, NodeEnergyPlan)}


def paths(quality):
    return [
        pytest.param(path, id=f"{path.parts[-3]}/{path.stem}") for path in sorted(OBJECTS.glob(f"*/{quality}/*.yaml"))
    ]


class Api:
    """Asks the API server without changing anything."""

    def __init__(self, kubeconfig):
        self._client = new_client_from_config(str(kubeconfig))
        self._objects = client.CustomObjectsApi(self._client)

    def close(self):
        self._client.close()

    def refusal(self, document):
        """Return the sentences with which the object is refused, each with its field; none when it is taken."""
        plural = MODELS[document["kind"]].PLURAL
        try:
            self._objects.create_cluster_custom_object(
                GROUP, VERSION, plural, document, dry_run="All", field_validation="Strict"
            )
        except client.ApiException as error:
            if error.status not in {400, 422}:
                raise
            return sentences(json.loads(error.body))
        return []


def sentences(status):
    """Return what a refusal says, without what the API server puts before and after every refusal."""
    causes = status.get("details", {}).get("causes")
    if causes is None:  # strict decoding names no causes
        return [status["message"].partition("strict decoding error: ")[2]]
    # Where the schema itself refuses, the API server adds that CEL was not asked; it names no field.
    return [f"{cause['field']}: {without_value(cause['message'])}" for cause in causes if cause["field"] != "<nil>"]


def without_value(message):
    """Return the message of an invalid value without the value that the API server repeats before it."""
    return re.sub(r'^Invalid value: (?:(?:"(?:\\.|[^"\\])*"|-?[\d.]+): )?', "", message)


@pytest.fixture(scope="module")
def api(cluster, flyball_crds):  # noqa: ARG001 - asked for what it installs
    made = Api(cluster.kubeconfig)
    yield made
    made.close()


@pytest.mark.parametrize("path", paths("bad"))
def test_a_bad_object_is_refused_with_one_sentence(api, path):
    text = path.read_text()
    expected = text.partition("# refused: ")[2].partition("\n")[0]
    assert api.refusal(yaml.safe_load(text)) == [expected]


@pytest.mark.parametrize("path", paths("good"))
def test_its_good_twin_is_taken(api, path):
    assert api.refusal(yaml.safe_load(path.read_text())) == []


def test_the_policy_of_the_reference_page_is_taken(api):
    page = PAGE.read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert api.refusal(yaml.safe_load(example)) == []


def test_every_bad_object_has_a_good_twin():
    bad, good = (
        {path.relative_to(OBJECTS).parts[::2] for path in OBJECTS.glob(f"*/{q}/*.yaml")} for q in ("bad", "good")
    )
    assert bad == good
    assert len(bad) > 80


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in sorted(EXAMPLES.glob("*.yaml"))])
def test_a_sample_policy_of_the_docs_is_taken(api, path):
    assert api.refusal(yaml.safe_load(path.read_text())) == []


def wire_name(attribute):
    """Return the name of a controller's parameters in a policy."""
    return Controller.model_fields[attribute].alias


def bounded(schema, definitions, path=()):
    """Yield each number or word of some parameters: its path, a value that just fits and those that just do not."""
    for name, child in schema.get("properties", {}).items():
        inner = child["anyOf"][0] if "anyOf" in child else child
        inner = definitions[inner["$ref"].rpartition("/")[2]] if "$ref" in inner else inner
        here = (*path, name)
        if words := inner.get("enum"):
            yield here, words[-1], ["Turbo"]
        elif inner["type"] in {"integer", "number"}:
            yield here, inner["maximum"], [inner["minimum"] - 1, inner["maximum"] + 1]
        elif inner["type"] == "array" and inner["items"].get("type") == "integer":
            low, high = inner["items"]["minimum"], inner["items"]["maximum"]
            yield here, [low, high], [[low - 1, high], [low, high + 1]]
        yield from bounded(inner, definitions, here)


def parameters():
    for kind, (attribute, model) in PARAMETERS.items():
        schema = model.model_json_schema()
        for path, fitting, beyond in bounded(schema, schema.get("$defs", {})):
            place = (wire_name(attribute), *path)
            yield pytest.param(kind, place, fitting, beyond, id=".".join(place))


@pytest.mark.parametrize(("kind", "place", "fitting", "beyond"), list(parameters()))
def test_a_controllers_parameter_is_taken_at_its_bound_and_refused_beyond(api, kind, place, fitting, beyond):
    assert api.refusal(with_parameter(kind, place, fitting)) == []
    for value in beyond:
        (sentence,) = api.refusal(with_parameter(kind, place, value))
        assert sentence.startswith(f"spec.controller.{'.'.join(place)}"), sentence
        assert ": give " in sentence, sentence


def with_parameter(kind, place, value):
    """Return a policy of that type that gives this one parameter, beside what the type needs."""
    spec = {
        "selector": {"matchLabels": {"app": "chat"}},
        "slo": {name: {"thresholdMilliseconds": 500} for name in ("timeToFirstToken", "interTokenLatency", "endToEnd")},
        "powerBudget": {"watts": 5600},
        "controller": {"type": kind, place[0]: {"profile": "chat"} if kind in PROFILED else {}},
    }
    *above, last = place
    parent = spec["controller"]
    for name in above:
        parent = parent.setdefault(name, {})
    parent[last] = value
    return {"apiVersion": API_VERSION, "kind": "EnergyPolicy", "metadata": {"name": "x"}, "spec": spec}


def scalars(schema):
    """Return a strategy for a scalar around its bounds: mostly inside, now and then just outside."""
    if words := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return st.sampled_from(words * 10 + ["other"])
    if schema["type"] == "boolean":
        return st.booleans()
    if schema["type"] == "string":
        longest = schema["maxLength"]
        return st.sampled_from(["a", "/b", "/" * longest] * 10 + ["", "x" * (longest + 1)])
    low, high = schema["minimum"], schema["maximum"]
    return st.sampled_from([low, high, (low + high) // 2] * 10 + [low - 1, high + 1])


def specs(schema, definitions):
    """Return a strategy for all that a JSON schema describes, and a little beyond."""
    if "$ref" in schema or "anyOf" in schema:
        inner = schema["anyOf"][0] if "anyOf" in schema else definitions[schema["$ref"].rpartition("/")[2]]
        strategy = specs(inner, definitions)
        return strategy.map(of_one_type) if inner.get("title") == "Controller" else strategy
    if schema["type"] == "array":
        return st.lists(specs(schema["items"], definitions), max_size=3)
    if "additionalProperties" in schema:
        return st.dictionaries(st.sampled_from(["app", "team"]), specs(schema["additionalProperties"], definitions))
    if "properties" not in schema:
        return scalars(schema)
    fields = {name: specs(child, definitions) for name, child in schema["properties"].items()}
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: field for name, field in fields.items() if name in required},
        optional={name: field for name, field in fields.items() if name not in required},
    )


def of_one_type(controller):
    """Take most of the parameters of other types out again: with them hardly any policy would be taken."""
    own = PARAMETERS.get(controller["type"])
    if own is None or len(controller) % 3 == 0:
        return controller
    name = wire_name(own[0])
    return {key: value for key, value in controller.items() if key in {"type", name}}


def objects(model):
    schema = model.model_json_schema()
    spec = specs(schema["properties"]["spec"], schema["$defs"])
    return spec.map(
        lambda drawn: {"apiVersion": API_VERSION, "kind": model.KIND, "metadata": {"name": "x"}, "spec": drawn}
    )


def is_read(document):
    try:
        MODELS[document["kind"]].model_validate(document)
    except ValidationError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(document=objects(EnergyPolicy))
def test_models_and_api_server_take_the_same_policies(api, document):
    event(f"read: {is_read(document)}")
    assert is_read(document) == (not (refused := api.refusal(document))), refused


@settings(max_examples=100, deadline=None)
@given(document=objects(NodeEnergyPlan))
def test_models_and_api_server_take_the_same_plans(api, document):
    event(f"read: {is_read(document)}")
    assert is_read(document) == (not (refused := api.refusal(document))), refused
