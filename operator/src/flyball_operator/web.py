"""/healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

STALL_SECONDS: Final = 90.0
"""Longer than any one turn can take: a request ends after 15 s, and one that was shed is tried again within 30 s."""


def application(
    *, idle_seconds: Callable[[], float], synced: Callable[[], bool], registry: CollectorRegistry
) -> web.Application:
    """The three pages.

    Args:
        idle_seconds: since the reconcile loop last ended a turn. /healthz fails on nothing else: restarting this
            process mends no API server.
        synced: whether the picture is whole and fresh. /readyz fails otherwise, for followers too.
        registry: what /metrics shows.
    """

    async def healthz(_: web.Request) -> web.Response:
        idle = idle_seconds()
        if idle > STALL_SECONDS:
            return web.Response(status=500, text=f"the reconcile loop has not turned for {idle:.0f} s\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if not synced():
            return web.Response(status=503, text="the API server is not reached, or not everything is listed yet\n")
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app


class WebServer:
    """Serves an application until closed."""

    def __init__(self, app: web.Application, address: str, port: int) -> None:
        self._runner = web.AppRunner(app, access_log=None)
        self._address = address
        self._port = port

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: address and port cannot be bound.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address, self._port).start()

    async def close(self) -> None:
        """Stop listening."""
        with suppress(RuntimeError):  # not started
            await self._runner.cleanup()
