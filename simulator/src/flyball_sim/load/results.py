"""What a replay saw, request by request, and its summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request as its client saw it. Times in seconds; latencies count from when it was really sent.

    `late_seconds` is how long after its arrival in the trace it was sent: the client's own fault. A request that
    failed carries `error`, and whatever it had seen until then.
    """

    arrival_seconds: float
    late_seconds: float
    endpoint: str | None
    prompt_tokens: int
    asked_tokens: int
    tokens: int = 0
    ttft_seconds: float | None = None
    itl_mean_seconds: float | None = None  # time per output token after the first; None below two tokens
    e2e_seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A whole replay.

    `started_unix_seconds` is when arrival 0 was. `duration_seconds` lasts to the last answer. `endpoint_errors`
    counts failures to find out which endpoints are ready.
    """

    requests: tuple[RequestResult, ...]
    started_unix_seconds: float
    duration_seconds: float
    endpoint_errors: int = 0


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds a request must hold, all of them, to count; None: no bound."""

    ttft_seconds: float | None = None
    itl_seconds: float | None = None

    def holds_ttft(self, request: RequestResult) -> bool:
        """Whether the first token came in time."""
        if request.error is not None or request.ttft_seconds is None:
            return False
        return self.ttft_seconds is None or request.ttft_seconds <= self.ttft_seconds

    def holds_itl(self, request: RequestResult) -> bool:
        """Whether the mean time per output token was short enough; an answer of one token has none."""
        if request.error is not None:
            return False
        if self.itl_seconds is None or request.itl_mean_seconds is None:
            return True
        return request.itl_mean_seconds <= self.itl_seconds


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, percentiles (by percent) and maximum of one quantity over the requests that have it."""

    count: int
    mean: float
    percentiles: dict[int, float]
    highest: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A replay in numbers. Attainments are shares of all requests: one that failed missed. Times in seconds."""

    requests: int
    succeeded: int
    errors: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    duration_seconds: float
    output_tokens_per_second: float
    ttft: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    late: Distribution | None
    ttft_attainment: float
    itl_attainment: float
    slo_attainment: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of values in ascending order, interpolated between neighbours.

    Raises:
        ValueError: there is no value.
    """
    if not ordered:
        raise ValueError("no value to take a percentile of")
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def distribution(values: Sequence[float]) -> Distribution | None:
    """The distribution of some values; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return Distribution(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        percentiles={percent: percentile(ordered, percent) for percent in PERCENTILES},
        highest=ordered[-1],
    )


def error_kind(error: str) -> str:
    """What errors are counted by: the text before the first colon."""
    return error.split(":", 1)[0]


def summarise(result: LoadResult, slo: Slo) -> Summary:
    """Sum up a replay against service-level objectives."""
    requests = result.requests
    good = [request for request in requests if request.error is None]
    tokens = sum(request.tokens for request in requests)

    def of(values: Sequence[float | None]) -> Distribution | None:
        return distribution([value for value in values if value is not None])

    def share(holds: Callable[[RequestResult], bool]) -> float:
        return sum(map(holds, requests)) / len(requests) if requests else 0.0

    return Summary(
        requests=len(requests),
        succeeded=len(good),
        errors=dict(Counter(error_kind(request.error) for request in requests if request.error is not None)),
        prompt_tokens=sum(request.prompt_tokens for request in good),
        output_tokens=tokens,
        duration_seconds=result.duration_seconds,
        output_tokens_per_second=tokens / result.duration_seconds if result.duration_seconds > 0 else 0.0,
        ttft=of([request.ttft_seconds for request in good]),
        itl=of([request.itl_mean_seconds for request in good]),
        e2e=of([request.e2e_seconds for request in good]),
        late=distribution([request.late_seconds for request in requests]),
        ttft_attainment=share(slo.holds_ttft),
        itl_attainment=share(slo.holds_itl),
        slo_attainment=share(lambda request: slo.holds_ttft(request) and slo.holds_itl(request)),
    )


def to_json(result: LoadResult, slo: Slo, workload: dict[str, Any]) -> dict[str, Any]:
    """The result file: what was replayed, the objectives, the summary, then every request."""
    return {
        "workload": workload,
        "slo": asdict(slo),
        "started_unix_seconds": result.started_unix_seconds,
        "endpoint_errors": result.endpoint_errors,
        "summary": asdict(summarise(result, slo)),
        "requests": [asdict(request) for request in result.requests],
    }
