"""Reads the few families Flyball needs from a vLLM metrics page.

Why not prometheus_client's parser: it builds an object per sample, and eight engines at 2 Hz would cost 11 % of a
core. This scanner looks at the lines of the wanted families only, and remembers what each series' name and labels
mean, so that a page costs one search and a number per line.

Names: docs of vLLM 0.33, with the older names that stood for the same (DESIGN's `inference-metrics`). Colons in names
are lost when a scraper negotiates OpenMetrics, so `vllm:` and `vllm_` are the same here. Series of several engines
(data-parallel ranks) or models are added up; a share (KV cache) is the highest of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["gauge", "share", "counter", "histogram"]

FAMILIES: Final[Mapping[str, tuple[Kind, tuple[str, ...]]]] = {
    "requests_running": ("gauge", ("num_requests_running",)),
    "requests_waiting": ("gauge", ("num_requests_waiting",)),
    "kv_cache_usage": ("share", ("kv_cache_usage_perc", "gpu_cache_usage_perc")),
    "prompt_tokens": ("counter", ("prompt_tokens_total",)),
    "generation_tokens": ("counter", ("generation_tokens_total",)),
    "time_to_first_token": ("histogram", ("time_to_first_token_seconds",)),
    "inter_token_latency": ("histogram", ("inter_token_latency_seconds", "time_per_output_token_seconds")),
    "end_to_end": ("histogram", ("e2e_request_latency_seconds",)),
    "time_per_output_token": ("histogram", ("request_time_per_output_token_seconds",)),
    "iteration_tokens": ("histogram", ("iteration_tokens_total",)),
    "prefix_cache_queries": ("counter", ("prefix_cache_queries_total", "gpu_prefix_cache_queries_total")),
    "prefix_cache_hits": ("counter", ("prefix_cache_hits_total", "gpu_prefix_cache_hits_total")),
    "preemptions": ("counter", ("num_preemptions_total",)),
}
"""What is read: our name, its kind, and the metric's names without prefix, the present one first."""

METRIC_NAMES: Final[Mapping[str, str]] = {name: f"vllm:{spellings[0]}" for name, (_, spellings) in FAMILIES.items()}
"""For sentences: what a family is called on the page."""

_MAX_SERIES: Final = 4096
_MAX_KEPT_BYTES: Final = 1024
"""Of a series' name and labels: longer ones are understood anew on each page, and not remembered."""
_MAX_VALUE: Final = 2.0**63
"""No count is higher. One infinity, NaN or overflow added to a cumulative counter would stay in it for ever, and the
API server refuses a status that holds one: no grant of the whole node would be acknowledged any more."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """A cumulative histogram, added up over its series.

    Attributes:
        bounds: upper bounds in seconds, ascending, the last one infinite.
        counts: observations at most as large as each bound.
        total: sum of the observations in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def count(self) -> float:
        """All observations."""
        return self.counts[-1] if self.counts else 0.0


@dataclass(frozen=True, slots=True)
class EngineSample:
    """One page, by our names.

    Attributes:
        values: gauges, shares and counters.
        histograms: latencies.
        missing: families that the page does not have.
        model: what the engine says it serves; empty: it does not say, or serves several.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    model: str = ""


@dataclass(slots=True)
class _Draft:
    """A family while its page is read."""

    value: float = 0.0
    total: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)


_Series = tuple[str, str, float]
"""(spelling, part, upper bound): part is "" for a plain value, else bucket, sum or count."""

_SPELLINGS: Final = {spelling: name for name, (_, spellings) in FAMILIES.items() for spelling in spellings}
# A literal start lets the search skip everything else at memchr's speed; `^` with MULTILINE would not.
_LINE: Final = re.compile(
    rb"\nvllm[:_]((?:"
    + b"|".join(re.escape(spelling.encode()) for spelling in sorted(_SPELLINGS, key=len, reverse=True))
    + rb')(?:_bucket|_sum|_count)?(?:[ \t]*\{(?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*\})?)[ \t]+(\S+)'
)
_LE: Final = re.compile(rb'[{,]\s*le="([^"]*)"')
_MODEL: Final = re.compile(rb'[{,]\s*model_name="([^"\\]{1,256})"')
_PARTS: Final = ("_bucket", "_sum", "_count")


class PageScanner:
    """Reads pages of one engine; what its series mean is remembered between pages."""

    def __init__(self) -> None:
        self._series: dict[bytes, _Series | None] = {}
        self._models: set[str] = set()

    def scan(self, page: bytes) -> EngineSample:
        """One page in Prometheus' text format.

        Raises:
            ValueError: a number on it is none, or is not finite, negative or too high; the message names the line.
        """
        drafts: dict[str, _Draft] = {}
        for series, number in _LINE.findall(b"\n" + page):
            meaning = self._meaning(series)
            if meaning is None:
                continue
            spelling, part, bound = meaning
            try:
                value = float(number)
            except ValueError as error:
                raise ValueError(_wrong(series, number)) from error
            if not 0.0 <= value <= _MAX_VALUE:
                raise ValueError(f"{_wrong(series, number)}: give one from 0 to 2^63")
            draft = drafts.setdefault(spelling, _Draft())
            if part == "_bucket":
                draft.buckets[bound] = draft.buckets.get(bound, 0.0) + value
            elif part == "_sum":
                draft.total += value
            elif _SPELLINGS[spelling] == "kv_cache_usage":
                draft.value = max(draft.value, value)
            elif not part:
                draft.value += value
        return _assemble(drafts, next(iter(self._models)) if len(self._models) == 1 else "")

    def _meaning(self, series: bytes) -> _Series | None:
        known = self._series.get(series, ...)
        if known is not ...:
            return known
        if len(self._series) >= _MAX_SERIES:
            self._series.clear()
            self._models.clear()
        meaning = _understand(series)
        # More than one is said to be none: two are enough to know.
        if meaning is not None and len(self._models) < 2 and (model := _MODEL.search(series)):
            self._models.add(model[1].decode(errors="replace"))
        if len(series) <= _MAX_KEPT_BYTES:
            self._series[series] = meaning
        return meaning


def _wrong(series: bytes, number: bytes) -> str:
    return f"metric {series[:160].decode(errors='replace')} has the value {number[:40]!r}"


def _understand(series: bytes) -> _Series | None:
    """What a series' name and labels mean; None when it is of no use."""
    name = series.partition(b"{")[0].strip().decode()
    part = next((part for part in _PARTS if name.endswith(part) and name not in _SPELLINGS), "")
    spelling = name.removesuffix(part)
    kind = FAMILIES[_SPELLINGS[spelling]][0]
    if (kind == "histogram") != bool(part):
        return None
    if part != "_bucket":
        return spelling, part, 0.0
    bound = _LE.search(series)
    if bound is None:
        return None
    try:
        seconds = float(bound[1])
    except ValueError:
        return None
    return (spelling, part, seconds) if seconds >= 0.0 else None


def _assemble(drafts: Mapping[str, _Draft], model: str) -> EngineSample:
    values: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    missing = []
    for name, (kind, spellings) in FAMILIES.items():
        draft = next((drafts[spelling] for spelling in spellings if spelling in drafts), None)
        if draft is None or (kind == "histogram" and not draft.buckets):
            missing.append(name)
        elif kind == "histogram":
            bounds = tuple(sorted(draft.buckets))
            histograms[name] = Histogram(bounds, tuple(draft.buckets[bound] for bound in bounds), draft.total)
        else:
            values[name] = draft.value
    return EngineSample(values, histograms, tuple(missing), model)


def within(histogram: Histogram, threshold_seconds: float) -> tuple[float, bool]:
    """How many observations were at most as large as the threshold.

    Returns:
        (count, interpolated): exact where the threshold is a bucket's edge, else linear within the bucket it falls
        into. In the last, unbounded bucket nothing is known: those count as beyond.
    """
    below_bound, below = 0.0, 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        if bound == threshold_seconds:
            return count, False
        if bound > threshold_seconds:
            if bound == float("inf"):
                return below, True
            share = (threshold_seconds - below_bound) / (bound - below_bound)
            return below + (count - below) * share, True
        below_bound, below = bound, count
    return below, True
