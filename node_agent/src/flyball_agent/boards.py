"""Reads the board of an engine that lets one at its scheduler: JSON from a pod, which may say anything. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from flyball_agent.controllers.base import Board, RequestView

MAX_BOARD_BYTES: Final = 1 << 20
MAX_REQUESTS: Final = 4096
"""Those behind them in the queue are left out: no batch is as large as that."""
_MAX_COUNT: Final = 2**53
_MAX_SECONDS: Final = 1e9
_MAX_ID_LENGTH: Final = 128


def parse_board(body: bytes) -> Board:
    """What `GET /flyball/board` says.

    Raises:
        ValueError: it is too long, no JSON, or a value is missing, of another type or out of its bounds; the message
            names it.
    """
    if len(body) > MAX_BOARD_BYTES:
        raise ValueError(f"the board has {len(body)} bytes: at most {MAX_BOARD_BYTES} are read")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the board is not JSON: {str(error)[:100]}") from error
    if not isinstance(said, dict):
        raise ValueError("the board is no JSON object")
    requests = said.get("requests")
    if not isinstance(requests, list):
        raise ValueError("requests of the board is no list")
    return Board(
        iteration=_count(said, "iteration"),
        requests=tuple([_request(each) for each in requests[:MAX_REQUESTS]]),
        block_tokens=_count(said, "blockTokens", 1),
        kv_blocks=_count(said, "kvBlocks"),
        batch_limit=_count(said, "batchLimit"),
        max_batch_limit=_count(said, "maxBatchLimit", 1),
    )


def _request(said: Any) -> RequestView:
    if not isinstance(said, dict):
        raise ValueError("a request of the board is no JSON object")
    name, running = said.get("id"), said.get("running")
    if not isinstance(name, str) or len(name) > _MAX_ID_LENGTH:
        raise ValueError(f"id of a request is {str(name)[:40]!r}: give a text of at most {_MAX_ID_LENGTH} characters")
    if not isinstance(running, bool):
        raise ValueError(f"running of request {name!r} is {str(running)[:40]!r}: give true or false")
    return RequestView(
        request_id=name,
        age_seconds=_seconds(said, "ageSeconds"),
        prompt_tokens=_count(said, "promptTokens"),
        generated_tokens=_count(said, "generatedTokens"),
        running=running,
        output_tokens=None if said.get("outputTokens") is None else _count(said, "outputTokens"),
        scheduled_age_seconds=None
        if said.get("scheduledAgeSeconds") is None
        else _seconds(said, "scheduledAgeSeconds"),
        computed_tokens=_count(said, "computedTokens") if "computedTokens" in said else 0,
    )


def _count(said: dict[str, Any], name: str, low: int = 0) -> int:
    value = said.get(name)
    if type(value) is not int or not low <= value <= _MAX_COUNT:
        raise ValueError(f"{name} of the board is {str(value)[:40]!r}: give a whole number from {low} to 2^53")
    return value


def _seconds(said: dict[str, Any], name: str) -> float:
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SECONDS:
        raise ValueError(f"{name} of the board is {str(value)[:40]!r}: give seconds from 0 to {_MAX_SECONDS:g}")
    return float(value)
