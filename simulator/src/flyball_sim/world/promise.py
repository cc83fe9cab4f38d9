"""Watches in a run what Flyball promises of a power budget: caps in force never exceed an acknowledged one.

The promise is `docs/ledger.md`'s: from the moment a policy's status acknowledges a budget (a ledger without deficit, of
the generation in force), the sum over its GPUs of the caps in force is at most that. A cut keeps the earlier budget as
the promise until its deficit is gone; a raise counts from when the person asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flyball_sim.world.apiserver import Raw
from flyball_sim.world.cards import Card
from flyball_sim.world.events import EventQueue

TOLERANCE_WATTS = 0.5


@dataclass(frozen=True, slots=True)
class Breach:
    """A time during which the caps in force of a policy's GPUs added up to more than its acknowledged budget.

    Attributes:
        policy: its name.
        seconds: when it began, from the trace's start.
        duration_seconds: until it was over, or the run was.
        excess_watts: the most by which it was exceeded.
    """

    policy: str
    seconds: float
    duration_seconds: float
    excess_watts: float


@dataclass(slots=True)
class _Watched:
    cards: tuple[Card, ...]
    caps_watts: float
    limit_watts: float | None = None
    """What is promised; None: nothing yet."""
    began: float | None = None
    excess_watts: float = 0.0


@dataclass(slots=True)
class BudgetWatch:
    """Adds up caps in force as they change.

    Attributes:
        queue: time.
        breaches: found so far.
    """

    queue: EventQueue
    breaches: list[Breach] = field(default_factory=list)
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _by_card: dict[int, list[str]] = field(default_factory=dict)
    _caps: dict[int, float] = field(default_factory=dict)

    def govern(self, policies: Mapping[str, Iterable[Card]]) -> None:
        """Which cards every policy governs."""
        for name, cards in policies.items():
            held = tuple(cards)
            self._watched[name] = _Watched(held, sum(card.cap_watts for card in held))
            for card in held:
                self._by_card.setdefault(id(card), []).append(name)
                self._caps[id(card)] = card.cap_watts

    def caps_watts(self, policy: str) -> float:
        """Sum of the caps in force of a policy's GPUs."""
        return self._watched[policy].caps_watts

    def cap_changed(self, card: Card) -> None:
        """A cap was written and is in force."""
        names = self._by_card.get(id(card))
        if names is None:
            return
        change = card.cap_watts - self._caps[id(card)]
        self._caps[id(card)] = card.cap_watts
        for name in names:
            self._watched[name].caps_watts += change
            self._judge(name)

    def policy_written(self, raw: Raw) -> None:
        """The API server has another version of a policy."""
        name = raw["metadata"]["name"]
        watched = self._watched.get(name)
        budget = raw["spec"].get("powerBudget")
        if watched is None or budget is None:
            return
        status = raw.get("status") or {}
        ledger = status.get("ledger")
        if watched.limit_watts is not None:
            watched.limit_watts = max(watched.limit_watts, budget["watts"])
        current = status.get("observedGeneration") == raw["metadata"]["generation"]
        if current and ledger is not None and not ledger.get("deficitWatts"):
            watched.limit_watts = ledger["budgetWatts"]
        self._judge(name)

    def _judge(self, name: str) -> None:
        watched = self._watched[name]
        excess = 0.0 if watched.limit_watts is None else watched.caps_watts - watched.limit_watts
        if excess > TOLERANCE_WATTS:
            watched.began = self.queue.now if watched.began is None else watched.began
            watched.excess_watts = max(watched.excess_watts, excess)
        elif watched.began is not None:
            self._close(name, watched)

    def _close(self, name: str, watched: _Watched) -> None:
        began = self.queue.now if watched.began is None else watched.began
        self.breaches.append(Breach(name, began, self.queue.now - began, watched.excess_watts))
        watched.began, watched.excess_watts = None, 0.0

    def finish(self) -> tuple[Breach, ...]:
        """All breaches, the ones under way included."""
        for name, watched in self._watched.items():
            if watched.began is not None:
                self._close(name, watched)
        return tuple(self.breaches)
