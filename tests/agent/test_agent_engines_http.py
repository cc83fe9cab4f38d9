"""Engines over HTTP: pages and boards that are fetched, limits that are posted, and what a bad engine can do."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from flyball_agent.boards import MAX_BOARD_BYTES, parse_board
from flyball_agent.engines import NO_BOARD_SECONDS, EngineScraper, scrape_session, tell_limits
from flyball_agent.facts import Engine, Wish
from flyball_agent.knobs import EngineCommand
from flyball_sim.engine.gpus import FreeRunningGpus
from flyball_sim.engine.metrics import EngineMetrics
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.engine.runtime import EngineRuntime
from flyball_sim.engine.server import EngineServer, ServedModel, listening
from flyball_sim.gpu.types import GPU_TYPES

PAGE = 'vllm:num_requests_running{model_name="llama"} 1\nvllm:generation_tokens_total{model_name="llama"} 5\n'
BOARD = {"iteration": 3, "blockTokens": 16, "kvBlocks": 9, "batchLimit": 8, "maxBatchLimit": 8, "requests": []}


class Site:
    """An engine's HTTP pages, which a test changes."""

    def __init__(self):
        self.page, self.board, self.limits = (200, PAGE), (200, json.dumps(BOARD)), (204, "")
        self.asked, self.posted = [], []
        self.port = 0

    @property
    def engine(self):
        return Engine("127.0.0.1", self.port, "/metrics")

    async def _get(self, request):
        self.asked.append(request.path)
        status, text = self.page if request.path == "/metrics" else self.board
        if status is None:
            await asyncio.Event().wait()
        return web.Response(status=status, text=text)

    async def _post(self, request):
        self.posted.append(await request.json())
        status, text = self.limits
        return web.Response(status=status, text=text)

    @asynccontextmanager
    async def serving(self):
        app = web.Application()
        app.router.add_get("/metrics", self._get)
        app.router.add_get("/flyball/board", self._get)
        app.router.add_post("/flyball/limits", self._post)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            await runner.cleanup()


@pytest.fixture
def site():
    return Site()


def scraped(site, wish, tries=1, clock=lambda: 0.0):
    """The engine's state after so many tries; time does not pass between them."""

    async def run():
        done = asyncio.Event()
        count = iter(range(tries))
        waits = []

        async def sleep(seconds):
            waits.append(seconds)
            if next(count, None) is None:
                done.set()
                await asyncio.Event().wait()

        async with site.serving(), scrape_session() as session:
            scraper = EngineScraper(session, clock, lambda low, _: low, lambda *_: None, sleep=sleep)
            scraper.want({site.engine: wish})
            state = scraper.states[site.engine]
            await done.wait()
            await scraper.close()
            return state, waits

    return asyncio.run(run())


def test_the_board_is_read_beside_the_page_when_it_is_wanted(site):
    state, _ = scraped(site, Wish(board=True))
    assert (state.sample.values["generation_tokens"], state.sample.model) == (5.0, "llama")
    assert state.board.iteration == 3
    assert (sorted(site.asked), state.board_at) == (["/flyball/board", "/metrics"], 0.0)


def test_the_board_is_left_alone_when_nobody_wants_it(site):
    state, _ = scraped(site, Wish())
    assert (site.asked, state.board, state.board_at) == (["/metrics"], None, None)


def test_an_engine_is_scraped_at_the_period_that_is_wanted(site):
    _, waits = scraped(site, Wish(0.1), tries=3)
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_an_engine_without_a_board_is_no_trouble_and_rarely_asked_again(site):
    site.board = (404, "")
    now = [0.0]
    state, _ = scraped(site, Wish(board=True), tries=3, clock=lambda: now[0])
    assert (state.pages, state.board, state.board_error) == (3, None, "")
    assert site.asked.count("/flyball/board") == 1
    site.asked.clear()
    ticks = iter(range(10_000))
    scraped(site, Wish(board=True), tries=3, clock=lambda: NO_BOARD_SECONDS * next(ticks))
    assert site.asked.count("/flyball/board") == 3


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((500, "oops"), "HTTP 500"),
        ((200, "[" * 100_000), "not JSON"),
        ((200, json.dumps({**BOARD, "iteration": -1})), "iteration"),
        ((200, " " * (MAX_BOARD_BYTES + 1)), "more than"),
        ((None, ""), "TimeoutError"),
    ],
    ids=["error", "deep", "negative", "huge", "silent"],
)
def test_a_bad_board_costs_the_board_and_not_the_page(site, said, words):
    site.board = said
    state, _ = scraped(site, Wish(board=True))
    assert (state.pages, state.failures, state.board) == (1, 0, None)
    assert words in state.board_error


def test_a_page_that_fails_takes_the_board_with_it(site):
    site.page = (503, "")
    state, _ = scraped(site, Wish(board=True))
    assert (state.failures, state.error, state.board) == (1, "HTTP 503", None)


def post(site, command=None):
    async def run():
        async with site.serving(), scrape_session() as session:
            return await tell_limits(session, command or EngineCommand(site.engine, 32, 0, 15, turn=7))

    return asyncio.run(run())


def test_limits_are_posted_with_their_lease(site):
    assert post(site) == ""
    assert site.posted == [{"batchLimit": 32, "admit": 0, "seconds": 15}]


def test_a_refusal_is_told_with_the_engines_own_words_cut_short(site):
    site.limits = (400, "batchLimit is 32: give 1 to 16 " + "x" * 10_000)
    said = post(site)
    assert said.startswith("HTTP 400 batchLimit is 32: give 1 to 16")
    assert len(said) < 250


def test_an_engine_that_is_gone_is_a_sentence():
    async def run():
        async with scrape_session() as session:
            return await tell_limits(session, EngineCommand(Engine("127.0.0.1", 1, "/metrics")))

    assert "127.0.0.1" in asyncio.run(run())


def test_our_own_engine_shows_a_board_that_is_understood_and_takes_limits():
    async def run():
        model = step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1)
        metrics = EngineMetrics("chat", max_model_len=4000, kv_blocks=model.kv_blocks, created_seconds=0.0)
        runtime = EngineRuntime(model, EngineLimits(max_model_len=4000), FreeRunningGpus(1980.0), metrics)
        server = EngineServer(runtime, metrics, ServedModel(("chat",), 4000), natural_length=lambda: 6)
        async with listening(server, "127.0.0.1", 0) as port, scrape_session() as session:
            engine = Engine("127.0.0.1", port, "/metrics")
            boards = []
            for told in (EngineCommand(engine, 8, 0, 15), EngineCommand(engine)):
                assert await tell_limits(session, told) == ""
                async with session.get(engine.board_url) as response:
                    boards.append(parse_board(await response.read()))
            refused = await tell_limits(session, EngineCommand(engine, 100_000, None, 15))
            runtime.close()
            return boards, refused

    (limited, free), refused = asyncio.run(run())
    assert (limited.batch_limit, free.batch_limit) == (8, free.max_batch_limit)
    assert refused.startswith("HTTP 400")
    assert "batchLimit is 100000" in refused
