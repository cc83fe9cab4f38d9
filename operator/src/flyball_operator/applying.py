"""Carrying out what was planned: server-side apply, a bounded number at a time, and only what the leader may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Final, Protocol

import structlog

from flyball_api.kube_errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    KubeError,
    NotFoundError,
    UnreachableError,
)
from flyball_api.kube_types import ENERGY_POLICIES, NODE_ENERGY_PLANS, KubeWriter
from flyball_api.names import API_VERSION, FINALIZER, GROUP, OPERATOR_FIELD_MANAGER, RELEASED_BY_HAND
from flyball_api.nodeenergyplan import NodeEnergyPlanSpec
from flyball_operator.planning import (
    Actions,
    ApplyPlan,
    CreatePlan,
    SetFinalizer,
    WithdrawRelease,
    WriteStatus,
)
from flyball_operator.statuses import PolicyEvent
from flyball_operator.store import ClusterStore

CONCURRENCY: Final = 16
EPOCH_REFUSAL: Final = "leader epoch"
"""In the CRD's sentence about a plan that a newer leader has written."""


class DeposedError(Exception):
    """A newer leader is at work; this process must end."""


class Leadership(Protocol):
    """What is asked before every write."""

    def leads(self) -> bool:
        """Whether this process may act at this very moment."""
        ...

    @property
    def epoch(self) -> int:
        """Of the present leadership."""
        ...


class Applier:
    """Carries out actions.

    Args:
        kube: the API server.
        store: is told every answer.
        leadership: asked before every write.
        instance: this process's identity, for Events.
        wall: wall clock, aware.
        count: called with (kind, outcome) for every write.
    """

    def __init__(
        self,
        kube: KubeWriter,
        store: ClusterStore,
        leadership: Leadership,
        *,
        instance: str,
        wall: Callable[[], datetime],
        count: Callable[[str, str], None],
    ) -> None:
        self._kube = kube
        self._store = store
        self._leadership = leadership
        self._instance = instance
        self._wall = wall
        self._count = count
        self._log = structlog.get_logger("flyball.apply")
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def apply(self, actions: Actions) -> None:
        """Carry out everything; what fails is logged and planned again from what is then known.

        Raises:
            DeposedError: the API server has seen a newer leader's write.
        """
        jobs: list[tuple[str, str, Coroutine[None, None, None]]] = []
        jobs += [("create_plan", entry.name, self._create(entry)) for entry in actions.creates]
        jobs += [("plan", entry.name, self._apply_plan(entry)) for entry in actions.plans]
        jobs += [("finalizer", entry.policy, self._set_finalizer(entry)) for entry in actions.finalizers]
        jobs += [("withdrawal", entry.name, self._withdraw_release(entry)) for entry in actions.withdrawals]
        jobs += [("status", entry.policy, self._write_status(entry)) for entry in actions.statuses]
        jobs += [("event", entry.policy, self._post_event(entry)) for entry in actions.events]
        outcomes = await asyncio.gather(*(self._one(*job) for job in jobs), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _one(self, kind: str, name: str, write: Coroutine[None, None, None]) -> None:
        async with self._slots:
            if not self._leadership.leads():
                write.close()
                self._count(kind, "not_leading")
                return
            try:
                await write
            except ConflictError as error:
                # It changed since it was read; what it says now wakes the loop.
                self._count(kind, "conflict")
                self._log.info("write overtaken", kind=kind, object=name, error=str(error))
                return
            except NotFoundError:
                self._count(kind, "gone")
                return
            except KubeError as error:
                self._count(kind, "error")
                self._log.warning("write failed", kind=kind, object=name, error=str(error))
                return
        self._count(kind, "ok")

    async def _create(self, entry: CreatePlan) -> None:
        try:
            self._store.plan_written(await self._kube.create(NODE_ENERGY_PLANS, _plan_body(entry.name, entry.spec)))
        except AlreadyExistsError:
            return  # the watch is about to show it

    async def _apply_plan(self, entry: ApplyPlan) -> None:
        body = _plan_body(entry.name, entry.spec, entry.resource_version)
        try:
            answer = await self._kube.apply(NODE_ENERGY_PLANS, body, field_manager=OPERATOR_FIELD_MANAGER)
        except UnreachableError:
            self._store.plan_unanswered(entry.name, entry.spec)
            raise
        except InvalidError as error:
            if EPOCH_REFUSAL in error.message:
                raise DeposedError(error.message) from error
            raise
        self._store.plan_written(answer)
        self._log.info("plan written", plan=entry.name, why=entry.why, epoch=entry.spec.leader_epoch)

    async def _set_finalizer(self, entry: SetFinalizer) -> None:
        # With the uid, an apply to a policy that is gone is refused instead of making a new one.
        metadata = {
            "name": entry.policy,
            "uid": entry.uid,
            "finalizers": [FINALIZER] if entry.present else [],
        }
        body = {"apiVersion": API_VERSION, "kind": "EnergyPolicy", "metadata": metadata}
        self._store.policy_seen(await self._kube.apply(ENERGY_POLICIES, body, field_manager=OPERATOR_FIELD_MANAGER))
        self._log.info("finalizer set" if entry.present else "finalizer taken off", policy=entry.policy)

    async def _withdraw_release(self, entry: WithdrawRelease) -> None:
        metadata = {"resourceVersion": entry.resource_version, "annotations": {RELEASED_BY_HAND: None}}
        self._store.plan_written(await self._kube.merge_patch(NODE_ENERGY_PLANS, entry.name, {"metadata": metadata}))
        self._log.info("release by hand is over: the node speaks again", plan=entry.name)

    async def _write_status(self, entry: WriteStatus) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": "EnergyPolicy",
            "metadata": {"name": entry.policy, "uid": entry.uid},
            "status": entry.status.to_json(),
        }
        self._store.policy_seen(
            await self._kube.apply(ENERGY_POLICIES, body, field_manager=OPERATOR_FIELD_MANAGER, subresource="status")
        )

    async def _post_event(self, event: PolicyEvent) -> None:
        await self._kube.post_event(
            regarding={
                "apiVersion": API_VERSION,
                "kind": "EnergyPolicy",
                "name": event.policy,
                "uid": event.uid,
            },
            kind=event.kind,
            reason=event.reason,
            note=event.note,
            action="Reconcile",
            controller=f"{GROUP}/operator",
            instance=self._instance,
            now=self._wall(),
        )


def _plan_body(name: str, spec: NodeEnergyPlanSpec, resource_version: str | None = None) -> dict[str, object]:
    metadata = {"name": name} if resource_version is None else {"name": name, "resourceVersion": resource_version}
    return {"apiVersion": API_VERSION, "kind": "NodeEnergyPlan", "metadata": metadata, "spec": spec.to_json()}
