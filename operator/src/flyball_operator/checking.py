"""`flyball-operator check`: whether an installation works, in lines for a person. `helm test` runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from flyball_api.kube import KubeApi
from flyball_api.kube_errors import KubeError, NotFoundError
from flyball_api.kube_types import ENERGY_POLICIES, LEASES, NODE_ENERGY_PLANS, NODES, JsonObject, JsonObjects, Resource
from flyball_api.names import OPERATOR_LEASE, agent_lease_name
from flyball_operator.conditions import listed
from flyball_operator.projections import node_of, plan_of

POLL_SECONDS: Final = 2.0
BEAT_SECONDS: Final = 14.0
"""Watched for this long, every live Lease has moved: the leader renews every 2 s, agents every 10 s at most."""


class Kube(Protocol):
    """The two calls this needs."""

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        """See `KubeReader.get`."""
        ...

    async def list(self, resource: Resource) -> tuple[JsonObjects, str]:
        """See `KubeApi.list`."""
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    passed: bool
    text: str


async def check(
    kubeconfig: Path | None,
    service_account_dir: Path | None,
    environ: Mapping[str, str],
    *,
    namespace: str,
    timeout_seconds: float,
) -> int:
    """Connect and check until all is well or time is up; see `Checker`."""
    async with await KubeApi.from_environment(
        kubeconfig, service_account_dir, environ, user_agent="flyball-check"
    ) as kube:
        checker = Checker(kube, namespace, clock=time.monotonic)
        return await report(
            checker,
            timeout_seconds=timeout_seconds,
            clock=time.monotonic,
            sleep=asyncio.sleep,
            say=lambda line: print(line, flush=True),
        )


async def report(
    checker: Checker,
    *,
    timeout_seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    say: Callable[[str], None],
) -> int:
    """Look again and again until everything passes, then print the last look.

    Returns:
        0 when everything passed, else 1.
    """
    deadline = clock() + timeout_seconds
    lines = await checker.look()
    while not all(line.passed for line in lines) and clock() < deadline:
        await sleep(POLL_SECONDS)
        lines = await checker.look()
    for line in lines:
        say(f"{'ok  ' if line.passed else 'FAIL'} {line.text}")
    return 0 if all(line.passed for line in lines) else 1


class Checker:
    """Looks at an installation. It keeps what it saw, because only a Lease that moves proves life.

    Args:
        kube: the API server.
        namespace: Flyball's.
        clock: monotonic seconds.
    """

    def __init__(self, kube: Kube, namespace: str, *, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}
        self._moved: dict[str, float] = {}

    async def look(self) -> list[Line]:
        """Everything once; the first thing that hides the rest ends the look."""
        try:
            plans, _ = await self._kube.list(NODE_ENERGY_PLANS)
            await self._kube.list(ENERGY_POLICIES)
            nodes, _ = await self._kube.list(NODES)
        except NotFoundError as error:
            return [Line(False, f"the custom resources are not served: {error}; install the chart's CRDs")]
        except KubeError as error:
            return [Line(False, f"the API server does not answer: {error}")]
        lines = [Line(True, "the API server answers and serves EnergyPolicy and NodeEnergyPlan")]
        lines.append(await self._leader())
        gpu_nodes = sorted(node.name for node in map(node_of, nodes) if node is not None)
        if not gpu_nodes:
            lines.append(Line(True, "no node offers nvidia.com/gpu: there is nothing to drive yet"))
        by_name = {plan["metadata"]["name"]: plan for plan in plans}
        lines += [await self._node(name, by_name.get(name)) for name in gpu_nodes]
        return lines

    async def _leader(self) -> Line:
        lease = await self._lease(OPERATOR_LEASE)
        if lease is None or not lease.get("holderIdentity"):
            return Line(False, f"no operator leads: look at the pods of Deployment {self._namespace}/flyball-operator")
        text = f"operator {lease['holderIdentity']} leads with epoch {lease.get('leaseTransitions', 0)}"
        return self._beat(OPERATOR_LEASE, lease, text)

    async def _node(self, name: str, raw: dict[str, Any] | None) -> Line:
        if raw is None:
            return Line(False, f"node {name}: the operator has made no NodeEnergyPlan for it yet")
        plan = plan_of(raw)
        lease = await self._lease(agent_lease_name(name))
        if lease is None:
            return Line(False, f"node {name}: no agent has ever beaten here; look at DaemonSet flyball-agent")
        beat = self._beat(agent_lease_name(name), lease, f"node {name}: its agent lives")
        if not beat.passed:
            return beat
        if lease.get("holderIdentity") != plan.status.agent_session:
            return Line(False, f"node {name}: the agent that beats now has not reported its GPUs yet")
        done = {gpu.uuid: gpu.acknowledged.grant for gpu in plan.status.gpus if gpu.acknowledged is not None}
        open_gpus = [
            entry.uuid for entry in plan.spec.gpus if entry.action != "Observe" and done.get(entry.uuid) != entry.grant
        ]
        if open_gpus:
            return Line(False, f"node {name}: not yet read back: {listed(open_gpus)}")
        granted = sum(entry.action == "Enforce" for entry in plan.spec.gpus)
        return Line(
            True,
            f"node {name}: its agent lives, {len(plan.status.gpus)} GPUs reported, {granted} enforced and read back",
        )

    async def _lease(self, name: str) -> dict[str, Any] | None:
        try:
            return (await self._kube.get(LEASES, name, self._namespace)).get("spec") or {}
        except KubeError:
            return None

    def _beat(self, name: str, lease: Mapping[str, Any], text: str) -> Line:
        """Passes when the Lease was seen to move not long ago."""
        now, renewed = self._clock(), str(lease.get("renewTime"))
        before = self._seen.get(name)
        if before is None or before[0] != renewed:
            self._seen[name] = (renewed, now)
            if before is not None:
                self._moved[name] = now
        moved = self._moved.get(name)
        if moved is not None and now - moved <= BEAT_SECONDS:
            return Line(True, text)
        return Line(False, f"{text}? its Lease {self._namespace}/{name} has not moved since it is watched")
