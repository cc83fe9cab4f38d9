"""What `flyball_sim.admission` says of a policy without an API server is what the real one says, word for word."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kubernetes import client
from kubernetes.config import new_client_from_config

from flyball_api.names import GROUP, VERSION
from flyball_sim.admission.document import as_sent, parse_yaml
from flyball_sim.admission.policies import check

OBJECTS = Path(__file__).parent / "objects" / "energypolicy"

GOOD = """
apiVersion: flyball.dev/v1alpha1
kind: EnergyPolicy
metadata:
  name: chat
  labels: {team: chat}
  annotations: {why: "demo"}
spec:
  mode: Enforce
  priority: 5
  selector:
    namespaces: [chat, batch]
    matchLabels: {app: chat}
    matchExpressions:
    - {key: tier, operator: In, values: [gold, silver]}
    - {key: canary, operator: DoesNotExist}
  engine: {type: vLLM, port: 8000, metricsPath: /metrics}
  roles:
    labelKey: role
    values:
    - {value: p, role: prefill}
    - {value: d, role: decode}
  slo:
    timeToFirstToken: {thresholdMilliseconds: 500, percentile: 99.5}
    interTokenLatency: {thresholdMilliseconds: 25}
    attainment: {windowSeconds: 300, minimumRequests: 20}
  controller:
    type: Fixed
    fixed:
      clocks:
      - {role: decode, minMegahertz: 1200, maxMegahertz: 1500}
      - {role: prefill, minMegahertz: 1500, maxMegahertz: 1755}
  limits:
    smClock: {min: 600, max: 1980}
    capWatts: {min: 300, max: 700}
  powerBudget: {watts: 5600, reserveWatts: 700}
  failSafe: {metricsStaleSeconds: 5, actuatorLeaseSeconds: 3}
"""

# Each a change to the good policy: where, and what is put there (nothing: the field is taken away).
CHANGES = {
    "a number with a point": ("spec.powerBudget.watts", 5600.5),
    "a whole number with a point": ("spec.powerBudget.watts", 5600.0),
    "a number beyond 64 bits": ("spec.powerBudget.watts", 10**19),
    "a number beyond 64 bits where points are fine": ("spec.slo.timeToFirstToken.percentile", 10**20),
    "a long fraction": ("spec.slo.timeToFirstToken.percentile", 100.123456789),
    "a small fraction": ("spec.slo.timeToFirstToken.percentile", 1e-7),
    "a boolean for a number": ("spec.powerBudget.watts", True),
    "a text for a number": ("spec.powerBudget.watts", "5600"),
    "a list for a text": ("spec.mode", ["Enforce"]),
    "an object for a text": ("spec.mode", {"is": "Enforce"}),
    "a list of objects for a text": ("spec.mode", [{"is": "Enforce"}]),
    "a text for an object": ("spec.powerBudget", "much"),
    "a list for an object": ("spec.powerBudget", []),
    "an object for a list": ("spec.selector.matchExpressions", {"key": "tier"}),
    "a text for a list": ("spec.selector.namespaces", "chat"),
    "null for what has a default": ("spec.mode", None),
    "null for what has none": ("spec.powerBudget", None),
    "null for what is required": ("spec.powerBudget.watts", None),
    "null for a label": ("spec.selector.matchLabels.app", None),
    "null in a list": ("spec.selector.matchExpressions", [None]),
    "nulls in a list of keys": ("spec.controller.fixed.clocks", [None, None]),
    "texts in a list of keys": ("spec.controller.fixed.clocks", ["decode"]),
    "entries without their key": ("spec.controller.fixed.clocks", [{}, {}]),
    "one key three times": (
        "spec.controller.fixed.clocks",
        [{"role": "<a>&", "minMegahertz": 600, "maxMegahertz": 600}] * 3,
    ),
    "one value three times": ("spec.selector.namespaces", ["<&>", "<&>", "<&>", "b", "b"]),
    "values of several types": ("spec.selector.namespaces", [1, True, 1.5, None, 1, "1"]),
    "parameters of three other types": (
        "spec.controller",
        {"type": "AGFT", "fixed": {}, "pals": {"profile": "chat"}, "flyball": {}},
    ),
    "a percentage beyond its bound": ("spec.controller", {"type": "PALS", "pals": {"offeredPercent": 5}}),
    "a profile with a line break": ("spec.controller", {"type": "PALS", "pals": {"profile": "chat\n"}}),
    "a profile of strange letters": ("spec.controller", {"type": "PALS", "pals": {"profile": "chät"}}),
    "a type that needs all that is not there": (
        "spec",
        {"selector": {"matchLabels": {"a": "b"}}, "controller": {"type": "PALS"}},
    ),
    "a line break in a word": ("spec.mode", "Enforce\nnow"),
    "strange characters in a word": ("spec.mode", '"\t\\\u00e9\u0001\u2028\U0001f600\x7f<\u00a0'),
    "a word that is too long": ("spec.mode", "é" * 65),
    "a word as long as allowed": ("spec.mode", "é" * 64),
    "a label that is too long": ("spec.selector.matchLabels", {"a.b/c d": "x" * 64}),
    "a label that is no text": ("spec.selector.matchLabels", {"app": 5}),
    "too many labels": ("spec.selector.matchLabels", {f"l{number}": "" for number in range(17)}),
    "too many clocks": ("spec.controller.fixed.clocks", [{"role": "decode"}] * 4),
    "unknown fields here and there": ("spec.slo", {"b": 1, "attainment": {"a": 1}, "endToEnd": 5}),
    "an unknown field at the root": ("specs", {}),
    "an unknown field named as one of the root": ("spec.kind", "x"),
    "a status": ("status", {"observedGeneration": "none", "phase": "x"}),
    "a status of another type": ("status", "fine"),
    "no spec": ("spec",),
    "an empty spec": ("spec", {}),
    "a spec that is a list": ("spec", []),
    "no metadata": ("metadata",),
    "metadata that is a text": ("metadata", "chat"),
    "no name": ("metadata.name",),
    "an empty name": ("metadata.name", ""),
    "a name that is a number": ("metadata.name", 5),
    "a name with a capital": ("metadata.name", "Chat"),
    "a name that is too long": ("metadata.name", "x" * 254),
    "a bad prefix beside a name": ("metadata.generateName", "Chat-"),
    "a prefix beside a name": ("metadata.generateName", "chat-"),
    "unknown metadata": ("metadata", {"nmae": "chat", "name": "chat", "a": {"b": 1}}),
    "a label's value that is a number": ("metadata.labels", {"b": 1, "a": None}),
    "labels that are a list": ("metadata.labels", ["a"]),
    "labels with bad keys": (
        "metadata.labels",
        {"a b": "x y", "/a": "", "A_b/c": "", "a/b/c": "-", "": "", "p" * 254 + "/" + "n" * 64: "v" * 64, "a/": "x"},
    ),
    "annotations with bad keys": ("metadata.annotations", {"A B": "", "A.B/c": "fine"}),
    "annotations that are too long": ("metadata.annotations", {"a": "é" * 140_000}),
    "an annotation that is true": ("metadata.annotations", {"a": True}),
}


class Api:
    """Asks the API server without changing anything."""

    def __init__(self, kubeconfig):
        self._client = new_client_from_config(str(kubeconfig))
        self._objects = client.CustomObjectsApi(self._client)

    def close(self):
        self._client.close()

    def answers(self, document, said):
        """Whether what was said of this document is what the API server answers; its own words if not."""
        try:
            self._objects.create_cluster_custom_object(
                GROUP, VERSION, "energypolicies", as_sent(document), dry_run="All", field_validation="Strict"
            )
        except client.ApiException as error:
            if error.status not in {400, 422}:
                raise
            status = json.loads(error.body)
            causes = status.get("details", {}).get("causes")
            if causes is None:  # decoding failed, which names no causes
                return status["message"].endswith(": " + ", ".join(said)) or status["message"]
            expected = {f"{cause['field']}: {cause['message']}" for cause in causes}
            return (set(said) == expected and len(said) == len(expected)) or sorted(expected)
        return said == [] or "taken"


@pytest.fixture(scope="module")
def api(cluster, flyball_crds):  # noqa: ARG001 - asked for what it installs
    made = Api(cluster.kubeconfig)
    yield made
    made.close()


def changed(path, *value):
    """Return the good policy with one field set or taken away."""
    document = yaml.safe_load(GOOD)
    *above, last = path.split(".")
    parent = document
    for name in above:
        parent = parent[name]
    if value:
        parent[last] = value[0]
    else:
        del parent[last]
    return document


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in sorted(OBJECTS.glob("*/*.yaml"))])
def test_a_policy_of_the_refusals_is_judged_in_the_api_servers_words(api, path):
    document = yaml.safe_load(path.read_text())
    said = check(document)
    assert bool(said) == (path.parent.name == "bad")
    assert api.answers(document, said) is True


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_policy_is_judged_in_the_api_servers_words(api, change):
    document = changed(*change)
    assert api.answers(document, check(document)) is True


def places(value, path=()):
    """Yield where in a document something can be changed."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


PLACES = [place for place in places(yaml.safe_load(GOOD)) if place[0] in {"spec", "metadata"} and len(place) > 1]
# Which of the newest characters can be printed is a matter of the Unicode version, Go's or Python's.
JUNK = st.text(st.characters(max_codepoint=0x2FF), max_size=3) | st.sampled_from(
    [
        None, "", "x", "x" * 400, "/", "In", "decode", 0, 1, -1, 700, 10**6, 2**53 + 1, 1e30, 0.5, 99.5, True, [],
        [None], ["x", "x"], [1, 1.0], {}, {"x": None}, {"x": "y"}, {"key": "x"}, {"role": "decode"},
    ]
)  # fmt: skip
MUTATIONS = st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "drop", "twice", "more"]), JUNK)


@settings(max_examples=60, deadline=None)
@given(mutations=st.lists(MUTATIONS, min_size=1, max_size=4))
def test_a_policy_changed_at_random_is_judged_in_the_api_servers_words(api, mutations):
    document = yaml.safe_load(GOOD)
    for place, how, junk in mutations:
        mutate(document, place, how, junk)
    said = check(document)
    event(f"sentences: {min(len(said), 5)}")
    assert api.answers(document, said) is True


def mutate(document, place, how, junk):
    """Change the document where that place still is."""
    parent = document
    *above, key = place
    for step in above:
        if not has(parent, step):
            return
        parent = parent[step]
    if how == "more" and isinstance(parent, dict):
        parent[f"{key}s"] = junk
    elif has(parent, key):
        if how == "drop":
            del parent[key]
        elif how == "twice" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = junk


def has(parent, key):
    if isinstance(parent, list):
        return isinstance(key, int) and key < len(parent)
    return isinstance(parent, dict) and key in parent


WORDS = (
    "yes", "No", "y", "on", "~", "null", "True", "tRue", "0o17", "017", "09", "0x1F", "0b11", "1_000", "1e3", "1E-3",
    "+5", "-0", "1:30", ".5", "5.", "1.5e+3", "1_0.5", "12345678901234567890", "2026-01-01", "2026-01-01T00:00:00Z",
)  # fmt: skip


def test_plain_words_of_yaml_are_read_as_kubectl_reads_them(cluster, flyball_crds, tmp_path):  # noqa: ARG001
    listed = "\n".join(f"  - {word}" for word in WORDS)
    text = f"apiVersion: flyball.dev/v1alpha1\nkind: EnergyPolicy\nmetadata: {{name: x}}\nspec:\n  words:\n{listed}\n"
    path = tmp_path / "words.yaml"
    path.write_text(text)
    answer = cluster.kubectl(
        "label", "--local", "--dry-run=client", "-o", "json", f"--filename={path}", "a=b", check=True
    )
    theirs = as_sent(json.loads(answer.stdout))["spec"]["words"]
    ours = as_sent(parse_yaml(text))["spec"]["words"]
    assert list(zip(WORDS, ours, strict=True)) == list(zip(WORDS, theirs, strict=True))
    assert [type(word) for word in ours] == [type(word) for word in theirs]
