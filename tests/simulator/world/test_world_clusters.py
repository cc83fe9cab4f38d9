"""What a cluster.yaml may say, and how one that cannot be is refused."""

import re
from pathlib import Path

import pytest
from world_parts import run_plain

from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cluster import ClusterError, default_cluster, parse_cluster, read_cluster, uniform_cluster
from flyball_sim.world.faults import FAULTS, parse_fault
from flyball_sim.world.layout import check_requests, lay_out

MIXED = """
nodes:
  - {name: hopper, gpu: H100-SXM5, gpus: 4, count: 2}
  - {name: ampere, gpu: A100-SXM4-80GB, gpus: 2}
engines:
  - name: big
    model: llama-3.1-70b
    gpus: 4
    gpu: H100-SXM5
    labels: {app: big}
  - name: small
    model: llama-3.1-8b
    replicas: 3
    namespace: team
    labels: {app: small}
    limits: {max_num_seqs: 64, max_model_len: 4096}
  - {name: old, model: llama-3.1-8b, node: ampere, labels: {app: small}}
"""


def test_replicas_go_to_the_first_node_with_room():
    layout = lay_out(parse_cluster(MIXED))
    assert [(engine.name, engine.node, engine.cards) for engine in layout.engines] == [
        ("big-0", "hopper-0", (0, 1, 2, 3)),
        ("small-0", "hopper-1", (0,)),
        ("small-1", "hopper-1", (1,)),
        ("small-2", "hopper-1", (2,)),
        ("old-0", "ampere", (0,)),
    ]
    small = layout.engines[1]
    assert (small.pod.namespace, small.pod.labels, small.pod.gpus) == ("team", {"app": "small"}, 1)
    assert (small.limits.max_num_seqs, small.limits.max_model_len) == (64, 4096)
    assert layout.gpus == 10


def test_engines_have_the_step_times_of_their_cards():
    small, old = (lay_out(parse_cluster(MIXED)).engines[index].model for index in (1, 4))
    assert (small.gpu.name, old.gpu.name) == ("H100-SXM5", "A100-SXM4-80GB")
    assert small.kv_blocks != old.kv_blocks


def test_replicas_share_their_step_times():
    layout = lay_out(uniform_cluster(engines=20))
    assert len({id(engine.model) for engine in layout.engines}) == 1


def test_a_cluster_is_written_as_it_is_read():
    for cluster in (parse_cluster(MIXED), default_cluster(), uniform_cluster(engines=20, labels={"a": "b"})):
        assert parse_cluster(cluster.to_yaml()) == cluster


def test_a_uniform_cluster_has_as_many_nodes_as_its_engines_need():
    layout = lay_out(uniform_cluster(engines=20, gpus=1))
    assert [(node.name, node.gpus) for node in layout.nodes] == [("node-0", 8), ("node-1", 8), ("node-2", 8)]
    assert layout.gpus == 24
    assert lay_out(uniform_cluster("llama-3.1-70b", engines=2, gpus=4)).gpus == 8


ENGINE = "engines: [{name: llm, model: llama-3.1-8b}]"
NODE = "nodes: [{name: node, gpu: H100-SXM5, gpus: 2}]"


MISMATCHED = """
engines: [{name: a, model: llama-3.1-8b, role: prefill}, {name: b, model: qwen3-8b, role: decode}]
pools: [{name: p, prefill: [a], decode: [b]}]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"nodes: []\n{ENGINE}", "cluster.yaml: nodes: the cluster has no GPUs: add a node"),
        (f"{NODE}\nengines: []", "cluster.yaml: engines: the cluster has no engines: add one"),
        (ENGINE, "cluster.yaml: nodes is missing: add it"),
        ("nodes: [{name: a, gpu: H100-SXM5, gpus: 0}]\n" + ENGINE, r"nodes\[0\].gpus is 0: input should be greater"),
        ("nodes: [{name: a, gpus: 1}]\n" + ENGINE, r"nodes\[0\].gpu is missing: add it"),
        (f"{NODE}\nengines: [{{name: llm, modell: x}}]", r"engines\[0\].modell is no field: did you mean 'model'"),
        (f"{NODE}\nengines: [{{name: llm, model: m, limits: {{max_seqs: 3}}}}]", "did you mean 'max_num_seqs'"),
        (f"{NODE}\nnode: 3\n{ENGINE}", "node is no field: did you mean 'nodes'"),
        (f"{NODE}\nengines: [{{name: llm, model: m, replicas: many}}]", "replicas is 'many': input should be a valid"),
        (f"{NODE}\nengines: [{{name: a, model: m}}, {{name: a, model: m}}]", "engine 'a' is there twice"),
        (f"{NODE}\nengines: [{{name: a, model: m, role: decode}}]", "role decode and is in no pool"),
        (f"{NODE}\n{ENGINE}\npools: [{{name: p, prefill: [x], decode: [llm]}}]", "prefill names 'x', which is no eng"),
        (f"{NODE}\n{ENGINE}\npools: [{{name: p, prefill: [llm], decode: [llm]}}]", "whose role is unified: give the"),
        (
            f"{NODE}\n{MISMATCHED}",
            r"pool 'p': 'a' runs llama-3.1-8b \(bf16\) and 'b' qwen3-8b \(bf16\): give all its engines one model",
        ),
        (f"{NODE}\nengines: [{{name: a, model: m, weight: .inf}}]", "weight is inf: input should be a finite number"),
        ("nodes: [", "cluster.yaml is not YAML"),
        ("[" * 3000, "cluster.yaml is not YAML"),
        ("a: 0x_", "cluster.yaml is not YAML"),
        ("- 3", "holds no mapping"),
    ],
)
def test_a_cluster_file_that_is_wrong_is_refused_with_field_and_mend(text, said):
    with pytest.raises(ClusterError, match=said):
        parse_cluster(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"nodes: [{{name: n, gpu: H100, gpus: 1}}]\n{ENGINE}", r"nodes\[0\].gpu: GPU type 'H100' is unknown: did you"),
        (
            f"{NODE}\nengines: [{{name: llm, model: lama-3.1-8b}}]",
            r"engines\[0\] \(llm\): .*'lama-3.1-8b'.*llama-3.1-8b",
        ),
        (f"{NODE}\nengines: [{{name: llm, model: llama-3.1-8b, gpus: 4}}]", "gpus is 4, and no node has more than 2"),
        (
            f"{NODE}\nengines: [{{name: llm, model: llama-3.1-8b, gpus: 4, node: node}}]",
            "gpus is 4, and node node has 2: give the node more GPUs",
        ),
        (f"{NODE}\nengines: [{{name: llm, model: llama-3.1-8b, replicas: 3}}]", "replica 3 of 3 needs 1 GPUs, and the"),
        (
            f"{NODE}\nengines: [{{name: llm, model: llama-3.1-8b, node: x}}]",
            "node is 'x', which is not there: give one",
        ),
        (f"{NODE}\nengines: [{{name: llm, model: llama-3.1-8b, gpu: L40S}}]", "gpu is 'L40S', and the nodes have H100"),
        (
            f"{NODE}\nengines: [{{name: llm, model: llama-3.1-8b, limits: {{max_model_len: 900000}}}}]",
            "limits.max_model_len is 900000, and llama-3.1-8b takes at most 131072",
        ),
        (
            f"{NODE}\nengines: [{{name: llm, model: qwen3-32b, limits: {{max_model_len: 40000}}}}]",
            "limits.max_model_len is 40000, and the KV cache has room for",
        ),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_with_field_and_mend(text, said):
    with pytest.raises(ClusterError, match=said):
        lay_out(parse_cluster(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ClusterError, match=r"none\.yaml: No such file or directory: give a file"):
        read_cluster(tmp_path / "none.yaml")
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClusterError, match="is not text in UTF-8"):
        read_cluster(path)
    path.write_text(MIXED)
    assert read_cluster(path) == parse_cluster(MIXED)


def test_a_request_too_long_for_an_engines_cache_is_named():
    cluster = parse_cluster(f"{NODE}\n{ENGINE}")
    trace = [TraceRequest(0.0, 10, 10), TraceRequest(1.5, 900_000, 10)]
    said = r"llm has room for \d+ tokens of keys and values, and request 2 of the trace \(at 1.500 s, 900000 prompt"
    with pytest.raises(ClusterError, match=said):
        check_requests(lay_out(cluster), trace)
    with pytest.raises(ClusterError, match=said):
        run_plain(cluster, [], trace)


def test_the_documented_file_and_faults_are_read():
    page = (Path(__file__).parents[3] / "docs" / "virtual-time.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(lay_out(parse_cluster(text)).engines) == 8
    written = re.findall(r"^\| `([a-z-]+:[^`]*)`", page, re.MULTILINE)
    assert [fault.KIND for fault in map(parse_fault, written)] == list(FAULTS)
