"""`flyball-sim predict`: time per output token, power and joules of an engine under a closed loop of requests."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flyball_sim.latency.cases import COLUMNS, NUMBERS, CasesError, predict_cases, read_case, read_cases
from flyball_sim.latency.catalogue import Catalogue, shipped_catalogue
from flyball_sim.latency.modelfile import ModelFileError, read_models
from flyball_sim.latency.predict import CaseError, Prediction


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = "Exit status: 0 predicted, 2 a value is wrong or unknown. docs/models.md says what it rests on."
    parser.add_argument("--gpu", help="GPU type, e.g. H100-SXM5")
    parser.add_argument("--model", help="e.g. llama-3.1-70b; organisation, case and tuning in a name do not matter")
    parser.add_argument("--dtype", help="bf16 or fp8 (default: bf16, or fp8 if the model's name says so)")
    helps = {"tp": "GPUs of the engine (default: 1)", "sm_mhz": "SM clock lock (default: none)"}
    helps["cap_watts"] = "power cap of each GPU (default: the type's)"
    helps["max_num_batched_tokens"] = "tokens in a step (default: vLLM's for this GPU, 8192 or 2048)"
    helps["max_num_seqs"] = "sequences in a step (default: vLLM's for this GPU, 1024 or 256)"
    for name, (_, what) in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=helps.get(name, what))
    parser.add_argument(
        "--cases",
        type=Path,
        metavar="FILE.csv",
        help=f"predict every row of a file with the columns {','.join(COLUMNS)}",
    )
    parser.add_argument("--models", type=Path, metavar="FILE", help="models and step times of `flyball-sim calibrate`")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Predict and print: 0 done, 2 the user's input is wrong."""
    given = {name: getattr(args, name) for name in COLUMNS if getattr(args, name) is not None}
    try:
        catalogue = shipped_catalogue() if args.models is None else _with_file(args.models)
        if args.cases is None:
            predictions = [read_case(given).predict(catalogue)]
        elif given:
            raise CaseError(
                "--cases", f"and --{next(iter(given)).replace('_', '-')} are given: a file's rows say it all"
            )
        else:
            predictions = _from_file(args.cases, catalogue)
    except (CaseError, CasesError, ModelFileError) as error:
        print(f"flyball-sim predict: {_as_option(error)}", file=sys.stderr)
        return 2
    if args.json or args.cases is not None:
        for prediction in predictions:
            print(json.dumps(asdict(prediction)))
    else:
        _show(predictions[0])
    return 0


def _as_option(error: Exception) -> str:
    if isinstance(error, CaseError) and not error.field.startswith("--"):
        return f"--{error.field.replace('_', '-')}{str(error)[len(error.field) :]}"
    return str(error)


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CasesError(f"{option} {path}: cannot be read, {reason}") from None


def _with_file(path: Path) -> Catalogue:
    try:
        return read_models(_read(path, "--models"))
    except ModelFileError as error:
        raise ModelFileError(f"--models {path}: {error}") from None


def _from_file(path: Path, catalogue: Catalogue) -> list[Prediction]:
    text = _read(path, "--cases")
    try:
        return predict_cases(read_cases(text), catalogue)
    except CasesError as error:
        raise CasesError(f"--cases {path}: {error}") from None


def _show(prediction: Prediction) -> None:
    p = prediction
    table = Table(show_header=False, box=None)
    table.add_column(justify="right")
    table.add_column()
    fits = "" if p.kv_fits else f" (KV holds {p.kv_tokens:,} tokens, {p.sequences_in_kv} sequences at a time)"
    for name, value in (
        ("engine", f"{p.model} {p.dtype} on {p.tp} x {p.gpu}"),
        ("load", f"{p.isl} in, {p.osl} out, {p.concurrency} at a time{fits}"),
        ("time per output token", f"{p.tpot_seconds * 1e3:.2f} ms"),
        ("time to first token", f"{p.ttft_seconds * 1e3:.0f} ms"),
        ("output tokens", f"{p.tokens_per_second:,.0f} per second"),
        ("power", f"{p.power_watts_per_gpu:.0f} W per GPU at {p.sm_mhz:.0f} MHz"),
        ("energy", f"{p.joules_per_token:.3f} J per output token"),
        ("provenance", p.provenance),
    ):
        table.add_row(name, value)
    Console(width=100).print(table)
