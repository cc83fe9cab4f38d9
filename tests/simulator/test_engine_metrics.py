import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flyball_sim.engine.metrics import EngineMetrics, EngineState, one_two_five_buckets
from flyball_sim.engine.requests import RequestTiming
from flyball_sim.engine.tallies import STEP_BUCKET, EngineCounts

# Written from vLLM 0.33's `vllm/v1/metrics/loggers.py`, not from the code under test.
BOTH = {"model_name", "engine"}
GAUGES = {
    "vllm:num_requests_running": BOTH,
    "vllm:num_requests_waiting": BOTH,
    "vllm:num_requests_waiting_by_reason": BOTH | {"reason"},
    "vllm:kv_cache_usage_perc": BOTH,
    "vllm:engine_sleep_state": BOTH | {"sleep_state"},
}
COUNTERS = {
    "vllm:num_preemptions_total": BOTH,
    "vllm:prompt_tokens_total": BOTH,
    "vllm:prompt_tokens_by_source_total": BOTH | {"source"},
    "vllm:prompt_tokens_cached_total": BOTH,
    "vllm:generation_tokens_total": BOTH,
    "vllm:prefix_cache_queries_total": BOTH,
    "vllm:prefix_cache_hits_total": BOTH,
    "vllm:external_prefix_cache_queries_total": BOTH,
    "vllm:external_prefix_cache_hits_total": BOTH,
    "vllm:request_success_total": BOTH | {"finished_reason"},
    "vllm:admission_rejections_total": BOTH | {"reason"},
}
TTFT = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 640.0 2560.0"
ITL = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0"
LATENCY = "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 1920.0 7680.0"
STEP = "1.0 8.0 16.0 32.0 64.0 128.0 256.0 512.0 1024.0 2048.0 4096.0 8192.0 16384.0"
TOKENS_8192 = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0 1000.0 2000.0 5000.0"
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": TTFT,
    "vllm:inter_token_latency_seconds": ITL,
    "vllm:request_time_per_output_token_seconds": ITL,
    "vllm:e2e_request_latency_seconds": LATENCY,
    "vllm:request_queue_time_seconds": LATENCY,
    "vllm:request_inference_time_seconds": LATENCY,
    "vllm:request_prefill_time_seconds": LATENCY,
    "vllm:request_decode_time_seconds": LATENCY,
    "vllm:iteration_tokens_total": STEP,
    "vllm:request_prompt_tokens": TOKENS_8192,
    "vllm:request_generation_tokens": TOKENS_8192,
    "vllm:request_params_max_tokens": TOKENS_8192,
    "vllm:request_max_num_generation_tokens": TOKENS_8192,
    "vllm:request_prefill_kv_computed_tokens": TOKENS_8192,
    "vllm:request_params_n": "1.0 2.0 5.0 10.0 20.0",
}


def state(counts: EngineCounts | None = None, **gauges: float) -> EngineState:
    shown = {"running": 0, "waiting": 0, "kv_usage": 0.0, "preemptions": 0, "busy_seconds": 0.0, "sm_mhz": 1980}
    return EngineState(**{**shown, **gauges}, counts=counts or EngineCounts())


IDLE = state()


def metrics() -> EngineMetrics:
    return EngineMetrics("chat", max_model_len=8192, kv_blocks=100, created_seconds=1_700_000_000.5)


def samples(body: bytes) -> dict[str, float]:
    """Value by series, as written."""
    return {
        series: float(value)
        for series, value in re.findall(r"^([a-z][^ {]*(?:\{.*\})?) (\S+)$", body.decode(), re.MULTILINE)
    }


def timing(**seconds: float) -> RequestTiming:
    times = {"arrival_seconds": 1.0, "scheduled_seconds": 1.2, "first_token_seconds": 1.5, "finished_seconds": 3.5}
    return RequestTiming(prompt_tokens=700, output_tokens=5, **{**times, **seconds})


@pytest.mark.parametrize("kind", ["gauge", "counter", "histogram"])
def test_every_name_of_the_golden_list_is_there_with_its_type(kind):
    names = {"gauge": GAUGES, "counter": COUNTERS, "histogram": HISTOGRAMS}[kind]
    text = metrics().render(IDLE).decode()
    found = set(re.findall(rf"^# TYPE (vllm:\S+) {kind}$", text, re.MULTILINE))
    assert {name for name in found if not name.endswith(("_created", "_info"))} == set(names)


def test_every_series_has_vllms_labels():
    body = metrics().render(IDLE)
    for name, labels in (GAUGES | COUNTERS).items():
        found = [series for series in samples(body) if series.startswith(f"{name}{{")]
        assert found
        for series in found:
            assert set(re.findall(r'(\w+)="', series)) == labels
            assert 'model_name="chat"' in series
            assert 'engine="0"' in series


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_bucket_edges_are_vllms(name):
    body = metrics().render(IDLE).decode()
    edges = re.findall(rf'^{name}_bucket{{engine="0",le="([^"]+)",model_name="chat"}} ', body, re.MULTILINE)
    assert edges == [*HISTOGRAMS[name].split(), "+Inf"]


def test_the_parser_of_the_client_library_reads_all_of_it():
    families = {family.name for family in text_string_to_metric_families(metrics().render(IDLE).decode())}
    assert {"vllm:kv_cache_usage_perc", "vllm:generation_tokens", "vllm:iteration_tokens_total"} <= families


def test_the_text_is_the_one_the_client_library_would_write():
    registry = CollectorRegistry()
    labels = ["model_name", "engine"]
    edges = [float(edge) for edge in TTFT.split()]
    theirs_ttft = Histogram("vllm:time_to_first_token_seconds", "x", labels, registry=registry, buckets=edges)
    theirs_steps = Histogram(
        "vllm:iteration_tokens_total", "x", labels, registry=registry, buckets=[float(edge) for edge in STEP.split()]
    )
    theirs_tokens = Counter("vllm:generation_tokens", "x", labels, registry=registry)
    ours, counts = metrics(), EngineCounts()
    for number, value in enumerate([0.0004, 0.06, 0.1, 0.1000001, 3.25, 9999.0], start=1):
        theirs_ttft.labels("chat", "0").observe(value)
        theirs_tokens.labels("chat", "0").inc()
        theirs_steps.labels("chat", "0").observe(8 * number)
        counts.time_to_first.observe(value)
        counts.generation_tokens += 1
        counts.step_tokens += 8 * number
        counts.step_buckets[STEP_BUCKET[8 * number]] += 1

    def lines(body: bytes) -> set[str]:
        wanted = r"(# TYPE )?vllm:(time_to_first_token_seconds|iteration_tokens_total|generation_tokens)"
        found = {line for line in body.decode().splitlines() if re.match(wanted, line)}
        return {re.sub(r"(_created\{.*\}) .*", r"\1", line) for line in found}

    assert lines(ours.render(state(counts))) == lines(generate_latest(registry))


def test_gauges_show_the_engine_at_the_scrape():
    shown = state(running=3, waiting=2, kv_usage=0.25, preemptions=7, busy_seconds=1.5, sm_mhz=1200)
    values = samples(metrics().render(shown))
    assert values['vllm:num_requests_running{engine="0",model_name="chat"}'] == 3
    assert values['vllm:num_requests_waiting{engine="0",model_name="chat"}'] == 2
    assert values['vllm:num_requests_waiting_by_reason{engine="0",model_name="chat",reason="capacity"}'] == 2
    assert values['vllm:num_requests_waiting_by_reason{engine="0",model_name="chat",reason="deferred"}'] == 0
    assert values['vllm:kv_cache_usage_perc{engine="0",model_name="chat"}'] == 0.25
    assert values['vllm:num_preemptions_total{engine="0",model_name="chat"}'] == 7
    assert values['vllm:engine_sleep_state{engine="0",model_name="chat",sleep_state="awake"}'] == 1
    assert values['flyball_sim_engine_sm_mhz{engine="0",model_name="chat"}'] == 1200
    assert values['flyball_sim_engine_busy_seconds_total{engine="0",model_name="chat"}'] == 1.5


def test_the_cache_configuration_is_in_labels():
    text = metrics().render(IDLE).decode()
    (info,) = re.findall(r"^vllm:cache_config_info\{(.*)\} 1.0$", text, re.MULTILINE)
    assert 'num_gpu_blocks="100"' in info
    assert 'block_size="16"' in info


def test_what_the_engine_counts_is_shown_as_it_counts_it():
    counts = EngineCounts()
    counts.prompt_tokens, counts.cached_tokens, counts.generation_tokens = 700, 300, 2
    counts.time_to_first.observe(0.3)
    counts.inter_token.observe(0.02)
    counts.end_to_end.observe(0.32)
    values = samples(metrics().render(state(counts)))
    tail = '{engine="0",model_name="chat"}'
    assert values[f"vllm:prompt_tokens_total{tail}"] == 700
    for source, tokens in (("local_compute", 400), ("local_cache_hit", 300), ("external_kv_transfer", 0)):
        series = f'vllm:prompt_tokens_by_source_total{{engine="0",model_name="chat",source="{source}"}}'
        assert values[series] == tokens
    assert values[f"vllm:generation_tokens_total{tail}"] == 2
    assert values[f"vllm:time_to_first_token_seconds_sum{tail}"] == 0.3
    assert values[f"vllm:e2e_request_latency_seconds_sum{tail}"] == 0.32
    assert values['vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="chat"}'] == 0
    assert values['vllm:inter_token_latency_seconds_bucket{engine="0",le="0.025",model_name="chat"}'] == 1


def test_a_finished_request_is_split_into_queue_prefill_and_decode():
    counted = metrics()
    counted.count_finished(timing(), "length", max_tokens=5, late_seconds=0.01)
    values = samples(counted.render(IDLE))
    tail = '{engine="0",model_name="chat"}'
    for name, seconds in {
        "request_queue_time": 0.2,
        "request_inference_time": 2.3,
        "request_prefill_time": 0.3,
        "request_decode_time": 2.0,
    }.items():
        assert values[f"vllm:{name}_seconds_sum{tail}"] == pytest.approx(seconds), name
    assert values['vllm:request_success_total{engine="0",finished_reason="length",model_name="chat"}'] == 1
    assert values[f"flyball_sim_request_lag_seconds_total{tail}"] == 0.01
    assert values[f"flyball_sim_request_seconds_total{tail}"] == 2.5


def test_token_buckets_go_up_to_the_context_length():
    assert one_two_five_buckets(10) == (1, 2, 5, 10)
    assert one_two_five_buckets(131_072)[-1] == 100_000


def test_a_model_name_with_quotes_stays_readable():
    body = EngineMetrics('a"b\\c', max_model_len=10, kv_blocks=1, created_seconds=0.0).render(IDLE).decode()
    family = next(f for f in text_string_to_metric_families(body) if f.name == "vllm:kv_cache_usage_perc")
    assert family.samples[0].labels["model_name"] == 'a"b\\c'
