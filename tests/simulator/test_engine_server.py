"""The real server over real sockets; engine seconds are real seconds, so answers are kept short."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from flyball_sim.engine.gpus import FreeRunningGpus
from flyball_sim.engine.metrics import EngineMetrics
from flyball_sim.engine.models import step_model
from flyball_sim.engine.requests import EngineLimits, LoadSample
from flyball_sim.engine.runtime import EngineRuntime
from flyball_sim.engine.server import EngineServer, ServedModel, listening
from flyball_sim.gpu.types import GPU_TYPES

MODEL = step_model(GPU_TYPES["H100-SXM5"], "llama-3.1-8b", 1)


class RecordingGpus:
    def __init__(self) -> None:
        self.mhz = 1980.0
        self.loads: list[LoadSample] = []

    def sm_mhz(self) -> float:
        return self.mhz

    def write_load(self, load: LoadSample) -> None:
        self.loads.append(load)

    async def until(self, condition: Callable[[list[LoadSample]], bool]) -> None:
        for _ in range(1000):
            if condition(self.loads):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"it never came to that: {self.loads}")


class Engine:
    """A served engine and a client of it."""

    def __init__(self, url: str, http: aiohttp.ClientSession, server: EngineServer) -> None:
        self.url = url
        self.http = http
        self.server = server

    async def post(self, path: str = "/v1/completions", **body: object) -> tuple[int, dict]:
        async with self.http.post(f"{self.url}{path}", json={"model": "chat", **body}) as response:
            return response.status, await response.json()

    async def events(self, path: str = "/v1/completions", **body: object) -> list[tuple[float, str]]:
        async with self.http.post(f"{self.url}{path}", json={"model": "chat", "stream": True, **body}) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            return [
                (time.monotonic(), line[6:].decode().strip())
                async for line in response.content
                if line.startswith(b"data: ")
            ]

    async def value(self, series: str) -> float:
        """The sum of a metric's series whose text matches."""
        async with self.http.get(f"{self.url}/metrics") as response:
            text = await response.text()
        return sum(float(value) for value in re.findall(rf"^{series} (\S+)$", text, re.MULTILINE))

    async def until(self, series: str, wanted: float) -> None:
        for _ in range(1000):
            if await self.value(series) == wanted:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{series} never was {wanted}: it is {await self.value(series)}")


@asynccontextmanager
async def engine(gpus: RecordingGpus | FreeRunningGpus | None = None, **limits: int) -> AsyncIterator[Engine]:
    bounds = EngineLimits(**{"max_model_len": 4000, **limits})
    metrics = EngineMetrics("chat", max_model_len=4000, kv_blocks=MODEL.kv_blocks, created_seconds=0.0)
    runtime = EngineRuntime(MODEL, bounds, gpus or FreeRunningGpus(1980), metrics)
    server = EngineServer(runtime, metrics, ServedModel(("chat", "alias"), 4000), natural_length=lambda: 6)
    try:
        async with listening(server, "127.0.0.1", 0) as port, aiohttp.ClientSession() as http:
            yield Engine(f"http://127.0.0.1:{port}", http, server)
    finally:
        runtime.close()


# -- answers -----------------------------------------------------------------------------------------------


async def test_a_stream_gives_each_token_then_usage_then_done():
    async with engine() as served:
        events = await served.events(
            prompt=[1] * 50, max_tokens=4, ignore_eos=True, stream_options={"include_usage": True}
        )
    *tokens, usage, done = [text for _, text in events]
    assert done == "[DONE]"
    choices = [json.loads(token)["choices"][0] for token in tokens]
    assert len(choices) == 4
    assert all(choice["text"] for choice in choices)
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert json.loads(usage)["usage"] == {"prompt_tokens": 50, "completion_tokens": 4, "total_tokens": 54}
    assert json.loads(usage)["choices"] == []


async def test_a_stream_without_the_option_carries_no_usage():
    async with engine() as served:
        events = await served.events(prompt=[1], max_tokens=2, ignore_eos=True)
    assert [text for _, text in events][-1] == "[DONE]"
    assert not any('"usage"' in text for _, text in events)


async def test_tokens_arrive_one_step_apart_and_not_all_at_the_end():
    async with engine() as served:
        events = await served.events(prompt=[1] * 10, max_tokens=30, ignore_eos=True)
    arrivals = [moment for moment, text in events if text != "[DONE]"]
    assert len(arrivals) == 30
    assert arrivals[-1] - arrivals[0] > 29 * 0.0066 / 4


async def test_a_whole_answer_has_text_and_usage():
    async with engine() as served:
        status, body = await served.post(prompt=[1] * 50, max_tokens=3, ignore_eos=True)
    assert status == 200
    assert body["object"] == "text_completion"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 50, "completion_tokens": 3, "total_tokens": 53}


async def test_chat_answers_whole_and_streamed():
    messages = [{"role": "user", "content": "x" * 40}]
    async with engine() as served:
        status, body = await served.post("/v1/chat/completions", messages=messages, max_tokens=3)
        events = await served.events("/v1/chat/completions", messages=messages, max_tokens=3)
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["usage"]["prompt_tokens"] == 14
    first = json.loads(events[0][1])
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"]["content"]


async def test_an_answer_ends_by_itself_unless_told_to_go_on():
    async with engine() as served:
        _, natural = await served.post(prompt=[1], max_tokens=20)
        _, longer = await served.post(prompt=[1], max_tokens=20, min_tokens=9)
        _, cut = await served.post(prompt=[1], max_tokens=4)
        _, forced = await served.post(prompt=[1], max_tokens=20, ignore_eos=True)
    lengths = [body["usage"]["completion_tokens"] for body in (natural, longer, cut, forced)]
    reasons = [body["choices"][0]["finish_reason"] for body in (natural, longer, cut, forced)]
    assert lengths == [6, 9, 4, 20]
    assert reasons == ["stop", "stop", "length", "length"]


async def test_requests_are_batched_and_not_served_in_turn():
    async with engine() as served:
        await asyncio.gather(*(served.post(prompt=[1] * 10, max_tokens=20, ignore_eos=True) for _ in range(8)))
        steps = await served.value("flyball_sim_engine_steps_total.*")
    assert steps < 8 * 20 / 2


# -- refusals ----------------------------------------------------------------------------------------------


async def test_a_bad_field_answers_400_in_openais_form():
    async with engine() as served:
        status, body = await served.post(prompt=[1], max_tokens=-1)
    assert status == 400
    assert body["error"] == {
        "message": "max_tokens must be at least 1, got -1.",
        "type": "BadRequestError",
        "param": "max_tokens",
        "code": 400,
    }


async def test_an_unknown_model_answers_404_with_those_served():
    async with engine() as served:
        status, body = await served.post(model="gpt", prompt=[1])
    assert status == 404
    assert body["error"]["type"] == "NotFoundError"
    assert "serves chat, alias" in body["error"]["message"]


async def test_more_than_the_context_answers_400():
    async with engine() as served:
        status, body = await served.post(prompt=[1] * 3990, max_tokens=100)
    assert status == 400
    assert "maximum context length is 4000 tokens" in body["error"]["message"]


async def test_a_full_queue_answers_503_and_is_counted():
    async with engine(max_num_seqs=1, max_num_queued_reqs=1) as served:
        first = asyncio.create_task(served.post(prompt=[1], max_tokens=60, ignore_eos=True))
        await served.until("vllm:num_requests_running.*", 1)
        second = asyncio.create_task(served.post(prompt=[1], max_tokens=2, ignore_eos=True))
        await served.until("vllm:num_requests_waiting{.*", 1)
        status, body = await served.post(prompt=[1], max_tokens=2)
        assert status == 503
        assert "the limit is 1" in body["error"]["message"]
        assert await served.value(r"vllm:admission_rejections_total.*") == 1
        assert {(await first)[0], (await second)[0]} == {200}


# -- life --------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_takes_its_request_with_it():
    async with engine() as served:
        async with served.http.post(
            f"{served.url}/v1/completions",
            json={"model": "chat", "prompt": [1], "max_tokens": 3000, "ignore_eos": True, "stream": True},
        ) as response:
            await response.content.readline()
            assert await served.value("vllm:num_requests_running.*") == 1
            response.close()
        await served.until("vllm:num_requests_running.*", 0)
        assert await served.value(r'vllm:request_success_total\{.*finished_reason="abort".*') == 1
        assert await served.value("vllm:kv_cache_usage_perc.*") == 0


async def test_a_client_that_leaves_the_queue_is_forgotten_too():
    async with engine(max_num_seqs=1) as served:
        first = asyncio.create_task(served.post(prompt=[1], max_tokens=80, ignore_eos=True))
        await served.until("vllm:num_requests_running.*", 1)
        second = asyncio.create_task(served.post(prompt=[1], max_tokens=80, ignore_eos=True))
        await served.until("vllm:num_requests_waiting{.*", 1)
        second.cancel()
        await served.until("vllm:num_requests_waiting{.*", 0)
        assert (await first)[0] == 200


async def test_draining_finishes_what_runs_and_takes_nothing_new():
    async with engine() as served:
        running = asyncio.create_task(served.post(prompt=[1], max_tokens=40, ignore_eos=True))
        await served.until("vllm:num_requests_running.*", 1)
        drained = asyncio.create_task(served.server.drain(5))
        await asyncio.sleep(0)
        status, _ = await served.post(prompt=[1], max_tokens=2)
        assert status == 503
        async with served.http.get(f"{served.url}/health") as health:
            assert health.status == 503
        assert (await running)[0] == 200
        assert await drained == 0


async def test_draining_ends_with_the_grace_and_says_what_was_cut():
    async with engine() as served:
        running = asyncio.create_task(served.post(prompt=[1], max_tokens=3000, ignore_eos=True))
        await served.until("vllm:num_requests_running.*", 1)
        assert await served.server.drain(0.05) == 1
        running.cancel()


async def test_the_other_endpoints_answer_as_vllm_does():
    async with engine() as served:
        async with served.http.get(f"{served.url}/health") as health:
            assert health.status == 200
        async with served.http.get(f"{served.url}/version") as version:
            assert re.fullmatch(r"\d+\.\d+\.\d+", (await version.json())["version"])
        async with served.http.get(f"{served.url}/v1/models") as models:
            listed = (await models.json())["data"]
    assert [model["id"] for model in listed] == ["chat", "alias"]
    assert {model["max_model_len"] for model in listed} == {4000}


# -- metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "text/plain;version=0.0.4",
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1",
        "application/openmetrics-text; version=1.0.0; escaping=underscores",
    ],
)
async def test_metrics_are_plain_text_with_colons_whatever_is_asked_for(path, accept):
    async with engine() as served, served.http.get(f"{served.url}{path}", headers={"Accept": accept}) as response:
        text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "\nvllm:num_requests_running{" in text
    assert "vllm_" not in text


async def test_metrics_count_what_was_served():
    async with engine() as served:
        await served.post(prompt=[1] * 100, max_tokens=5, ignore_eos=True)
        await served.events(prompt=[1] * 100, max_tokens=5, ignore_eos=True)
        tail = r"\{[^}]*\}"
        assert await served.value(f"vllm:prompt_tokens_total{tail}") == 200
        assert await served.value(f"vllm:generation_tokens_total{tail}") == 10
        assert await served.value(f"vllm:time_to_first_token_seconds_count{tail}") == 2
        assert await served.value(f"vllm:inter_token_latency_seconds_count{tail}") == 8
        assert await served.value(f"vllm:e2e_request_latency_seconds_count{tail}") == 2
        assert await served.value(f"vllm:iteration_tokens_total_sum{tail}") == 208
        assert await served.value(f"flyball_sim_request_seconds_total{tail}") > 0.05
        lag = await served.value(f"flyball_sim_request_lag_seconds_total{tail}")
        assert 0 <= lag < 1


# -- GPUs --------------------------------------------------------------------------------------------------


async def test_a_lower_clock_slows_the_engine_as_it_serves():
    gpus = RecordingGpus()
    sums = [0.0]
    async with engine(gpus) as served:
        for mhz in (1980.0, 345.0):
            gpus.mhz = mhz
            await served.post(prompt=[1] * 2000, max_tokens=2, ignore_eos=True)
            sums.append(await served.value("vllm:e2e_request_latency_seconds_sum.*"))
    full, low = sums[1] - sums[0], sums[2] - sums[1]
    assert full < 0.06
    assert low > 3 * full


async def test_load_is_written_while_serving_and_falls_to_zero_after():
    gpus = RecordingGpus()
    async with engine(gpus) as served:
        await served.post(prompt=[1] * 100, max_tokens=40, ignore_eos=True)
        await gpus.until(lambda loads: len(loads) > 3 and loads[-1].busy == 0)
    assert max(load.busy for load in gpus.loads) > 0.5
    assert max(load.memory_use for load in gpus.loads) > 0.3


async def test_an_idle_engine_keeps_saying_that_it_lives():
    gpus = RecordingGpus()
    async with engine(gpus):
        await gpus.until(lambda loads: len(loads) >= 3)
    assert {load.busy for load in gpus.loads} == {0.0}


async def test_an_engine_that_ends_takes_its_load_away():
    gpus = RecordingGpus()
    async with engine(gpus) as served:
        running = asyncio.create_task(served.post(prompt=[1], max_tokens=3000, ignore_eos=True))
        await served.until("vllm:num_requests_running.*", 1)
        running.cancel()
    assert gpus.loads[-1] == LoadSample(0.0, 0.0, 0.0)
