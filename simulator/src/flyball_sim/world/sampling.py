"""Takes a world's series while it runs."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flyball_sim.world.apiserver import ApiServer
from flyball_sim.world.cards import CardGroup
from flyball_sim.world.events import EventQueue
from flyball_sim.world.promise import BudgetWatch
from flyball_sim.world.result import LEDGER_PARTS, Overshoot, PolicySeries, Series
from flyball_sim.world.serving import Serving

_NAN = float("nan")
_OVERSHOOT_WATTS = 1.0
"""Power above a cap by less than this is rounding."""


class _PolicyColumns:
    def __init__(self) -> None:
        self.caps, self.budget = array("d"), array("d")
        self.parts = {part: array("d") for part in LEDGER_PARTS}

    def take(self, caps_watts: float, status: Mapping[str, Any]) -> None:
        ledger = status.get("ledger")
        self.caps.append(caps_watts)
        self.budget.append(_NAN if ledger is None else ledger["budgetWatts"])
        for part, column in self.parts.items():
            column.append(_NAN if ledger is None else ledger.get(f"{part}Watts", 0))

    def series(self) -> PolicySeries:
        parts = {part: np.array(column) for part, column in self.parts.items()}
        return PolicySeries(np.array(self.caps), np.array(self.budget), parts)


class Sampler:
    """One sample every so often, from the trace's second 0 on.

    Args:
        period_seconds: between samples.
        serving: the engines.
        idle_groups: cards without an engine.
        queue: time.
        api: whose statuses are sampled.
        watch: of caps in force.
        policies: names.
        progress: called with the time at every sample.
    """

    def __init__(
        self,
        period_seconds: float,
        serving: Serving,
        idle_groups: Sequence[CardGroup],
        *,
        queue: EventQueue,
        api: ApiServer,
        watch: BudgetWatch,
        policies: Sequence[str],
        progress: Callable[[float], None],
    ) -> None:
        self._period = period_seconds
        self._serving = serving
        self._idle_groups = tuple(idle_groups)
        self._queue = queue
        self._api = api
        self._watch = watch
        self._progress = progress
        self._count = 0
        self._taken_at = 0.0
        self._seconds, self._watts = array("d"), array("d")
        self._engine_watts, self._clocks, self._caps = array("f"), array("f"), array("f")
        self._running, self._waiting = array("i"), array("i")
        self._policies = {name: _PolicyColumns() for name in policies}
        self._began: list[float] = []
        self._joules: list[float] = []
        self._last_caps: list[float] = []
        self._over_seconds = self._over_joules = 0.0

    def begin(self) -> None:
        """Energy counts from now."""
        now = self._queue.now
        self._taken_at = now
        self._began = [unit.group.energy_joules(now) for unit in self._serving.units]
        self._began += [group.energy_joules(now) for group in self._idle_groups]
        self._joules = list(self._began)
        self._last_caps = [_cap(unit.group) for unit in self._serving.units]
        self._queue.at(self._period, self._sample)

    def _sample(self) -> None:
        self.take()
        self._count += 1
        self._queue.at((self._count + 1) * self._period, self._sample)
        self._progress(self._queue.now)

    def take(self) -> None:
        """One sample up to now; none where no time has passed."""
        now = self._queue.now
        seconds = now - self._taken_at
        if seconds <= 0.0:
            return
        self._taken_at = now
        total = 0.0
        for index, unit in enumerate(self._serving.units):
            group = unit.group
            joules = group.energy_joules(now)
            machine = group.machine
            if machine is not None:
                self._serving.collect(unit)
            spent = joules - self._joules[index]
            self._joules[index] = joules
            total += spent
            cap = _cap(group)
            self._engine_watts.append(spent / seconds)
            self._clocks.append(group.gpu_type.sm_min_mhz if machine is None else machine.sm_mhz)
            self._caps.append(cap)
            self._running.append(0 if machine is None else machine.running)
            self._waiting.append(0 if machine is None else machine.waiting)
            self._note_overshoot(len(group.cards), spent, max(cap, self._last_caps[index]), seconds)
            self._last_caps[index] = cap
        for index, group in enumerate(self._idle_groups, len(self._serving.units)):
            joules = group.energy_joules(now)
            total += joules - self._joules[index]
            self._joules[index] = joules
        self._seconds.append(now)
        self._watts.append(total / seconds)
        for name, columns in self._policies.items():
            columns.take(self._watch.caps_watts(name), self._api.policies[name].get("status") or {})

    def _note_overshoot(self, cards: int, joules: float, cap_watts: float, seconds: float) -> None:
        over = joules / seconds - cards * cap_watts
        if over > cards * _OVERSHOOT_WATTS:
            self._over_seconds += cards * seconds
            self._over_joules += over * seconds

    def engine_joules(self) -> list[float]:
        """Energy of every engine's cards since `begin`."""
        count = len(self._serving.units)
        return [end - start for end, start in zip(self._joules[:count], self._began[:count], strict=True)]

    def idle_joules(self) -> float:
        """Energy of the cards without an engine since `begin`."""
        count = len(self._serving.units)
        return sum(self._joules[count:]) - sum(self._began[count:])

    def overshoot(self) -> Overshoot:
        """Power above caps."""
        return Overshoot(self._over_seconds, self._over_joules)

    def series(self) -> Series:
        """All samples."""
        shape = (len(self._seconds), len(self._serving.units))
        return Series(
            seconds=np.array(self._seconds),
            watts=np.array(self._watts),
            engine_watts=np.array(self._engine_watts, dtype=np.float32).reshape(shape),
            engine_sm_mhz=np.array(self._clocks, dtype=np.float32).reshape(shape),
            engine_cap_watts=np.array(self._caps, dtype=np.float32).reshape(shape),
            engine_running=np.array(self._running, dtype=np.int32).reshape(shape),
            engine_waiting=np.array(self._waiting, dtype=np.int32).reshape(shape),
            engines=tuple(unit.name for unit in self._serving.units),
            policies={name: columns.series() for name, columns in self._policies.items()},
        )


def _cap(group: CardGroup) -> float:
    return min(card.cap_watts for card in group.cards)
