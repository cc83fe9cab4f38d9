"""Scrapes the engines of this node: one task each, twice a second, on a connection that is kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import aiohttp
import structlog

from flyball_agent.facts import Engine, EngineState
from flyball_agent.scanner import PageScanner

PERIOD_SECONDS: Final = 0.5
TIMEOUT_SECONDS: Final = 2.0
MAX_PAGE_BYTES: Final = 4 << 20
# Prometheus' own text format: asked for OpenMetrics, prometheus_client writes `vllm_` for `vllm:`.
_HEADERS: Final = {
    "Accept": "text/plain;version=0.0.4",
    "Accept-Encoding": "identity",
    "User-Agent": "flyball-agent",
}


class EngineScraper:
    """Keeps `EngineState`s fresh.

    Args:
        session: HTTP client.
        clock: monotonic seconds.
        uniform: draws the phase of each engine's scrapes, so that they do not coincide.
        on_page: called after each page.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        clock: Callable[[], float],
        uniform: Callable[[float, float], float],
        on_page: Callable[[Engine, EngineState], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._clock = clock
        self._uniform = uniform
        self._on_page = on_page
        self._sleep = sleep
        self._states: dict[Engine, EngineState] = {}
        self._tasks: dict[Engine, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("flyball.engines")

    @property
    def states(self) -> Mapping[Engine, EngineState]:
        """By engine; only those wanted."""
        return self._states

    def want(self, engines: set[Engine]) -> None:
        """Scrape exactly these from now on."""
        for engine in [engine for engine in self._tasks if engine not in engines]:
            self._tasks.pop(engine).cancel()
            del self._states[engine]
        for engine in engines - self._tasks.keys():
            state = self._states[engine] = EngineState(self._clock())
            self._tasks[engine] = asyncio.create_task(self._follow(engine, state))

    async def close(self) -> None:
        """Stop scraping."""
        tasks = list(self._tasks.values())
        self.want(set())
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self, engine: Engine, state: EngineState) -> None:
        scanner = PageScanner()
        due = self._clock() + self._uniform(0.0, PERIOD_SECONDS / 5)
        while True:
            await self._sleep(max(0.0, due - self._clock()))
            due = max(due + PERIOD_SECONDS, self._clock())
            try:
                sample = scanner.scan(await self._fetch(engine))
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                state.failures += 1
                if not state.error:
                    self._log.warning("engine not scraped", url=engine.url, error=str(error) or type(error).__name__)
                state.error = str(error) or type(error).__name__
                continue
            if state.error:
                self._log.info("engine scraped again", url=engine.url)
            state.sample, state.at, state.error = sample, self._clock(), ""
            state.pages += 1
            self._on_page(engine, state)

    async def _fetch(self, engine: Engine) -> bytes:
        async with self._session.get(engine.url, headers=_HEADERS, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}")
            page = bytearray()
            async for piece in response.content.iter_any():
                page += piece
                if len(page) > MAX_PAGE_BYTES:
                    raise ValueError(f"the page has more than {MAX_PAGE_BYTES} bytes")
            return bytes(page)


def scrape_session() -> aiohttp.ClientSession:
    """The HTTP client for engines: no proxy, no cookies, bounded waits, connections kept."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=64, keepalive_timeout=30.0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
