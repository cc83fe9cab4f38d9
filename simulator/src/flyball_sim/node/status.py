"""From container states to what the kubelet writes into a pod's status. Pure: the time is passed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

LOST_EXIT_CODE = 137


class Kind(Enum):
    """Place of a container in its pod's life."""

    INIT = "init"
    SIDECAR = "sidecar"
    MAIN = "main"


@dataclass(frozen=True)
class Waiting:
    """Not running and going to be."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Running:
    """Running since `started_at`."""

    started_at: datetime


@dataclass(frozen=True)
class Terminated:
    """Ended. `exit_code` is 128 + signal number for a process that a signal ended, as a container runtime says it."""

    exit_code: int
    reason: str
    started_at: datetime | None
    finished_at: datetime
    container_id: str = ""
    message: str = ""


State = Waiting | Running | Terminated


@dataclass(frozen=True)
class ContainerRecord:
    """What is known of one container; replaced, never changed in place.

    Attributes:
        last: How the run before this one ended.
        started: Running, and its startup probe (if any) has passed.
        ready: Started, and its readiness probe (if any) holds.
    """

    name: str
    image: str
    kind: Kind
    state: State
    last: Terminated | None = None
    restarts: int = 0
    container_id: str = ""
    started: bool = False
    ready: bool = False


@dataclass(frozen=True)
class PodSituation:
    """What the status of a pod follows from, besides the pod object itself.

    Attributes:
        containers: One record per container, in the pod's order (init containers first).
        pod_ip: Its address; empty before it has one.
        started_at: When this node took the pod on.
        stopping: Being deleted: a container that ended will not be started again.
        failure: (reason, message) of a pod the node will not run (admission); None otherwise.
    """

    containers: Sequence[ContainerRecord]
    pod_ip: str
    host_ip: str
    started_at: datetime
    stopping: bool = False
    failure: tuple[str, str] | None = None


def timestamp(moment: datetime) -> str:
    """A time as Kubernetes writes it (RFC 3339, UTC, whole seconds)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def restarts_after(policy: str, kind: Kind, exit_code: int) -> bool:
    """Whether a container that ended with `exit_code` is started again under the pod's restart policy."""
    if kind is Kind.SIDECAR:
        return True
    if kind is Kind.INIT:
        return exit_code != 0 and policy != "Never"
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def first_records(pod: Mapping[str, Any], now: datetime) -> list[ContainerRecord]:
    """Records of a pod this node process starts to run.

    A container that the status says was running belongs to an earlier life of this node; its process ended with that
    life. It is reported as lost and counts as a restart (init containers, which all run again, do not).
    """
    status = pod.get("status") or {}
    known = {
        entry["name"]: entry
        for key in ("initContainerStatuses", "containerStatuses")
        for entry in status.get(key) or ()
    }
    records = []
    for kind, container in ordered_containers(pod):
        record = ContainerRecord(container["name"], container.get("image", ""), kind, Waiting("PodInitializing"))
        if entry := known.get(container["name"]):
            record = _recovered(record, entry, now)
        records.append(record)
    if all(record.kind is Kind.MAIN for record in records):
        records = [
            replace(record, state=Waiting("ContainerCreating")) if isinstance(record.state, Waiting) else record
            for record in records
        ]
    return records


def ordered_containers(pod: Mapping[str, Any]) -> list[tuple[Kind, Mapping[str, Any]]]:
    """All containers of a pod with their kinds, init containers first."""
    initial = [
        (Kind.SIDECAR if container.get("restartPolicy") == "Always" else Kind.INIT, container)
        for container in pod["spec"].get("initContainers") or ()
    ]
    return [*initial, *((Kind.MAIN, container) for container in pod["spec"]["containers"])]


def phase_of(pod: Mapping[str, Any], situation: PodSituation) -> str:
    """Pending, Running, Succeeded or Failed."""
    if situation.failure:
        return "Failed"
    policy = pod["spec"].get("restartPolicy", "Always")

    def is_over(record: ContainerRecord) -> bool:
        return isinstance(record.state, Terminated) and (
            situation.stopping or not restarts_after(policy, record.kind, record.state.exit_code)
        )

    for record in situation.containers:
        if record.kind is Kind.INIT and is_over(record) and _exit_code(record) != 0:
            return "Failed"
    mains = [record for record in situation.containers if record.kind is Kind.MAIN]
    if all(is_over(record) for record in mains):
        return "Succeeded" if all(_exit_code(record) == 0 for record in mains) else "Failed"
    if not _initialized(situation.containers):
        return "Pending"
    if all(isinstance(record.state, Waiting) and record.last is None for record in mains):
        return "Pending"
    return "Running"


def pod_status(pod: Mapping[str, Any], situation: PodSituation, now: datetime) -> dict[str, Any]:
    """The status to apply; only the node's own conditions, as server-side apply leaves the others alone.

    `now` is used only for conditions that differ from the ones in `pod`: with nothing new the answer is the same, so
    that the caller can compare and not write.
    """
    phase = phase_of(pod, situation)
    status: dict[str, Any] = {
        "phase": phase,
        "hostIP": situation.host_ip,
        "hostIPs": [{"ip": situation.host_ip}],
        "startTime": timestamp(situation.started_at),
        "conditions": _conditions(pod, situation, phase, now),
    }
    if situation.pod_ip:
        status["podIP"] = situation.pod_ip
        status["podIPs"] = [{"ip": situation.pod_ip}]
    if situation.failure:
        status["reason"], status["message"] = situation.failure
        return status
    initial = [_container_status(record) for record in situation.containers if record.kind is not Kind.MAIN]
    if initial:
        status["initContainerStatuses"] = initial
    status["containerStatuses"] = [
        _container_status(record) for record in situation.containers if record.kind is Kind.MAIN
    ]
    return status


def _exit_code(record: ContainerRecord) -> int | None:
    return record.state.exit_code if isinstance(record.state, Terminated) else None


def _initialized(containers: Iterable[ContainerRecord]) -> bool:
    return all(
        _exit_code(record) == 0 if record.kind is Kind.INIT else record.started
        for record in containers
        if record.kind is not Kind.MAIN
    )


def _conditions(pod: Mapping[str, Any], situation: PodSituation, phase: str, now: datetime) -> list[dict[str, Any]]:
    existing = {entry["type"]: entry for entry in (pod.get("status") or {}).get("conditions") or ()}
    long_lived = [record for record in situation.containers if record.kind is not Kind.INIT]
    unready = [record.name for record in long_lived if not record.ready]
    over = phase in {"Succeeded", "Failed"}
    initialized = _initialized(situation.containers) or phase == "Succeeded"
    reason, message = "", ""
    if over:
        reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
    elif unready:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    ready = not unready and not over and initialized
    wanted: list[tuple[str, bool, str, str]] = [
        # The scheduler's too, but a pod may be bound without it (spec.nodeName).
        ("PodScheduled", True, "", ""),
        ("PodReadyToStartContainers", bool(situation.pod_ip) and not over, "", ""),
        ("Initialized", initialized, "" if initialized else "ContainersNotInitialized", ""),
        ("Ready", ready, "" if ready else reason, "" if ready else message),
        ("ContainersReady", ready, "" if ready else reason, "" if ready else message),
    ]
    conditions = []
    for name, holds, reason_word, text in wanted:
        verdict = "True" if holds else "False"
        before = existing.get(name, {})
        since = before.get("lastTransitionTime") if before.get("status") == verdict else None
        condition: dict[str, Any] = {
            "type": name,
            "status": verdict,
            "lastTransitionTime": since or timestamp(now),
        }
        if reason_word:
            condition["reason"] = reason_word
        if text:
            condition["message"] = text
        conditions.append(condition)
    return conditions


def _container_status(record: ContainerRecord) -> dict[str, Any]:
    status: dict[str, Any] = {
        "name": record.name,
        "image": record.image,
        "imageID": record.image if record.container_id else "",
        "state": _state(record.state),
        "lastState": _state(record.last) if record.last else {},
        "ready": _exit_code(record) == 0 if record.kind is Kind.INIT else record.ready,
        "started": record.started,
        "restartCount": record.restarts,
    }
    if record.container_id:
        status["containerID"] = record.container_id
    return status


def _state(state: State) -> dict[str, Any]:
    match state:
        case Waiting(reason, message):
            return {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        case Running(started_at):
            return {"running": {"startedAt": timestamp(started_at)}}
        case Terminated():
            details: dict[str, Any] = {
                "exitCode": state.exit_code,
                "reason": state.reason,
                "finishedAt": timestamp(state.finished_at),
            }
            if state.started_at:
                details["startedAt"] = timestamp(state.started_at)
            if state.container_id:
                details["containerID"] = state.container_id
            if state.message:
                details["message"] = state.message
            return {"terminated": details}


def _recovered(record: ContainerRecord, entry: Mapping[str, Any], now: datetime) -> ContainerRecord:
    restarts = int(entry.get("restartCount", 0))
    state = entry.get("state") or {}
    if ended := state.get("terminated"):
        terminated = _parsed(ended, now)
        if record.kind is Kind.MAIN:
            return replace(record, state=terminated, restarts=restarts, container_id=entry.get("containerID", ""))
        return replace(record, last=terminated, restarts=restarts)
    last = (entry.get("lastState") or {}).get("terminated")
    if running := state.get("running"):
        lost = Terminated(
            exit_code=LOST_EXIT_CODE,
            reason="ContainerStatusUnknown",
            started_at=_moment(running.get("startedAt")),
            finished_at=now,
            container_id=entry.get("containerID", ""),
            message="the process of this container ended with the node process that ran it",
        )
        if record.kind is Kind.MAIN:
            return replace(record, state=lost, restarts=restarts, container_id=lost.container_id)
        return replace(record, last=lost, restarts=restarts + 1)
    return replace(record, last=_parsed(last, now) if last else None, restarts=restarts)


def _parsed(terminated: Mapping[str, Any], now: datetime) -> Terminated:
    return Terminated(
        exit_code=int(terminated.get("exitCode", 0)),
        reason=terminated.get("reason", ""),
        started_at=_moment(terminated.get("startedAt")),
        finished_at=_moment(terminated.get("finishedAt")) or now,
        container_id=terminated.get("containerID", ""),
        message=terminated.get("message", ""),
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
