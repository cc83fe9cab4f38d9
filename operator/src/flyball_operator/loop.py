"""The one loop: wake when something changed or every 2 s, plan, apply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol

from flyball_operator.applying import DeposedError, Leadership
from flyball_operator.planning import Actions, plan
from flyball_operator.state import Instant, Memory
from flyball_operator.store import ClusterStore

PERIOD_SECONDS: Final = 2.0
GATHER_SECONDS: Final = 0.02
"""Changes come in bursts (a node's acknowledgements, a pod's three events): one plan for all of them."""


class Applies(Protocol):
    """What carries actions out."""

    async def apply(self, actions: Actions) -> None:
        """See `Applier.apply`."""
        ...


class Observer(Protocol):
    """Who hears how each turn went (the metrics)."""

    def turn(self, actions: Actions, seconds: float, *, leads: bool, synced: bool) -> None:
        """One turn ended."""
        ...


class ReconcileLoop:
    """Plans and applies, one turn after the other.

    Args:
        store: the picture.
        applier: carries actions out.
        leadership: nothing is done without.
        observer: hears of every turn.
        clock: monotonic seconds.
        wall: wall clock, aware.
    """

    def __init__(
        self,
        store: ClusterStore,
        applier: Applies,
        leadership: Leadership,
        observer: Observer,
        *,
        clock: Callable[[], float],
        wall: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._applier = applier
        self._leadership = leadership
        self._observer = observer
        self._clock = clock
        self._wall = wall
        self._memory = Memory()
        self._turned_at = clock()

    def idle_seconds(self) -> float:
        """Seconds since a turn last ended. Far above the period: this loop hangs."""
        return self._clock() - self._turned_at

    async def run(self) -> None:
        """Turn until cancelled.

        Raises:
            DeposedError: a newer leader is at work.
        """
        while True:
            try:
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._store.dirty.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(GATHER_SECONDS)
            self._store.dirty.clear()
            await self.turn()

    async def turn(self) -> None:
        """One look, one plan, one apply."""
        began = self._clock()
        leads = self._leadership.leads()
        # A follower looks too, so that it knows who lives when it takes over; epoch 0 plans nothing.
        state = self._store.snapshot(self._leadership.epoch if leads else 0, self._memory)
        actions = plan(state, Instant(began, self._wall()))
        if actions.deposed_by is not None:
            raise DeposedError(
                f"a plan carries leader epoch {actions.deposed_by}, newer than this one's {state.leader_epoch}"
            )
        self._memory = actions.memory
        planned = self._clock() - began
        if actions.writes:
            await self._applier.apply(actions)
        self._turned_at = self._clock()
        self._observer.turn(actions, planned, leads=leads, synced=state.synced)
