import dataclasses
import json
import random
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.cli import main
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency import prometheus
from flyball_sim.latency.cards import MODELS
from flyball_sim.latency.fitting import line, nondecreasing, nonnegative
from flyball_sim.latency.measured import MeasuredError, fit_row, read_steps
from flyball_sim.latency.modelfile import ModelFileError, read_models, write_models
from flyball_sim.latency.rows import RowError, RowKey, read_rows, shipped_rows, write_rows
from flyball_sim.latency.scraped import WANTED, read_pages, steps_of
from flyball_sim.latency.steps import step_model

H100 = GPU_TYPES["H100-SXM5"]
MODEL = step_model(H100, "llama-3.1-8b", 1)
KEY = RowKey("H100-SXM5", "llama-3.1-8b", "bf16", 1)


def steps_csv(count=200, noise=0.01):
    rng = random.Random(1)
    lines = ["batch,held_tokens,prefill_tokens,prefill_before,seconds"]
    for _ in range(count):
        batch = rng.choice([1, 4, 8, 16, 32, 64, 128])
        held, new = batch * rng.randint(100, 3000), rng.choice([0, 0, 0, 512, 1024, 2048])
        before = rng.choice([0, 2048]) if new else 0
        cost = MODEL.cost(batch, held, [(before, new)] if new else [])
        lines.append(f"{batch},{held},{new},{before},{sum(cost[:3]) * rng.gauss(1.0, noise)}")
    return "\n".join(lines) + "\n"


def page(at, *, steps, prompt, generated, running, usage):
    values = dict(zip(WANTED, (steps, prompt, generated, running, usage), strict=True))
    body = "".join(f'{name}{{model_name="m"}} {value}\n' for name, value in values.items())
    info = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="28000"} 1.0\n'
    return f"# scraped_at {at}\n# TYPE vllm:prompt_tokens counter\n{body}{info}"


def history():
    """Pages of an engine that holds each batch for some seconds, as the step model would serve it."""
    text, at, steps, prompt, generated = "", 1000.0, 0, 0, 0
    for batch in (1, 4, 8, 16, 32, 64):
        for context in (300, 900, 2500):
            usage = batch * context / (28000 * 16)
            for _ in range(2):
                text += page(at, steps=steps, prompt=prompt, generated=generated, running=batch, usage=usage)
                at += 200 * sum(MODEL.cost(batch, batch * context, [])[:3])
                steps, generated = steps + 200, generated + 200 * batch
    return text


def test_a_row_fitted_to_steps_predicts_them_and_others():
    row = fit_row(read_steps(steps_csv()), H100, MODELS["llama-3.1-8b"], 1, "bf16")
    assert row.provenance == "measured"
    assert row.fit_percent < 5
    fitted = dataclasses.replace(MODEL, row=row)
    for decodes, held, chunks in ((48, 48_000, []), (20, 9000, [(0, 1500)])):
        assert sum(fitted.cost(decodes, held, chunks)[:3]) == pytest.approx(
            sum(MODEL.cost(decodes, held, chunks)[:3]), rel=0.1
        )


def test_without_prefill_in_the_steps_prefill_is_modelled_and_the_row_says_so():
    decodes = [step for step in read_steps(steps_csv()) if not step.prefill_tokens]
    assert fit_row(decodes, H100, MODELS["llama-3.1-8b"], 1, "bf16").provenance == "modelled"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch,seconds\n", "line 1: no column held_tokens, prefill_tokens"),
        ("batch,held_tokens,prefill_tokens,seconds\n1,2,x,1\n", "line 2: prefill_tokens is 'x': give a number"),
        ("batch,held_tokens,prefill_tokens,seconds\n1,2,0,-1\n", "line 2: seconds is -1: give a finite number"),
        ("batch,held_tokens,prefill_tokens,seconds\n1,2,0,0\n", "line 2: seconds is 0: a step takes time"),
        ("batch,held_tokens,prefill_tokens,seconds\n0,0,0,1\n", "line 2: batch and prefill_tokens are 0"),
        ("batch,held_tokens,prefill_tokens,seconds\n1,9,0\n", "line 2: seconds is None: give a number"),
        (steps_csv(5), "give 8 or more, at several batches"),
        ("batch,held_tokens,prefill_tokens,seconds\n" + "4,400,0,0.01\n" * 9, "fewer than 3 batches"),
        ("batch,held_tokens,prefill_tokens,seconds\n" + "1,9,0,1\n2,18,0,1\n3,27,0,1\n" * 3, "hardly varies"),
    ],
)
def test_bad_steps_are_refused_with_the_line_and_the_mend(text, sentence):
    with pytest.raises(MeasuredError, match=sentence):
        fit_row(read_steps(text), H100, MODELS["llama-3.1-8b"], 1, "bf16")


def test_a_metrics_history_gives_the_mean_steps_between_its_pages():
    steps = steps_of(read_pages(history()), None)
    first = steps[0]
    assert first.batch == 1
    assert first.held_tokens == pytest.approx(300)
    assert first.seconds == pytest.approx(sum(MODEL.cost(1, 300, [])[:3]))
    row = fit_row(steps, H100, MODELS["llama-3.1-8b"], 1, "bf16", averaged=True)
    assert row.fit_percent < 4


def test_a_restart_or_a_changing_batch_between_pages_is_left_out():
    pages = page(1, steps=500, prompt=0, generated=500, running=1, usage=0.1)
    pages += page(2, steps=10, prompt=0, generated=10, running=1, usage=0.1)
    pages += page(3, steps=60, prompt=0, generated=500, running=30, usage=0.1)
    with pytest.raises(MeasuredError, match="no two pages follow each other under steady load"):
        steps_of(read_pages(pages), None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: there is no page"),
        ("# scraped_at 1\nup 1\n", "from line 1 on has no vllm:iteration_tokens_total_count"),
        ("# scraped_at 1\n}{\n", "from line 1 on is no metrics page"),
        (history().replace("scraped_at 1000.0", "scraped_at 99999"), "is not after the page before: sort the pages"),
    ],
)
def test_a_bad_history_is_refused_with_the_line_and_the_mend(text, sentence):
    with pytest.raises(MeasuredError, match=sentence):
        read_pages(text)


class FakePrometheus:
    def __init__(self, pages):
        self.pages = pages
        self.queries = []

    def custom_query_range(self, *, query, start_time, end_time, step):
        self.queries.append((query, (end_time - start_time).total_seconds(), step))
        name = query.removeprefix("sum(").split("{")[0]
        return [{"values": [[page.seconds, str(page.values[name])] for page in self.pages]}] if self.pages else []


def test_prometheus_is_asked_for_the_range_and_gives_the_same_steps(monkeypatch):
    pages = read_pages(history())
    fake = FakePrometheus(pages)
    monkeypatch.setattr(prometheus, "PrometheusConnect", lambda **_: fake)
    asked = prometheus.pages_of(
        "http://prometheus", 'pod="chat-0"', minutes=30, every_seconds=15, until=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert fake.queries[0] == (f'sum({WANTED[0]}{{pod="chat-0"}})', 1800.0, "15")
    assert steps_of(asked, 28000 * 16) == steps_of(pages, None)
    with pytest.raises(MeasuredError, match="give --kv-tokens"):
        steps_of(asked, None)
    fake.pages = []
    with pytest.raises(MeasuredError, match="Prometheus has no vllm:"):
        prometheus.pages_of("http://prometheus", "", minutes=1, every_seconds=15)


def test_a_prometheus_that_is_not_there_is_named_without_a_traceback(tmp_path, capsys):
    asked = ["--gpu", "H100", "--model", "llama-3.1-8b", "--out", str(tmp_path / "x.json")]
    assert main(["calibrate", "metrics", "--prometheus", "http://127.0.0.1:9", *asked]) == 2
    assert "no Prometheus answers there: give the address of one that runs" in capsys.readouterr().err


def test_what_a_server_adds_is_fitted_to_measured_latencies_of_known_dense_models(tmp_path, capsys):
    names = "gpu,task,weight_precision,avg_batch,model_id,num_gpus,avg_output_len,itl_p50_ms"
    lines = [names, "B200,lm-arena-chat,bfloat16,8,Llama-3.1-8B,1,400,5"]
    for batch in (8, 32, 96):
        step = 1e3 * sum(MODEL.cost(batch, batch * 650, [])[1:3])
        lines.append(f"H100,lm-arena-chat,bfloat16,{batch},Llama-3.1-8B,1,400,{step + 0.3 + 1e-6 * batch * 128_256}")
    step = 1e3 * sum(step_model(H100, "qwen3-30b-a3b", 1).cost(16, 16 * 650, [])[1:3])
    mixed = 2 * (step + 0.3 + 1e-6 * 16 * 151_936)
    lines.append(f"H100,lm-arena-chat,bfloat16,16,Qwen3-30B-A3B,1,400,{mixed}")
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "mlenergy_v3_llm_h100_b200.csv").write_text("\n".join(lines))
    assert main(["calibrate", "host", "--data", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("3 runs: 0.300 ms a step and 1.00 ns for each sequence")
    assert printed[1] == "mixtures in bf16 on 1 GPU, not fitted: 1 run, mean error 50.0 %, -50.0 % on average"
    assert main(["calibrate", "host", "--data", str(tmp_path / "no")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_calibrated_file_is_taken_by_predict(tmp_path, capsys):
    steps, out = tmp_path / "steps.csv", tmp_path / "mine.json"
    steps.write_text(steps_csv())
    config = tmp_path / "config.json"
    card = MODELS["llama-3.1-8b"]
    shape = {"num_hidden_layers": card.layers, "hidden_size": card.hidden, "num_attention_heads": card.heads}
    shape |= {"num_key_value_heads": card.kv_heads, "intermediate_size": card.intermediate, "vocab_size": 32_000}
    config.write_text(json.dumps(shape | {"max_position_embeddings": 65_536, "tie_word_embeddings": True}))
    asked = ["--gpu", "H100", "--model", "our-8b", "--config", str(config), "--out", str(out)]
    assert main(["calibrate", "steps", str(steps), *asked]) == 0
    assert "mean error" in capsys.readouterr().out
    load = ["--gpu", "H100", "--model", "our-8b", "--isl", "64", "--osl", "64", "--concurrency", "4"]
    assert main(["predict", "--models", str(out), *load, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "our-8b"
    assert main(["predict", *load]) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--gpu": "H9"}, "GPU 'H9' is unknown"),
        ({"--model": "grok"}, "Or describe it with --config config.json"),
        ({"--out": "/"}, "--out /: is a directory, give a file in it"),
        ({"--dtype": "int4"}, "dtype 'int4' is unknown: give bf16 or fp8"),
        ({"--tp": "3"}, "--tp: 32 heads cannot be shared by 3 GPUs"),
        ({"--out": "/nowhere/x.json"}, "--out /nowhere/x.json: there is no such directory"),
        ({"--config": "none.json"}, "--config none.json: cannot be read"),
    ],
)
def test_a_wrong_command_line_names_the_option_and_the_mend(changes, sentence, tmp_path, capsys):
    steps = tmp_path / "steps.csv"
    steps.write_text(steps_csv(20))
    options = {"--gpu": "H100", "--model": "llama-3.1-8b", "--out": str(tmp_path / "x.json")} | changes
    assert main(["calibrate", "steps", str(steps), *(part for pair in options.items() for part in pair)]) == 2
    assert sentence in capsys.readouterr().err


def test_a_row_file_is_read_as_it_was_written():
    rows = {key: shipped_rows()[key] for key in sorted(shipped_rows())[:5]}
    assert read_rows(write_rows(rows, ["a remark"])) == rows


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace("dense,", ""), "the header has no dense"),
        (lambda text: text.replace(",measured,", ",guessed,"), "provenance is 'guessed': give measured or modelled"),
        (lambda text: text + text.splitlines()[-1] + "\n", "is there twice: drop one"),
        (lambda text: text.replace(",1,", ",none,", 1), "tp is 'none'"),
        (lambda text: text.rsplit(",", 3)[0] + "\n", "has fewer than"),
    ],
)
def test_a_bad_row_file_is_refused_with_the_line_and_the_mend(change, sentence):
    text = write_rows({KEY: shipped_rows()[KEY]}, [])
    with pytest.raises(RowError, match=sentence):
        read_rows(change(text))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text[:-5], "is not JSON"),
        (lambda _: "{}", "there is no kind"),
        (lambda text: text.replace('"layers": 32', '"layers": "many"'), r"models\[0\]\.layers is 'many': give a int"),
        (lambda text: text.replace('"layers": 32', '"layers": 0'), r"models\[0\] has a size of 0"),
        (lambda text: text.replace('"layers": 32,', ""), r"models\[0\] is not whole"),
        (lambda text: text.replace("H100-SXM5,llama-3.1-8b", "H100-SXM5,other"), "rows are for 'other'"),
    ],
)
def test_a_bad_model_file_is_refused_with_the_place_and_the_mend(change, sentence):
    text = write_models(MODELS["llama-3.1-8b"], {KEY: shipped_rows()[KEY]}, ("remark",))
    assert read_models(text).card("llama-3.1-8b").layers == 32
    with pytest.raises(ModelFileError, match=sentence):
        read_models(change(text))


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=30))
def test_smoothed_times_never_fall_and_stay_within_the_range(values):
    smooth = nondecreasing(values)
    assert smooth == sorted(smooth)
    assert min(values) <= smooth[0] * (1 + 1e-9)
    assert smooth[-1] <= max(values) * (1 + 1e-9)


@given(a=st.floats(0.1, 10.0), b=st.floats(0.01, 1.0))
def test_a_line_is_found_through_one_wild_point(a, b):
    xs = list(range(1, 21))
    ys = [a + b * x for x in xs]
    ys[7] *= 5.0
    found = line(xs, ys, [1.0 / y for y in ys])
    assert found == pytest.approx((a, b), rel=0.05, abs=0.02)


def test_coefficients_are_never_negative():
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert (nonnegative(columns, np.array([3.0, 2.0, 1.0]), np.ones(3)) >= 0.0).all()
