"""Puts the operator together: every part is made here, and is given what it needs."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import secrets
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from flyball_api.kube import KubeApi
from flyball_api.kube_errors import KubeError
from flyball_api.kube_types import CONFIGMAPS, ENERGY_POLICIES, LEASES, NODE_ENERGY_PLANS, NODES, PODS
from flyball_api.lease import LeaderElector, LeadershipLostError, LeaseTiming
from flyball_api.names import OPERATOR_LEASE, SWITCH_CONFIG_MAP
from flyball_api.reflector import Reflector
from flyball_operator.applying import Applier, DeposedError
from flyball_operator.handlers import PolicyFeed
from flyball_operator.loop import ReconcileLoop
from flyball_operator.metrics import OperatorMetrics
from flyball_operator.projections import LeaseView, agent_lease_of, node_of, plan_of, pod_of, switch_text_of
from flyball_operator.state import Node, Plan, Pod
from flyball_operator.store import ClusterStore, Sources
from flyball_operator.web import WebServer, application

USER_AGENT: Final = "flyball-operator"
SWEEP_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `run` is given.

    Attributes:
        namespace: Flyball's own namespace: Leases and the switch.
        bind_address: of the web server.
        port: of the web server.
        kubeconfig: outside a pod.
        service_account_dir: in a pod.
        identity: names this process in the Lease and in Events; a random part is added.
        lease: timing of the leader election.
    """

    namespace: str
    bind_address: str
    port: int
    kubeconfig: Path | None
    service_account_dir: Path | None
    identity: str
    lease: LeaseTiming


class LeadershipEndedError(Exception):
    """This process led and must end, with an exit code that says so."""


async def run(options: Options, environ: Mapping[str, str]) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        LeadershipEndedError: leadership is lost; another process leads.
    """
    kube = await KubeApi.from_environment(
        options.kubeconfig, options.service_account_dir, environ, user_agent=USER_AGENT
    )
    log = structlog.get_logger("flyball.operator")
    async with kube:
        store = ClusterStore(time.monotonic)
        nodes: Reflector[Node] = Reflector(kube, NODES, node_of, on_change=store.changed)
        pods: Reflector[Pod] = Reflector(kube, PODS, pod_of, on_change=store.changed)
        plans: Reflector[Plan] = Reflector(kube, NODE_ENERGY_PLANS, plan_of, on_change=store.changed)
        leases: Reflector[LeaseView] = Reflector(
            kube, LEASES, agent_lease_of, on_change=store.lease_changed, namespace=options.namespace
        )
        switch: Reflector[str] = Reflector(
            kube,
            CONFIGMAPS,
            switch_text_of,
            on_change=store.changed,
            namespace=options.namespace,
            field_selector=f"metadata.name={SWITCH_CONFIG_MAP}",
        )
        reflectors: dict[str, Reflector[Any]] = {
            "nodes": nodes,
            "pods": pods,
            "nodeenergyplans": plans,
            "leases": leases,
            "configmaps": switch,
        }
        store.connect(
            Sources(
                nodes=nodes.store,
                pods=pods.store,
                plans=plans.store,
                leases=leases.store,
                switch=switch.store,
                followed=tuple(reflectors.values()),
                leases_followed=leases,
            )
        )
        identity = f"{options.identity}_{secrets.token_hex(4)}"
        elector = LeaderElector(
            kube,
            options.namespace,
            OPERATOR_LEASE,
            identity,
            timing=options.lease,
            epoch_floor=store.highest_epoch,
        )
        metrics = OperatorMetrics()
        metrics.follow(reflectors)
        applier = Applier(kube, store, elector, instance=identity, wall=_wall, count=metrics.count)
        loop = ReconcileLoop(store, applier, elector, metrics, clock=time.monotonic, wall=_wall)
        web = WebServer(
            application(idle_seconds=loop.idle_seconds, synced=lambda: store.synced, registry=metrics.registry),
            options.bind_address,
            options.port,
        )
        feed = PolicyFeed(asyncio.get_running_loop(), store.policy_seen, store.policy_gone, lambda: kube.credentials)
        stop = _stop_on_signals()
        log.info("started", identity=identity, server=kube.credentials.server)
        await web.start()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(reflector.run()) for reflector in reflectors.values()]
                tasks.append(group.create_task(_sweep(kube, store)))
                tasks.append(group.create_task(loop.run()))
                tasks.append(group.create_task(_lead(elector, store, reflectors.values())))
                tasks.append(group.create_task(_serve_policies(feed, store, reflectors.values())))
                await stop.wait()
                for task in tasks:
                    task.cancel()
            log.info("stopped")
        except* (LeadershipLostError, DeposedError) as errors:
            raise LeadershipEndedError("; ".join(str(error) for error in errors.exceptions)) from None
        finally:
            await feed.stop()
            await web.close()
            await elector.release()


async def _listed(store: ClusterStore, reflectors: Iterable[Reflector[Any]]) -> None:
    """Returns once every kind has been listed to its end."""
    for reflector in reflectors:
        await reflector.wait_synced()
    await store.wait_policies_listed()


async def _lead(elector: LeaderElector, store: ClusterStore, reflectors: Iterable[Reflector[Any]]) -> None:
    """Lead once the picture is whole: the epoch rests on what every plan carries."""
    await _listed(store, reflectors)
    await elector.acquire()
    store.wake()
    await elector.hold()


async def _serve_policies(feed: PolicyFeed, store: ClusterStore, reflectors: Iterable[Reflector[Any]]) -> None:
    """Start kopf when the API server is there: it takes its absence at the start for a fault."""
    await _listed(store, reflectors)
    feed.start()
    _trim()


async def _sweep(kube: KubeApi, store: ClusterStore) -> None:
    """List the policies now and then: once to know that all are known, then for deletions that kopf has missed."""
    log = structlog.get_logger("flyball.sweep")
    while True:
        try:
            items, version = await kube.list(ENERGY_POLICIES)
        except KubeError as error:
            log.warning("policies not listed", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)
            continue
        store.policies_listed(items, version)
        await asyncio.sleep(SWEEP_SECONDS)


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _wall() -> datetime:
    return datetime.now(UTC)


def _trim() -> None:
    """Give back what imports and the first lists took."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
