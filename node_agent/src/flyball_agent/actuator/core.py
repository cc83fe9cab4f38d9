"""The actuator's decisions about requests, leases and sessions; sockets and threads are its caller's.

One connection controls at a time: the last that said hello. Its end, its silence beyond a lease, or a message that is
not understood resets the clock locks it holds. A cap is never touched by any of these.

Another connection may hold cards that the first has no lock or cap on (`hold`: a profiler). The first is refused while
it lasts; by its end, in any of these ways, the card gets its clocks and its cap back as they were found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from flyball_agent.actuator.device import Cards
from flyball_agent.actuator.governor import Governor, RefusedError, Ticket
from flyball_agent.actuator.holds import Holds
from flyball_agent.actuator.leases import Leases
from flyball_agent.actuator.log import Log
from flyball_agent.actuator.messages import MessageError, Request, parse
from flyball_agent.actuator.record import Record
from flyball_agent.actuator.worker import HungError

REASSERT_SECONDS: Final = 60.0
"""Locks are written again, and caps looked at, this often: also with nobody connected, and nothing else tells."""
REOPEN_SECONDS: Final = 10.0
OWED_RESET_SECONDS: Final = 1.0
_OPENING: Final = "open NVML"
_HELD: Final = "GPU %s is held by another connection, as flyball profile does: wait for its end"

Answer = dict[str, Any]
Done = Callable[[Any, Exception | None], None]


class Jobs(Protocol):
    """Where NVML calls run: `worker.Worker`, or in a test at once."""

    def submit(self, key: str, name: str, work: Callable[[Any], Any], done: Done) -> None:
        """Run `work(ticket)` some time, then `done(result, error)` in the caller's thread."""
        ...


@dataclass(slots=True)
class _Gather:
    """An answer that is waiting for every GPU."""

    connection: int
    number: int
    waiting: set[str]
    reports: dict[str, Answer] = field(default_factory=dict)


class Actuator:
    """Answers requests and keeps the leases.

    Args:
        life: random id of this life of the actuator.
        boot_id: this boot of the node.
        jobs: where NVML calls run.
        open_cards: initialises NVML; called in a job.
        record: what was changed on this node.
        clock: monotonic seconds.
        log: structured log.
        send: sends an answer to a connection; one that is gone is ignored.
        close: closes a connection after what was sent.
    """

    def __init__(
        self,
        *,
        life: str,
        boot_id: str,
        jobs: Jobs,
        open_cards: Callable[[], Cards],
        record: Record,
        clock: Callable[[], float],
        log: Log,
        send: Callable[[int, Answer], None],
        close: Callable[[int], None],
    ) -> None:
        self._life = life
        self._boot_id = boot_id
        self._jobs = jobs
        self._open_cards = open_cards
        self._record = record
        self._clock = clock
        self._log = log
        self._send = send
        self._close = close
        self._governors: dict[str, Governor] = {}
        self._driver_version = ""
        self._opened = False
        self._open_error = ""
        self._reopen_at: float | None = None
        self._early: list[tuple[int, Request]] = []
        self._controller: int | None = None
        self._session = ""
        self._writes = True
        self._leases = Leases()
        self._holds = Holds()
        self._locked: set[str] = set()
        self._assert_at: float | None = None
        self._owed: dict[str, float] = {}  # UUID -> when its reset is tried again
        self._owed_back: dict[str, float] = {}  # UUID -> when giving it back is tried again

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the GPUs and reconcile what an earlier life left."""
        self._reopen_at = None
        self._jobs.submit("", _OPENING, self._open, self._on_opened)

    def _open(self, _: Ticket) -> tuple[str, dict[str, Governor]]:
        cards = self._open_cards()
        left = self._record.load()
        if left.damaged:
            self._log.error("record not understood: resetting every clock lock", reason=left.damaged)
        if left.forgotten:
            self._log.info("node was rebooted: its cards are at their defaults", gpus=list(left.forgotten))
        governors = {}
        for device in cards.devices:
            governor = Governor(device, self._record, self._clock, self._log)
            governor.reconcile(damaged=bool(left.damaged))
            governors[governor.identity.uuid] = governor
        for uuid in self._record.uuids():
            if uuid not in governors:
                self._log.warning("a GPU on record is not there", gpu=uuid)
        return cards.driver_version, governors

    def _on_opened(self, result: Any, error: Exception | None) -> None:
        now = self._clock()
        if error is not None:
            self._open_error = f"NVML cannot be used ({error}): it is tried again every {REOPEN_SECONDS:.0f} s"
            self._reopen_at = now + REOPEN_SECONDS
            self._log.error("no GPUs", reason=self._open_error)
        else:
            self._driver_version, self._governors = result
            self._opened = True
            self._open_error = ""
            self._assert_at = now + REASSERT_SECONDS
            self._owed = {uuid: now for uuid, governor in self._governors.items() if governor.reset_owed}
            self._log.info("GPUs opened", driver=self._driver_version, gpus=list(self._governors))
        early, self._early = self._early, []
        for connection, request in early:
            self._carry_out(connection, request)

    # -- what connections do -------------------------------------------------------------------------------

    def line(self, connection: int, raw: bytes) -> None:
        """One line of a connection."""
        try:
            request = parse(raw)
        except MessageError as error:
            self.misunderstood(connection, str(error))
            return
        if not self._opened and not self._open_error and request.operation != "hello":
            self._early.append((connection, request))
            return
        self._carry_out(connection, request)

    def misunderstood(self, connection: int, why: str) -> None:
        """A peer that sends what is not understood may be in any state: to be safe, its locks are reset."""
        self._log.error("message not understood: resetting clock locks", reason=why)
        if connection == self._controller:
            self._let_go_all()
        self._end_holds(self._holds.of(connection))
        self._send(connection, {"id": None, "ok": False, "code": "BadMessage", "error": why})

    def gone(self, connection: int) -> None:
        """A connection ended."""
        self._early = [(each, request) for each, request in self._early if each != connection]
        self._end_holds(self._holds.of(connection))
        if connection == self._controller:
            self._log.warning("agent gone: resetting clock locks, caps stay", session=self._session)
            self._controller = None
            self._let_go_all()

    def _carry_out(self, connection: int, request: Request) -> None:
        if request.operation == "hello":
            self._hello(connection, request)
        elif request.operation in ("capabilities", "status"):
            self._send(connection, {"id": request.number, "ok": True, **self._describe()})
        elif request.operation == "read":
            self._read(connection, request)
        elif request.operation == "hold":
            self._hold(connection, request)
        elif request.operation == "renew" and self._holds.of(connection):
            self._holds.renew(connection, self._clock())
            self._send(connection, {"id": request.number, "ok": True, "expired": []})
        elif self._holds.holder(request.gpu or "") is not None:
            self._change_held(connection, request)
        elif connection != self._controller:
            self._refuse(connection, request, "NoSession", f"{request.operation} before hello: say hello first")
        elif request.operation == "renew":
            self._renew(connection, request)
        else:
            self._change(connection, request)

    def _hello(self, connection: int, request: Request) -> None:
        if self._controller is not None and self._controller != connection:
            earlier, self._controller = self._controller, None
            self._log.warning("another agent takes over", session=request.session, earlier=self._session)
            self._close(earlier)
        self._let_go_all()
        self._controller = connection
        self._session = request.session or ""
        self._writes = True
        for uuid, governor in self._governors.items():
            self._jobs.submit(uuid, "arm", partial(self._work_rearm, governor), self._ignore_hung)
        self._log.info("agent connected", session=self._session)
        self._send(connection, {"id": request.number, "ok": True, "life": self._life, "boot_id": self._boot_id})

    def _renew(self, connection: int, request: Request) -> None:
        if request.writes != self._writes:
            self._log.warning("switch of writing", writes=request.writes)
        self._writes = request.writes
        expired = self._leases.renew(self._clock())
        self._let_go(expired)
        self._send(connection, {"id": request.number, "ok": True, "expired": expired})

    def _describe(self) -> Answer:
        gpus = []
        for uuid, governor in self._governors.items():
            card = governor.identity
            gpus.append(
                {
                    "uuid": uuid,
                    "index": card.index,
                    "product": card.product,
                    "cap_min_watts": card.cap_min_watts,
                    "cap_max_watts": card.cap_max_watts,
                    "cap_default_watts": card.cap_default_watts,
                    "sm_min_mhz": card.sm_mhz[0] if card.sm_mhz else 0,
                    "sm_max_mhz": card.sm_mhz[-1] if card.sm_mhz else 0,
                    "sm_mhz": list(card.sm_mhz),
                    "mig_enabled": card.mig_enabled,
                    "leased": self._leases.holds(uuid),
                    "held": self._holds.holder(uuid) is not None,
                }
            )
        return {
            "life": self._life,
            "boot_id": self._boot_id,
            "session": self._session,
            "writes": self._writes,
            "driver_version": self._driver_version,
            "error": self._open_error,
            "gpus": gpus,
        }

    # -- reading -------------------------------------------------------------------------------------------

    def _read(self, connection: int, request: Request) -> None:
        gather = _Gather(connection, request.number, set(self._governors))
        if not gather.waiting:
            self._finish(gather)
        for uuid, governor in self._governors.items():
            self._jobs.submit(
                uuid,
                "read",
                partial(self._work_read, governor),
                partial(self._on_read, gather, uuid, governor),
            )

    def _work_read(self, governor: Governor, ticket: Ticket) -> Answer:
        return governor.read(writes=self._writes, ticket=ticket)

    def _on_read(self, gather: _Gather, uuid: str, governor: Governor, result: Any, error: Exception | None) -> None:
        if isinstance(error, HungError):
            result = governor.hung(error.job, error.seconds)
        elif error is not None:
            raise error
        elif governor.reset_owed:
            self._owed.setdefault(uuid, self._clock())
        gather.reports[uuid] = result
        gather.waiting.discard(uuid)
        if not gather.waiting:
            self._finish(gather)

    def _finish(self, gather: _Gather) -> None:
        gpus = [gather.reports[uuid] for uuid in self._governors if uuid in gather.reports]
        answer = {"id": gather.number, "ok": True, "error": self._open_error, "gpus": gpus}
        self._send(gather.connection, answer)

    # -- changing ------------------------------------------------------------------------------------------

    def _change(self, connection: int, request: Request) -> None:
        uuid = request.gpu or ""
        governor = self._known(connection, request)
        if governor is None:
            return
        self._owed.pop(uuid, None)
        if request.operation == "release":
            self._leases.drop(uuid)
            self._locked.discard(uuid)
            self._jobs.submit(uuid, "release", governor.release, partial(self._on_changed, connection, request))
            return
        if request.sm_mhz is None:
            self._leases.drop(uuid)
            self._locked.discard(uuid)
        else:
            self._leases.hold(uuid, request.lease_seconds or 0.0, self._clock())
            self._locked.add(uuid)
        work = partial(governor.apply, request.sm_mhz, request.cap_watts, request.ceiling_watts)
        self._jobs.submit(uuid, "set", work, partial(self._on_changed, connection, request))

    def _known(self, connection: int, request: Request) -> Governor | None:
        """The GPU that a request is to change; None when it was refused."""
        uuid = request.gpu or ""
        governor = self._governors.get(uuid)
        if governor is None:
            known = ", ".join(self._governors) or self._open_error or "none"
            self._refuse(connection, request, "UnknownGpu", f"gpu is {uuid!r}: this node has {known}")
        elif not self._writes:
            self._refuse(connection, request, "Stopped", f"{request.operation} of GPU {uuid}: writing is switched off")
            return None
        return governor

    def _on_changed(self, connection: int, request: Request, result: Any, error: Exception | None) -> None:
        if error is None:
            self._send(connection, {"id": request.number, "ok": True, "gpu": result})
            return
        if not isinstance(error, HungError | RefusedError):
            raise error
        code = error.code if isinstance(error, RefusedError) else "NvmlHung"
        uuid = request.gpu or ""
        if not self._may_be_locked(uuid):
            self._owed[uuid] = self._clock() + OWED_RESET_SECONDS
        self._refuse(connection, request, code, str(error))

    def _refuse(self, connection: int, request: Request, code: str, why: str) -> None:
        self._send(connection, {"id": request.number, "ok": False, "code": code, "error": why})

    # -- cards that a connection has for itself ------------------------------------------------------------

    def _hold(self, connection: int, request: Request) -> None:
        uuid = request.gpu or ""
        governor = self._known(connection, request)
        if governor is None:
            return
        mine = self._holds.holder(uuid) == connection
        if not self._holds.take(uuid, connection, request.lease_seconds or 0.0, self._clock()):
            self._refuse(connection, request, "Held", _HELD % uuid)
            return
        if not mine:
            self._log.warning("a connection takes a card for itself", gpu=uuid)

        def held(result: Any, error: Exception | None) -> None:
            if error is not None and not mine:
                self._holds.end(uuid)
            self._on_changed(connection, request, result, error)

        self._jobs.submit(uuid, "hold", governor.hold, held)

    def _change_held(self, connection: int, request: Request) -> None:
        uuid = request.gpu or ""
        if self._holds.holder(uuid) != connection:
            self._refuse(connection, request, "Held", _HELD % uuid)
            return
        governor = self._known(connection, request)
        if governor is None:
            return
        done = partial(self._on_changed, connection, request)
        if request.operation == "release":
            self._holds.end(uuid)
            self._jobs.submit(uuid, "release", governor.release, partial(self._on_given_back, uuid, done))
        else:
            self._holds.renew(connection, self._clock())
            self._jobs.submit(uuid, "set", partial(governor.apply, request.sm_mhz, request.cap_watts, None), done)

    def _end_holds(self, uuids: list[str]) -> None:
        for uuid in uuids:
            self._holds.end(uuid)
            self._log.warning("a hold ends: the card is given back as it was found", gpu=uuid)
            self._give_back(uuid)

    def _give_back(self, uuid: str) -> None:
        governor = self._governors.get(uuid)
        if governor is not None:
            self._jobs.submit(uuid, "release", governor.release, partial(self._on_given_back, uuid, _ignore))

    def _on_given_back(self, uuid: str, done: Done, result: Any, error: Exception | None) -> None:
        if error is not None:
            self._owed_back[uuid] = self._clock() + OWED_RESET_SECONDS
        done(result, error)

    # -- letting go ----------------------------------------------------------------------------------------

    def _let_go_all(self) -> None:
        self._leases.clear()
        self._let_go(list(self._locked))

    def _let_go(self, uuids: list[str]) -> None:
        for uuid in uuids:
            self._locked.discard(uuid)
            governor = self._governors.get(uuid)
            if governor is not None:
                self._jobs.submit(
                    uuid, "reset", partial(self._work_let_go, governor), partial(self._on_let_go, uuid, governor)
                )

    @staticmethod
    def _work_rearm(governor: Governor, _: Ticket) -> None:
        governor.rearm()

    @staticmethod
    def _ignore_hung(_: Any, error: Exception | None) -> None:
        if error is not None and not isinstance(error, HungError):
            raise error

    @staticmethod
    def _work_let_go(governor: Governor, _: Ticket) -> None:
        governor.let_go()

    def _on_let_go(self, uuid: str, governor: Governor, _: Any, error: Exception | None) -> None:
        if error is not None and not isinstance(error, HungError):
            raise error
        if (error is not None or governor.reset_owed) and not self._may_be_locked(uuid):
            self._owed[uuid] = self._clock() + OWED_RESET_SECONDS

    def recovered(self, uuid: str) -> None:
        """A hung call returned: whatever it did, without a lease no lock may stand."""
        self._log.warning("GPU answers again", gpu=uuid)
        governor = self._governors.get(uuid)
        if governor is None:
            self.start()
        elif not self._may_be_locked(uuid):
            governor.reset_owed = True
            self._let_go([uuid])

    def _may_be_locked(self, uuid: str) -> bool:
        return self._leases.holds(uuid) or self._holds.holder(uuid) is not None

    def shut_down(self) -> None:
        """Before the process ends: reset every lock, leave every cap."""
        self._controller = None
        self._leases.clear()
        self._end_holds(self._holds.all())
        self._let_go([*self._locked, *self._owed])

    # -- time ----------------------------------------------------------------------------------------------

    def tick(self) -> float | None:
        """Do what is due.

        Returns:
            When to be called again at the latest, in the clock's seconds; None: only when something happens.
        """
        now = self._clock()
        expired = self._leases.expire(now)
        if expired:
            self._log.warning("lease expired: resetting clock locks, caps stay", gpus=expired)
            self._let_go(expired)
        self._end_holds(self._holds.expire(now))
        for uuid in [uuid for uuid, at in self._owed_back.items() if at <= now]:
            del self._owed_back[uuid]
            self._give_back(uuid)
        for uuid in [uuid for uuid, at in self._owed.items() if at <= now]:
            del self._owed[uuid]
            self._let_go([uuid])
        if self._assert_at is not None and self._assert_at <= now:
            self._assert_at = now + REASSERT_SECONDS
            for uuid, governor in self._governors.items():
                work = partial(self._work_reassert, governor)
                self._jobs.submit(uuid, "assert", work, partial(self._on_reasserted, uuid))
        if self._reopen_at is not None and self._reopen_at <= now:
            self.start()
        due = [self._leases.next_expiry(), self._holds.next_expiry(), self._reopen_at, self._assert_at]
        due += [*self._owed.values(), *self._owed_back.values()]
        return min((at for at in due if at is not None), default=None)

    def _work_reassert(self, governor: Governor, ticket: Ticket) -> None:
        with contextlib.suppress(RefusedError):
            governor.reassert(writes=self._writes, ticket=ticket)

    def _on_reasserted(self, uuid: str, _: Any, error: Exception | None) -> None:
        if error is not None and not isinstance(error, HungError):
            raise error
        governor = self._governors[uuid]
        if governor.reset_owed and error is None:
            self._owed.setdefault(uuid, self._clock())


def _ignore(_: Any, error: Exception | None) -> None:
    """Nobody waits for the answer; what failed is tried again. A fault of ours is not swallowed."""
    if error is not None and not isinstance(error, HungError | RefusedError):
        raise error
