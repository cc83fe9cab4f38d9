"""A node's actuator in virtual time: the real `Governor` over every card, and the real leases of clock locks.

What is left out of `flyball_agent.actuator` are the socket, the thread and the record file: requests come as calls,
NVML calls take the time the caller gives them, and the record is memory. Governors look at everything once a second
and after every write; between those looks a read refreshes only what the card measured.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flyball_agent.actuator.governor import SETTLE_SECONDS, Governor
from flyball_agent.actuator.leases import Leases
from flyball_agent.actuator.log import Log
from flyball_agent.actuator.record import EMPTY, Entry
from flyball_agent.cards import Command
from flyball_agent.facts import Report
from flyball_sim.gpu.delays import cap_call_seconds, lock_call_seconds
from flyball_sim.world.cards import Card
from flyball_sim.world.events import EventQueue


class _Nowhere(io.StringIO):
    def write(self, text: str) -> int:
        return len(text)


class MemoryRecord:
    """What an actuator changed, as `flyball_agent.actuator.record.Record` keeps it on disk."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def entry(self, uuid: str) -> Entry:
        """What is noted of a GPU."""
        return self._entries.get(uuid, EMPTY)

    def put(self, uuid: str, entry: Entry) -> None:
        """Note it."""
        self._entries[uuid] = entry


@dataclass(slots=True)
class _Hand:
    """One card, its governor and the governor's last word on it."""

    card: Card
    governor: Governor
    report: Report
    full_at: float
    changed: bool = False


class VirtualActuator:
    """Carries out an agent's commands on the cards of one node.

    Args:
        node: its name.
        cards: in NVML's order.
        queue: time.
    """

    def __init__(self, node: str, cards: Sequence[Card], queue: EventQueue) -> None:
        self._queue = queue
        self._writes = True
        self._leases = Leases()
        self._locked: set[str] = set()
        self._expiry_at: float | None = None
        self.life = f"actuator-{node}"
        self.boot_id = f"boot-{node}"
        self.driver_version = "simulated"
        log = Log(_Nowhere(), "json", wall_clock=lambda: 0.0)
        record = MemoryRecord()
        self._hands: dict[str, _Hand] = {}
        for card in cards:
            governor = Governor(card, record, queue.monotonic, log)
            self._hands[card.identity.uuid] = _Hand(card, governor, governor.read(writes=True), queue.monotonic())

    def capabilities(self) -> Report:
        """The answer to `capabilities`."""
        gpus = []
        for hand in self._hands.values():
            card = hand.card.identity
            gpus.append(
                {
                    "uuid": card.uuid,
                    "index": card.index,
                    "product": card.product,
                    "cap_min_watts": card.cap_min_watts,
                    "cap_max_watts": card.cap_max_watts,
                    "cap_default_watts": card.cap_default_watts,
                    "sm_min_mhz": card.sm_mhz[0],
                    "sm_max_mhz": card.sm_mhz[-1],
                    "sm_mhz": list(card.sm_mhz),
                    "mig_enabled": card.mig_enabled,
                    "leased": self._leases.holds(card.uuid),
                }
            )
        return {"driver_version": self.driver_version, "error": "", "gpus": gpus}

    def hello(self) -> None:
        """An agent connected: its predecessor's locks go, and what was given up is tried again."""
        self._let_go_all()
        self._writes = True
        for hand in self._hands.values():
            hand.governor.rearm()
            hand.changed = True

    def gone(self) -> None:
        """The agent's connection ended: locks are reset, caps stay."""
        self._let_go_all()

    def renew(self, *, writes: bool) -> None:
        """A sign of life of the agent."""
        self._writes = writes
        self._let_go(self._leases.renew(self._queue.monotonic()))

    def read(self) -> list[Report]:
        """Every card's report."""
        now = self._queue.monotonic()
        return [self._report(hand, now) for hand in self._hands.values()]

    def call_seconds(self, command: Command) -> float:
        """How long the NVML calls of a command take."""
        kind = self._hands[command.uuid].card.group.gpu_type
        seconds = 0.0 if command.cap_watts is None else cap_call_seconds(kind)
        return seconds + lock_call_seconds(kind)

    def carry_out(self, command: Command) -> Report:
        """The read-back of a command.

        Raises:
            RefusedError: it was not carried out, or not all of it.
        """
        hand = self._hands[command.uuid]
        hand.changed = True
        if command.operation == "release":
            self._leases.drop(command.uuid)
            self._locked.discard(command.uuid)
            return hand.governor.release()
        if command.sm_mhz is None:
            self._leases.drop(command.uuid)
            self._locked.discard(command.uuid)
        else:
            self._leases.hold(command.uuid, command.lease_seconds, self._queue.monotonic())
            self._locked.add(command.uuid)
            self._watch_leases()
        cap = None if command.cap_watts is None else float(command.cap_watts)
        ceiling = None if command.ceiling_watts is None else float(command.ceiling_watts)
        return hand.governor.apply(command.sm_mhz, cap, ceiling)

    def changed(self, uuid: str) -> None:
        """Something happened to a card that its governor has not seen."""
        self._hands[uuid].changed = True

    def _report(self, hand: _Hand, now: float) -> Report:
        if hand.changed or now - hand.full_at >= SETTLE_SECONDS:
            hand.report = hand.governor.read(writes=self._writes)
            hand.full_at, hand.changed = now, False
            return hand.report
        if hand.report["sample"] is None:
            return dict(hand.report)
        reading, cap = hand.card.reading, hand.card.cap_watts
        report: dict[str, Any] = dict(hand.report)
        report["cap_limited"] = reading.cap_limited
        report["sample"] = {
            **hand.report["sample"],
            "power_average_watts": reading.power_watts,
            "energy_joules": reading.energy_joules,
            "sm_mhz": reading.sm_mhz,
            "cap_watts": cap,
            "enforced_cap_watts": cap,
            "utilisation_percent": reading.utilisation_percent,
        }
        return report

    def _let_go_all(self) -> None:
        self._leases.clear()
        self._let_go([uuid for uuid in self._hands if uuid in self._locked])

    def _let_go(self, uuids: Sequence[str]) -> None:
        for uuid in uuids:
            self._locked.discard(uuid)
            self._hands[uuid].governor.let_go()
            self._hands[uuid].changed = True

    def _watch_leases(self) -> None:
        """See to it that the first lease's end is noticed; renewals only put it off."""
        due = self._leases.next_expiry()
        if due is None or self._expiry_at is not None:
            return
        self._expiry_at = due
        # A microsecond late, so that rounding never makes it a moment too early.
        self._queue.after(due - self._queue.monotonic() + 1e-6, self._expire)

    def _expire(self) -> None:
        self._expiry_at = None
        self._let_go(self._leases.expire(self._queue.monotonic()))
        self._watch_leases()
