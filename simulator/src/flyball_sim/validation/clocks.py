"""Rows 13 and 14, the A6000's sweep and points of two papers: what a clock lock does to time and energy."""

from __future__ import annotations

from dataclasses import dataclass

from flyball_sim.gpu.anchors import full_decode_ratios, host_bound_ratios
from flyball_sim.gpu.published import (
    HOST_BOUND_ENERGY_RATIO,
    THROTTLLEM_POWER_RATIO,
    THROTTLLEM_THROUGHPUT_RATIO,
    VOLTANALLM_ENERGY_RATIO,
)
from flyball_sim.gpu.steps import settle, step_seconds
from flyball_sim.gpu.sweeps import a6000_results, least_energy_delay_mhz
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import StepModel, step_model
from flyball_sim.validation.rows import Row, Subject, at_most, difference, relative, within

H200_DECODE = "arXiv 2605.11999, abstract: a clock lock saves at most 32 % of decode energy at minimal loss"
MERTSIDE = "mertside's clock sweep of LLaMA on an A100-PCIe-40GB, summary"
AGFT_LOG = "AGFT's development log, commit 8e20265; the load was not the same in all rows"
THROTTLLEM = "arXiv 2408.05235: Llama-2-13B, full batch, 1050 of 1410 MHz: -6.25 % throughput, +37.4 % tokens per joule"
VOLTANALLM = "arXiv 2509.04827's figure, digitised: Llama-3.1-8B, 1005 over 1410 MHz at equal load"
A6000_LEAST_MHZ = 1020
DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT_TOKENS = 1024
LITTLE_LOSS = 1.05
"""Time per token over that at free boost which still counts as "minimal loss"."""
MID_CLOCK_MHZ = 1155
"""Half-way between the lowest and the highest SM clock of an H200."""


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """Decode steps of one batch at one clock: seconds a step, joules a token of one card."""

    sm_mhz: int
    seconds: float
    joules_per_token: float


def decode_point(model: StepModel, decodes: int, held_tokens: int, lock_sm_mhz: int | None) -> DecodePoint:
    """Decode steps under a clock lock (none: free boost) at the card's default power limit."""
    cost = model.cost(decodes, held_tokens, [])
    lock = None if lock_sm_mhz is None else (lock_sm_mhz, lock_sm_mhz)
    gpu = model.gpu
    sm_mhz, watts, _ = settle(gpu, cost, gpu.cap_default_watts, lock, reference_mhz=model.reference_mhz)
    seconds = step_seconds(gpu, cost, sm_mhz, model.reference_mhz)
    return DecodePoint(sm_mhz, seconds, watts * seconds / decodes)


@dataclass(frozen=True, slots=True)
class LockSaving:
    """What a lock saves of decode energy beside free boost, in percent, and how much longer a step takes."""

    decodes: int
    sm_mhz: int
    saving_percent: float
    longer_percent: float


def best_lock(model: StepModel, decodes: int) -> LockSaving:
    """The lock of the card's own grid that saves most, of those with little loss."""
    locks = model.gpu.supported_sm_mhz()
    savings = [lock_saving(model, decodes, lock) for lock in locks]
    little = 100.0 * (LITTLE_LOSS - 1.0)
    return max((found for found in savings if found.longer_percent <= little), key=lambda found: found.saving_percent)


def lock_saving(model: StepModel, decodes: int, lock_sm_mhz: int) -> LockSaving:
    """One lock beside free boost."""
    held = decodes * CONTEXT_TOKENS
    free, locked = decode_point(model, decodes, held, None), decode_point(model, decodes, held, lock_sm_mhz)
    return LockSaving(
        decodes,
        locked.sm_mhz,
        100.0 * (1.0 - locked.joules_per_token / free.joules_per_token),
        100.0 * (locked.seconds / free.seconds - 1.0),
    )


def h200_decode_lock() -> tuple[Row, ...]:
    """Row 13, a gate: the best lock of each model, and the middle of the clock range.

    The abstract names no model or batch, so the batch at which a lock saves most is judged. It counts as fitted: the
    split of power between memory and SMs was chosen within what it allows.
    """
    found: list[Row] = []
    for name, gpus in (("llama-3.1-8b", 1), ("llama-3.1-70b", 4)):
        model = step_model(gpu_type("H200-SXM"), name, gpus)
        setup = f"{name} on {gpus}xH200"
        best = max((best_lock(model, decodes) for decodes in DECODE_BATCHES), key=lambda lock: lock.saving_percent)
        note = f"{best.sm_mhz} MHz, batch {best.decodes}, a step {best.longer_percent:.1f} % longer"
        what = f"decode energy saved by the best lock with <= 5 % loss, {setup}"
        found.append(
            within(_h200(what), best.saving_percent, (25.0, 40.0), error_unit="points", note=note),
        )
        mid = max(
            (lock_saving(model, decodes, MID_CLOCK_MHZ) for decodes in DECODE_BATCHES),
            key=lambda lock: lock.saving_percent,
        )
        note = f"batch {mid.decodes}, a step {mid.longer_percent:.1f} % longer"
        what = f"decode energy saved at {MID_CLOCK_MHZ} MHz, {setup}"
        found.append(at_most(_h200(what), mid.saving_percent, bound=40.0, note=note))
    return tuple(found)


def _h200(what: str) -> Subject:
    return Subject("13", what, "%", H200_DECODE, "fitted", gated=True)


def host_bound_lock() -> tuple[Row, Row]:
    """Row 14: a load that waits for the host half of the time; the source gives no more of it."""
    ratios = host_bound_ratios(gpu_type("A100-SXM4-80GB"), 810)
    energy = Subject("14", "A100, host-bound, 1410 to 810 MHz: energy saved", "%", MERTSIDE, "fitted")
    longer = Subject("14", "A100, host-bound, 1410 to 810 MHz: time added", "%", MERTSIDE, "fitted")
    published, ours = 100.0 * (1.0 - HOST_BOUND_ENERGY_RATIO), 100.0 * (1.0 - ratios.joules)
    note = "A100-SXM4-80GB in place of the PCIe card"
    return (
        difference(energy, ours, published, tolerance=8.0, error_unit="points", note=note),
        difference(longer, 100.0 * (ratios.seconds - 1.0), -1.8, tolerance=8.0, error_unit="points"),
    )


def a6000_sweep() -> tuple[Row, ...]:
    """Watts at 13 clocks, and the clock of least energy times delay; its times are not judged."""
    results = a6000_results(gpu_type("RTX-A6000"))
    watts = tuple(
        relative(
            Subject("A6000", f"serving at {result.row.sm_mhz} MHz", "W", AGFT_LOG, "fitted", gated=True),
            result.watts,
            result.row.watts,
            tolerance_percent=10.0,
        )
        for result in results
    )
    subject = Subject("A6000", "clock of least energy times delay", "MHz", AGFT_LOG, "fitted", gated=True)
    step_mhz = 90.0
    least = difference(
        subject,
        float(least_energy_delay_mhz(results)),
        A6000_LEAST_MHZ,
        tolerance=step_mhz,
        error_unit="MHz",
        note="the log's clocks are 90 MHz apart",
    )
    return (*watts, least)


def papers() -> tuple[Row, ...]:
    """ThrottLL'eM's sweet spot and VoltanaLLM's two clocks."""
    card = gpu_type("A100-SXM4-80GB")
    spot, low = full_decode_ratios(card, 1050), full_decode_ratios(card, 1005)
    power = Subject("throttLL'eM", "A100, full batch, 1050 over 1410 MHz: power", "", THROTTLLEM, "fitted")
    speed = Subject("throttLL'eM", "A100, full batch, 1050 over 1410 MHz: throughput", "", THROTTLLEM, "fitted")
    energy = Subject("VoltanaLLM", "A100, full batch, 1005 over 1410 MHz: energy", "", VOLTANALLM, "fitted")
    return (
        difference(power, spot.watts, THROTTLLEM_POWER_RATIO, tolerance=0.05),
        difference(speed, 1.0 / spot.seconds, THROTTLLEM_THROUGHPUT_RATIO, tolerance=0.05),
        within(energy, low.joules, VOLTANALLM_ENERGY_RATIO, tolerance=0.05),
    )


def rows() -> tuple[Row, ...]:
    """Rows 13 and 14, the sweep and the papers' points."""
    return (*h200_decode_lock(), *host_bound_lock(), *a6000_sweep(), *papers())
