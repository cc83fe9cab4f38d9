"""The cluster that is assumed for a trace, and which policy judges whose requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyball_api.energypolicy import EnergyPolicySpec
from flyball_operator.selection import selects
from flyball_sim.admission.policies import check
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency.steps import step_model
from flyball_sim.load.generators import make_trace
from flyball_sim.load.traces import scale
from flyball_sim.replay import sizing
from flyball_sim.replay.objectives import Objective
from flyball_sim.replay.policies import ReplayPolicy, read
from flyball_sim.replay.worldrun import judges, owners
from flyball_sim.world.cluster import parse_cluster
from flyball_sim.world.layout import lay_out

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "chat.yaml"
MODEL = step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1)
DISAGGREGATED = """
nodes: [{name: node, gpu: H100-SXM5, gpus: 3}]
engines:
- {name: first, model: llama-3.1-8b, role: prefill, labels: {app: chat, part: prefill}}
- {name: rest, model: llama-3.1-8b, role: decode, labels: {app: chat, part: decode}}
- {name: other, model: llama-3.1-8b, labels: {app: code}}
pools: [{name: pool, prefill: [first], decode: [rest]}]
"""


def spec(selector: Mapping[str, Any], priority: int = 0) -> EnergyPolicySpec:
    return EnergyPolicySpec.model_validate(
        {"selector": selector, "priority": priority, "controller": {"type": "Fixed", "fixed": {}}}
    )


def policy(name: str, priority: int = 0, **labels: str) -> ReplayPolicy:
    return ReplayPolicy(name, spec({"matchLabels": labels}, priority), {})


def test_the_policy_of_the_documentation_selects_the_engines_that_are_assumed_for_it() -> None:
    (chat,) = read(EXAMPLE, check)
    layout = lay_out(sizing.cluster(MODEL, [(chat.name, chat.spec)], 3, None))
    assert owners([chat], layout) == {"chat-0": 0, "chat-1": 0, "chat-2": 0}


def test_assumed_pods_satisfy_every_expression_of_a_selector() -> None:
    selective = spec(
        {
            "namespaces": ["chat", "spare"],
            "matchLabels": {"app": "llama"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["gold", "silver"]},
                {"key": "gpu", "operator": "Exists"},
                {"key": "draft", "operator": "DoesNotExist"},
                {"key": "zone", "operator": "NotIn", "values": ["b"]},
            ],
        }
    )
    (engine,) = lay_out(sizing.cluster(MODEL, [("chat", selective)], 1, None)).engines
    assert selects(selective.selector, engine.pod)


def test_a_denser_trace_needs_more_engines_and_any_trace_needs_one() -> None:
    trace = make_trace("poisson", seconds=300, requests_per_second=10, seed=1)
    needed = sizing.engines_needed(trace, MODEL)
    assert sizing.engines_needed(trace[:1], MODEL) == 1
    assert needed < sizing.engines_needed(scale(trace, 4.0), MODEL) <= 4 * needed + 4


def test_engines_are_shared_out_over_the_policies_and_fill_nodes_of_eight_gpus() -> None:
    wanted = [("a.v1", spec({"matchLabels": {"app": "a"}})), ("b", spec({"matchLabels": {"app": "b"}}))]
    cluster = sizing.cluster(MODEL, wanted, 11, None)
    assert [(engine.name, engine.replicas) for engine in cluster.engines] == [("a-v1", 6), ("b", 5)]
    assert [(node.gpus, node.count) for node in cluster.nodes] == [(8, 2)]
    assert len(sizing.cluster(MODEL, wanted, 1, None).engines) == 2


def test_the_higher_priority_governs_and_of_equals_the_one_that_is_first_in_the_file() -> None:
    layout = lay_out(parse_cluster(DISAGGREGATED))
    by_name = [policy("z", app="chat"), policy("a", app="chat"), policy("code", app="code")]
    assert owners(by_name, layout) == {"first-0": 0, "rest-0": 0, "other-0": 2}
    by_priority = [policy("z", app="chat"), policy("a", priority=1, app="chat")]
    assert owners(by_priority, layout) == {"first-0": 1, "rest-0": 1}


def test_a_request_of_a_disaggregated_pool_is_judged_by_the_policies_of_both_its_engines() -> None:
    layout = lay_out(parse_cluster(DISAGGREGATED))
    governed = owners([policy("p", part="prefill"), policy("d", part="decode"), policy("c", app="code")], layout)
    asked = [Objective(ttft_seconds=0.5), Objective(tpot_seconds=0.025), Objective(e2e_seconds=9.0)]
    found, of_engine = judges(layout, governed, asked)
    assert [(one.ttft_seconds, one.tpot_seconds) for one in found[:1]] == [(0.5, 0.025)]
    assert found[1] == asked[2]
    assert of_engine == {"first-0": 0, "rest-0": 0, "other-0": 1}


def test_where_no_policy_governs_anything_the_first_one_judges() -> None:
    layout = lay_out(parse_cluster(DISAGGREGATED))
    asked = [Objective(ttft_seconds=0.5), Objective(tpot_seconds=0.025)]
    assert judges(layout, {}, asked) == ((asked[0],), {})
