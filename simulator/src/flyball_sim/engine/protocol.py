"""OpenAI's completion bodies: what of them the engine reads, the answers it gives, and errors in vLLM's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flyball_agent.controllers.base import Board

CHARACTERS_PER_TOKEN = 4
"""Rough length of an English token: text has no tokenizer here, token-id prompts are counted exactly."""
CHAT_TOKENS_PER_MESSAGE = 4
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default `max_tokens` of /v1/completions."""
SIMULATED_WORD = " tok"
"""What every simulated token reads."""


class BadRequestError(ValueError):
    """A body the API refuses: HTTP status, and the field at fault (`param`) where there is one."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, kind: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.kind = kind


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """The part of a /v1/completions or /v1/chat/completions body that shapes the answer."""

    chat: bool
    model: str
    prompt_tokens: int
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    stream: bool
    include_usage: bool


def error_body(message: str, *, kind: str, status: int, param: str | None = None) -> dict[str, Any]:
    """The error envelope of vLLM."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def _text_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(body: Mapping[str, Any], field: str, default: int | None, lowest: int) -> int | None:
    value = body.get(field)
    if value is None:
        return default
    if not _is_count(value):
        raise BadRequestError(f"{field} is {json.dumps(value)}: it must be an integer", field)
    if value < lowest:
        raise BadRequestError(f"{field} must be at least {lowest}, got {value}.", field)
    number: int = value
    return number


def _boolean(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadRequestError(f"{field} is {json.dumps(value)}: it must be true or false", field)
    return value


def _prompt_tokens(prompt: Any) -> int:
    """Length of a `prompt`: a string, a list of token ids, or a list of exactly one of those."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return _text_tokens(prompt)
    if isinstance(prompt, list) and prompt:
        # thousands of ids per request, so at the speed of C; bool is a type of its own here
        if set(map(type, prompt)) == {int} and min(prompt) >= 0:
            return len(prompt)
        raise BadRequestError("prompt mixes token ids with something else: give one prompt, as text or ids", "prompt")
    raise BadRequestError("prompt must be a string or a list of token ids, and not empty", "prompt")


def _chat_tokens(messages: Any) -> int:
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a list of at least one message", "messages")
    tokens = 0
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequestError(f"{place} must be an object with a role", place)
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else None for part in content]
            if not all(isinstance(part, str) for part in parts):
                raise BadRequestError(f"{place}.content may have parts of type text only", f"{place}.content")
            content = "".join(part for part in parts if part)
        if not isinstance(content, str):
            raise BadRequestError(f"{place}.content must be a string or a list of text parts", f"{place}.content")
        tokens += CHAT_TOKENS_PER_MESSAGE + _text_tokens(content)
    return tokens


def parse_completion(raw: bytes, *, chat: bool) -> CompletionRequest:
    """Read a request body; fields that do not change a simulated answer (temperature, stop ...) are ignored.

    Raises:
        BadRequestError: naming the field and what is wrong with it.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    model = body.get("model")
    if not isinstance(model, str):
        raise BadRequestError("model must be a string: GET /v1/models lists them", "model")
    count = body.get("n")
    if count not in {None, 1}:
        raise BadRequestError(f"n is {json.dumps(count)}: the simulated engine gives one answer per request", "n")
    limit_field = "max_completion_tokens" if chat and body.get("max_completion_tokens") is not None else "max_tokens"
    default_tokens = None if chat else DEFAULT_COMPLETION_TOKENS
    max_tokens = _integer(body, limit_field, default_tokens, 1)
    min_tokens = _integer(body, "min_tokens", 0, 0) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise BadRequestError(
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.", "min_tokens"
        )
    stream = _boolean(body, "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", "stream_options")
    if options is not None and not stream:
        raise BadRequestError("Stream options can only be defined when `stream=True`.", "stream_options")
    return CompletionRequest(
        chat=chat,
        model=model,
        prompt_tokens=_chat_tokens(body.get("messages")) if chat else _prompt_tokens(body.get("prompt")),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=_boolean(body, "ignore_eos"),
        stream=stream,
        include_usage=_boolean(options or {}, "include_usage"),
    )


def require_context(request: CompletionRequest, max_model_len: int) -> int:
    """The most tokens the answer may have.

    Raises:
        BadRequestError: prompt and answer together exceed the context length.
    """
    room = max_model_len - request.prompt_tokens
    if room < 1 or (request.max_tokens or 0) > room:
        asked = request.prompt_tokens + (request.max_tokens or 1)
        field = "messages" if request.chat else "prompt"
        raise BadRequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {asked} tokens "
            f"({request.prompt_tokens} in the {field}, {request.max_tokens or 1} in the completion). Please reduce "
            f"the length of the {field} or completion.",
            field if room < 1 else "max_tokens",
        )
    if request.min_tokens > room:
        raise BadRequestError(
            f"min_tokens is {request.min_tokens}, the context has room for {room}: lower it", "min_tokens"
        )
    return room if request.max_tokens is None else request.max_tokens


@dataclass(frozen=True, slots=True)
class LimitsRequest:
    """The body of /flyball/limits.

    Attributes:
        batch_limit: most sequences in the batch; None: the engine's own limit.
        admit: how many of those that wait may still enter the batch; None: all.
        seconds: after these both are lifted if nobody sets them again; None: they stay.
    """

    batch_limit: int | None
    admit: int | None
    seconds: float | None


def parse_limits(raw: bytes, max_batch_limit: int) -> LimitsRequest:
    """Reads the body of /flyball/limits; what it leaves out is not limited.

    Raises:
        BadRequestError: a field is unknown or out of its bounds; the message names it.
    """
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise BadRequestError(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    unknown = sorted(body.keys() - {"batchLimit", "admit", "seconds"})
    if unknown:
        raise BadRequestError(f"field {unknown[0]} is unknown: give batchLimit, admit or seconds", unknown[0])
    batch_limit = _integer(body, "batchLimit", None, 1)
    if batch_limit is not None and batch_limit > max_batch_limit:
        raise BadRequestError(f"batchLimit is {batch_limit}: give 1 to {max_batch_limit}", "batchLimit")
    seconds = body.get("seconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0):
        raise BadRequestError(f"seconds is {json.dumps(seconds)}: give a number above 0", "seconds")
    return LimitsRequest(batch_limit, _integer(body, "admit", None, 0), seconds)


def board_body(board: Board) -> dict[str, Any]:
    """The body of /flyball/board."""
    return {
        "iteration": board.iteration,
        "blockTokens": board.block_tokens,
        "kvBlocks": board.kv_blocks,
        "batchLimit": board.batch_limit,
        "maxBatchLimit": board.max_batch_limit,
        "requests": [
            {
                "id": request.request_id,
                "ageSeconds": request.age_seconds,
                "promptTokens": request.prompt_tokens,
                "generatedTokens": request.generated_tokens,
                "running": request.running,
                "scheduledAgeSeconds": request.scheduled_age_seconds,
                "computedTokens": request.computed_tokens,
                "outputTokens": request.output_tokens,
            }
            for request in board.requests
        ],
    }


class Answer:
    """The bytes of one answer, whole or as server-sent events."""

    def __init__(self, request: CompletionRequest, request_id: str, created: int) -> None:
        self._request = request
        self._kind = "chat.completion" if request.chat else "text_completion"
        self._chunk_kind = "chat.completion.chunk" if request.chat else "text_completion"
        self._head = {"id": request_id, "created": created, "model": request.model}
        # The text of every token is the same, so is its event: made once, written as often as needed.
        self.token_event = self._event([self._choice(SIMULATED_WORD, None, stream=True)])

    def _choice(self, text: str, reason: str | None, *, stream: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        if not self._request.chat:
            choice["text"] = text
        elif stream:
            choice["delta"] = {"role": "assistant", "content": text}
        else:
            choice["message"] = {"role": "assistant", "content": text}
        return choice

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        body: dict[str, Any] = {**self._head, "object": self._chunk_kind, "choices": choices}
        if usage is not None:
            body["usage"] = usage
        return f"data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()

    def _usage(self, output_tokens: int) -> dict[str, int]:
        prompt = self._request.prompt_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + output_tokens, "completion_tokens": output_tokens}

    def last_events(self, output_tokens: int, reason: str) -> bytes:
        """The last token with its finish reason, usage where it was asked for, and `[DONE]`."""
        events = self._event([self._choice(SIMULATED_WORD, reason, stream=True)])
        if self._request.include_usage:
            events += self._event([], self._usage(output_tokens))
        return events + b"data: [DONE]\n\n"

    def whole(self, output_tokens: int, reason: str) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice = self._choice(SIMULATED_WORD * output_tokens, reason, stream=False)
        return {**self._head, "object": self._kind, "choices": [choice], "usage": self._usage(output_tokens)}
