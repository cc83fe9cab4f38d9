"""One GPU: what is asked of it, what is on it, and what to do about the difference.

Runs in the worker that makes NVML calls, one call at a time per GPU, so it needs no lock of its own. It never asks
for the time of day: monotonic seconds come from the injected clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final, Protocol

from flyball_agent.actuator.device import (
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    REASONS_CAP,
    Device,
    DeviceError,
    Sample,
)
from flyball_agent.actuator.limits import (
    TOLERANCE_WATTS,
    Verdict,
    choose_cap,
    clamp_cap,
    clamp_clocks,
    judge_lock,
    release_target,
)
from flyball_agent.actuator.log import Log
from flyball_agent.actuator.record import EMPTY, Entry, RecordError

SETTLE_SECONDS: Final = 1.0
"""A lock is judged no sooner after its write, and no more often: power and clock sensors average over a second."""
FAILURES_TO_DISARM: Final = 3
NOTICE_SECONDS: Final = 60.0
"""How long something that happened and is over stays among the faults, so that a status written late still has it."""

_CODES: Final = {NO_PERMISSION: "NoPermission", NOT_SUPPORTED: "NotSupported", GPU_IS_LOST: "GpuLost"}
_MENDS: Final = {
    "NoPermission": "run the actuator as uid 0 with CAP_SYS_ADMIN; until it is restarted this GPU is only observed",
    "NotSupported": "this card or driver cannot do it; this GPU is only observed",
    "GpuLost": "drain the node and reset the GPU; nothing more is written to it",
    "NvmlError": "see the kernel log for Xid errors; it is tried again",
}


class RefusedError(Exception):
    """A request that was not carried out; `code` is the fault's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Ticket(Protocol):
    """Whether the job that holds it is still wanted."""

    cancelled: bool


class Notes(Protocol):
    """Where changes are noted: `record.Record`, or in a simulated node its memory."""

    def entry(self, uuid: str) -> Entry:
        """What is noted of a GPU."""
        ...

    def put(self, uuid: str, entry: Entry) -> None:
        """Note it; raises `RecordError` where that fails."""
        ...


class Governor:
    """Holds one GPU to what was last asked.

    Args:
        device: the card.
        record: where changes are noted before they are made.
        clock: monotonic seconds.
        log: structured log.
    """

    def __init__(self, device: Device, record: Notes, clock: Callable[[], float], log: Log) -> None:
        self._device = device
        self._record = record
        self._clock = clock
        self._log = log
        self.identity = device.identity
        self._lock: tuple[int, int] | None = None
        self._judged_at = 0.0
        self._verdict: Verdict = "Unknown"
        self._cap: float | None = None
        self._granted: float | None = None
        self._caps = (0.0, 0.0)
        self._foreign: float | None = None
        self._sample: Sample | None = None
        self._read_failed = False
        self._energy_joules: float | None = None
        self._reloads = 0
        self._clock_failures = 0
        self._cap_failures = 0
        self._disarmed = False
        self._observe_only: str | None = None
        self._record_lost = False
        self._faults: dict[str, str] = {}
        self._notices: dict[str, tuple[float, str]] = {}
        self._writes = {"cap": 0, "lock": 0, "reset": 0}
        self.reset_owed = False
        if self.identity.mig_enabled:
            self._faults["MigEnabled"] = (
                f"GPU {self.identity.uuid} has MIG enabled, which Flyball does not drive: disable MIG or leave it out"
            )

    # -- what is asked of it -------------------------------------------------------------------------------

    def reconcile(self, *, damaged: bool) -> None:
        """At start: reset the lock that an earlier life left; adopt its cap, and put it back if it was raised."""
        entry = self._record.entry(self.identity.uuid)
        self._record_lost = damaged
        if entry.lock or damaged:
            self._log.warning("resetting a clock lock of an earlier life", gpu=self.identity.uuid)
            self.reset_owed = True
            self.let_go()
        if entry.held:
            self._give_back()
            return
        if entry.cap_watts is None:
            return
        try:
            requested, _ = self._read_caps()
            mine = any(abs(requested - cap) <= TOLERANCE_WATTS for cap in entry.ours_watts)
            self._cap = self._granted = min(entry.cap_watts, requested) if mine else entry.cap_watts
            if requested > self._cap + TOLERANCE_WATTS:
                self._put_back(requested, writes=True, ticket=None)
        except DeviceError as error:
            self._note(error)
        except (RefusedError, RecordError) as error:
            self._log.error("the cap of an earlier life is not in force", gpu=self.identity.uuid, error=str(error))

    def _give_back(self) -> None:
        """After a death during a hold: its cap was a trial's, and nobody counts on it."""
        try:
            self.release()
        except RefusedError as error:
            self._log.error("a held card is not as it was found", gpu=self.identity.uuid, error=str(error))

    def hold(self, ticket: Ticket | None = None) -> dict[str, Any]:
        """Note that what is written from now on is somebody's who gives the card back.

        Returns:
            The report, as of `report`.

        Raises:
            RefusedError: a lock or a cap is being held for the agent, or the card is not fit.
        """
        self._refuse_unfit()
        uuid = self.identity.uuid
        entry = self._record.entry(uuid)
        if not entry.held and (self._lock is not None or self._cap is not None or entry != EMPTY):
            raise RefusedError(
                "Governed",
                f"GPU {uuid} is governed by the agent: take its pod out of every EnergyPolicy and wait for its release",
            )
        try:
            self._check(ticket)
            self._record.put(uuid, replace(entry, held=True))
        except RecordError as error:
            raise self._note_unrecorded(error) from error
        return self.report()

    def rearm(self) -> None:
        """A new agent has come: what was given up is tried again."""
        self._disarmed = False
        self._observe_only = None
        self._clock_failures = self._cap_failures = 0
        for code in ("NoPermission", "NotSupported", "ClockNotAchieved", "NvmlError"):
            self._faults.pop(code, None)

    def apply(
        self,
        sm_mhz: tuple[int, int] | None,
        cap_watts: float | None,
        ceiling_watts: float | None,
        ticket: Ticket | None = None,
    ) -> dict[str, Any]:
        """Carry out a `set` and read back.

        Returns:
            The report, as of `report`.

        Raises:
            RefusedError: it was not carried out, or not all of it.
        """
        self._refuse_unfit()
        try:
            # The cap first: should the rest fail, the watts are right.
            if cap_watts is not None:
                self._hold_cap(cap_watts, ceiling_watts, ticket)
            if sm_mhz is None:
                self._drop_lock()
            else:
                self._hold_lock(sm_mhz, ticket)
            self._faults.pop("NvmlError", None)
            self._faults.pop("RecordFailed", None)
        except DeviceError as error:
            raise self._note(error) from error
        except RecordError as error:
            raise self._note_unrecorded(error) from error
        return self.report()

    def let_go(self) -> None:
        """Reset the clock lock and leave the cap; what fails is owed and tried again by the caller."""
        if self._lock is None and not self.reset_owed and not self._record.entry(self.identity.uuid).lock:
            return
        try:
            self._drop_lock(force=self.reset_owed)
        except DeviceError as error:
            self.reset_owed = True
            self._note(error)

    def release(self, ticket: Ticket | None = None) -> dict[str, Any]:
        """Give the card back: no lock, and the cap it would have without Flyball, read back.

        Raises:
            RefusedError: the card could not be restored, or does not show it.
        """
        uuid = self.identity.uuid
        entry = self._record.entry(uuid)
        try:
            self._drop_lock(force=entry.lock)
            requested, _ = self._read_caps()
            target = release_target(self.identity.cap_default_watts, entry.cap_before_watts)
            if entry.ours_watts:
                choice = choose_cap(target, requested, self._caps[1], entry.ours_watts, target)
                if choice.write_watts is not None:
                    self._check(ticket)
                    self._write_cap(choice.write_watts)
                    requested, _ = self._read_caps()
                    if abs(requested - target) > TOLERANCE_WATTS:
                        raise RefusedError(
                            "CapNotInForce",
                            f"GPU {uuid} shows a cap of {requested:g} W after its default of {target:g} W was restored:"
                            f" it is tried again",
                        )
            if self._record_lost:
                self._check_restored(requested)
            self._record.put(uuid, EMPTY)
        except DeviceError as error:
            raise self._note(error) from error
        except RecordError as error:
            # The card is restored, but the next start would take the entry for a cap to be put back.
            raise self._note_unrecorded(error) from error
        self._cap = self._granted = self._foreign = None
        for code in ("CapNotInForce", "ForeignCap", "ClockNotAchieved", "NvmlError", "RecordFailed", "RecordLost"):
            self._faults.pop(code, None)
        self._disarmed = self._record_lost = False
        self._clock_failures = self._cap_failures = 0
        return self.report()

    def _check_restored(self, requested_watts: float) -> None:
        """Without its record a card below its default cap may hold ours or a person's limit: a person must say."""
        uuid, default = self.identity.uuid, self.identity.cap_default_watts
        if requested_watts >= default - TOLERANCE_WATTS:
            return
        self._faults["RecordLost"] = (
            f"GPU {uuid} has a cap of {requested_watts:g} W, below its default of {default:g} W, and the record of who"
            f" set it was damaged: give the card its default back (nvidia-smi -i {uuid} -pl {default:g})"
        )
        raise RefusedError("RecordLost", self._faults["RecordLost"])

    def read(self, *, writes: bool, ticket: Ticket | None = None) -> dict[str, Any]:
        """Measure, judge the lock, and look after the cap; a card that does not answer is a report with a fault."""
        try:
            sample = self._device.sample()
            self._notice_reload(sample)
            self._sample = sample
            self._caps = (sample.cap_watts, sample.enforced_cap_watts)
            self._note_readable()
            self._judge_lock(sample)
            self._watch_cap(sample, writes=writes, ticket=ticket)
        except DeviceError as error:
            self._sample = None
            self._read_failed = True
            self._note(error)
        except (RefusedError, RecordError) as error:
            self._log.error("a cap above its grant was not put back", gpu=self.identity.uuid, error=str(error))
        return self.report()

    def reassert(self, *, writes: bool, ticket: Ticket | None = None) -> dict[str, Any]:
        """Write the lock again: nothing on the card says whether it is still there."""
        if self._lock is not None and writes and self._observe_only is None:
            try:
                self._check(ticket)
                self._write_lock(self._lock)
            except DeviceError as error:
                self._note(error)
        return self.read(writes=writes, ticket=ticket)

    def report(self) -> dict[str, Any]:
        """How the GPU stands, as the protocol sends it; watts, MHz, joules."""
        now = self._clock()
        self._notices = {code: notice for code, notice in self._notices.items() if notice[0] > now}
        faults = {code: text for code, (_, text) in self._notices.items()} | self._faults
        granted = self._granted
        return {
            "uuid": self.identity.uuid,
            "index": self.identity.index,
            "lock_mhz": None if self._lock is None else list(self._lock),
            "lock_verified": self._verdict,
            "cap_watts": self._cap,
            "enforced_cap_watts": self._caps[1],
            "cap_in_force": granted is None or self._caps[1] <= granted + TOLERANCE_WATTS,
            "cap_limited": self._sample is not None and bool(self._sample.reasons & REASONS_CAP),
            "reloads": self._reloads,
            "armed": not self._disarmed and self._observe_only is None and not self.identity.mig_enabled,
            "faults": [{"code": code, "message": text} for code, text in sorted(faults.items())],
            "writes": dict(self._writes),
            "sample": None if self._sample is None else asdict(self._sample),
        }

    def hung(self, call: str, seconds: float) -> dict[str, Any]:
        """The report while a call on this card does not return."""
        text = f"GPU {self.identity.uuid}: {call} has not returned for {seconds:.0f} s: reset the GPU or its driver"
        report = self.report()
        report["sample"] = None
        report["faults"] = [*report["faults"], {"code": "NvmlHung", "message": text}]
        return report

    # -- the lock ------------------------------------------------------------------------------------------

    def _hold_lock(self, asked: tuple[int, int], ticket: Ticket | None) -> None:
        uuid = self.identity.uuid
        if self._disarmed:
            raise RefusedError(
                "ClockNotAchieved" if "ClockNotAchieved" in self._faults else "CapNotInForce",
                f"GPU {uuid} was given up after {FAILURES_TO_DISARM} failures: release it or restart the agent",
            )
        if not self.identity.sm_mhz:
            self._observe_only = "NotSupported"
            self._faults["NotSupported"] = f"GPU {uuid} lists no SM clocks, so none can be locked: it is only observed"
            raise RefusedError("NotSupported", self._faults["NotSupported"])
        lock = clamp_clocks(asked[0], asked[1], self.identity.sm_mhz)
        if lock == self._lock:
            return
        self._record.put(uuid, replace(self._record.entry(uuid), lock=True))
        self._check(ticket)
        self._write_lock(lock)

    def _write_lock(self, lock: tuple[int, int]) -> None:
        self._device.lock(*lock)
        self._writes["lock"] += 1
        if lock != self._lock:
            self._verdict = "Unknown"
            self._clock_failures = 0
        self._lock = lock
        self._judged_at = self._clock()
        self.reset_owed = False

    def _drop_lock(self, *, force: bool = False) -> None:
        uuid = self.identity.uuid
        entry = self._record.entry(uuid)
        if self._lock is None and not entry.lock and not force:
            return
        self._device.unlock()
        self._writes["reset"] += 1
        self._lock = None
        self._verdict = "Unknown"
        self.reset_owed = False
        try:
            self._record.put(uuid, replace(entry, lock=False))
        except RecordError as error:
            # Resetting must work on a full disk; an entry too many costs one more reset at the next start.
            self._log.error("reset not recorded", gpu=uuid, error=str(error))

    def _judge_lock(self, sample: Sample) -> None:
        now = self._clock()
        if self._lock is None or now - self._judged_at < SETTLE_SECONDS:
            return
        self._judged_at = now
        clocks = self.identity.sm_mhz
        step = clocks[1] - clocks[0] if len(clocks) > 1 else 0
        self._verdict = judge_lock(self._lock, step, sample)
        if self._verdict == "True":
            self._clock_failures = 0
        if self._verdict != "False":
            return
        self._clock_failures += 1
        if self._clock_failures < FAILURES_TO_DISARM:
            return
        text = (
            f"GPU {self.identity.uuid} runs at {sample.sm_mhz} MHz outside its lock of {self._lock[0]} to"
            f" {self._lock[1]} MHz: the lock is reset and not tried again before a release or a new agent"
        )
        self._disarm("ClockNotAchieved", text)

    # -- the cap -------------------------------------------------------------------------------------------

    def _hold_cap(self, cap_watts: float, ceiling_watts: float | None, ticket: Ticket | None) -> None:
        uuid = self.identity.uuid
        entry = self._record.entry(uuid)
        granted = cap_watts if ceiling_watts is None else min(cap_watts, ceiling_watts)
        target = clamp_cap(cap_watts, ceiling_watts, self.identity)
        if entry.cap_before_watts is not None:
            target = min(target, release_target(self.identity.cap_default_watts, entry.cap_before_watts))
        requested, enforced = self._read_caps()
        choice = choose_cap(target, requested, enforced, entry.ours_watts, self.identity.cap_default_watts)
        write = choice.write_watts
        if write is None and choice.foreign_watts is None and enforced > granted + TOLERANCE_WATTS:
            write = target  # accepted before and not in force: once more
        if write is not None:
            self._record.put(uuid, entry.with_cap(write, requested))
            self._check(ticket)
            self._write_cap(write)
            self._read_caps()
        # Only now: a cut that could not be written is no cap that somebody raised.
        self._cap, self._granted = target, granted
        self._note_foreign(choice.foreign_watts, granted)
        self._judge_cap()

    def _write_cap(self, watts: float) -> None:
        self._device.set_cap(watts)
        self._writes["cap"] += 1

    def _judge_cap(self) -> None:
        """Whether the enforced limit, read back, is within the grant."""
        granted, enforced = self._granted, self._caps[1]
        if granted is None or enforced <= granted + TOLERANCE_WATTS:
            self._faults.pop("CapNotInForce", None)
            self._cap_failures = 0
            return
        self._cap_failures += 1
        low = self.identity.cap_min_watts
        why = f"the card takes no less than {low:g} W" if granted < low else "the driver accepted it without effect"
        text = f"GPU {self.identity.uuid} enforces {enforced:g} W, above its grant of {granted:g} W: {why}"
        self._faults["CapNotInForce"] = text
        if self._cap_failures == FAILURES_TO_DISARM:
            # Clocks only: a cap that is too high is written again whenever it is asked for, since it is the safe way.
            self._disarm("CapNotInForce", text)

    def _watch_cap(self, sample: Sample, *, writes: bool, ticket: Ticket | None) -> None:
        if self._cap is None:
            return
        if sample.cap_watts > self._cap + TOLERANCE_WATTS:
            self._put_back(sample.cap_watts, writes=writes, ticket=ticket)
            return
        entry = self._record.entry(self.identity.uuid)
        choice = choose_cap(
            self._cap, sample.cap_watts, sample.enforced_cap_watts, entry.ours_watts, self.identity.cap_default_watts
        )
        granted = self._cap if self._granted is None else self._granted
        self._note_foreign(choice.foreign_watts, granted)
        if sample.enforced_cap_watts <= granted + TOLERANCE_WATTS:
            self._judge_cap()

    def _put_back(self, found_watts: float, *, writes: bool, ticket: Ticket | None) -> None:
        self._log.warning("cap above its grant", gpu=self.identity.uuid, found_watts=found_watts, cap_watts=self._cap)
        text = f"GPU {self.identity.uuid} had a cap of {found_watts:g} W, above its grant of {self._cap:g} W"
        done = "it is left there, since writing is off"
        try:
            if writes and self._observe_only is None and self._granted is not None:
                done = "it could not be put back, and is tried again"
                self._hold_cap(self._granted, None, ticket)
                done = "it was put back"
        finally:
            self._notices["CapAboveGrant"] = (self._clock() + NOTICE_SECONDS, f"{text}: {done}")

    def _note_foreign(self, foreign_watts: float | None, granted: float) -> None:
        before = self._record.entry(self.identity.uuid).cap_before_watts
        if foreign_watts is None and before is not None and before < min(granted, self.identity.cap_default_watts):
            foreign_watts = before
        self._foreign = foreign_watts
        if foreign_watts is None:
            self._faults.pop("ForeignCap", None)
            return
        self._faults["ForeignCap"] = (
            f"GPU {self.identity.uuid} is limited to {foreign_watts:g} W by somebody else, below its grant of"
            f" {granted:g} W: that limit is kept; raise it there to let the grant count"
        )

    # -- troubles ------------------------------------------------------------------------------------------

    def _read_caps(self) -> tuple[float, float]:
        self._caps = self._device.caps()
        return self._caps

    def _refuse_unfit(self) -> None:
        for code in ("MigEnabled", self._observe_only):
            if code is not None and code in self._faults:
                raise RefusedError(code, self._faults[code])

    def _note_readable(self) -> None:
        """The card answers (again)."""
        self._faults.pop("GpuLost", None)
        if self._observe_only == "GpuLost":
            self._observe_only = None
        if self._read_failed:
            self._read_failed = False
            self._faults.pop("NvmlError", None)

    def _notice_reload(self, sample: Sample) -> None:
        """An energy counter that went back is a driver that was reloaded: locks and caps are its defaults again."""
        earlier = self._energy_joules
        if sample.energy_joules is not None:
            self._energy_joules = sample.energy_joules
        if earlier is None or sample.energy_joules is None or sample.energy_joules >= earlier:
            return
        uuid = self.identity.uuid
        self._reloads += 1
        self._lock = None
        self._verdict = "Unknown"
        text = f"GPU {uuid} lost its settings: its driver was reloaded, or it was reset; they are written again"
        self._notices["DriverReloaded"] = (self._clock() + NOTICE_SECONDS, text)
        self._log.warning("driver reloaded", gpu=uuid, energy_joules=sample.energy_joules, earlier_joules=earlier)

    def _disarm(self, code: str, text: str) -> None:
        self._faults[code] = text
        # A cap may come into force later; that the clocks stay given up must not go unsaid then.
        self._faults.setdefault(
            "ClockNotAchieved",
            f"GPU {self.identity.uuid} was given up after {FAILURES_TO_DISARM} failures ({code}): its clocks are left"
            " alone before a release or a new agent",
        )
        self._disarmed = True
        self._log.error("giving up the clocks of a GPU", gpu=self.identity.uuid, code=code, reason=text)
        self.let_go()

    def _note(self, error: DeviceError) -> RefusedError:
        """Remember a failed call and say what follows from it."""
        code = _CODES.get(error.code, "NvmlError")
        text = f"GPU {self.identity.uuid}: {error}: {_MENDS[code]}"
        if code in ("NvmlError", "NotSupported", "NoPermission") or code not in self._faults:
            self._faults[code] = text
        if code not in ("NvmlError", self._observe_only):
            self._observe_only = code
            self._log.error("writing no more to a GPU", gpu=self.identity.uuid, code=code, reason=text)
        return RefusedError(code, text)

    def _note_unrecorded(self, error: RecordError) -> RefusedError:
        self._faults["RecordFailed"] = str(error)
        return RefusedError("RecordFailed", str(error))

    def _check(self, ticket: Ticket | None) -> None:
        """Before each write: a job whose caller has given up must not write late."""
        if ticket is not None and ticket.cancelled:
            raise RefusedError("NvmlHung", f"GPU {self.identity.uuid} answered too late; nothing more was written")
