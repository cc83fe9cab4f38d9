"""Scrapes the engines of this node: one task each, as often as its controllers want, on a connection that is kept.

An engine that lets one at its scheduler is asked for its board beside the page, and told its limits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import aiohttp
import structlog

from flyball_agent.boards import MAX_BOARD_BYTES, parse_board
from flyball_agent.controllers.base import Board
from flyball_agent.facts import SCRAPE_SECONDS, Engine, EngineState, Wish
from flyball_agent.knobs import EngineCommand
from flyball_agent.scanner import PageScanner

PERIOD_SECONDS: Final = SCRAPE_SECONDS
TIMEOUT_SECONDS: Final = 2.0
BOARD_TIMEOUT_SECONDS: Final = 0.5
"""A board that takes longer is not worth waiting for: the page beside it would be late."""
NO_BOARD_SECONDS: Final = 30.0
"""An engine that has no board is asked for it again after this long: it may have been replaced."""
MAX_PAGE_BYTES: Final = 4 << 20
_MAX_ANSWER_CHARACTERS: Final = 200
_AGENT: Final = {"Accept-Encoding": "identity", "User-Agent": "flyball-agent"}
# Prometheus' own text format: asked for OpenMetrics, prometheus_client writes `vllm_` for `vllm:`.
_PAGE_HEADERS: Final = {**_AGENT, "Accept": "text/plain;version=0.0.4"}
_BOARD_HEADERS: Final = {**_AGENT, "Accept": "application/json"}
_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


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
        self._wishes: Mapping[Engine, Wish] = {}
        self._states: dict[Engine, EngineState] = {}
        self._tasks: dict[Engine, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("flyball.engines")

    @property
    def states(self) -> Mapping[Engine, EngineState]:
        """By engine; only those wanted."""
        return self._states

    def want(self, wishes: Mapping[Engine, Wish]) -> None:
        """Scrape exactly these from now on, and like this."""
        if wishes == self._wishes:
            return
        self._wishes = dict(wishes)
        for engine in [engine for engine in self._tasks if engine not in wishes]:
            self._tasks.pop(engine).cancel()
            del self._states[engine]
        for engine in wishes.keys() - self._tasks.keys():
            state = self._states[engine] = EngineState(self._clock())
            self._tasks[engine] = asyncio.create_task(self._follow(engine, state))

    async def close(self) -> None:
        """Stop scraping."""
        tasks = list(self._tasks.values())
        self.want({})
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self, engine: Engine, state: EngineState) -> None:
        scanner, boards = PageScanner(), _Boards(self._session, engine, self._clock)
        due = self._clock() + self._uniform(0.0, PERIOD_SECONDS / 5)
        while True:
            await self._sleep(max(0.0, due - self._clock()))
            wish = self._wishes[engine]
            due = max(due + wish.period_seconds, self._clock())
            try:
                if wish.board:
                    page, (board, trouble) = await asyncio.gather(self._fetch(engine), boards.fetch())
                else:
                    page, board, trouble = await self._fetch(engine), None, ""
                sample = scanner.scan(page)
            except _ERRORS as error:
                why = str(error) or type(error).__name__
                if not state.error:
                    self._log.warning("engine not scraped", url=engine.url, error=why)
                state.fail(why)
                continue
            if state.error:
                self._log.info("engine scraped again", url=engine.url)
            if trouble and trouble != state.board_error:
                self._log.warning("board not read", url=engine.board_url, error=trouble)
            state.take(sample, self._clock(), board, trouble)
            self._on_page(engine, state)

    async def _fetch(self, engine: Engine) -> bytes:
        async with self._session.get(engine.url, headers=_PAGE_HEADERS, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}")
            return await _read(response, MAX_PAGE_BYTES, "page")


class _Boards:
    """Fetches the board of one engine; leaves an engine that has none in peace for a while."""

    def __init__(self, session: aiohttp.ClientSession, engine: Engine, clock: Callable[[], float]) -> None:
        self._session = session
        self._engine = engine
        self._clock = clock
        self._none_until = 0.0

    async def fetch(self) -> tuple[Board | None, str]:
        """The board; or None, and why, which is empty for an engine that has no board."""
        if self._clock() < self._none_until:
            return None, ""
        timeout = aiohttp.ClientTimeout(total=BOARD_TIMEOUT_SECONDS)
        get = self._session.get(self._engine.board_url, headers=_BOARD_HEADERS, allow_redirects=False, timeout=timeout)
        try:
            async with get as response:
                if response.status == 404:
                    self._none_until = self._clock() + NO_BOARD_SECONDS
                    return None, ""
                if response.status != 200:
                    return None, f"HTTP {response.status}"
                return parse_board(await _read(response, MAX_BOARD_BYTES, "board")), ""
        except _ERRORS as error:
            return None, str(error) or type(error).__name__


async def tell_limits(session: aiohttp.ClientSession, command: EngineCommand) -> str:
    """Post an engine's limits.

    Returns:
        Why it did not take them; empty when it did.
    """
    url = command.engine.limits_url
    try:
        async with session.post(url, json=command.body(), headers=_BOARD_HEADERS, allow_redirects=False) as response:
            if 200 <= response.status < 300:
                return ""
            said = await response.content.read(_MAX_ANSWER_CHARACTERS)
            return f"HTTP {response.status} {said.decode(errors='replace')}".strip()
    except _ERRORS as error:
        return str(error) or type(error).__name__


async def _read(response: aiohttp.ClientResponse, most_bytes: int, what: str) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > most_bytes:
            raise ValueError(f"the {what} has more than {most_bytes} bytes")
    return bytes(body)


def scrape_session() -> aiohttp.ClientSession:
    """The HTTP client for engines: no proxy, no cookies, bounded waits, connections kept."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=64, keepalive_timeout=30.0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
