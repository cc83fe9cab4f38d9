"""Steps of a running vLLM from its `/metrics` pages over time, as a file of pages or from Prometheus.

vLLM counts its steps in `vllm:iteration_tokens_total` (a histogram with one observation a step), so between two
pages the mean step, its batch and its prompt tokens follow from counters; the tokens held are the KV cache's usage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

from flyball_sim.latency.measured import MeasuredError, MeasuredStep

STEPS = "vllm:iteration_tokens_total_count"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
GENERATED_TOKENS = "vllm:generation_tokens_total"
RUNNING = "vllm:num_requests_running"
KV_USAGE = "vllm:kv_cache_usage_perc"
WANTED = (STEPS, PROMPT_TOKENS, GENERATED_TOKENS, RUNNING, KV_USAGE)
_OLD_NAMES = {"vllm:gpu_cache_usage_perc": KV_USAGE}
_CACHE = "vllm:cache_config_info"
_MARK = re.compile(r"^# scraped_at ([0-9.]+)$")
_LARGEST_CHANGE = 0.1
_FEWEST_STEPS = 10


@dataclass(frozen=True, slots=True)
class Page:
    """What one scrape says: values by metric name, summed over the engine's series, and KV tokens if it says so."""

    seconds: float
    values: Mapping[str, float]
    kv_tokens: float | None = None


def _page(seconds: float, text: str, line: int) -> Page:
    values: dict[str, float] = {}
    kv_tokens = None
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = _OLD_NAMES.get(sample.name, sample.name)
                if name in WANTED:
                    values[name] = values.get(name, 0.0) + sample.value
                elif name == _CACHE and sample.labels.get("num_gpu_blocks", "").isdigit():
                    kv_tokens = float(sample.labels["num_gpu_blocks"]) * float(sample.labels["block_size"])
    except (ValueError, KeyError) as error:
        raise MeasuredError(f"the page from line {line} on is no metrics page ({error}): scrape it again") from None
    missing = [name for name in WANTED if name not in values]
    if missing:
        raise MeasuredError(f"the page from line {line} on has no {missing[0]}: scrape a vLLM engine's /metrics")
    return Page(seconds, values, kv_tokens)


def read_pages(text: str) -> list[Page]:
    """The pages of a file in which each begins with a line `# scraped_at SECONDS`.

    Raises:
        MeasuredError: there is no such line, time does not go on, or a page lacks a metric.
    """
    pages: list[Page] = []
    lines: list[str] = []
    began, at = 0, 0.0
    for number, line in enumerate([*text.splitlines(), "# scraped_at 0"], 1):
        mark = _MARK.match(line)
        if mark is None:
            lines.append(line)
            continue
        if began:
            pages.append(_page(at, "\n".join(lines) + "\n", began))
            if len(pages) > 1 and pages[-1].seconds <= pages[-2].seconds:
                raise MeasuredError(f"line {began}: scraped_at {at} is not after the page before: sort the pages")
        began, at, lines = number, float(mark[1]), []
    if not pages:
        raise MeasuredError("line 1: there is no page: begin each with a line '# scraped_at SECONDS'")
    return pages


def steps_of(pages: Sequence[Page], kv_tokens: float | None) -> list[MeasuredStep]:
    """The mean step between pages whose batch is about the same at both; a restart in between is left out.

    Args:
        pages: in order of time.
        kv_tokens: tokens the KV cache holds, where the pages do not say so.

    Raises:
        MeasuredError: the pages do not say how many tokens the KV cache holds, or no pair of them is of use.
    """
    known = next((page.kv_tokens for page in pages if page.kv_tokens), kv_tokens)
    if known is None:
        raise MeasuredError("the pages do not say how many tokens the KV cache holds: give --kv-tokens")
    steps = []
    for before, after in pairwise(pages):
        gained = {name: after.values[name] - before.values[name] for name in (STEPS, PROMPT_TOKENS, GENERATED_TOKENS)}
        running = before.values[RUNNING], after.values[RUNNING]
        steady = min(running) > 0 and max(running) - min(running) <= max(1.0, _LARGEST_CHANGE * max(running))
        if min(gained.values()) < 0 or gained[STEPS] < _FEWEST_STEPS or not steady:
            continue
        count = gained[STEPS]
        usage = (before.values[KV_USAGE] + after.values[KV_USAGE]) / 2.0
        steps.append(
            MeasuredStep(
                batch=gained[GENERATED_TOKENS] / count,
                held_tokens=usage * known,
                prefill_tokens=gained[PROMPT_TOKENS] / count,
                seconds=(after.seconds - before.seconds) / count,
            )
        )
    if not steps:
        raise MeasuredError("no two pages follow each other under steady load: scrape every second under load")
    return steps
