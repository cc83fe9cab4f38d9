"""The agent's HTTP endpoints: /metrics, /healthz, /readyz."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def serve(
    host: str, port: int, page: Callable[[], bytes], healthy: Callable[[], str], ready: Callable[[], str]
) -> web.AppRunner:
    """Start serving.

    Args:
        host: address to listen on.
        port: port to listen on.
        page: the metrics page.
        healthy: why the process must be restarted; empty when it is well.
        ready: why it does not control; empty when it does.

    Raises:
        OSError: the address cannot be used.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=page(), headers={"Content-Type": METRICS_TYPE})

    def probe(judge: Callable[[], str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(_: web.Request) -> web.StreamResponse:
            why = judge()
            return web.Response(text=why or "ok", status=503 if why else 200)

        return answer

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", probe(healthy))
    app.router.add_get("/readyz", probe(ready))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
