"""From what was typed to a question: read, check, cut, size, or refuse with a mend."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from flyball_sim.admission.policies import check
from flyball_sim.latency.catalogue import Catalogue
from flyball_sim.latency.modelfile import read_models_file
from flyball_sim.load.generators import KINDS, open_trace
from flyball_sim.load.traces import TraceRequest, scale, segment, thin_to_rate
from flyball_sim.replay import objectives, policies, profiles, sizing
from flyball_sim.replay.cli import DEFAULT_DRAWS, QUICK_DRAWS, QUICK_SECONDS
from flyball_sim.replay.objectives import Objective
from flyball_sim.replay.policies import ReplayPolicy
from flyball_sim.replay.question import ClusterView, Question, Trace
from flyball_sim.replay.wording import count
from flyball_sim.replay.worldrun import judges, owners
from flyball_sim.world.cluster import ClusterSpec, read_cluster
from flyball_sim.world.faults import Fault, parse_fault, read_faults, text_of
from flyball_sim.world.layout import Layout, check_requests, lay_out
from flyball_sim.world.routers import make_router

SAMPLES = 720
"""About so many samples over time, none shorter than a second."""


class AskingError(ValueError):
    """An option that cannot be; the message names it, its value and the mend."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    policy: Path
    trace: str
    slo: str | None
    data: Path | None
    start: float | None
    seconds: float | None
    speed: float | None
    rate: float | None
    quick: bool
    cluster: Path | None
    model: str | None
    gpu: str | None
    dtype: str | None
    tp: int | None
    models: Path | None
    engines: int | None
    router: str
    fault: Sequence[str]
    seed: int
    draws: int | None
    jobs: int | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Options:
        """The options of a parsed command line."""
        given: dict[str, Any] = vars(args)
        return cls(**{field.name: given[field.name] for field in fields(cls)})


def ask(options: Options) -> Question:
    """The question.

    Raises:
        ValueError: something given is wrong; the message names it and the mend.
        LookupError: a GPU type or a model that is unknown; the message names the nearest.
    """
    _check_numbers(options)
    found = policies.read(options.policy, check)
    judged = tuple(objectives.settle({policy.name: policy.spec for policy in found}, options.slo).values())
    make_router(options.router)
    trace = _trace(options)
    catalogue = None if options.models is None else read_models_file(options.models)
    if options.cluster is not None:
        cluster = read_cluster(options.cluster)
    else:
        cluster = _assumed(options, found, trace, catalogue)
    layout = lay_out(cluster, catalogue=catalogue)
    check_requests(layout, trace.requests)
    injected = [fault for text in options.fault for fault in _faults(text)]
    governed = owners(found, layout)
    asked, judge_of_engine = judges(layout, governed, judged)
    end = end_seconds(trace.requests, judged)
    return Question(
        policies=found,
        objectives=judged,
        trace=trace,
        cluster=cluster,
        catalogue=catalogue,
        view=_view(cluster, layout, governed, len(found), assumed=options.cluster is None),
        judges=asked,
        judge_of_engine=judge_of_engine,
        seed=options.seed,
        router=options.router,
        faults=tuple(text_of(fault) for fault in injected),
        injected=tuple(injected),
        end_seconds=end,
        sample_seconds=float(max(1, math.ceil(end / SAMPLES))),
        draws=_draws(options),
        profiles=profiles.make(found, layout, governed, options.seed),
    )


def end_seconds(requests: Sequence[TraceRequest], judged: Sequence[Objective]) -> float:
    """When both runs end: in whole seconds, when the last request would finish that just holds its SLO.

    What is not finished by then has missed, whatever it does later.
    """
    ttft = _loosest([objective.ttft_seconds for objective in judged], objectives.DEFAULT_TTFT_SECONDS)
    tpot = _loosest([objective.tpot_seconds for objective in judged], objectives.DEFAULT_TPOT_SECONDS)
    whole = _loosest([objective.e2e_seconds for objective in judged], 0.0)
    return float(math.ceil(max(r.arrival_seconds + max(whole, ttft + tpot * r.output_tokens) for r in requests)))


def _loosest(bounds: Sequence[float], default: float) -> float:
    return max((bound for bound in bounds if math.isfinite(bound)), default=default)


def _check_numbers(options: Options) -> None:
    for name, least in (("draws", 0), ("jobs", 1), ("tp", 1), ("engines", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise AskingError(f"--{name} {value}: give {least} or more")
    for name in ("seconds", "speed", "rate"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise AskingError(f"--{name} {value:g}: give a number above 0")
    if options.start is not None and not 0 <= options.start < math.inf:
        raise AskingError(f"--start {options.start:g}: give 0 or more")
    if options.data is not None and not options.data.is_dir():
        raise AskingError(f"--data {options.data}: there is no such directory: give the one that holds traces/")
    if options.cluster is not None:
        for name in ("model", "gpu", "dtype", "tp", "engines"):
            if getattr(options, name) is not None:
                raise AskingError(
                    f"--{name} is for the assumed cluster: say it in {options.cluster}, or leave --cluster out"
                )


def _draws(options: Options) -> int:
    if options.draws is not None:
        return options.draws
    return QUICK_DRAWS if options.quick else DEFAULT_DRAWS


def _trace(options: Options) -> Trace:
    start, speed = options.start or 0.0, options.speed or 1.0
    wanted = options.seconds or (QUICK_SECONDS if options.quick else None)
    span = None if wanted is None else wanted * speed
    requests = open_trace(
        options.trace, seconds=None if span is None else start + span, seed=options.seed, data=options.data
    )
    words = []
    is_file = options.trace.partition(":")[0] not in KINDS
    if options.start or (span is not None and is_file):
        requests = segment(requests, start_seconds=start, duration_seconds=span)
        words.append(f"from {start:g} s" + ("" if span is None else f" to {start + span:g} s"))
    if speed != 1:
        requests = scale(requests, speed)
        words.append(f"{speed:g} times as dense")
    if options.rate is not None:
        before = len(requests)
        requests = thin_to_rate(requests, options.rate, max(1.0, requests[-1].arrival_seconds), seed=options.seed)
        if not requests:
            raise AskingError(f"--rate {options.rate:g} leaves none of {before} requests: give a higher rate")
        if len(requests) < before:
            words.append(f"thinned to {options.rate:g} a second")
    return Trace(Path(options.trace).name if is_file else options.trace, requests, ", ".join(words))


def _assumed(options: Options, found: Sequence[ReplayPolicy], trace: Trace, catalogue: Catalogue | None) -> ClusterSpec:
    """As few engines as carry the trace, shared out over the policies, each with labels that its policy selects."""
    model = sizing.choose(options.gpu, options.model, options.dtype, gpus=options.tp, catalogue=catalogue)
    total = options.engines or sizing.engines_needed(trace.requests, model)
    return sizing.cluster(model, [(policy.name, policy.spec) for policy in found], total, options.dtype)


def _faults(text: str) -> Sequence[Fault]:
    """A fault by its words, or those of a file."""
    return read_faults(Path(text)) if Path(text).is_file() else [parse_fault(text)]


def _view(
    cluster: ClusterSpec, layout: Layout, governed: Mapping[str, int], policies_count: int, *, assumed: bool
) -> ClusterView:
    highest = {node.name: node.gpu_type.cap_max_watts for node in layout.nodes}
    return ClusterView(
        assumed=assumed,
        summary=summary(layout),
        gpus=layout.gpus,
        gpu_types=tuple(dict.fromkeys(node.gpu_type.name for node in layout.nodes)),
        ceilings_watts=tuple(
            sum(
                len(engine.cards) * highest[engine.node]
                for engine in layout.engines
                if governed.get(engine.name) == index
            )
            for index in range(policies_count)
        ),
        modelled=tuple(name for name, provenance in layout.provenance.items() if provenance == "modelled"),
        document=yaml.safe_load(cluster.to_yaml()),
    )


def summary(layout: Layout) -> str:
    """A cluster in one line."""
    kinds = {node.name: node.gpu_type.name for node in layout.nodes}
    groups: dict[tuple[str, str, int, str], int] = {}
    for engine in layout.engines:
        key = (engine.spec.model, engine.spec.dtype, len(engine.cards), kinds[engine.node])
        groups[key] = groups.get(key, 0) + 1
    engines = [
        f"{count(number, 'engine')} of {model} ({dtype}) on {gpus} x {kind}{' each' if number > 1 else ''}"
        for (model, dtype, gpus, kind), number in groups.items()
    ]
    return f"{', '.join(engines)}; {count(len(layout.nodes), 'node')} with {count(layout.gpus, 'GPU')}"
