"""Policies judged without an API server; `tests/cluster/test_admission_agrees.py` asks the real one the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flyball_api.crdgen import custom_resource_definition
from flyball_api.energypolicy import EnergyPolicy
from flyball_sim.admission.document import as_sent, parse_yaml
from flyball_sim.admission.policies import PolicyError, check, read_policy
from flyball_sim.admission.schema import SchemaError, refuse_unknown_keywords
from flyball_sim.admission.wording import go_float, go_json, go_quote

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = ROOT / "tests" / "cluster" / "objects" / "energypolicy"

POLICY = """
apiVersion: flyball.dev/v1alpha1
kind: EnergyPolicy
metadata: {name: chat}
spec:
  selector: {matchLabels: {app: chat}}
  slo: {timeToFirstToken: {thresholdMilliseconds: 5e2}}
  controller: {type: Fixed, fixed: {}}
"""


@pytest.fixture
def write(tmp_path):
    def save(text: str | bytes) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return save


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in sorted(OBJECTS.glob("bad/*.yaml"))])
def test_a_refused_policy_is_refused_with_the_sentence_beside_it(path):
    text = path.read_text()
    expected = text.partition("# refused: ")[2].partition("\n")[0]
    field, _, sentence = expected.partition(": ")
    first = check(yaml.safe_load(text))[0]
    assert first.startswith(field)
    assert first.endswith(sentence)


def test_the_schema_asked_is_the_one_that_is_shipped():
    assert yaml.safe_load((ROOT / "crds" / "energypolicies.yaml").read_text()) == custom_resource_definition(
        EnergyPolicy
    )


def test_a_keyword_that_is_not_known_is_an_error_and_not_passed_over():
    schema = {"type": "object", "properties": {"name": {"type": "string", "pattern": "^a"}}}
    with pytest.raises(SchemaError, match=r"spec.name has \['pattern'\], which admission does not know"):
        refuse_unknown_keywords(schema, "spec")


def test_after_a_wrong_type_the_reader_is_told_that_rules_went_unasked():
    document = parse_yaml(POLICY)
    document["spec"]["powerBudget"] = {"watts": "5600", "reserveWatts": -1}
    wrong, unasked = check(document)
    path = "spec.powerBudget.watts"
    assert wrong == f'{path}: Invalid value: "string": {path} in body must be of type integer: "string"'
    assert unasked.startswith("<nil>: Invalid value: null: some validation rules were not checked")


CROSSED = "the lowest power cap is 700 W and the highest is 10 W: give a min that is at most the max"


def test_every_rule_that_does_not_hold_is_named():
    document = parse_yaml(POLICY)
    document["spec"] |= {"mode": "Turbo", "priority": 2000, "limits": {"capWatts": {"min": 700, "max": 10}}}
    assert check(document) == [
        'spec.mode: Invalid value: "Turbo": "Turbo" is unknown: give Observe or Enforce',
        "spec.priority: Invalid value: 2000: 2000 is outside -1000 to 1000: give a value from -1000 to 1000",
        "spec.limits.capWatts: Invalid value: " + CROSSED,
        "spec.limits.capWatts.max: Invalid value: 10: 10 W is outside 50 to 3000 W: give a value from 50 to 3000 W",
    ]


def test_a_policy_is_read_with_the_defaults_of_the_api_server(write):
    policy = read_policy(write(POLICY))
    assert policy.metadata.name == "chat"
    assert policy.spec.mode == "Observe"
    assert policy.spec.slo.time_to_first_token.threshold_milliseconds == 500
    assert policy.spec.slo.time_to_first_token.percentile == 99
    assert policy.spec.slo.attainment.window_seconds == 300


def test_a_policy_may_begin_with_a_byte_order_mark_and_a_document_mark(write):
    assert read_policy(write(b"\xef\xbb\xbf---\n" + POLICY.encode() + b"---\n")).metadata.name == "chat"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "policy.yaml: 0 documents: give one EnergyPolicy"),
        (POLICY + "---" + POLICY, "2 documents: give one EnergyPolicy"),
        ("- a", "holds list and no object: give one EnergyPolicy"),
        ("a: [1", "not YAML (while parsing a flow sequence"),
        ("a: 0x_", "not YAML (invalid literal for int()"),
        ("a: !!python/name:os.system", "not YAML (could not determine a constructor"),
        (b"a: \xff", "is not text in UTF-8"),
        ("metadata: {name: x}", "kind not set"),
        ("kind: EnergyPolicy", "apiVersion not set"),
        ("kind: [EnergyPolicy]\napiVersion: flyball.dev/v1alpha1", "kind isn't string type"),
        (
            POLICY.replace("v1alpha1", "v1"),
            'no matches for kind "EnergyPolicy" in version "flyball.dev/v1": give kind EnergyPolicy and apiVersion',
        ),
        (POLICY.replace("name: chat", "generateName: chat-"), "from chat-: cannot use generate name with apply"),
        (POLICY.replace("5e2", ".nan"), "NaN is a number that JSON cannot carry"),
        (POLICY.replace("5e2", "1" + "0" * 400), "+Inf is a number that JSON cannot carry"),
        ("a: &a [*a]", "a part that holds itself"),
        ("[" * 2000, "not YAML (maximum recursion depth"),
        (POLICY.replace("5e2", "!!binary aGk="), "b'hi' is of type bytes"),
        (POLICY.replace("{app: chat}", "{? [a] : chat}"), "policy.yaml: "),
        (POLICY.replace("{app: chat}", "{~: chat}"), "None is a key of type NoneType: give a text"),
        (POLICY.replace("app: chat", "app: [chat]"), 'must be of type string: "array"'),
        (
            POLICY.replace("5e2", "0"),
            "policy.yaml is not an EnergyPolicy that the API server takes:\n"  # noqa: ISC004
            "spec.slo.timeToFirstToken.thresholdMilliseconds: Invalid value: 0: 0 ms is outside 1 to 3600000 ms",
        ),
    ],
)
def test_a_file_without_a_policy_is_refused_with_the_reason_and_the_mend(text, message, write):
    with pytest.raises(PolicyError) as refused:
        read_policy(write(text))
    assert message in str(refused.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(PolicyError, match=r"none.yaml: No such file or directory: give the file of an EnergyPolicy"):
        read_policy(tmp_path / "none.yaml")


def test_a_key_given_twice_counts_as_the_last_as_for_kubectl():
    assert parse_yaml("a: 1\na: 2") == {"a": 2}


def test_keys_reach_the_api_server_as_texts():
    assert as_sent({2: 1, True: 2, 1.5: 3, "a": 4}) == {"2": 1, "true": 2, "1.5": 3, "a": 4}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(spec=JSON, metadata=JSON)
def test_whatever_a_document_holds_it_is_judged_and_never_falls_over(spec, metadata):
    document = {"apiVersion": "flyball.dev/v1alpha1", "kind": "EnergyPolicy", "metadata": metadata, "spec": spec}
    assert check(document)


@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_a_file_holds_it_is_refused_in_words(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    with pytest.raises(PolicyError, match=r"fuzz\.yaml"):
        read_policy(path)


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (1234567.5, "1.2345675e+06"),
        (999999.5, "999999.5"),
        (0.0001, "0.0001"),
        (1e-7, "1e-07"),
        (-0.0, "-0"),
        (3.0, "3"),
    ],
)
def test_numbers_are_printed_as_go_prints_them(number, printed):
    assert go_float(number) == printed


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_printed_so_that_it_reads_back(number):
    assert float(go_float(number)) == number


def test_texts_are_quoted_as_go_quotes_them():
    assert go_quote('é"\\\n\x01\x7f\u2028\U000e0001') == '"é\\"\\\\\\n\\x01\\x7f\\u2028\\U000e0001"'
    assert go_json({"b": "<é>", "a": 1}) == '{"a":1,"b":"\\u003cé\\u003e"}'
