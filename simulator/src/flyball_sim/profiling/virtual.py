"""A modelled engine under the sweep of `flyball profile`, in virtual time.

Decode and prefill points are steps at steady state, from the same formulas the engine runs on; load points are runs of
a whole `Machine`. Each number is off by a drawn error, as a second of measuring gives it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, cycle

from flyball_agent.profiles import DecodePoint, LoadPoint, PrefillPoint, Profile
from flyball_agent.profiling.fits import FITS, with_fits
from flyball_agent.profiling.plan import BATCHES, DecodeTask, Ground, LoadTask, PrefillTask, make_plan
from flyball_agent.profiling.sweep import run_sweep, with_points
from flyball_sim.engine.machine import Machine
from flyball_sim.engine.models import BLOCK_TOKENS, StepModel
from flyball_sim.engine.requests import EngineLimits, EngineRequest, RequestTiming
from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.steps import settle, step_seconds
from flyball_sim.latency.steps import StepCost

NOISE = 0.01
"""Standard deviation of a measured time or power, as a share; a round figure for windows of a second or two."""
_WINDOW_TOKENS = 128
"""Tokens of each sequence in a decode window."""
_MODELLED = "modelled"


class VirtualRig:
    """Measures a modelled engine.

    Args:
        model: step times, GPU type and group size.
        limits: the engine's.
        seed: of the errors of measuring.
        noise: standard deviation of those, as a share.
        die: of the cards.
    """

    def __init__(
        self, model: StepModel, limits: EngineLimits, *, seed: int = 0, noise: float = NOISE, die: Die = NOMINAL_DIE
    ) -> None:
        self._model = model
        self._limits = limits
        self._rng = random.Random(seed)  # noqa: S311 - errors of a simulation
        self._noise = noise
        self._die = die

    def decode(self, task: DecodeTask) -> Iterator[DecodePoint]:
        """See `Rig`."""
        for sm_mhz in task.clocks_mhz:
            held = task.running * (task.prompt_tokens + _WINDOW_TOKENS / 2)
            seconds, watts = self._run([self._model.cost(task.running, round(held), ())], sm_mhz)
            yield DecodePoint(sm_mhz, task.running, held, self._off(seconds), self._off(watts))

    def prefill(self, task: PrefillTask) -> Iterator[PrefillPoint]:
        """See `Rig`."""
        budget = self._limits.max_num_batched_tokens if self._limits.chunked_prefill else task.prompt_tokens
        steps = [
            self._model.cost(0, 0, ((done, min(budget, task.prompt_tokens - done)),))
            for done in range(0, task.prompt_tokens, budget)
        ]
        for sm_mhz in task.clocks_mhz:
            seconds, watts = self._run(steps, sm_mhz)
            yield PrefillPoint(sm_mhz, task.prompt_tokens, self._off(seconds), self._off(watts))

    def load(self, task: LoadTask) -> LoadPoint:
        """See `Rig`."""
        model = self._model
        machine = Machine(model, self._limits, dies=(self._die,) * model.gpus, actuation_delays=False)
        machine.set_cap(0.0, task.cap_watts)
        lengths, names = cycle(task.lengths), count()

        def send(now: float) -> None:
            prompt, output = next(lengths)
            machine.submit(EngineRequest(str(next(names)), prompt, output), now)

        for _ in range(task.batch_limit):
            send(0.0)
        # The first batch starts with all prompts at once, which no later one does.
        _finish(machine, 2 * task.batch_limit, send)
        began, joules, tokens = machine.now_seconds, machine.energy_joules, _generated(machine)
        timings = _finish(machine, task.requests, send)
        seconds = machine.now_seconds - began
        return LoadPoint(
            cap_watts=task.cap_watts,
            batch_limit=task.batch_limit,
            gpus=model.gpus,
            tokens_per_second=self._off((_generated(machine) - tokens) / seconds),
            power_watts=self._off((machine.energy_joules - joules) / seconds / model.gpus),
            tpot_p95_seconds=self._off(_p95([_tpot(timing) for timing in timings])),
        )

    def _run(self, steps: Sequence[StepCost], sm_mhz: int) -> tuple[float, float]:
        """Seconds and mean watts of one card over these steps, at a locked clock and the card's own cap."""
        gpu, reference = self._model.gpu, self._model.reference_mhz
        seconds = joules = 0.0
        for cost in steps:
            clock, watts, _ = settle(
                gpu, cost, gpu.cap_default_watts, (sm_mhz, sm_mhz), self._die, reference_mhz=reference
            )
            took = step_seconds(gpu, cost, clock, reference)
            seconds, joules = seconds + took, joules + took * watts
        return seconds, joules / seconds

    def _off(self, value: float) -> float:
        return value * math.exp(self._rng.gauss(0.0, self._noise))


def _finish(machine: Machine, requests: int, send: Callable[[float], None]) -> list[RequestTiming]:
    """Run until so many have finished, sending a new one for each."""
    finished: list[RequestTiming] = []
    while len(finished) < requests:
        due = machine.next_event_seconds()
        if due is None:
            raise ValueError(f"the engine stands still with {machine.waiting} requests waiting: give it a larger cache")
        machine.advance(due)
        for timing in machine.take_finished():
            finished.append(timing)
            send(machine.now_seconds)
    return finished


def _generated(machine: Machine) -> float:
    return machine.page().values["generation_tokens"]


def _tpot(timing: RequestTiming) -> float:
    return (timing.finished_seconds - timing.first_token_seconds) / (timing.output_tokens - 1)


def _p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def ground_of(model: StepModel, limits: EngineLimits) -> Ground:
    """What the plan needs to know of a modelled engine."""
    gpu = model.gpu
    return Ground(
        clocks_mhz=tuple(gpu.supported_sm_mhz()),
        cap_min_watts=gpu.cap_min_watts,
        cap_max_watts=gpu.cap_max_watts,
        gpus=model.gpus,
        max_batch_limit=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        kv_tokens=model.kv_blocks * BLOCK_TOKENS,
    )


def profile_engine(
    model: StepModel,
    limits: EngineLimits,
    *,
    clocks: Sequence[int] = (),
    batches: Sequence[int] = BATCHES,
    caps: Sequence[int] = (),
    seed: int = 0,
    noise: float = NOISE,
    die: Die = NOMINAL_DIE,
    fits: Iterable[str] = tuple(FITS),
) -> Profile:
    """The profile that `flyball profile` would make of this engine, modelled; a few seconds of CPU.

    Args:
        model: step times, GPU type and group size.
        limits: the engine's.
        clocks: SM clocks in MHz to measure at; none: 14 evenly over the card's range.
        batches: decode batches; those beyond the engine's are left out.
        caps: caps in watts of the load points; none: 11 evenly up to its highest.
        seed: of lengths and errors.
        noise: standard deviation of each number, as a share.
        die: of the cards.
        fits: controllers whose fit is made as well; those that have none here are left out.

    Raises:
        ValueError: a clock or a cap is not the card's.
    """
    plan = make_plan(ground_of(model, limits), clocks=clocks, batches=batches, caps=caps, seed=seed)
    rig = VirtualRig(model, limits, seed=seed, noise=noise, die=die)
    end = run_sweep(plan, rig, measured={}, keep=_nothing, time_left=_always)
    empty = Profile(
        name=f"{model.gpu.name}-{model.model.name}-tp{model.gpus}".lower(),
        product=model.gpu.product_name,
        model=model.model.name,
        gpus=model.gpus,
        engine_version=_MODELLED,
        created=_MODELLED,
        kv_blocks=model.kv_blocks,
        block_tokens=BLOCK_TOKENS,
        max_batch_limit=limits.max_num_seqs,
    )
    return with_fits(with_points(empty, plan, end.points), fits).profile


def _nothing(_: str, __: object) -> None:
    """Everything is kept in memory."""


def _always() -> bool:
    return True
