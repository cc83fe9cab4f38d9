import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from flyball_sim.cli import main
from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency import composed, table
from flyball_sim.latency.cards import MODELS
from flyball_sim.latency.catalogue import shipped_catalogue
from flyball_sim.latency.rows import DECODE_KNOTS, KNOTS, RowKey, read_rows, shipped_rows
from flyball_sim.latency.steps import step_model

DENSE, MIXTURE = MODELS["llama-3.1-8b"], MODELS["qwen3-30b-a3b"]
ADDED = DENSE.layers * 13.2e-3
KERNELS = ("qkv_gemm", "attention", "attn_ar", "moe", "logits_gemm")


class Handle:
    """The package's engine with a hand-made table of kernels, in milliseconds."""

    def __init__(self, experts: int) -> None:
        self.experts = experts

    @classmethod
    def compile(cls, folder, system, *_, **__):
        if system == "a100_sxm":
            raise RuntimeError("generation attention data missing")
        shape = json.loads((Path(folder) / "config.json").read_text("utf-8"))
        return cls(shape.get("num_experts", 0))

    def _names(self, phase):
        return [f"{phase}_{name}" for name in KERNELS if name != "moe" or self.experts]

    def decode_step_per_op(self, *_):
        return [(name, 0.0) for name in self._names("generation")]

    def run_static_per_op(self, **_):
        return [[(name, 0.0) for name in self._names("context")]]

    def _times(self, indices, phase, tokens, attention):
        times = {
            "qkv_gemm": 3.0 + 0.01 * tokens,
            "attention": attention,
            "attn_ar": 0.2,
            "moe": 1.0,
            "logits_gemm": 0.3 + 0.001 * tokens,
        }
        names = self._names(phase)
        return [(names[index], times[names[index].split("_", 1)[1]]) for index in indices]

    def evaluate_generation_ops(self, indices, *, batch_size, s):
        slope = 4e-5 if batch_size >= 8 else 8e-5
        return self._times(indices, "generation", batch_size, 0.5 + slope * batch_size * s)

    def evaluate_context_ops(self, indices, *, s, prefix=0, **_):
        return self._times(indices, "context", s, 0.4 + ADDED + 1e-6 * s * (prefix + 0.5 * s))

    def evaluate_ops_json(self, ops, *, batch_size, **_):
        assert json.loads(ops) == ["balanced"]
        return [("moe", 2.0 + 0.1 * min(8 * batch_size, self.experts))]


@pytest.fixture
def kernels(monkeypatch):
    engine = ModuleType("aiconfigurator_core.sdk.engine")
    engine.EngineHandle = Handle
    engine.build_ops_json = json.dumps
    common, operations = (ModuleType(f"aiconfigurator_core.sdk.{name}") for name in ("common", "operations"))
    common.MoEQuantMode = {"bfloat16": "bfloat16", "fp8_block": "fp8_block"}
    operations.MoE = lambda *shape: shape[-2]
    package = SimpleNamespace(__spec__=ModuleSpec("aiconfigurator_core", None))
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", package)
    for module in (engine, common, operations):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("kernels")
def test_a_row_is_the_sum_of_the_kernels_it_is_composed_from():
    row = composed.compose("H100-SXM5", DENSE, 2, "bf16")
    rotary = DENSE.layers * 3.0
    assert row.dense[KNOTS.index(64)] == pytest.approx(3000 + 640 + 200 + rotary, rel=0.01)
    assert row.communication == pytest.approx([200.0] * len(KNOTS))
    assert row.head + 64 * row.head_row == pytest.approx(364)
    assert row.decode_attention == pytest.approx([500.0] * len(DECODE_KNOTS), rel=0.01)
    assert row.decode_attention_token == pytest.approx([0.08] * 3 + [0.04] * 7, rel=0.01)
    assert row.prefill_attention == pytest.approx(400.0, rel=0.01)
    assert row.prefill_attention_pair == pytest.approx(0.001, rel=0.01)
    assert row.provenance == "measured"
    assert row.fit_worst_percent < 1.0


@pytest.mark.usefixtures("kernels")
def test_tokens_of_a_mixture_choose_their_experts_evenly_and_the_row_is_modelled():
    row = composed.compose("H100-SXM5", MIXTURE, 1, "bf16")
    read = 128 * (1 - (1 - 8 / 128) ** 8)
    others = 3000 + 80 + 200 + MIXTURE.layers * 3.0
    assert row.dense[KNOTS.index(8)] == pytest.approx(others + 2000 + 100 * read, rel=0.01)
    assert row.provenance == "modelled"


def test_every_shipped_mixture_is_called_modelled_and_every_dense_model_measured():
    assert {(bool(MODELS[key.model].experts), row.provenance) for key, row in shipped_rows().items()} == {
        (True, "modelled"),
        (False, "measured"),
    }
    assert step_model(GPU_TYPES["H100-SXM5"], "mixtral-8x7b", 2).provenance == "modelled"


def test_the_shipped_rows_are_those_the_command_composes():
    assert set(shipped_rows()) <= set(table.table_keys())
    assert {key.gpu for key in shipped_rows()} == set(composed.SYSTEMS)
    assert shipped_catalogue().rows is shipped_rows()


@pytest.mark.usefixtures("kernels")
def test_the_whole_table_is_composed_again_to_the_same_bytes(tmp_path, monkeypatch, capsys):
    keys = tuple(RowKey(gpu, DENSE.name, "bf16", tp) for gpu in ("H100-SXM5", "A100-SXM4-80GB") for tp in (1, 2))
    monkeypatch.setattr(table, "table_keys", lambda: keys)
    texts = []
    for name in ("first.csv", "second.csv"):
        assert main(["calibrate", "kernels", "--processes", "1", "--out", str(tmp_path / name)]) == 0
        texts.append((tmp_path / name).read_bytes())
    printed = capsys.readouterr()
    assert printed.out.startswith("2 rows, mean error")
    assert printed.err.count("left out: aiconfigurator cannot compose llama-3.1-8b in bf16 on 1 x A100") == 2
    assert texts[0] == texts[1]
    assert set(read_rows(texts[0].decode())) == set(keys[:2])
    assert b"by: flyball-sim calibrate kernels --out rows.csv" in texts[0]


@pytest.mark.parametrize(
    "source", [["kernels"], ["aiconfigurator", "--gpu", "H100", "--model", "llama-3.1-8b"]], ids=["table", "row"]
)
def test_calibrating_without_aiconfigurator_says_how_to_install_it(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(composed.importlib.util, "find_spec", lambda _: None)
    assert main(["calibrate", *source, "--out", str(tmp_path / "x")]) == 2
    assert "install it with: pip install 'flyball-sim[aiconfigurator]'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--processes", "0", "--out", "x.csv"], "--processes is 0: give 1 or more"),
        (["--out", "/nowhere/rows.csv"], "--out /nowhere/rows.csv: there is no such directory"),
    ],
)
def test_a_wrong_command_for_the_table_names_the_option_and_the_mend(options, sentence, capsys):
    assert main(["calibrate", "kernels", *options]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("kernels")
def test_a_model_the_kernels_do_not_cover_is_refused_by_name(tmp_path, capsys):
    asked = ["--gpu", "A100", "--model", "llama-3.1-8b", "--out", str(tmp_path / "x.json")]
    assert main(["calibrate", "aiconfigurator", *asked]) == 2
    assert "cannot compose llama-3.1-8b in bf16 on 1 x A100-SXM4-80GB" in capsys.readouterr().err
