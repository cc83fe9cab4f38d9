"""The engine that is profiled, over the HTTP API that vLLM and our engines serve."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from flyball_agent.profiling.rig import RigError
from flyball_agent.scanner import EngineSample, PageScanner

_BLOCKS: Final = re.compile(rb'vllm[:_]cache_config_info\{[^}]*num_gpu_blocks="(\d+)"')
_BLOCK_TOKENS: Final = re.compile(rb'vllm[:_]cache_config_info\{[^}]*block_size="(\d+)"')
_JSON: Final = {"Content-Type": "application/json"}
_HEADERS: Final = {"Accept": "text/plain;version=0.0.4"}
_TOKEN_IDS: Final = (1000, 30_000)
"""Ids that every model's vocabulary has, none of them special."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself; 0: it does not.

    Attributes:
        model: as it is served.
        version: of the engine.
        max_model_len: most tokens of a sequence.
        kv_blocks: of the KV cache.
        block_tokens: of a block.
    """

    model: str
    version: str
    max_model_len: int
    kv_blocks: int
    block_tokens: int


class EngineApi:
    """One engine.

    Args:
        session: HTTP client without a bound on connections.
        url: of the engine, without path.
        seed: of prompts.
        clock: monotonic seconds.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, *, seed: int, clock: Callable[[], float]) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._rng = random.Random(seed)  # noqa: S311 - prompts, no secrets
        self._clock = clock
        self._scanner = PageScanner()
        self._model = ""

    async def facts(self) -> EngineFacts:
        """Ask the engine what it is.

        Raises:
            RigError: it does not answer as vLLM does.
        """
        models = await self._json("/v1/models")
        try:
            card = models["data"][0]
            self._model = str(card["id"])
            longest = int(card.get("max_model_len") or 0)
            version = str((await self._json("/version"))["version"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RigError(
                f"engine {self._url} does not list its model and version as vLLM does ({error}): give the URL of a vLLM"
            ) from error
        page = await self._get("/metrics")
        blocks, tokens = _BLOCKS.search(page), _BLOCK_TOKENS.search(page)
        return EngineFacts(
            self._model,
            version,
            longest,
            int(blocks[1]) if blocks else 0,
            int(tokens[1]) if tokens else 16,
        )

    async def page(self) -> EngineSample:
        """Its metrics now.

        Raises:
            RigError: they cannot be read.
        """
        try:
            return self._scanner.scan(await self._get("/metrics"))
        except ValueError as error:
            raise RigError(f"engine {self._url}/metrics: {error}") from error

    async def complete(self, prompt_tokens: int, output_tokens: int) -> float:
        """Have exactly so many tokens generated, from a prompt that no cache knows; how many seconds it took.

        Raises:
            RigError: it was refused.
        """
        body = self._body(prompt_tokens, output_tokens)
        began = self._clock()
        try:
            async with self._session.post(f"{self._url}/v1/completions", data=body, headers=_JSON) as response:
                text = await response.text()
        except (aiohttp.ClientError, OSError) as error:
            raise RigError(f"engine {self._url} broke off a request ({error}): see its log") from error
        if response.status != 200:
            raise RigError(f"engine {self._url} answered {response.status} to a request: {text[:200]}")
        return self._clock() - began

    def _body(self, prompt_tokens: int, output_tokens: int) -> bytes:
        """As text at once: hundreds of long prompts as numbers would take tens of megabytes of the agent's pod."""
        low, high = _TOKEN_IDS
        prompt = [self._rng.randrange(low, high) for _ in range(prompt_tokens)]
        asked = {"model": self._model, "max_tokens": output_tokens, "ignore_eos": True, "temperature": 0}
        return json.dumps({**asked, "prompt": prompt}, separators=(",", ":")).encode()

    async def _json(self, path: str) -> Any:
        try:
            async with self._session.get(self._url + path) as response:
                return await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RigError(f"engine {self._url}{path} cannot be read ({error}): give the URL of a vLLM") from error

    async def _get(self, path: str) -> bytes:
        try:
            async with self._session.get(self._url + path, headers=_HEADERS) as response:
                page = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise RigError(f"engine {self._url}{path} cannot be read ({error}): see its log") from error
        if response.status != 200:
            raise RigError(f"engine {self._url}{path} answered {response.status}: give the URL of a vLLM")
        return page
