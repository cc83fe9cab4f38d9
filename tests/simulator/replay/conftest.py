"""A made-up run of a replay: enough of a world for its tables, pages and documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from flyball_api.energypolicy import EnergyPolicySpec
from flyball_sim.load.traces import TraceRequest
from flyball_sim.replay.answer import Answer, pair_up, run_measures
from flyball_sim.replay.objectives import of_policy
from flyball_sim.replay.policies import ReplayPolicy
from flyball_sim.replay.question import ClusterView, Question, Trace
from flyball_sim.replay.record import FINISHED, Record, Requests, Statement
from flyball_sim.world.cluster import default_cluster

SPEC = {
    "mode": "Enforce",
    "selector": {"namespaces": ["serving"], "matchLabels": {"app": "chat"}},
    "slo": {
        "timeToFirstToken": {"thresholdMilliseconds": 1000},
        "interTokenLatency": {"thresholdMilliseconds": 50},
    },
    "controller": {
        "type": "Fixed",
        "fixed": {"clocks": [{"role": "unified", "minMegahertz": 1305, "maxMegahertz": 1305}]},
    },
    "powerBudget": {"watts": 1200},
}
COUNT = 400
END_SECONDS = 260.0


@pytest.fixture
def question() -> Question:
    spec = EnergyPolicySpec.model_validate(SPEC)
    document = {
        "apiVersion": "flyball.dev/v1alpha1",
        "kind": "EnergyPolicy",
        "metadata": {"name": "chat"},
        "spec": SPEC,
    }
    return Question(
        policies=(ReplayPolicy("chat", spec, document),),
        objectives=(of_policy(spec),),
        trace=Trace("trace.csv", tuple(TraceRequest(0.5 * index, 100, 40) for index in range(COUNT))),
        cluster=default_cluster(),
        catalogue=None,
        view=ClusterView(
            assumed=True,
            summary="2 engines of llama-3.1-8b (bf16), each on 1 GPU of type H100-SXM5, on 1 node",
            gpus=2,
            gpu_types=("H100-SXM5",),
            ceilings_watts=(1400.0,),
            document={"nodes": [{"name": "node-1", "gpus": 2}]},
        ),
        judges=(of_policy(spec),),
        judge_of_engine={"chat-0": 0, "chat-1": 0},
        seed=1,
        router="least-requests",
        faults=(),
        injected=(),
        end_seconds=END_SECONDS,
        sample_seconds=1.0,
        draws=3,
    )


MakeRecord = Callable[..., Record]


@pytest.fixture
def make_record() -> MakeRecord:
    def make(
        mode: Literal["Observe", "Enforce"], *, watts: float = 500.0, slowness: float = 1.0, seed: int = 1
    ) -> Record:
        rng = np.random.default_rng(seed)
        arrival = 0.5 * np.arange(COUNT)
        ttft = rng.uniform(0.05, 0.2, COUNT) * slowness
        tpot = rng.uniform(0.01, 0.02, COUNT) * slowness
        seconds = np.arange(1.0, END_SECONDS + 1)
        same = np.ones(len(seconds))
        clock = (1980.0 if mode == "Observe" else 1305.0) * same
        series = {
            "seconds": seconds,
            "watts": watts * same,
            "caps_watts": 1200.0 * same,
            "sm_mhz_low": clock - 15,
            "sm_mhz_mean": clock,
            "sm_mhz_high": clock,
            "running": 4 * same,
            "waiting": 0 * same,
        }
        if mode == "Enforce":
            series |= {"budget_watts": 1200 * same, "enforced_watts": 900 * same, "reserved_watts": 300 * same}
        return Record(
            end_seconds=END_SECONDS,
            requests=Requests(
                arrival_seconds=arrival,
                ttft_seconds=ttft,
                tpot_seconds=tpot,
                finished_seconds=arrival + ttft + 39 * tpot,
                prompt_tokens=np.full(COUNT, 100),
                output_tokens=np.full(COUNT, 40),
                outcome=np.full(COUNT, FINISHED, dtype=np.int8),
                judge=np.zeros(COUNT, dtype=np.int16),
            ),
            energy_joules=watts * END_SECONDS,
            peak_watts=watts,
            gpus=2,
            series=series,
            statements=(Statement(8.0, "chat", "Ready", "True", "AsExpected", "every GPU is as it should be"),),
        )

    return make


@pytest.fixture
def answer(question: Question, make_record: MakeRecord) -> Answer:
    """At nominal parameters Enforce saves 20 %; in three draws 15, 22 and 25 %."""
    observe, enforce = make_record("Observe"), make_record("Enforce", watts=400.0, slowness=1.3)
    drawn = [(500.0, 425.0), (500.0, 390.0), (500.0, 375.0)]
    records = [observe, enforce]
    for index, (before, after) in enumerate(drawn):
        records += [
            make_record("Observe", watts=before, seed=index),
            make_record("Enforce", watts=after, slowness=1.3, seed=index),
        ]
    nominal, draws = pair_up([run_measures(record, question) for record in records])
    return Answer(observe, enforce, nominal, draws)
