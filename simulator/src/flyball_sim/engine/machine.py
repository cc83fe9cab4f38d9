"""One engine replica on its cards in virtual time: what Flyball's agent sees of a pod, without processes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from flyball_agent.controllers.base import Board, GpuReading
from flyball_agent.scanner import EngineSample, Histogram
from flyball_sim.engine.book import EnergyBook
from flyball_sim.engine.core import EngineCore
from flyball_sim.engine.models import StepModel
from flyball_sim.engine.requests import EngineLimits, EngineRequest, RequestTiming
from flyball_sim.engine.tallies import STEP_BOUNDS, Tally
from flyball_sim.gpu.delays import cap_call_seconds, cap_tau_seconds, lock_call_seconds, lock_delay_seconds
from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.model import unlocked_or_locked_mhz
from flyball_sim.gpu.sensors import Sensor

START_SECONDS = 30.0
"""A usual `ready_seconds` of an engine that starts while a run goes on: weights, CUDA graphs, warm-up (modelled)."""
_MOST_PIECES = 256
_NEVER = math.inf


class Machine:
    """One engine on the cards of its group. Every method that is told the time advances to it first.

    Args:
        model: step times, GPU type and group size.
        limits: the engine's.
        dies: one per card; nominal ones if not given.
        seed: of the delays of actuation.
        start_seconds: now.
        ready_seconds: the engine works from this time on; requests before it wait.
        actuation_delays: whether locks and caps take effect late, as on real cards, or at once.
    """

    def __init__(
        self,
        model: StepModel,
        limits: EngineLimits,
        *,
        dies: Sequence[Die] = (),
        seed: int = 0,
        start_seconds: float = 0.0,
        ready_seconds: float = 0.0,
        actuation_delays: bool = True,
    ) -> None:
        self.model = model
        self.dies = tuple(dies) or (NOMINAL_DIE,) * model.gpus
        if len(self.dies) != model.gpus:
            raise ValueError(f"{len(self.dies)} dies for {model.gpus} GPUs: give one for each card, or none")
        self.now_seconds = start_seconds
        self._rng = random.Random(seed)  # noqa: S311 - delays of a simulation
        self._delays = actuation_delays
        self._core = EngineCore(model, limits, dies=self.dies, start_seconds=start_seconds, ready_seconds=ready_seconds)
        gpu = model.gpu
        self._core.set_cap(gpu.cap_default_watts)
        self._asked_lock: tuple[int, int] | None = None
        self._asked_cap = gpu.cap_default_watts
        # A lock or a cap on its way to the cards; a newer one takes its place.
        self._lock_due = self._cap_due = self._control_due = _NEVER
        self._lock_mhz = float(gpu.sm_max_mhz)
        waiting = gpu.waiting_watts(float(gpu.sm_max_mhz))
        self._sensors = [Sensor(gpu, die, start_seconds, watts=waiting * die.idle_factor) for die in self.dies]
        self._pieces: list[tuple[float, float, float]] = []
        self._core.power.pieces = self._pieces
        self._sensed = (start_seconds, 0.0, 0.0)
        self._busy_at = (start_seconds, 0.0)
        self._utilisation = 0

    # -- what happens to it ----------------------------------------------------------------------------------

    def advance(self, now_seconds: float) -> None:
        """Work out all that happens up to and at `now_seconds`.

        Raises:
            ValueError: it is before the machine's clock.
        """
        core = self._core
        while self._control_due <= now_seconds:
            self._actuate(max(self._control_due, core.now_seconds))
        core.advance(now_seconds)
        self.now_seconds = now_seconds
        if len(self._pieces) > _MOST_PIECES:
            self._sense()

    def submit(self, request: EngineRequest, now_seconds: float) -> None:
        """Queue a request that arrives now.

        Raises:
            EngineRefusalError: it is empty or exceeds the context length or the KV cache.
            QueueFullError: the queue is at its limit.
        """
        self.advance(now_seconds)
        self._core.submit(request)

    def cancel(self, request_id: str, now_seconds: float) -> bool:
        """Forget a request; False if it is not here."""
        self.advance(now_seconds)
        return self._core.cancel(request_id)

    def set_lock(self, now_seconds: float, sm_mhz: tuple[int, int] | None) -> None:
        """Lock the SM clock of every card to (lowest, highest), or take the lock off; nothing if it is so already."""
        self.advance(now_seconds)
        if sm_mhz == self._asked_lock:
            return
        self._asked_lock = sm_mhz
        gpu, delay = self.model.gpu, 0.0
        self._lock_mhz = wanted = float(unlocked_or_locked_mhz(gpu, sm_mhz))
        if self._delays:
            # The group goes as fast as its slowest card: up with the last one, down with the first.
            delays = [lock_delay_seconds(gpu, self._rng) for _ in self.dies]
            rising = wanted > self._core.power.wanted.sm_mhz
            delay = lock_call_seconds(gpu) + (max(delays) if rising else min(delays))
        self._lock_due = now_seconds + delay
        self._schedule()

    def set_cap(self, now_seconds: float, watts: float) -> None:
        """Cap the power of every card; nothing if it is so already."""
        self.advance(now_seconds)
        if watts == self._asked_cap:
            return
        self._asked_cap = watts
        self._cap_due = now_seconds + (cap_call_seconds(self.model.gpu) if self._delays else 0.0)
        self._schedule()

    def set_batch_limit(self, now_seconds: float, max_num_seqs: int | None) -> None:
        """Admit no more than this many sequences to the batch; those that run go on. None: the engine's own limit."""
        self.advance(now_seconds)
        self._core.set_batch_limit(self._core.max_batch_limit if max_num_seqs is None else max_num_seqs)

    def set_admission(self, now_seconds: float, admit: int | None) -> None:
        """Let this many of the waiting requests, oldest first, into the batch until this is changed; None: all."""
        self.advance(now_seconds)
        self._core.set_admission(admit)

    def take_finished(self) -> list[RequestTiming]:
        """Requests that finished since the last call."""
        core = self._core
        taken, core.finished = core.finished, []
        return taken

    def next_event_seconds(self) -> float | None:
        """No request finishes before this time if nothing else is told to it; None when nothing is under way."""
        due = self._core.next_finish_seconds()
        return None if due is None else min(due, self._control_due)

    # -- what it shows ---------------------------------------------------------------------------------------

    @property
    def limits(self) -> EngineLimits:
        """The engine's bounds as they are now."""
        return self._core.limits

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return self._core.running

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return self._core.waiting

    @property
    def preemptions(self) -> int:
        """Sequences preempted so far."""
        return self._core.preemptions

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use."""
        return self._core.kv_usage()

    @property
    def sm_mhz(self) -> float:
        """The SM clock of the group now."""
        return self._core.power.clock.sm_mhz

    @property
    def cap_watts(self) -> float:
        """The cap asked for last."""
        return self._asked_cap

    @property
    def watts(self) -> float:
        """True power now, all cards."""
        return self._core.watts()

    @property
    def energy_joules(self) -> float:
        """True energy so far, all cards."""
        return self._core.energy_joules()

    @property
    def book(self) -> EnergyBook:
        """Sums by clock up to now."""
        self._core.account_now()
        return self._core.power.close_book()

    def board(self) -> Board:
        """What `/flyball/board` gives the agent at `now_seconds`."""
        return self._core.board()

    def page(self) -> EngineSample:
        """What a scrape of `/metrics` at `now_seconds` gives the agent."""
        core = self._core
        counts, kv_usage = core.counted(), core.kv_usage()
        prompts = float(counts.prompt_tokens)
        return EngineSample(
            {
                "requests_running": float(core.running),
                "requests_waiting": float(core.waiting),
                "kv_cache_usage": kv_usage,
                "prompt_tokens": prompts,
                "generation_tokens": float(counts.generation_tokens),
                "prefix_cache_queries": prompts,
                "prefix_cache_hits": float(counts.cached_tokens),
                "preemptions": float(core.preemptions),
            },
            {
                "time_to_first_token": _shown(counts.time_to_first),
                "inter_token_latency": _shown(counts.inter_token),
                "end_to_end": _shown(counts.end_to_end),
                "time_per_output_token": _shown(counts.time_per_token),
                "iteration_tokens": Histogram(STEP_BOUNDS, counts.cumulative_steps(), float(counts.step_tokens)),
            },
            model=self.model.model.name,
        )

    def readings(self) -> tuple[GpuReading, ...]:
        """What NVML shows of each card at `now_seconds`."""
        self._sense()
        now, power = self.now_seconds, self._core.power
        since, busy_before = self._busy_at
        if now > since:
            power.close_book()
            busy = power.busy_seconds
            self._busy_at = (now, busy)
            self._utilisation = round(100.0 * min(1.0, (busy - busy_before) / (now - since)))
        sm_mhz, capped, utilisation = int(power.clock.sm_mhz), power.capped, self._utilisation
        return tuple(
            [
                GpuReading(sensor.power_watts(now), sm_mhz, utilisation, capped, sensor.energy_joules(now))
                for sensor in self._sensors
            ]
        )

    # -- inside ----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._control_due = min(self._lock_due, self._cap_due)
        while self._control_due <= self.now_seconds:
            self._actuate(self.now_seconds)

    def _actuate(self, now: float) -> None:
        """Let what is due take effect."""
        core, gpu = self._core, self.model.gpu
        core.advance(now)
        if self._lock_due <= now:
            self._lock_due = _NEVER
            core.set_clock(self._lock_mhz)
        if self._cap_due <= now:
            self._cap_due = _NEVER
            rising = self._asked_cap * gpu.cap_held_share > core.power.held_at(now)
            core.set_cap(self._asked_cap, cap_tau_seconds(gpu, rising) if self._delays else 0.0)
        self._control_due = min(self._lock_due, self._cap_due)

    def _sense(self) -> None:
        """Feed the sensors with what the cards drew up to now."""
        now, waiting, above = self._core.joules()
        pieces = [*self._pieces, (now, waiting, above)]
        self._pieces.clear()
        since, waiting_before, above_before = self._sensed
        self._sensed = pieces[-1]
        for sensor, die in zip(self._sensors, self.dies, strict=True):
            idle_factor, power_factor, run = die.idle_factor, die.power_factor, sensor.run
            time, joules = since, idle_factor * waiting_before + power_factor * above_before
            for until, waiting, above in pieces:
                if until > time:
                    used = idle_factor * waiting + power_factor * above
                    run(until, (used - joules) / (until - time))
                    time, joules = until, used


def _shown(tally: Tally) -> Histogram:
    return Histogram(tally.bounds, tally.cumulative(), tally.total)
