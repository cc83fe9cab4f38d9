"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class EngineRefusalError(ValueError):
    """A request this engine will never run; the message says which bound it breaks."""


class QueueFullError(RuntimeError):
    """The engine's queue is at its limit: overload, not a fault of the request."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """vLLM's knobs of the same names; `max_num_queued_reqs` bounds the requests waiting to be scheduled.

    Without `chunked_prefill`, whole prompts are computed in steps of their own, as many as fit
    `max_num_batched_tokens` and at least one, and decodes wait for them.
    """

    max_model_len: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_num_queued_reqs: int = 1024
    chunked_prefill: bool = True


class EngineRequest(NamedTuple):
    """A prompt of `prompt_tokens` that is answered with exactly `output_tokens` tokens.

    `cached_tokens` of the prompt need no prefill: a prefix that is in the cache, or keys and values that came from
    a prefill engine. They take KV blocks all the same.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


class RequestTiming(NamedTuple):
    """When a finished request came, was first scheduled, gave its first and its last token (engine seconds)."""

    prompt_tokens: int
    output_tokens: int
    arrival_seconds: float
    scheduled_seconds: float
    first_token_seconds: float
    finished_seconds: float
    request_id: str = ""


class TokenEvent(NamedTuple):
    """A request's first or last output token. `number` counts from 1; `finished` is set on the last."""

    request_id: str
    seconds: float
    number: int
    finished: RequestTiming | None


@dataclass(frozen=True, slots=True)
class LoadSample:
    """Use of each GPU of the group, averaged over the time since the last sample; shares of 1.

    `memory_use` is of peak bandwidth. `compute_use` is of the dense peak at the clock the work ran at: the power
    fits hold one exponent for clock and voltage together, so the clock must not be in the activity a second time.
    """

    memory_use: float
    compute_use: float
    busy: float
