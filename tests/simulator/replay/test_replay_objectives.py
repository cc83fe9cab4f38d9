"""What a request of a replay must hold."""

from __future__ import annotations

import math

import pytest

from flyball_api.energypolicy import EnergyPolicySpec
from flyball_sim.replay.objectives import DEFAULT, Objective, SloError, combine, of_policy, parse, settle


def spec(**slo: object) -> EnergyPolicySpec:
    document = {"selector": {"matchLabels": {"app": "chat"}}, "controller": {"type": "Fixed", "fixed": {}}}
    return EnergyPolicySpec.model_validate(document | ({"slo": slo} if slo else {}))


def test_a_policys_thresholds_percentile_and_window_are_its_objective() -> None:
    objective = of_policy(
        spec(
            timeToFirstToken={"thresholdMilliseconds": 500, "percentile": 99.5},
            interTokenLatency={"thresholdMilliseconds": 25, "percentile": 99},
            attainment={"windowSeconds": 60, "minimumRequests": 5},
        )
    )
    assert (objective.ttft_seconds, objective.tpot_seconds, objective.e2e_seconds) == (0.5, 0.025, math.inf)
    assert (objective.target_percent, objective.window_seconds, objective.minimum_requests) == (99, 60.0, 5)
    assert objective.sentence() == "99 % of requests hold TTFT 500 ms, TPOT 25 ms"


def test_a_policy_without_an_slo_is_judged_by_the_default_which_says_so() -> None:
    objective = of_policy(spec())
    assert (objective.ttft_seconds, objective.tpot_seconds) == (DEFAULT.ttft_seconds, DEFAULT.tpot_seconds)
    assert objective.source == "the default, for the policy names no slo"


def test_the_command_line_overrides_the_bounds_and_keeps_the_policys_window() -> None:
    own = {"chat": spec(endToEnd={"thresholdMilliseconds": 9000}, attainment={"windowSeconds": 60})}
    objective = settle(own, "ttft=500ms, tpot=0.025, target=99.5%")["chat"]
    assert objective == Objective(0.5, 0.025, math.inf, 99.5, 60.0, 20, "--slo")
    assert settle(own, None)["chat"].bounds() == "end to end 9 s"


def test_a_request_of_several_policies_must_hold_every_bound_at_the_lowest_target() -> None:
    prefill = Objective(ttft_seconds=0.5, target_percent=99, window_seconds=60, source="the policy's slo")
    decode = Objective(tpot_seconds=0.025, target_percent=95, minimum_requests=50, source="the policy's slo")
    both = combine([prefill, decode])
    assert both == Objective(0.5, 0.025, math.inf, 95, 300.0, 50, "the policy's slo")
    assert combine([prefill]) is prefill


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ttft", "--slo ttft: 'ttft' is not understood: write ttft=1s,tpot=50ms"),
        ("itl=1", "--slo itl=1: 'itl=1' is not understood: write ttft=1s,tpot=50ms"),
        (
            "ttft=soon",
            "--slo ttft=soon: ttft is 'soon': give a time above 0, such as ttft=50ms or ttft=0.05",
        ),
        ("tpot=0ms", "--slo tpot=0ms: tpot is '0ms': give a time above 0, such as tpot=50ms or tpot=0.05"),
        ("ttft=1,ttft=2", "--slo ttft=1,ttft=2: ttft is given twice: give it once"),
        ("target=99", "--slo target=99: names no latency: give at least one of ttft, tpot and e2e"),
        (
            "ttft=1,target=0",
            "--slo ttft=1,target=0: target is '0': give a percentage from 1 to 100, such as target=99",
        ),
    ],
)
def test_bounds_that_are_not_understood_are_refused_with_the_mend(text: str, sentence: str) -> None:
    with pytest.raises(SloError) as refused:
        parse(text)
    assert str(refused.value) == sentence
