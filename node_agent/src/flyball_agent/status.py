"""The plan's status: what it says, and when it is worth a write to the API server. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

from flyball_agent.cards import Gpu
from flyball_agent.facts import Engine, EngineState
from flyball_agent.node import NodeControl
from flyball_api.common import ClockRange, Condition
from flyball_api.nodeenergyplan import (
    MAX_GPUS,
    MAX_POLICIES,
    Fault,
    GpuStatus,
    NodeEnergyPlanStatus,
    PodReference,
    Setpoint,
)

QUIET_SECONDS: Final = 10.0
"""Changes of measured values are written at most this often."""
CHANGE_SHARE: Final = 0.02
MAX_FAULTS: Final = 8


class DrawMeter:
    """Mean power of each card since the status was last written, from its energy counter."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, float]] = {}  # UUID -> (monotonic seconds, joules)

    def watts(self, gpu: Gpu, now: float) -> int | None:
        """Mean watts; the card's own one-second average until a second has been metered, None without either."""
        sample = None if gpu.report is None else gpu.report["sample"]
        if sample is None:
            return None
        joules: float | None = sample["energy_joules"]
        if joules is not None:
            began, earlier = self._since.setdefault(gpu.uuid, (now, joules))
            if now - began >= 1.0 and joules >= earlier:
                return round((joules - earlier) / (now - began))
        power: float | None = sample["power_average_watts"] or sample["power_instant_watts"]
        return None if power is None else round(power)

    def restart(self) -> None:
        """A status was written."""
        self._since.clear()


def build_status(
    control: NodeControl,
    engines: Mapping[Engine, EngineState],
    meter: DrawMeter,
    *,
    now: float,
    wall_time: datetime,
    version: str,
    earlier: NodeEnergyPlanStatus | None,
) -> NodeEnergyPlanStatus:
    """The status as it is now.

    Args:
        control: the agent's state.
        engines: states of the scraped engines.
        meter: of draw since the last write.
        now: monotonic seconds.
        wall_time: for conditions that change.
        version: the agent's.
        earlier: the last status, whose conditions keep their times where nothing changed.
    """
    gpus = sorted(control.gpus.values(), key=lambda gpu: (gpu.card is None, gpu.card and gpu.card["index"], gpu.uuid))
    return NodeEnergyPlanStatus(
        agent_session=control.session,
        boot_id=control.actuator.boot_id,
        driver_version=control.actuator.driver_version,
        agent_version=version,
        gpus=tuple(_gpu_status(control, gpu, meter, now) for gpu in gpus[:MAX_GPUS]),
        policies=tuple(control.counters(engines)[:MAX_POLICIES]),
        conditions=_conditions(control, wall_time, earlier),
    )


def _gpu_status(control: NodeControl, gpu: Gpu, meter: DrawMeter, now: float) -> GpuStatus:
    card: dict[str, Any] = gpu.card or {}
    report: dict[str, Any] = gpu.report or {}
    sample = report.get("sample") or {}
    holder = None if control.allocation is None else control.allocation.holders.get(gpu.uuid)
    faults = sorted(control.faults(gpu).items())[:MAX_FAULTS]
    return GpuStatus(
        uuid=gpu.uuid,
        index=card.get("index", 0),
        product=card.get("product", ""),
        cap_min_watts=math.ceil(card.get("cap_min_watts", 0)),
        cap_max_watts=math.floor(card.get("cap_max_watts", 0)),
        cap_default_watts=round(card.get("cap_default_watts", 0)),
        sm_min_megahertz=card.get("sm_min_mhz", 0),
        sm_max_megahertz=card.get("sm_max_mhz", 0),
        pod=None
        if holder is None
        else PodReference(namespace=holder.namespace, name=holder.pod, container=holder.container),
        acknowledged=gpu.acknowledged,
        # Rounded up, and forgiving a milliwatt: a cap must never look lower than it is.
        enforced_cap_watts=math.ceil(report["enforced_cap_watts"] - 0.01) if report.get("enforced_cap_watts") else None,
        requested=_requested(report),
        clock_verified=report.get("lock_verified", "Unknown"),
        would=_would(gpu),
        draw_watts=meter.watts(gpu, now),
        sm_megahertz=sample.get("sm_mhz"),
        cap_limited=report.get("cap_limited", False),
        because="" if gpu.outcome is None else _words(gpu.outcome.because, 256),
        faults=tuple(Fault(code=code, message=_words(message, 512)) for code, message in faults),
    )


def _words(text: str, most: int) -> str:
    """As far as the API server takes it: half a character, as JSON from a profile may hold, is no text."""
    return text[:most].encode("utf-8", "replace").decode("utf-8")


def _requested(report: Mapping[str, Any]) -> Setpoint | None:
    lock, cap = report.get("lock_mhz"), report.get("cap_watts")
    if lock is None and cap is None:
        return None
    clocks = None if lock is None else ClockRange(min=lock[0], max=lock[1])
    return Setpoint(sm_clock=clocks, cap_watts=None if cap is None else round(cap))


def _would(gpu: Gpu) -> Setpoint | None:
    if gpu.entry is None or gpu.entry.action != "Observe" or gpu.outcome is None:
        return None
    wanted = gpu.outcome.would
    clocks = None if wanted.sm_mhz is None else ClockRange(min=wanted.sm_mhz[0], max=wanted.sm_mhz[1])
    caps = [cap for cap in (gpu.entry.cap_watts, wanted.cap_watts) if cap is not None]
    return Setpoint(sm_clock=clocks, cap_watts=min(caps, default=None))


def _conditions(
    control: NodeControl, wall_time: datetime, earlier: NodeEnergyPlanStatus | None
) -> tuple[Condition, ...]:
    actuator = control.actuator
    able = actuator.connected and not actuator.trouble
    able_reason = "Connected" if able else "NoGpus" if actuator.connected else "ActuatorLost"
    able_message = "" if able else f"the actuator cannot write: {actuator.trouble}"
    ready_reason, ready_message = "Controlling", ""
    if not able:
        ready_reason, ready_message = "ActuatorNotReady", "the actuator is not ready; caps stay as they are"
    elif not control.writes:
        said = control.switch or "not read yet"
        ready_reason, ready_message = "Stopped", f"ConfigMap flyball-switch says {said!r}: nothing is written"
    elif control.allocation is None:
        ready_reason, ready_message = "NoAllocation", "the kubelet has not said which pod holds which GPU"
    elif control.allocation.mig:
        ready_message = f"{len(control.allocation.mig)} MIG devices in use are left alone"
    ready = ready_reason == "Controlling"
    known = {} if earlier is None else {condition.type: condition for condition in earlier.conditions}
    conditions = []
    for name, holds, reason, message in (
        ("ActuatorReady", able, able_reason, able_message),
        ("Ready", ready, ready_reason, ready_message),
    ):
        status: Literal["True", "False"] = "True" if holds else "False"
        before = known.get(name)
        since = before.last_transition_time if before and before.status == status else _rfc3339(wall_time)
        conditions.append(
            Condition(type=name, status=status, reason=reason, message=message[:2048], last_transition_time=since)
        )
    return tuple(conditions)


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def urgent(status: NodeEnergyPlanStatus) -> tuple[Any, ...]:
    """The part of a status whose change is written at once: all but measurements and counters.

    Of faults the code counts: their sentences carry numbers that move.
    """
    gpus = tuple(
        gpu.model_copy(
            update={
                "draw_watts": None,
                "sm_megahertz": None,
                "cap_limited": False,
                "clock_verified": "Unknown",
                "faults": tuple(fault.code for fault in gpu.faults),
                # A controller that moves clocks twice a second is Prometheus' business, not etcd's.
                "requested": None,
                "would": None,
                "because": "",
            }
        )
        for gpu in status.gpus
    )
    policies = tuple((policy.name, policy.uid, policy.since, policy.engines_stale > 0) for policy in status.policies)
    conditions = tuple((condition.type, condition.status, condition.reason) for condition in status.conditions)
    head = (status.agent_session, status.boot_id, status.driver_version, status.agent_version)
    return (head, gpus, policies, conditions)


def moved(status: NodeEnergyPlanStatus, earlier: NodeEnergyPlanStatus) -> bool:
    """Whether measurements or counters are worth a write when one may go: not for noise, not when idle."""
    before = {gpu.uuid: gpu for gpu in earlier.gpus}
    for gpu in status.gpus:
        old = before.get(gpu.uuid)
        if old is None or (gpu.requested, gpu.would, gpu.clock_verified) != (
            old.requested,
            old.would,
            old.clock_verified,
        ):
            return True
        if (gpu.draw_watts is None) != (old.draw_watts is None):
            return True
        # Of the card's range, not of the draw: an idle card's noise is more than 2 % of what it draws.
        if abs((gpu.draw_watts or 0) - (old.draw_watts or 0)) > CHANGE_SHARE * max(gpu.cap_max_watts, 1):
            return True
    tokens = {policy.since: (policy.generated_tokens, policy.prompt_tokens) for policy in earlier.policies}
    return any(
        tokens.get(policy.since) != (policy.generated_tokens, policy.prompt_tokens) for policy in status.policies
    )


def due(status: NodeEnergyPlanStatus, earlier: NodeEnergyPlanStatus | None, quiet_seconds: float) -> bool:
    """Whether to write now.

    Args:
        status: as it is now.
        earlier: as last written; None when nothing was.
        quiet_seconds: since that write.
    """
    if earlier is None or urgent(status) != urgent(earlier):
        return True
    return quiet_seconds >= QUIET_SECONDS and moved(status, earlier)
