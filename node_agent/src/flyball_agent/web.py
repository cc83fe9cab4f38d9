"""The agent's HTTP endpoints: /metrics, /explain, /healthz, /readyz."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served.

    Attributes:
        metrics: the metrics page.
        explain: what was decided of each GPU, and why.
        healthy: why the process must be restarted; empty when it is well.
        ready: why it does not control; empty when it does.
    """

    metrics: Callable[[], bytes]
    explain: Callable[[], list[dict[str, Any]]]
    healthy: Callable[[], str]
    ready: Callable[[], str]


async def serve(host: str, port: int, pages: Pages) -> web.AppRunner:
    """Start serving.

    Args:
        host: address to listen on.
        port: port to listen on.
        pages: what is served.

    Raises:
        OSError: the address cannot be used.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=pages.metrics(), headers={"Content-Type": METRICS_TYPE})

    async def explain(_: web.Request) -> web.Response:
        return web.json_response({"gpus": pages.explain()})

    def probe(judge: Callable[[], str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(_: web.Request) -> web.StreamResponse:
            why = judge()
            return web.Response(text=why or "ok", status=503 if why else 200)

        return answer

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/explain", explain)
    app.router.add_get("/healthz", probe(pages.healthy))
    app.router.add_get("/readyz", probe(pages.ready))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
