import heapq
import json
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_sim.engine.core import EngineLimits, EngineRequest
from flyball_sim.engine.machine import Machine
from flyball_sim.gpu.types import GPU_TYPES, UnknownGpuTypeError
from flyball_sim.latency.cases import COLUMNS, CasesError, gpu_named, predict_cases, read_cases
from flyball_sim.latency.catalogue import shipped_catalogue
from flyball_sim.latency.predict import CaseError, predict_closed_loop
from flyball_sim.latency.steady import API_SECONDS, Bounds, Load, life_seconds, run_closed_loop
from flyball_sim.latency.steps import step_model

H100 = GPU_TYPES["H100-SXM5"]
MODEL = step_model(H100, "llama-3.1-8b", 1)
FIRST_FIELDS = [
    "tpot_seconds",
    "ttft_seconds",
    "tokens_per_second",
    "power_watts_per_gpu",
    "joules_per_token",
    "provenance",
]


def command(*arguments):
    run = [sys.executable, "-m", "flyball_sim.cli", "predict", *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)


def machine_loop(model, load, seed):
    isl, osl, concurrency = load.isl, load.osl, load.concurrency
    limits = EngineLimits(max_model_len=131_072, max_num_batched_tokens=2048)
    machine = Machine(model, limits, actuation_delays=False)
    rng = random.Random(seed)
    spread = life_seconds(model, load, Bounds(2048, 256, None, 0.0)) / concurrency
    coming = sorted(spread * client + API_SECONDS * rng.uniform(0.5, 1.5) for client in range(concurrency))
    times, joules, began = [], 0.0, 0.0
    while len(times) < 5 * concurrency:
        due = machine.next_event_seconds()
        if coming and (due is None or coming[0] <= due):
            at = heapq.heappop(coming)
            machine.submit(EngineRequest(repr(at), isl, osl), max(at, machine.now_seconds))
            continue
        machine.advance(max(due, machine.now_seconds + 1e-6))
        for timing in machine.take_finished():
            times.append((timing.finished_seconds - timing.first_token_seconds) / (timing.output_tokens - 1))
            if len(times) == 2 * concurrency:
                joules, began = machine.energy_joules, machine.now_seconds
            heapq.heappush(coming, timing.finished_seconds + API_SECONDS * rng.uniform(0.5, 1.5))
    watts = (machine.energy_joules - joules) / (machine.now_seconds - began) / model.gpus
    return sum(times[2 * concurrency :]) / len(times[2 * concurrency :]), watts


@pytest.mark.parametrize(
    ("name", "gpus", "dtype", "load"),
    [
        ("llama-3.1-8b", 1, "bf16", (512, 128, 16)),
        ("llama-3.1-8b", 1, "fp8", (1024, 256, 64)),
        ("qwen3-32b", 2, "fp8", (2048, 128, 8)),
    ],
)
def test_the_prediction_agrees_with_the_engine_run_request_by_request(name, gpus, dtype, load):
    model = step_model(H100, name, gpus, dtype=dtype)
    load, bounds = Load(*load), Bounds(2048, 256, None, H100.cap_default_watts)
    for seed in (0, 5):
        steady = run_closed_loop(model, load, bounds, seed=seed)
        tpot_seconds, watts = machine_loop(model, load, seed)
        assert steady.tpot_seconds == pytest.approx(tpot_seconds, rel=0.01)
        assert steady.watts == pytest.approx(watts, rel=0.01)


def test_one_request_at_a_time_takes_its_own_steps_alone():
    predicted = predict_closed_loop(MODEL, isl=1000, osl=500, concurrency=1)
    line = MODEL.decode_line(1)
    mean_held = 1000 + 499 / 2
    step = line.host_seconds + line.fixed_seconds + line.clocked_seconds
    step += (line.fixed_seconds_per_token + line.clocked_seconds_per_token) * mean_held
    assert predicted.tpot_seconds == pytest.approx(step, rel=1e-3)


def test_prefill_of_other_requests_is_in_the_time_per_output_token():
    short, long = (predict_closed_loop(MODEL, isl=isl, osl=200, concurrency=16) for isl in (64, 4096))
    held = MODEL.decode_line(16).fixed_seconds_per_token * 16 * 4096
    assert long.tpot_seconds - short.tpot_seconds > 2 * held


def test_requests_that_kv_cannot_hold_wait_and_the_output_says_so():
    fits = predict_closed_loop(MODEL, isl=1024, osl=1024, concurrency=100)
    full = predict_closed_loop(MODEL, isl=1024, osl=1024, concurrency=1000)
    assert fits.kv_fits
    assert not full.kv_fits
    assert full.sequences_in_kv * (1024 + 512) <= full.kv_tokens < 1000 * 1536
    assert full.batch <= full.sequences_in_kv
    assert full.ttft_seconds > 10 * fits.ttft_seconds
    assert full.tokens_per_second > fits.tokens_per_second


def test_little_s_law_holds():
    predicted = predict_closed_loop(MODEL, isl=1024, osl=256, concurrency=32)
    latency = predicted.ttft_seconds + 255 * predicted.tpot_seconds
    assert predicted.tokens_per_second * latency == pytest.approx(32 * 256, rel=0.05)


def test_a_lock_costs_time_saves_joules_and_is_called_modelled():
    free = predict_closed_loop(MODEL, isl=1024, osl=1024, concurrency=16)
    locked = predict_closed_loop(MODEL, isl=1024, osl=1024, concurrency=16, sm_mhz=1200)
    assert free.provenance == "measured"
    assert locked.provenance == "modelled"
    assert locked.sm_mhz == pytest.approx(1200)
    assert free.tpot_seconds < locked.tpot_seconds < 1.25 * free.tpot_seconds
    assert locked.joules_per_token < 0.9 * free.joules_per_token


def test_a_cap_lowers_the_clock_until_power_fits():
    capped = predict_closed_loop(MODEL, isl=4096, osl=128, concurrency=16, cap_watts=400.0)
    assert capped.power_watts_per_gpu <= 400.0
    assert capped.capped_share > 0.5
    assert capped.sm_mhz < H100.sm_max_mhz - 100


@settings(max_examples=25, deadline=None)
@given(isl=st.integers(1, 4000), osl=st.integers(2, 600), concurrency=st.integers(1, 128), seed=st.integers(0, 5))
def test_every_prediction_is_finite_and_energy_is_power_times_time(isl, osl, concurrency, seed):
    p = predict_closed_loop(MODEL, isl=isl, osl=osl, concurrency=concurrency, seed=seed)
    assert p.joules_per_token * p.tokens_per_second == pytest.approx(p.power_watts_per_gpu * p.tp)
    assert 0 < p.tpot_seconds < 1
    assert p.batch <= concurrency


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"isl": 0}, "isl: is 0: give 1 prompt token or more"),
        ({"osl": 1}, "osl: is 1: give 2 output tokens or more"),
        ({"concurrency": 0}, "concurrency: is 0"),
        ({"isl": 200_000}, "isl: 200000 and osl 64 are 200064 tokens, the context of llama-3.1-8b has 131072"),
        ({"sm_mhz": 5000}, "sm_mhz: is 5000: give 345 to 1980, the clocks of H100-SXM5"),
        ({"cap_watts": 50.0}, "cap_watts: is 50: give 200 to 700, the caps of H100-SXM5"),
        ({"max_num_seqs": 0}, "max_num_seqs: is 0"),
    ],
)
def test_values_out_of_range_are_refused_with_field_bound_and_mend(changes, sentence):
    with pytest.raises(CaseError, match=sentence):
        predict_closed_loop(MODEL, **({"isl": 64, "osl": 64, "concurrency": 4} | changes))


@pytest.mark.parametrize("name", ["H100", "h100_sxm", "H100-SXM5", "NVIDIA H100 80GB HBM3", "h100 sxm5"])
def test_gpus_answer_to_their_short_names(name):
    assert gpu_named(name) is H100


def test_an_unknown_gpu_is_refused_with_the_nearest():
    with pytest.raises(UnknownGpuTypeError, match=r"GPU 'H300' is unknown: did you mean 'H[12]00"):
        gpu_named("H300")


def test_cases_are_read_in_order_with_what_is_optional_left_out():
    text = "gpu,model,isl,osl,concurrency,cap_watts\nH100,llama-3.1-8b,64,64,1,\nH200,Qwen3-8B-FP8,64,64,2,500\n"
    first, second = predict_cases(read_cases(text), shipped_catalogue())
    assert (first.gpu, first.dtype, first.concurrency, first.cap_watts) == ("H100-SXM5", "bf16", 1, 700.0)
    assert (second.gpu, second.dtype, second.concurrency, second.cap_watts) == ("H200-SXM", "fp8", 2, 500.0)


HEADER = "gpu,model,dtype,tp,isl,osl,concurrency\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gpu,model\n", "line 1: no column isl, osl, concurrency"),
        ("gpu,model,isl,osl,concurrency,watts\n", "line 1: column 'watts' is unknown"),
        (HEADER, "line 2: there is no case"),
        (HEADER + "H100,llama-3.1-8b,bf16,1,64,64,4\nH100,llama-3.1-8b,bf16,1,64,x,4\n", "line 3: osl: is 'x'"),
        (HEADER + "H100,llama-3.1-8b,bf16,1,64,,4\n", "line 2: osl: is missing"),
        (HEADER + "H100,llama-3.1-8b,bf16,1,64,64,4,5\n", "line 2: has more values"),
        (HEADER + "H900,llama-3.1-8b,bf16,1,64,64,4\n", "line 2: gpu: GPU 'H900' is unknown"),
        (HEADER + "H100,grok,bf16,1,64,64,4\n", "line 2: model: model 'grok' is unknown"),
        (HEADER + "H100,llama-3.1-8b,int4,1,64,64,4\n", "line 2: dtype: dtype 'int4' is unknown: give bf16 or fp8"),
        (HEADER + "H100,llama-3.1-8b,bf16,3,64,64,4\n", "line 2: tp: .*give the engine 1, 2, 4 or 8 GPUs"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_field_and_mend(text, sentence):
    with pytest.raises(CasesError, match=sentence):
        predict_cases(read_cases(text), shipped_catalogue())


def test_the_command_prints_one_json_object_with_the_promised_fields_first():
    done = command(
        *("--gpu", "H100-SXM5", "--model", "llama-3.1-70b", "--dtype", "fp8", "--tp", 4),
        *("--isl", 1024, "--osl", 128, "--concurrency", 16, "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout))[:6] == FIRST_FIELDS


def test_the_command_prints_nothing_of_a_file_with_one_bad_row(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text(HEADER + "H100,llama-3.1-8b,bf16,1,64,64,4\nH100,llama-3.1-8b,bf16,1,64,-1,4\n")
    done = command("--cases", path, "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"--cases {path}: line 3: osl: is -1: give output tokens, 2 or more" in done.stderr


def test_the_command_shows_people_a_table():
    done = command("--gpu", "A100-40GB", "--model", "llama-3.1-8b", "--isl", 64, "--osl", 64, "--concurrency", 2)
    assert done.returncode == 0, done.stderr
    assert "time per output token" in done.stdout
    assert "modelled" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--gpu", "H100"), "--model: is missing"),
        (("--gpu", "H100", "--cases", "x.csv"), "--cases: and --gpu are given"),
        (("--cases", "nothing.csv"), "--cases nothing.csv: cannot be read, No such file"),
        (("--models", "nothing.json"), "--models nothing.json: cannot be read"),
    ],
)
def test_a_wrong_command_line_ends_with_a_sentence_and_status_2(arguments, sentence):
    done = command(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_the_columns_of_a_file_are_the_options_of_the_command():
    helped = command("--help").stdout
    assert all(f"--{name.replace('_', '-')}" in helped for name in COLUMNS)
