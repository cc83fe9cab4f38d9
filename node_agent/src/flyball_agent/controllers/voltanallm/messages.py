"""What EcoFreq is told of an engine: one message for each step it launches, and what arrives at it.

The authors patch their engine to push a message at every step. Here it is read off: from the board of an engine that
has one, else from the page.

* Board: a new message whenever the engine has done a step since the last look, or works again after a pause. A request
  counts as left in the queue only if it was there at the last look and a step has begun since: who came while a step
  ran has not been left out of anything.
* Page: every look is a message. Running sequences and the queue are the page's. KV tokens are the share of the cache in
  use times its tokens, which counts half a block too many for each sequence; in prefill they stand for the prompts in
  the batch. How long those waited is not known and taken as nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import takewhile

from flyball_agent.controllers.base import Board, RequestView
from flyball_agent.scanner import EngineSample


@dataclass(frozen=True, slots=True)
class Message:
    """A step as it was launched.

    Attributes:
        decodes: sequences that get a token.
        kv_tokens: that they hold.
        prompt_tokens: that the running prompts have still to compute, cached ones not counted.
        waiting: requests left in the queue.
        waited_seconds: the longest that one of those prompts had waited before.
    """

    decodes: int
    kv_tokens: float
    prompt_tokens: float
    waiting: int
    waited_seconds: float


class BoardReader:
    """Reads messages and arrivals off boards."""

    def __init__(self) -> None:
        self._looked: float | None = None
        self._iteration = -1
        self._was_busy = False

    def read(self, board: Board, now_seconds: float) -> tuple[Message | None, list[RequestView]]:
        """The message of a step since the last look, if there was one, and what came since then."""
        looked, self._looked = self._looked, now_seconds
        gap = 0.0 if looked is None else now_seconds - looked
        if self._was_busy and board.iteration == self._iteration:
            # No step has begun, so whoever came since is at the end of the queue.
            came = takewhile(lambda request: request.age_seconds < gap, reversed(board.requests))
            return None, list(came)
        stepped = board.iteration != self._iteration
        decodes = kv_tokens = prompts = left = 0
        waited = 0.0
        arrived: list[RequestView] = []
        for request in board.requests:
            age = request.age_seconds
            if age < gap:
                arrived.append(request)
            if not request.running:
                left += stepped and looked is not None and age >= gap
                continue
            prompt = request.prompt_tokens
            missing = prompt - request.computed_tokens
            if missing > 1:
                prompts += missing
                if request.scheduled_age_seconds is not None:
                    waited = max(waited, age - request.scheduled_age_seconds)
            else:
                decodes += 1
                kv_tokens += prompt + request.generated_tokens - 1
        busy = decodes > 0 or prompts > 0
        self._iteration, self._was_busy = board.iteration, busy
        return (Message(decodes, kv_tokens, prompts, left, waited) if busy or left else None), arrived


def read_page(page: EngineSample, kv_capacity_tokens: float) -> Message | None:
    """The message that a page stands for; None where the engine has no work."""
    values = page.values
    running, waiting = round(values["requests_running"]), round(values["requests_waiting"])
    if not running and not waiting:
        return None
    held = values["kv_cache_usage"] * kv_capacity_tokens
    return Message(running, held, held, waiting, 0.0)


class Arrivals:
    """Requests and prompt tokens of the last seconds.

    Args:
        seconds: length of the window.
    """

    def __init__(self, seconds: float) -> None:
        self._length = seconds
        self._came: deque[tuple[float, float, float]] = deque()
        self._requests = self._tokens = 0.0

    def add(self, now_seconds: float, requests: float, tokens: float) -> None:
        """These came since the last call."""
        if requests or tokens:
            self._came.append((now_seconds, requests, tokens))
            self._requests += requests
            self._tokens += tokens
        while self._came and self._came[0][0] <= now_seconds - self._length:
            _, requests, tokens = self._came.popleft()
            self._requests -= requests
            self._tokens -= tokens

    @property
    def requests_per_second(self) -> float:
        """Over the whole window, as the code divides."""
        return self._requests / self._length

    @property
    def tokens_per_second(self) -> float:
        """Likewise."""
        return self._tokens / self._length


class PageCounters:
    """What arrived, from two pages: prompts are counted once they are computed.

    A counter that went back is one of an engine that restarted: what it shows since then came.
    """

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def since(self, page: EngineSample) -> tuple[float, float]:
        """Requests and prompt tokens since the last page; nothing at the first one."""
        first = page.histograms.get("time_to_first_token")
        now = (0.0 if first is None else first.count, page.values.get("prompt_tokens", 0.0))
        before, self._before = self._before, now
        if before is None:
            return 0.0, 0.0
        requests, tokens = (new - old if new >= old else new for new, old in zip(now, before, strict=True))
        return requests, tokens
