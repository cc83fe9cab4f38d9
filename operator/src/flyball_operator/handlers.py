"""kopf serves EnergyPolicy, and only tells the store what it saw.

kopf runs in a thread with a loop of its own: when it ends, for whatever reason, it cancels every task that was started
after it (`kopf._core.reactor.running.run_tasks` says so), and arms a timer that kills the thread it runs in. Neither
may happen to the reconcile loop. It is started again when it ends.
"""

from __future__ import annotations

import asyncio
import base64
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import kopf
import structlog
from kopf._core.engines import peering  # Identity is not exported

from flyball_api.energypolicy import EnergyPolicy
from flyball_api.kube_credentials import KubeCredentials
from flyball_api.names import FINALIZER, GROUP, VERSION

RESTART_SECONDS: Final = 5.0

Seen = Callable[[Mapping[str, Any]], None]


def registry_of(seen: Seen, gone: Seen, credentials: Callable[[], KubeCredentials]) -> kopf.OperatorRegistry:
    """Our handlers, in a registry of our own.

    Args:
        seen: called with the raw object when a policy is there or changed.
        gone: called with its last state when a policy was deleted.
        credentials: what to log in with; asked again whenever the API server refuses them.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(credentials())

    # on.event writes nothing: no finalizer, no annotation. The loop does both, and does it level-triggered.
    @kopf.on.event(GROUP, VERSION, EnergyPolicy.PLURAL, registry=registry)
    async def policy_event(event: Mapping[str, Any], **_: Any) -> None:
        (gone if event["type"] == "DELETED" else seen)(event["object"])

    return registry


def settings_of() -> kopf.OperatorSettings:
    """Settings of kopf; the reasons are in its issues: streams that die silently, restarts that list everything."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True  # leadership is a Lease
    settings.scanning.disabled = True  # no watch of CRDs and namespaces, so no RBAC for it
    settings.posting.enabled = False  # our own Events are rate-limited
    settings.watching.chunk_size = 500
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.networking.request_timeout = 30
    settings.networking.enforce_retry_after = True
    # kopf takes its own finalizer off objects that need none; it must never take ours for its own.
    settings.persistence.finalizer = f"{FINALIZER}-by-kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"kopf.{GROUP}")
    return settings


def connection_info(credentials: KubeCredentials) -> kopf.ConnectionInfo:
    """Our credentials in kopf's words."""
    scheme, _, token = (credentials.authorization_header() or "").partition(" ")
    return kopf.ConnectionInfo(
        server=credentials.server,
        ca_data=_base64(credentials.ca_pem),
        insecure=credentials.insecure or None,
        scheme=scheme or None,
        token=token or None,
        certificate_data=_base64(credentials.certificate_pem),
        private_key_data=_base64(credentials.private_key_pem),
        proxy_url=credentials.proxy_url,
    )


def _base64(pem: str | None) -> bytes | None:
    return None if pem is None else base64.b64encode(pem.encode())


class PolicyFeed:
    """kopf in its thread.

    Args:
        loop: in whose thread the callbacks run.
        seen: see `registry_of`.
        gone: see `registry_of`.
        credentials: see `registry_of`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seen: Seen,
        gone: Seen,
        credentials: Callable[[], KubeCredentials],
    ) -> None:
        self._loop = loop
        self._seen = seen
        self._gone = gone
        self._credentials = credentials
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._log = structlog.get_logger("flyball.kopf")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop it; returns when it has ended, or after a while without it."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, RESTART_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._serve())
            except Exception:  # noqa: BLE001
                # Whatever ended it, policies must be heard of again.
                self._log.exception("kopf ended")
            self._stop.wait(RESTART_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    async def _serve(self) -> None:
        await kopf.operator(
            registry=registry_of(self._across(self._seen), self._across(self._gone), self._credentials),
            settings=settings_of(),
            clusterwide=True,
            standalone=True,
            # Only peering needs it. Left out, kopf asks for the user's name, and a container's uid has none.
            identity=peering.Identity("flyball"),
            stop_flag=self._stop,
        )

    def _across(self, callback: Seen) -> Seen:
        def call(raw: Mapping[str, Any]) -> None:
            try:
                self._loop.call_soon_threadsafe(callback, raw)
            except RuntimeError:
                self._stop.set()  # the loop is closed: the process ends

        return call
