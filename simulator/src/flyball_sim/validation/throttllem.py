"""Row 17: throttLL'eM in its paper's setting, as far as the paper says what that is.

Llama-2-13B on A100-40GB cards in three engine sizes, requests held to the end-to-end time that 99 % of them stay under
at the highest clock and at saturation, true lengths. The paper replays the Azure conversation trace, rescaled; here the
generated conversation with that trace's statistics comes instead, prompts cut to the model's context. It does not give
the mean load. `CLOCKS_LOAD` is ours; `SCALING_LOAD` is the one number chosen for a result: at a third of what the
largest engine bears the autoscaler alone saves about the published share, and what clocks add to it follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np

from flyball_agent.controllers.base import ControlLimits, GroupController, Targets
from flyball_agent.controllers.throttllem.controller import ThrottLlem
from flyball_agent.profiles import Profile
from flyball_agent.scaling.tensorparallel import TensorParallelScaler, Variant
from flyball_api.controllers.throttllem import ThrottLlemController
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import StepModel, step_model
from flyball_sim.engine.requests import EngineLimits, EngineRequest
from flyball_sim.gpu.types import gpu_type
from flyball_sim.load.conversation import generate
from flyball_sim.load.traces import TraceRequest, read_trace
from flyball_sim.profiling import profile_engine
from flyball_sim.validation.rows import NEEDS_DATA, Row, Subject, difference, not_run, relative
from flyball_sim.world.direct import setup_of
from flyball_sim.world.variants import Size, VariantsRun, run_variants

SOURCE: Final = "arXiv 2408.05235: abstract, and third-party notes of its evaluation and ablation"
TRACE: Final = Path("traces") / "azure2023_conv.csv"
GPU: Final = "A100-SXM4-40GB"
MODEL: Final = "llama-2-13b"
SIZES: Final = (1, 2, 4)
LIMITS: Final = EngineLimits(4096, max_num_queued_reqs=1_000_000)
NODE_CARDS: Final = 8
"""Of the AWS p4d.24xlarge."""
LONGEST_PROMPT: Final = 3000
CLOCKS_LOAD: Final = 0.65
SCALING_LOAD: Final = 1.0 / 3.0
"""Mean load as a share of what the engine bears."""
SEEDS: Final = (1, 2)
CLOCKS_SECONDS: Final = 240.0
SCALING_SECONDS: Final = 600.0
DRAIN_SECONDS: Final = 60.0
SATURATION_SECONDS: Final = 200.0
SATURATING: Final = 500


@dataclass(frozen=True, slots=True)
class Saving:
    """A run beside one of the same requests.

    Attributes:
        percent: energy saved on cards that hold an engine.
        node_percent: the same of all eight cards of the node, idle ones included.
        tokens_per_joule: as a factor of the other run's, engines' cards.
    """

    percent: float
    node_percent: float
    tokens_per_joule: float


@cache
def engine(gpus: int) -> StepModel:
    """The model on so many cards."""
    return step_model(gpu_type(GPU), MODEL, gpus)


@cache
def profile_of(gpus: int) -> Profile:
    """What throttLL'eM fits on: every fourth clock of the card, from the highest down."""
    clocks = tuple(engine(gpus).gpu.supported_sm_mhz())[::-4][::-1]
    return profile_engine(engine(gpus), LIMITS, clocks=clocks, caps=(400,), fits=("ThrottLLeM",))


def conversation(seconds: float, requests_per_second: float, seed: int) -> list[TraceRequest]:
    """Requests that fit the model's context."""
    return [
        TraceRequest(request.arrival_seconds, min(request.prompt_tokens, LONGEST_PROMPT), request.output_tokens)
        for request in generate(seconds, seed=seed, requests_per_second=requests_per_second)
    ]


@cache
def most_rps(gpus: int) -> float:
    """Requests per second of an engine whose queue never empties, without its first and last tenth."""
    machine = Machine(engine(gpus), LIMITS)
    for number, request in enumerate(conversation(200.0, 5.0, 3)[:SATURATING]):
        machine.submit(EngineRequest(str(number), request.prompt_tokens, request.output_tokens), 0.0)
    while (due := machine.next_event_seconds()) is not None:
        machine.advance(due)
    ends = sorted(timing.finished_seconds for timing in machine.take_finished())
    first, last = len(ends) // 10, 9 * len(ends) // 10
    return (last - first) / (ends[last] - ends[first])


def size(gpus: int) -> Size:
    """An engine size by its name."""
    return Size(f"tp{gpus}", engine(gpus), LIMITS)


@cache
def end_to_end_seconds(gpus: int) -> float:
    """The paper's SLO: the 99th percentile at the highest clock and at saturation."""
    trace = conversation(SATURATION_SECONDS, most_rps(gpus), 11)
    ran = run_variants([size(gpus)], trace, serving=f"tp{gpus}", cards=gpus, end_seconds=2 * SATURATION_SECONDS)
    times = ran.outcomes.finished_seconds - ran.outcomes.arrival_seconds
    return float(np.nanpercentile(times, 99))


def throttled(model: StepModel) -> GroupController:
    """The controller with the paper's constants and true lengths."""
    parameters = ThrottLlemController(slo="EndToEnd", length_error_percent=0)
    return ThrottLlem(parameters, setup_of(model, profile=profile_of(model.gpus)))


def promise(gpus: int) -> ControlLimits:
    """The paper's SLO for all engines of a service; clocks are each card's own."""
    return ControlLimits(0, 0, targets=Targets(e2e_seconds=end_to_end_seconds(gpus)))


@cache
def clocks_alone(gpus: int) -> Saving:
    """One engine size at its own load, throttled or not."""
    trace = conversation(CLOCKS_SECONDS, CLOCKS_LOAD * most_rps(gpus), 7)
    end, name = CLOCKS_SECONDS + DRAIN_SECONDS, f"tp{gpus}"
    plain = run_variants([size(gpus)], trace, serving=name, cards=NODE_CARDS, end_seconds=end)
    ours = run_variants(
        [size(gpus)], trace, serving=name, cards=NODE_CARDS, end_seconds=end, make=throttled, limits=promise(gpus)
    )
    return saving(plain, ours)


def scaler() -> TensorParallelScaler:
    """The paper's autoscaler, the largest engine first."""
    variants = [Variant(f"tp{gpus}", gpus, most_rps(gpus)) for gpus in SIZES]
    return TensorParallelScaler(variants, f"tp{SIZES[-1]}")


@cache
def ablation(seed: int) -> tuple[Saving, Saving, Saving]:
    """A drawn conversation: clocks alone, autoscaler alone, both."""
    return levers(conversation(SCALING_SECONDS, SCALING_LOAD * most_rps(SIZES[-1]), seed))


@cache
def azure(path: Path) -> tuple[Saving, Saving, Saving]:
    """The same on the first minutes of the trace itself, stretched to the same mean load; nothing is fitted on it."""
    requests = tuple(read_trace(path))
    span = requests[-1].arrival_seconds - requests[0].arrival_seconds
    stretch = len(requests) / span / (SCALING_LOAD * most_rps(SIZES[-1]))
    return levers(
        [
            TraceRequest(at, min(request.prompt_tokens, LONGEST_PROMPT), request.output_tokens)
            for request in requests
            if (at := stretch * (request.arrival_seconds - requests[0].arrival_seconds)) < SCALING_SECONDS
        ]
    )


def levers(trace: Sequence[TraceRequest]) -> tuple[Saving, Saving, Saving]:
    """Beside the largest engine at its highest clock: clocks alone, autoscaler alone, both."""
    largest = SIZES[-1]
    sizes, end, limits = [size(gpus) for gpus in SIZES], SCALING_SECONDS + DRAIN_SECONDS, promise(largest)
    name = f"tp{largest}"
    plain = run_variants(sizes, trace, serving=name, cards=NODE_CARDS, end_seconds=end)
    clocks = run_variants(sizes, trace, serving=name, cards=NODE_CARDS, end_seconds=end, make=throttled, limits=limits)
    scaled = run_variants(sizes, trace, scaler=scaler(), cards=NODE_CARDS, end_seconds=end)
    both = run_variants(sizes, trace, scaler=scaler(), cards=NODE_CARDS, end_seconds=end, make=throttled, limits=limits)
    return saving(plain, clocks), saving(plain, scaled), saving(plain, both)


def saving(plain: VariantsRun, other: VariantsRun) -> Saving:
    """What the other run saves; both answered the same requests."""
    kept = [float(run.outcomes.output_tokens[~np.isnan(run.outcomes.finished_seconds)].sum()) for run in (plain, other)]
    return Saving(
        100.0 * (1.0 - other.engine_joules / plain.engine_joules),
        100.0 * (1.0 - other.energy_joules / plain.energy_joules),
        kept[1] / other.engine_joules / (kept[0] / plain.engine_joules),
    )


@cache
def rows(data: Path | None = None) -> tuple[Row, ...]:
    """Row 17: clocks alone, autoscaler alone, both, tokens per joule, and whether the levers multiply.

    Args:
        data: the data directory, for the trace itself; None: that row is not run.
    """
    return (*_drawn_rows(), _azure_row(data))


def _azure_row(data: Path | None) -> Row:
    subject = _subject("throttLL'eM, A100: energy saved by both, on the Azure trace itself", "%")
    if data is None or not (data / TRACE).is_file():
        return not_run(subject, NEEDS_DATA, 43.8)
    clocks, scaled, both = azure(data / TRACE)
    return difference(
        subject,
        both.percent,
        43.8,
        tolerance=10.0,
        error_unit="points",
        note=f"clocks alone {clocks.percent:.0f} %, autoscaler alone {scaled.percent:.0f} %; its first"
        f" {SCALING_SECONDS / 60.0:.0f} minutes at the same mean load",
    )


@cache
def _drawn_rows() -> tuple[Row, ...]:
    alone = [clocks_alone(gpus).percent for gpus in SIZES]
    parts = [ablation(seed) for seed in SEEDS]
    clocks, scaled, both = ([part[index] for part in parts] for index in range(3))
    product = fmean(
        (1.0 - one.percent / 100.0) * (1.0 - two.percent / 100.0) for one, two in zip(clocks, scaled, strict=True)
    )
    left = 1.0 - fmean(each.percent for each in both) / 100.0
    sizes = ", ".join(f"TP{gpus} {percent:.0f}" for gpus, percent in zip(SIZES, alone, strict=True))
    return (
        difference(
            _subject("throttLL'eM, A100: energy saved by clocks alone, mean of TP1, TP2, TP4", "%"),
            fmean(alone),
            24.7,
            tolerance=10.0,
            error_unit="points",
            note=f"{sizes} % at {100 * CLOCKS_LOAD:.0f} % load, which the paper does not give",
        ),
        difference(
            _subject("throttLL'eM, A100: energy saved by the autoscaler alone", "%", fitted=True),
            _mean(scaled),
            20.8,
            tolerance=10.0,
            error_unit="points",
            note=f"the load was chosen for this; {_node(scaled):.0f} % of all eight cards",
        ),
        difference(
            _subject("throttLL'eM, A100: energy saved by both", "%"),
            _mean(both),
            43.8,
            tolerance=10.0,
            error_unit="points",
            note=f"{_node(both):.0f} % of all eight cards",
        ),
        relative(
            _subject("throttLL'eM, A100: tokens per joule with both, as a factor", ""),
            fmean(each.tokens_per_joule for each in both),
            1.71,
            tolerance_percent=10.0,
        ),
        relative(
            _subject("throttLL'eM, A100: energy left by both, by the product of what each leaves", ""),
            left / product,
            (1.0 - 0.438) / ((1.0 - 0.306) * (1.0 - 0.208)),
            tolerance_percent=10.0,
            note=f"clocks alone save {_mean(clocks):.0f} % here (published 30.6): a large engine at a low clock is as"
            " frugal as a small one at a high clock, so the levers share much of it",
        ),
    )


def _mean(savings: Sequence[Saving]) -> float:
    return fmean(each.percent for each in savings)


def _node(savings: Sequence[Saving]) -> float:
    return fmean(each.node_percent for each in savings)


def _subject(what: str, unit: str, *, fitted: bool = False) -> Subject:
    return Subject("17", what, unit, SOURCE, "fitted" if fitted else "not fitted")
