"""vLLM's `/metrics`, name for name, plus the engine's own lag under the prefix `flyball_sim_`.

Names, labels, types and buckets are those of vLLM 0.33 (`vllm/v1/metrics/loggers.py`), `_total` and `_created`
included, written as `text/plain; version=0.0.4` whatever the scraper asks for: vLLM's own route does so too, and
an OpenMetrics answer would lose the colons.

The text is written here and not by prometheus_client because two dozen engines share a machine with everything
else: a scrape of these families costs prometheus_client several milliseconds, this writer a tenth of that, for the
names and labels never change and only numbers have to be formatted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from flyball_sim.engine.models import BLOCK_TOKENS, GPU_MEMORY_UTILIZATION
from flyball_sim.engine.requests import RequestTiming
from flyball_sim.engine.tallies import (
    ITL_BUCKETS,
    REQUEST_BUCKETS,
    STEP_BUCKETS,
    TTFT_BUCKETS,
    EngineCounts,
    Tally,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

CHOICE_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

COUNTERS: Mapping[str, tuple[str, tuple[Mapping[str, str], ...]]] = MappingProxyType(
    {
        "vllm:prefix_cache_queries": ("Prefix cache queries, in terms of number of queried tokens.", ({},)),
        "vllm:prefix_cache_hits": ("Prefix cache hits, in terms of number of cached tokens.", ({},)),
        "vllm:external_prefix_cache_queries": ("External prefix cache queries, in tokens.", ({},)),
        "vllm:external_prefix_cache_hits": ("External prefix cache hits, in tokens.", ({},)),
        "vllm:num_preemptions": ("Cumulative number of preemption from the engine.", ({},)),
        "vllm:prompt_tokens": ("Number of prefill tokens processed.", ({},)),
        "vllm:prompt_tokens_by_source": (
            "Number of prompt tokens by source.",
            tuple({"source": source} for source in ("local_compute", "local_cache_hit", "external_kv_transfer")),
        ),
        "vllm:prompt_tokens_cached": ("Number of cached prompt tokens (local + external).", ({},)),
        "vllm:generation_tokens": ("Number of generation tokens processed.", ({},)),
        "vllm:request_success": (
            "Count of successfully processed requests.",
            tuple({"finished_reason": reason} for reason in ("stop", "length", "abort", "error")),
        ),
        "vllm:admission_rejections": (
            "Requests rejected before admission.",
            tuple({"reason": reason} for reason in ("max_num_queued_reqs", "max_num_queued_tokens")),
        ),
    }
)
GAUGES: Mapping[str, tuple[str, tuple[Mapping[str, str], ...]]] = MappingProxyType(
    {
        "vllm:num_requests_running": ("Number of requests in model execution batches.", ({},)),
        "vllm:num_requests_waiting": ("Number of requests waiting to be processed.", ({},)),
        "vllm:num_requests_waiting_by_reason": (
            "Number of requests waiting to be processed, by reason.",
            ({"reason": "capacity"}, {"reason": "deferred"}),
        ),
        "vllm:kv_cache_usage_perc": ("KV-cache usage. 1 means 100 percent usage.", ({},)),
        "vllm:engine_sleep_state": (
            "Engine sleep state: 1 on the present one (weights_offloaded is sleep level 1, discard_all level 2).",
            tuple({"sleep_state": state} for state in ("awake", "weights_offloaded", "discard_all")),
        ),
    }
)
SIM_COUNTERS: Mapping[str, str] = MappingProxyType(
    {
        "flyball_sim_engine_steps": "Engine steps finished.",
        "flyball_sim_engine_busy_seconds": "Seconds of the engine's own clock with a step under way.",
        "flyball_sim_wakeup_lag_seconds": "Seconds a step had ended by the engine's clock before the engine saw it.",
        "flyball_sim_request_seconds": "End-to-end seconds of finished requests by the engine's clock.",
        "flyball_sim_request_lag_seconds": "Of each finished request, how late its latest token was written.",
    }
)
SIM_GAUGES: Mapping[str, str] = MappingProxyType(
    {
        "flyball_sim_engine_sm_mhz": "SM clock the engine computes its steps with.",
    }
)


def one_two_five_buckets(highest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20 ... up to and including the last that is at most `highest` (vLLM's token buckets)."""
    buckets: list[float] = []
    power = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * power > highest:
                return tuple(buckets)
            buckets.append(float(mantissa * power))
        power *= 10


def histogram_families(max_model_len: int) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Help text and bucket edges of every histogram of an engine with this context length."""
    tokens = one_two_five_buckets(max_model_len)
    return {
        "vllm:request_prompt_tokens": ("Number of prefill tokens processed.", tokens),
        "vllm:request_generation_tokens": ("Number of generation tokens processed.", tokens),
        "vllm:iteration_tokens_total": ("Histogram of number of tokens per engine_step.", STEP_BUCKETS),
        "vllm:request_max_num_generation_tokens": (
            "Histogram of maximum number of requested generation tokens.",
            tokens,
        ),
        "vllm:request_params_n": ("Histogram of the n request parameter.", CHOICE_BUCKETS),
        "vllm:request_params_max_tokens": ("Histogram of the max_tokens request parameter.", tokens),
        "vllm:request_prefill_kv_computed_tokens": (
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            tokens,
        ),
        "vllm:time_to_first_token_seconds": ("Histogram of time to first token in seconds.", TTFT_BUCKETS),
        "vllm:inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", ITL_BUCKETS),
        "vllm:request_time_per_output_token_seconds": (
            "Histogram of time_per_output_token_seconds per request.",
            ITL_BUCKETS,
        ),
        "vllm:e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", REQUEST_BUCKETS),
        "vllm:request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", REQUEST_BUCKETS),
        "vllm:request_inference_time_seconds": (
            "Histogram of time spent in RUNNING phase for request.",
            REQUEST_BUCKETS,
        ),
        "vllm:request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", REQUEST_BUCKETS),
        "vllm:request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", REQUEST_BUCKETS),
        "flyball_sim_token_lag_seconds": (
            "How long after the engine's own clock a token was written to its client.",
            LAG_BUCKETS,
        ),
    }


@dataclass(frozen=True, slots=True)
class EngineState:
    """The gauges, as the engine has them at the moment of a scrape, and what it has counted by then."""

    running: int
    waiting: int
    kv_usage: float
    preemptions: int
    busy_seconds: float
    sm_mhz: float
    counts: EngineCounts


def _series(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}} "


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class _Histogram:
    """A tally with each line's text ready but for its number."""

    __slots__ = ("_lines", "_sum_line", "_tail", "tally")

    def __init__(self, name: str, edges: tuple[float, ...], labels: Mapping[str, str], created: str) -> None:
        self.tally = Tally(edges)
        bounds = [*(repr(edge) for edge in edges), "+Inf"]
        self._lines = [_series(f"{name}_bucket", {**labels, "le": bound}) for bound in bounds]
        self._lines.append(_series(f"{name}_count", labels))
        self._sum_line = _series(f"{name}_sum", labels)
        self._tail = f"# HELP {name}_created When it was created.\n# TYPE {name}_created gauge\n" + (
            _series(f"{name}_created", labels) + created
        )

    def write(self, out: list[str]) -> None:
        cumulative = self.tally.cumulative()
        out += [f"{line}{total!r}" for line, total in zip(self._lines, (*cumulative, cumulative[-1]), strict=True)]
        out.append(f"{self._sum_line}{float(self.tally.total)!r}")
        out.append(self._tail)


class EngineMetrics:
    """What one engine has counted, and its exposition.

    Args:
        model_name: the served model name, the `model_name` label.
        max_model_len: context length, which sets the token buckets.
        kv_blocks: KV blocks in all, for `vllm:cache_config_info`.
        created_seconds: Unix time of the start, for the `_created` series.
    """

    def __init__(self, model_name: str, *, max_model_len: int, kv_blocks: int, created_seconds: float) -> None:
        labels = {"engine": "0", "model_name": model_name}
        created = repr(created_seconds)
        self._blocks: list[tuple[str, str]] = []  # (head, tail) of each counter or gauge, in the order of _values
        self._values: list[list[float]] = []
        self._lines: list[list[str]] = []
        self._index: dict[str, int] = {}
        for name, (text, variants) in GAUGES.items():
            self._add(name, "gauge", text, [_series(name, {**labels, **more}) for more in variants], "")
        for name, (text, variants) in COUNTERS.items():
            self._add_counter(name, text, [{**labels, **more} for more in variants], created)
        for name, text in SIM_COUNTERS.items():
            self._add_counter(name, text, [labels], created)
        for name, text in SIM_GAUGES.items():
            self._add(name, "gauge", text, [_series(name, labels)], "")
        cache = {
            "block_size": str(BLOCK_TOKENS),
            "cache_dtype": "auto",
            "enable_prefix_caching": "True",
            "engine": "0",
            "gpu_memory_utilization": repr(GPU_MEMORY_UTILIZATION),
            "num_gpu_blocks": str(kv_blocks),
        }
        info = "vllm:cache_config_info"
        self._add(info, "gauge", "Information of the LLMEngine CacheConfig", [_series(info, cache)], "")
        self._set(info, 1.0)
        self._set("vllm:engine_sleep_state", 1.0)
        self._histograms: dict[str, _Histogram] = {}
        self._histogram_heads: list[str] = []
        for name, (text, edges) in histogram_families(max_model_len).items():
            self._histograms[name] = _Histogram(name, edges, labels, created)
            self._histogram_heads.append(f"# HELP {name} {text}\n# TYPE {name} histogram")
        self._lag = self._histograms["flyball_sim_token_lag_seconds"].tally.observe

    def _add(self, name: str, kind: str, text: str, lines: list[str], tail: str) -> None:
        self._index[name] = len(self._values)
        shown = f"{name}_total" if kind == "counter" else name
        self._blocks.append((f"# HELP {shown} {text}\n# TYPE {shown} {kind}", tail))
        self._values.append([0.0] * len(lines))
        self._lines.append(lines)

    def _add_counter(self, name: str, text: str, variants: Sequence[Mapping[str, str]], created: str) -> None:
        tail = [f"# HELP {name}_created {text}", f"# TYPE {name}_created gauge"]
        tail += [_series(f"{name}_created", labels) + created for labels in variants]
        self._add(name, "counter", text, [_series(f"{name}_total", labels) for labels in variants], "\n".join(tail))

    def _set(self, name: str, value: float, variant: int = 0) -> None:
        self._values[self._index[name]][variant] = value

    def _count(self, name: str, amount: float = 1.0, variant: int = 0) -> None:
        self._values[self._index[name]][variant] += amount

    def count_written(self, late_seconds: float) -> None:
        """A token was written to its client this long after the engine's clock said so."""
        self._lag(late_seconds)

    def count_finished(self, timing: RequestTiming, reason: str, max_tokens: int, late_seconds: float) -> None:
        """A request ended; `late_seconds` is how late its latest token was written."""
        decode = timing.finished_seconds - timing.first_token_seconds
        for name, value in (
            ("vllm:request_prompt_tokens", timing.prompt_tokens),
            ("vllm:request_prefill_kv_computed_tokens", timing.prompt_tokens),
            ("vllm:request_generation_tokens", timing.output_tokens),
            ("vllm:request_max_num_generation_tokens", max_tokens),
            ("vllm:request_params_max_tokens", max_tokens),
            ("vllm:request_params_n", 1),
            ("vllm:request_queue_time_seconds", timing.scheduled_seconds - timing.arrival_seconds),
            ("vllm:request_inference_time_seconds", timing.finished_seconds - timing.scheduled_seconds),
            ("vllm:request_prefill_time_seconds", timing.first_token_seconds - timing.scheduled_seconds),
            ("vllm:request_decode_time_seconds", decode),
        ):
            self._histograms[name].tally.observe(value)
        self._count("vllm:request_success", variant=("stop", "length").index(reason))
        self._count("flyball_sim_request_seconds", timing.finished_seconds - timing.arrival_seconds)
        self._count("flyball_sim_request_lag_seconds", late_seconds)

    def count_aborted(self) -> None:
        """A client went away before its answer was complete."""
        self._count("vllm:request_success", variant=2)

    def count_rejected(self) -> None:
        """A request was turned away because the queue was full."""
        self._count("vllm:admission_rejections")

    def count_lag(self, seconds: float) -> None:
        """The engine found out this late that a step had ended."""
        self._count("flyball_sim_wakeup_lag_seconds", seconds)

    def _take(self, counts: EngineCounts) -> None:
        """What the engine counts by itself."""
        computed, cached = counts.prompt_tokens - counts.cached_tokens, counts.cached_tokens
        for name, variant, value in (
            ("vllm:prompt_tokens", 0, counts.prompt_tokens),
            ("vllm:prompt_tokens_by_source", 0, computed),
            ("vllm:prompt_tokens_by_source", 1, cached),
            ("vllm:prompt_tokens_cached", 0, cached),
            ("vllm:prefix_cache_queries", 0, counts.prompt_tokens),
            ("vllm:prefix_cache_hits", 0, cached),
            ("vllm:generation_tokens", 0, counts.generation_tokens),
            ("flyball_sim_engine_steps", 0, counts.steps),
        ):
            self._set(name, value, variant)
        steps = self._histograms["vllm:iteration_tokens_total"].tally
        steps.counts, steps.total = [float(count) for count in counts.step_buckets], counts.step_tokens
        for name, tally in (
            ("vllm:time_to_first_token_seconds", counts.time_to_first),
            ("vllm:inter_token_latency_seconds", counts.inter_token),
            ("vllm:request_time_per_output_token_seconds", counts.time_per_token),
            ("vllm:e2e_request_latency_seconds", counts.end_to_end),
        ):
            self._histograms[name].tally = tally

    def render(self, state: EngineState) -> bytes:
        """The body of a scrape."""
        self._take(state.counts)
        self._set("vllm:num_requests_running", state.running)
        self._set("vllm:num_requests_waiting", state.waiting)
        self._set("vllm:num_requests_waiting_by_reason", state.waiting)
        self._set("vllm:kv_cache_usage_perc", state.kv_usage)
        self._set("vllm:num_preemptions", state.preemptions)
        self._set("flyball_sim_engine_busy_seconds", state.busy_seconds)
        self._set("flyball_sim_engine_sm_mhz", state.sm_mhz)
        out: list[str] = []
        for (head, tail), lines, values in zip(self._blocks, self._lines, self._values, strict=True):
            out.append(head)
            out.extend([f"{line}{float(value)!r}" for line, value in zip(lines, values, strict=True)])
            if tail:
                out.append(tail)
        for head, histogram in zip(self._histogram_heads, self._histograms.values(), strict=True):
            out.append(head)
            histogram.write(out)
        out.append("")
        return "\n".join(out).encode()
