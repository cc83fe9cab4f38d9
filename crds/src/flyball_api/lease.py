"""Leases: one leader among many candidates, and the heartbeat of one agent.

`Candidate` is the leader election as a pure state machine over locally observed facts. Its safety argument:

* a leader believes in itself until `renew_deadline` after the moment it *sent* its last successful write;
* a candidate takes over only after it has *itself* seen one unchanged record for the whole `duration`, which it
  first saw after that write was sent; no timestamp written by another clock is ever compared;
* every write carries the resource version of the record it was decided on, so of two candidates one gets a
  conflict.

So with `renew_deadline < duration`, no two candidates believe at once, however long either is paused, as long as
their monotonic clocks run at rates within `duration / renew_deadline` of each other (1.5 with the defaults). A write
already on its way when belief ends cannot be called back: it is fenced by the epoch (`leaseTransitions`), which grows
with every change of holder and which the API server compares in each plan. The epoch also covers the one thing that
voids the argument: somebody deleting the Lease under a leader, who notices at its next renewal.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NoReturn, Protocol

import structlog

from flyball_api.kube_errors import ConflictError, KubeError, NotFoundError
from flyball_api.kube_http import rfc3339_micro
from flyball_api.kube_types import LEASES, JsonObject, Resource
from flyball_api.names import AGENT_LEASE_DURATION_SECONDS, AGENT_LEASE_RENEW_SECONDS
from flyball_api.reflector import Backoff


class LeaseClient(Protocol):
    """The three calls of `KubeApi` that leases need."""

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        """See `KubeReader.get`."""
        ...

    async def create(self, resource: Resource, body: JsonObject) -> JsonObject:
        """See `KubeWriter.create`."""
        ...

    async def replace(self, resource: Resource, body: JsonObject, *, subresource: str | None = None) -> JsonObject:
        """See `KubeWriter.replace`."""
        ...


class LeadershipLostError(Exception):
    """This process led and does so no more. It must end: what it has in flight is another's to decide now."""


class SupersededError(Exception):
    """Another process renews the heartbeat Lease that this process has held: two agents run on one node."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a Lease says. Times are opaque texts here: they are compared for change, never for order.

    Attributes:
        holder: holderIdentity; empty when released.
        transitions: leaseTransitions, the epoch.
        duration_seconds: leaseDurationSeconds.
        acquired: acquireTime.
        renewed: renewTime.
        resource_version: of the object; empty for one not yet written.
    """

    holder: str
    transitions: int
    duration_seconds: int
    acquired: str
    renewed: str
    resource_version: str = ""

    @classmethod
    def parse(cls, lease: Mapping[str, Any]) -> LeaseRecord:
        """From a coordination.k8s.io/v1 Lease; absent fields read as empty or 0."""
        spec = lease.get("spec") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            transitions=spec.get("leaseTransitions") or 0,
            duration_seconds=spec.get("leaseDurationSeconds") or 0,
            acquired=spec.get("acquireTime") or "",
            renewed=spec.get("renewTime") or "",
            resource_version=lease["metadata"].get("resourceVersion", ""),
        )

    def spec(self) -> JsonObject:
        """The `spec` of the Lease."""
        return {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": self.duration_seconds,
            "leaseTransitions": self.transitions,
            "acquireTime": self.acquired,
            "renewTime": self.renewed,
        }


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Seconds of a leader election; `retry < renew_deadline < duration`.

    Attributes:
        duration_seconds: how long others leave an unchanged record alone.
        renew_deadline_seconds: how long a leader believes after sending its last successful write.
        retry_seconds: between two tries.
    """

    duration_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_seconds < self.renew_deadline_seconds < self.duration_seconds:
            raise ValueError(
                f"lease timing needs 0 < retry {self.retry_seconds} < renew deadline "
                f"{self.renew_deadline_seconds} < duration {self.duration_seconds} (seconds)"
            )


class Step(Enum):
    """What a candidate does next."""

    CREATE = "create"
    TAKE_OVER = "take over"
    RENEW = "renew"
    WAIT = "wait"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate's knowledge. Pure: every change returns a new one, and time is an argument.

    Attributes:
        identity: unique to this life of the process (a pod's name alone is not).
        timing: see `LeaseTiming`.
        record: the Lease as last seen; None when it does not exist or has not been read.
        seen_at_seconds: local time at which `record` was first seen as it is.
        believes_until_seconds: end of belief in the own leadership; None before the first acquisition.
    """

    identity: str
    timing: LeaseTiming
    record: LeaseRecord | None = None
    seen_at_seconds: float = 0.0
    believes_until_seconds: float | None = None

    def leads(self, now_seconds: float) -> bool:
        """Whether this candidate may act as leader at this moment."""
        return self.believes_until_seconds is not None and now_seconds < self.believes_until_seconds

    def observed(self, record: LeaseRecord | None, now_seconds: float) -> Candidate:
        """After a read. The wait for expiry starts anew when anything in the record changed."""
        if record is not None and self.record is not None and _same_claim(record, self.record):
            return replace(self, record=record)
        seen = replace(self, record=record, seen_at_seconds=now_seconds)
        if self.believes_until_seconds is not None and (record is None or record.holder != self.identity):
            # Somebody else's name, or a deleted Lease that anyone may create now: belief ends here.
            return replace(seen, believes_until_seconds=min(self.believes_until_seconds, now_seconds))
        return seen

    def next_step(self, now_seconds: float) -> Step:
        """What to do now, given the latest read."""
        if self.believes_until_seconds is not None:
            return Step.RENEW if self.leads(now_seconds) else Step.LOST
        if self.record is None:
            return Step.CREATE
        expired = now_seconds >= self.seen_at_seconds + self.timing.duration_seconds
        # Our own name before we ever led: a write whose answer was lost. Only we could have written it.
        if expired or self.record.holder in {"", self.identity}:
            return Step.TAKE_OVER
        return Step.WAIT

    def claim(self, wall_time: str, epoch_floor: int) -> LeaseRecord:
        """The record to write for CREATE, TAKE_OVER or RENEW.

        Args:
            wall_time: now as an RFC 3339 MicroTime, for humans and other tools.
            epoch_floor: highest epoch seen anywhere else; the claim's epoch is at least this, and greater than it
                and than the Lease's when the holder changes.
        """
        held = self.record is not None and self.record.holder == self.identity
        past = 0 if self.record is None else self.record.transitions
        transitions = past if held and past >= epoch_floor else max(past, epoch_floor) + 1
        return LeaseRecord(
            holder=self.identity,
            transitions=transitions,
            duration_seconds=max(1, round(self.timing.duration_seconds)),
            acquired=(self.record.acquired if held and self.record is not None else "") or wall_time,
            renewed=wall_time,
            resource_version="" if self.record is None else self.record.resource_version,
        )

    def wrote(self, record: LeaseRecord, sent_at_seconds: float, now_seconds: float) -> Candidate:
        """After a successful write of a claim that was sent at `sent_at_seconds`."""
        until = sent_at_seconds + self.timing.renew_deadline_seconds
        return replace(self, record=record, seen_at_seconds=now_seconds, believes_until_seconds=until)

    def released(self, wall_time: str) -> tuple[Candidate, LeaseRecord | None]:
        """Stop believing, and the record that tells others so; None when there is nothing to give back."""
        ended = replace(self, believes_until_seconds=float("-inf"))
        if self.record is None or self.record.holder != self.identity:
            return ended, None
        return ended, replace(self.record, holder="", renewed=wall_time)


def _same_claim(left: LeaseRecord, right: LeaseRecord) -> bool:
    return replace(left, resource_version="") == replace(right, resource_version="")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class _LeaseObject:
    """One Lease on the API server: read whole, so that what others put on it is written back unchanged."""

    def __init__(self, client: LeaseClient, namespace: str, name: str, labels: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._labels = dict(labels or {})
        self._object: JsonObject | None = None

    async def read(self) -> LeaseRecord | None:
        try:
            self._object = await self._client.get(LEASES, self._name, self._namespace)
        except NotFoundError:
            self._object = None
            return None
        return LeaseRecord.parse(self._object)

    async def write(self, record: LeaseRecord) -> LeaseRecord:
        """Create it if the last read found none, else replace what was read (or written) last."""
        if self._object is None:
            metadata = {"name": self._name, "namespace": self._namespace, "labels": self._labels}
            body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": metadata, "spec": record.spec()}
            self._object = await self._client.create(LEASES, body)
        else:
            body = {**self._object, "spec": {**self._object.get("spec", {}), **record.spec()}}
            self._object = await self._client.replace(LEASES, body)
        return LeaseRecord.parse(self._object)


class LeaderElector:
    """Runs a `Candidate` against the API server.

    Use: `await acquire()`, then `await hold()` in a task beside the work; the process ends when `hold` raises. The
    work asks `leads()` before every write and stamps it with `epoch`. On a clean stop cancel `hold`, finish the work,
    `await release()`.

    Args:
        client: where the Lease lives.
        namespace: of the Lease.
        name: of the Lease.
        identity: unique to this life of this process.
        timing: see `LeaseTiming`.
        epoch_floor: highest epoch seen outside the Lease (in plans); a Lease that was deleted, or restored from a
            backup, then cannot give an old epoch out again.
        clock: monotonic seconds; its rate must be that of the event loop's clock.
        utc_now: wall clock, for the Lease's times.
        sleep: waits that many seconds.
        uniform: draws the jitter of candidates' tries.
    """

    def __init__(
        self,
        client: LeaseClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        timing: LeaseTiming | None = None,
        epoch_floor: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        utc_now: Callable[[], datetime] = _utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._lease = _LeaseObject(client, namespace, name)
        self._timing = timing or LeaseTiming()
        self._candidate = Candidate(identity, self._timing)
        self._epoch_floor = epoch_floor
        self._clock = clock
        self._utc_now = utc_now
        self._sleep = sleep
        self._uniform = uniform
        self._log = structlog.get_logger("flyball.lease").bind(lease=name, identity=identity)

    def leads(self) -> bool:
        """Whether this process may act as leader at this very moment."""
        return self._candidate.leads(self._clock())

    @property
    def epoch(self) -> int:
        """Number of the present leadership; grows with every change of leader. 0 before the Lease was read."""
        return 0 if self._candidate.record is None else self._candidate.record.transitions

    @property
    def leader(self) -> str:
        """Identity of the holder as last seen; empty when there is none."""
        return "" if self._candidate.record is None else self._candidate.record.holder

    async def acquire(self) -> None:
        """Returns when this process leads. An API server that cannot be reached is waited for.

        Raises:
            LeadershipLostError: it has led before; a new life needs a new identity.
        """
        while not self.leads():
            try:
                # Bounded, because a request that hangs would hide that the Lease has become free.
                async with asyncio.timeout(self._timing.renew_deadline_seconds):
                    self._observe(await self._lease.read())
                    step = self._candidate.next_step(self._clock())
                    if step is Step.LOST:
                        raise LeadershipLostError(f"{self._candidate.identity} has led and lost; it must end")
                    if step is not Step.WAIT:
                        await self._write_claim()
                        self._log.info("leading", epoch=self.epoch)
                        continue
            except ConflictError:
                self._log.info("another candidate was faster")
            except (KubeError, TimeoutError) as error:
                self._log.warning("lease not reached", error=str(error) or type(error).__name__)
            await self._sleep(self._timing.retry_seconds * self._uniform(1.0, 1.2))

    async def hold(self) -> NoReturn:
        """Renew until leadership is lost.

        Raises:
            LeadershipLostError: no renewal within the deadline (an API server that hangs included), or the Lease
                names another or is gone. Raised at once, never later than the renew deadline.
        """
        while (remaining := self._remaining_seconds()) > 0:
            wait = self._timing.retry_seconds
            try:
                async with asyncio.timeout(remaining):
                    await self._renew()
            except (KubeError, TimeoutError) as error:
                self._log.warning("lease not renewed", error=str(error) or type(error).__name__)
            await self._sleep(max(0.0, min(wait, self._remaining_seconds())))
        raise LeadershipLostError(
            f"{self._candidate.identity} led with epoch {self.epoch} and has lost the lease "
            f"(held now by {self.leader or 'nobody'}); this process must end"
        )

    async def release(self) -> None:
        """Give the Lease back, so that the next leader need not wait for its expiry. Call after `hold` ended."""
        self._candidate, record = self._candidate.released(rfc3339_micro(self._utc_now()))
        if record is None:
            return
        try:
            async with asyncio.timeout(self._timing.retry_seconds):
                await self._lease.write(record)
        except (KubeError, TimeoutError) as error:
            self._log.warning("lease not released", error=str(error) or type(error).__name__)

    def _remaining_seconds(self) -> float:
        until = self._candidate.believes_until_seconds
        return float("-inf") if until is None else until - self._clock()

    def _observe(self, record: LeaseRecord | None) -> None:
        self._candidate = self._candidate.observed(record, self._clock())

    async def _renew(self) -> None:
        try:
            await self._write_claim()
        except (ConflictError, NotFoundError):
            # Somebody wrote to it, perhaps a lost answer of our own: only what it says now counts.
            self._observe(await self._lease.read())
            if self.leads():
                await self._write_claim()

    async def _write_claim(self) -> None:
        sent_at = self._clock()
        claim = self._candidate.claim(rfc3339_micro(self._utc_now()), self._epoch_floor())
        written = await self._lease.write(claim)
        self._candidate = self._candidate.wrote(written, sent_at, self._clock())


class Heartbeat:
    """Keeps one Lease renewed so that others see this process live. It elects nobody.

    The first beat takes the Lease from an earlier life of the process at once; a later beat that finds another holder
    means two of us run.

    Args:
        client: where the Lease lives.
        namespace: of the Lease.
        name: of the Lease.
        identity: unique to this life of this process (the agent's session).
        duration_seconds: after which others take silence for death.
        period_seconds: between two beats.
        labels: put on the Lease when it is created.
        clock: monotonic seconds.
        utc_now: wall clock, for the Lease's times.
        sleep: waits that many seconds.
        uniform: draws jitter, so that agents started together do not beat together.
    """

    def __init__(
        self,
        client: LeaseClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_seconds: int = AGENT_LEASE_DURATION_SECONDS,
        period_seconds: float = AGENT_LEASE_RENEW_SECONDS,
        labels: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        utc_now: Callable[[], datetime] = _utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._lease = _LeaseObject(client, namespace, name, labels)
        self._identity = identity
        self._duration = duration_seconds
        self._period = period_seconds
        self._clock = clock
        self._utc_now = utc_now
        self._sleep = sleep
        self._uniform = uniform
        self._backoff = Backoff(1.0, period_seconds, uniform)
        self._record: LeaseRecord | None = None
        self._held = False
        self._renewed_at: float | None = None
        self._log = structlog.get_logger("flyball.lease").bind(lease=name, identity=identity)

    def age_seconds(self) -> float:
        """Seconds since the last successful beat; infinite before the first."""
        return float("inf") if self._renewed_at is None else self._clock() - self._renewed_at

    async def run(self) -> NoReturn:
        """Beat until cancelled; failures are tried again sooner than the period.

        Raises:
            SupersededError: another process holds the Lease that this one has held.
        """
        while True:
            try:
                async with asyncio.timeout(self._period):
                    await self.beat()
            except (KubeError, TimeoutError) as error:
                self._log.warning("heartbeat failed", error=str(error) or type(error).__name__)
                await self._sleep(self._backoff.next_seconds())
            else:
                self._backoff.reset()
                await self._sleep(self._period * self._uniform(0.9, 1.0))

    async def beat(self) -> None:
        """Renew once, creating the Lease if it is missing.

        Raises:
            KubeError: it could not be written.
            SupersededError: see `run`.
        """
        if self._record is None:
            await self._read()
        sent_at = self._clock()
        try:
            self._record = await self._lease.write(self._claim())
        except (ConflictError, NotFoundError):
            await self._read()
            self._record = await self._lease.write(self._claim())
        self._held = True
        self._renewed_at = sent_at

    async def _read(self) -> None:
        self._record = await self._lease.read()
        holder = "" if self._record is None else self._record.holder
        if self._held and holder not in {"", self._identity}:
            raise SupersededError(
                f"session {holder} renews the heartbeat of session {self._identity}: two agents run on this node; "
                f"this one must end"
            )

    def _claim(self) -> LeaseRecord:
        now = rfc3339_micro(self._utc_now())
        past = self._record
        if past is not None and past.holder == self._identity:
            return replace(past, renewed=now, duration_seconds=self._duration)
        return LeaseRecord(
            holder=self._identity,
            transitions=0 if past is None else past.transitions + 1,
            duration_seconds=self._duration,
            acquired=now,
            renewed=now,
        )
