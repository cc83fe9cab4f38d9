"""The clock and the energy of an engine's cards, exact for steps and for straight lines of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flyball_sim.engine.book import EnergyBook
from flyball_sim.engine.clocks import Clock, clock_table
from flyball_sim.engine.requests import LoadSample
from flyball_sim.engine.work import Work, WorkLine
from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.kind import GpuType

LAG_PIECE_SECONDS = 0.01
"""The way to a new cap is walked in pieces of this length where the cap binds."""
NO_LIMIT_WATTS = 1e6
_SETTLED_WATTS = 0.5
_ALIKES, _ALIKE_PER_WATT = 128, 0.2
_PACES_KEPT = 8
"""Limits (clock and cap) whose paces are kept: a controller that goes to and fro comes back to them."""


class Pace:
    """Decode steps of one batch at one clock, as straight lines in the tokens held, and how many were done.

    A step takes ``first + growth * held`` seconds and a nominal card draws ``joules + joules_per_token * held`` in it
    above waiting. It is good for steps that start with at most `most_held` tokens.
    """

    __slots__ = (
        "decodes", "first", "growth", "held_sum", "joules", "joules_per_token", "line", "most_held", "steps",
        "waiting_watts",
    )  # fmt: skip

    def __init__(self, line: WorkLine, clock: Clock, decodes: int, most_held: float) -> None:
        host, fixed, fixed_k, clocked, clocked_k, memory, memory_k, compute, compute_k, _ = line
        kernels = fixed * clock.fixed_factor + clocked * clock.clocked_factor
        self.line = line
        self.decodes = decodes
        self.first = host + kernels
        self.growth = growth = fixed_k * clock.fixed_factor + clocked_k * clock.clocked_factor
        busy, bytes_watts, flops_watts = clock.busy_watts, clock.memory_watts, clock.compute_watts
        self.joules = busy * kernels + bytes_watts * memory + flops_watts * compute
        self.joules_per_token = busy * growth + bytes_watts * memory_k + flops_watts * compute_k
        self.waiting_watts = clock.waiting_watts
        self.most_held = most_held
        self.steps = self.held_sum = 0  # not yet in the book


class GroupPower:
    """What the cards of one engine are limited to, run at and use up.

    All cards run at one clock, that of the die which its cap slows most. Energy is kept for a nominal card, waiting
    and above it apart, because a die's factors are on each of the two as a whole.

    Args:
        gpu_type: of every card.
        reference_mhz: the clock step times hold at.
        dies: one per card.
        start_seconds: now.
    """

    __slots__ = (
        "_guesses", "_idle_factor", "_idle_sum", "_kernels_until", "_lag_from", "_lag_since", "_lag_tau", "_paces_of",
        "_power_factor", "_power_sum", "_sampled", "_sums", "_table", "above_joules", "begun", "book", "busy_seconds",
        "capped", "clock", "dies", "gpu_type", "held_watts", "lag_until", "paces", "pieces", "steps_by_batch",
        "waiting_joules", "wanted",
    )  # fmt: skip

    def __init__(
        self, gpu_type: GpuType, reference_mhz: float, dies: Sequence[Die] = (NOMINAL_DIE,), start_seconds: float = 0.0
    ) -> None:
        self.gpu_type = gpu_type
        self.dies = tuple(dies)
        self._table = clock_table(gpu_type, reference_mhz)
        self.wanted = self._table.at(gpu_type.sm_max_mhz)
        """The clock where no cap binds."""
        self.clock = self.wanted
        """The clock now."""
        self.capped = False
        self.held_watts = NO_LIMIT_WATTS
        """The mean power the firmware holds a card at under its cap, once it has got there."""
        self._idle_factor = self._power_factor = 1.0  # of the die that the cap slows most
        self._lag_from, self._lag_since, self._lag_tau = NO_LIMIT_WATTS, start_seconds, 0.0
        self.lag_until = start_seconds
        """From this time on the limit in effect is the one set."""
        self._guesses = [0] * _ALIKES
        self.paces: dict[int, Pace] = {}
        """By batch, at the wanted clock and under the limit as it is without lag."""
        self._paces_of = {(self.wanted.sm_mhz, self.held_watts): self.paces}
        self.begun: list[Pace] = []
        """Those with steps that are not yet in the book."""
        self.steps_by_batch: dict[int, int] = {}
        """Decode steps done by their pace, by batch; whoever counts them empties it."""
        self.book = EnergyBook()
        self._sums = self.book.at(self.clock.sm_mhz)
        self.busy_seconds = 0.0
        """With kernels on the cards, of what is in the book."""
        self.waiting_joules = 0.0
        """Of a nominal card, as if it had waited all the time."""
        self.above_joules = 0.0
        """Of a nominal card, what it drew above waiting."""
        self.pieces: list[tuple[float, float, float]] | None = None
        """(time, waiting joules, joules above) at the end of each piece of time, if somebody set a list here."""
        self._kernels_until = -math.inf
        self._idle_sum = sum(die.idle_factor for die in self.dies)
        self._power_sum = sum(die.power_factor for die in self.dies)
        self._sampled = (start_seconds, 0.0, 0.0, 0.0)

    # -- limits ----------------------------------------------------------------------------------------------

    def set_wanted(self, sm_mhz: float) -> None:
        """The clock where no cap binds, from now on."""
        self.close_book()
        self.wanted = self._table.at(sm_mhz)
        self._limits_changed()

    def set_cap(self, watts: float, now_seconds: float, tau_seconds: float = 0.0) -> None:
        """Limit every card to `watts`, reached with a first-order lag (0: at once)."""
        self.close_book()
        before = self.held_at(now_seconds)
        self.held_watts = held = watts * self.gpu_type.cap_held_share
        self._lag_from, self._lag_since, self._lag_tau = before, now_seconds, tau_seconds
        gap = abs(before - held)
        lags = tau_seconds > 0.0 and gap > _SETTLED_WATTS
        self.lag_until = now_seconds + tau_seconds * math.log(gap / _SETTLED_WATTS) if lags else now_seconds
        self._limits_changed()

    def _limits_changed(self) -> None:
        waiting, held = self.wanted.waiting_watts, self.held_watts
        slowest = min(self.dies, key=lambda die: (held - die.idle_factor * waiting) / die.power_factor)
        self._idle_factor, self._power_factor = slowest.idle_factor, slowest.power_factor
        if len(self._paces_of) >= _PACES_KEPT:
            self._paces_of.clear()
        self.paces = self._paces_of.setdefault((self.wanted.sm_mhz, held), {})

    def held_at(self, now_seconds: float) -> float:
        """The limit in effect, lag included."""
        if now_seconds >= self.lag_until:
            return self.held_watts
        share = math.exp(-(now_seconds - self._lag_since) / self._lag_tau)
        return self.held_watts + (self._lag_from - self.held_watts) * share

    def lag_piece(self, now_seconds: float) -> tuple[float, float]:
        """The limit to take while it lags, and until when."""
        pieces = math.floor((now_seconds - self._lag_since) / LAG_PIECE_SECONDS + 1e-6) + 1
        until = min(self._lag_since + pieces * LAG_PIECE_SECONDS, self.lag_until)
        return self.held_at((now_seconds + until) / 2.0), until

    # -- clocks ----------------------------------------------------------------------------------------------

    def settle(self, work: Work, held_watts: float) -> None:
        """Run at the highest clock at which a step fits under the limit, the wanted one at most; else at the lowest."""
        host, fixed, clocked, memory, compute = work
        idle, power, clock = self._idle_factor, self._power_factor, self.wanted
        kernels = fixed * clock.fixed_factor + clocked * clock.clocked_factor
        above = clock.busy_watts * kernels + clock.memory_watts * memory + clock.compute_watts * compute
        over_watts = idle * clock.waiting_watts - held_watts + power * above / (host + kernels)
        self.capped = over_watts > 0.0
        if over_watts > 0.0:
            kind, grid = self.gpu_type, self._table.grid()
            # Steps as much over the limit at the wanted clock settle near each other: begin where the last one did.
            alike = min(int(over_watts * _ALIKE_PER_WATT), _ALIKES - 1)
            # grid[fits] is the lowest or fits, grid[over] does not or is the wanted one.
            fits, over, reach = 0, math.ceil((clock.sm_mhz - kind.sm_min_mhz) / kind.sm_step_mhz), 1
            index = self._guesses[alike]
            while over - fits > 1:
                if not fits < index < over:
                    index = (fits + over) >> 1
                a, b, waiting, busy, bytes_watts, flops_watts = grid[index]
                kernels = fixed * a + clocked * b
                above = busy * kernels + bytes_watts * memory + flops_watts * compute
                if (idle * waiting - held_watts) * (host + kernels) + power * above <= 0.0:
                    fits = index
                    index += reach
                else:
                    over = index
                    index -= reach
                reach += reach
            self._guesses[alike] = fits
            clock = self._table.at(kind.sm_min_mhz + fits * kind.sm_step_mhz)
        if clock is not self.clock:
            self._run_at(clock)

    def make_pace(self, line: WorkLine, decodes: int, room_tokens: int) -> Pace:
        """The pace of decode steps of this batch at the wanted clock, under the limit as it is without lag.

        Args:
            line: their work, all of it.
            decodes: the batch.
            room_tokens: how many tokens its sequences may hold for sure.
        """
        base, slope = self._line_excess(line, self.wanted, self.held_watts)
        fits = -base / slope if slope > 0.0 else math.inf if base <= 0.0 else -1.0
        self.paces[decodes] = pace = Pace(line, self.wanted, decodes, min(fits, room_tokens))
        return pace

    def run_at_wanted(self) -> None:
        """The step fits, as its pace says."""
        self.capped = False
        if self.wanted is not self.clock:
            self._run_at(self.wanted)

    def settle_line(self, line: WorkLine, held: int, batch: int, steps: int, held_watts: float) -> int:
        """Run decode steps at the highest clock at which they fit; how many of `steps` it is good for, at least 1."""
        wanted = self.wanted
        base, slope = self._line_excess(line, wanted, held_watts)
        now = base + slope * held
        if now <= 0.0:
            self.capped = False
            if wanted is not self.clock:
                self._run_at(wanted)
            if now + slope * batch * (steps - 1) > 0.0:
                steps = max(1, math.floor(-now / (slope * batch)) + 1)
            return steps
        self.settle(line.at(held), held_watts)
        clock = self.clock
        base, slope = self._line_excess(line, clock, held_watts)
        now = base + slope * held
        if now <= 0.0 < slope:
            steps = min(steps, max(1, math.floor(-now / (slope * batch)) + 1))
        if clock is not wanted:
            above = self._table.at(min(clock.sm_mhz + self.gpu_type.sm_step_mhz, wanted.sm_mhz))
            base, slope = self._line_excess(line, above, held_watts)
            if slope < 0.0:
                steps = min(steps, max(1, math.ceil(-(base + slope * held) / (slope * batch))))
        return steps

    def _line_excess(self, line: WorkLine, clock: Clock, held_watts: float) -> tuple[float, float]:
        """Joules of the slowest die in a step beyond what the limit allows: with no tokens held, and per token."""
        host, fixed, fixed_k, clocked, clocked_k, memory, memory_k, compute, compute_k, _ = line
        a, b, power = clock.fixed_factor, clock.clocked_factor, self._power_factor
        bytes_watts, flops_watts = power * clock.memory_watts, power * clock.compute_watts
        waiting = self._idle_factor * clock.waiting_watts - held_watts
        busy = waiting + power * clock.busy_watts
        return (
            waiting * host + busy * (fixed * a + clocked * b) + bytes_watts * memory + flops_watts * compute,
            busy * (fixed_k * a + clocked_k * b) + bytes_watts * memory_k + flops_watts * compute_k,
        )

    def _run_at(self, clock: Clock) -> None:
        if clock is not self.clock:
            self.clock = clock
            self._sums = self.book.at(clock.sm_mhz)

    # -- energy ----------------------------------------------------------------------------------------------

    def account(self, seconds: float, kernels: float, memory: float, compute: float, now_seconds: float) -> None:
        """Steps or parts of them that ended now, at the present clock.

        Args:
            seconds: how long they took.
            kernels: of those, with kernels on the card.
            memory: bytes over peak bandwidth.
            compute: operations over the dense peak.
            now_seconds: when they ended.
        """
        clock, sums = self.clock, self._sums
        sums.step_seconds += seconds
        sums.busy_seconds += kernels
        self.busy_seconds += kernels
        sums.memory_seconds += memory
        sums.compute_seconds += compute * clock.compute_factor
        self.waiting_joules += clock.waiting_watts * seconds
        self.above_joules += clock.busy_watts * kernels + clock.memory_watts * memory + clock.compute_watts * compute
        if self.pieces is not None:
            self.pieces.append((now_seconds, self.waiting_joules, self.above_joules))

    def close_book(self) -> EnergyBook:
        """The book with all in it that is accounted for."""
        clock, sums = self.wanted, self.book.at(self.wanted.sm_mhz)
        for pace in self.begun:
            steps, held_sum = pace.steps, pace.held_sum
            host, _, _, _, _, memory, memory_k, compute, compute_k, _ = pace.line
            seconds = steps * pace.first + pace.growth * held_sum
            kernels = seconds - steps * host
            sums.step_seconds += seconds
            sums.busy_seconds += kernels
            self.busy_seconds += kernels
            sums.memory_seconds += steps * memory + memory_k * held_sum
            sums.compute_seconds += (steps * compute + compute_k * held_sum) * clock.compute_factor
            self.steps_by_batch[pace.decodes] = self.steps_by_batch.get(pace.decodes, 0) + steps
            pace.steps = pace.held_sum = 0
        self.begun.clear()
        return self.book

    def kernels_ended(self, now_seconds: float) -> None:
        """Nothing runs from now on; the cards go to the wanted clock."""
        self._kernels_until = now_seconds
        self.run_at_wanted()

    def account_idle(self, since_seconds: float, now_seconds: float) -> None:
        """No step was under way from `since_seconds` to now; the cards go to the wanted clock."""
        self.run_at_wanted()
        seconds = now_seconds - since_seconds
        if seconds <= 0.0:
            return
        linger = min(now_seconds, self._kernels_until + self.gpu_type.linger_seconds)
        if linger > since_seconds:
            self._idle(linger - since_seconds, self.gpu_type.linger_watts, linger)
            self._sums.linger_seconds += linger - since_seconds
            seconds = now_seconds - linger
        if seconds > 0.0:
            self._idle(seconds, 0.0, now_seconds)

    def _idle(self, seconds: float, above_watts: float, now_seconds: float) -> None:
        self._sums.idle_seconds += seconds
        self.waiting_joules += self.clock.waiting_watts * seconds
        self.above_joules += above_watts * seconds
        if self.pieces is not None:
            self.pieces.append((now_seconds, self.waiting_joules, self.above_joules))

    def group(self, waiting: float, above: float) -> float:
        """Joules or watts of all cards, from those of a nominal one."""
        return self._idle_sum * waiting + self._power_sum * above

    def watts(self, work: Work | None, now_seconds: float) -> tuple[float, float]:
        """Of a nominal card at the present clock, waiting and above it: the mean over a step, or without one."""
        clock = self.clock
        if work is not None:
            host, fixed, clocked, memory, compute = work
            kernels = fixed * clock.fixed_factor + clocked * clock.clocked_factor
            above = clock.busy_watts * kernels + clock.memory_watts * memory + clock.compute_watts * compute
            return clock.waiting_watts, above / (host + kernels)
        lingers = now_seconds < self._kernels_until + self.gpu_type.linger_seconds
        return clock.waiting_watts, self.gpu_type.linger_watts if lingers else 0.0

    def take_load(self, now_seconds: float) -> LoadSample:
        """Mean use since this was last called, of what is accounted."""
        sums = self.close_book().clocks.values()
        since, *before = self._sampled
        used = [
            sum(clock.memory_seconds for clock in sums),
            sum(clock.compute_seconds for clock in sums),
            sum(clock.busy_seconds for clock in sums),
        ]
        self._sampled = (now_seconds, used[0], used[1], used[2])
        span = now_seconds - since
        if span <= 0.0:
            return LoadSample(0.0, 0.0, 0.0)
        return LoadSample(*(min(1.0, (now - then) / span) for now, then in zip(used, before, strict=True)))
