"""`flyball-sim calibrate`: step times of a model from measured steps, a running vLLM, or measured kernels."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flyball_sim.gpu.types import GpuType, UnknownGpuTypeError
from flyball_sim.latency.cards import ModelCard, UnknownEngineError, UnknownModelError, precision
from flyball_sim.latency.cases import gpu_named
from flyball_sim.latency.catalogue import shipped_catalogue
from flyball_sim.latency.modelfile import write_models
from flyball_sim.latency.rows import RowKey, StepRow, write_rows

if TYPE_CHECKING:
    from flyball_sim.latency.measured import MeasuredStep

_CONFIGURATION = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "intermediate",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context_tokens",
}


class CalibrationError(ValueError):
    """The user's input does not make a row; the message names the option and the mend."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = "Exit status: 0 written, 2 the input is wrong. docs/models.md describes the files."
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    steps = sources.add_parser("steps", help="a CSV file of measured steps: batch,held_tokens,prefill_tokens,seconds")
    steps.add_argument("file", type=Path, metavar="FILE.csv")
    metrics = sources.add_parser("metrics", help="the /metrics history of a vLLM engine")
    where = metrics.add_mutually_exclusive_group(required=True)
    where.add_argument("--pages", type=Path, metavar="FILE", help="scraped pages, each after '# scraped_at SECONDS'")
    where.add_argument("--prometheus", metavar="URL", help="a Prometheus server that scrapes the engine")
    metrics.add_argument("--labels", default="", help='the engine\'s series in Prometheus, e.g. pod="chat-0"')
    metrics.add_argument("--minutes", type=float, default=60.0, help="how far back to ask Prometheus (default: 60)")
    metrics.add_argument("--every", type=float, default=15.0, help="its scrape interval in seconds (default: 15)")
    metrics.add_argument("--kv-tokens", type=float, help="tokens the KV cache holds, where the metrics do not say so")
    kernels = sources.add_parser("aiconfigurator", help="the measured kernels of NVIDIA's aiconfigurator package")
    table = sources.add_parser("kernels", help="the whole table of step times that comes with this package, again")
    table.add_argument("--out", type=Path, required=True, metavar="rows.csv", help="latency/rows.csv of the sources")
    table.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: one a core")
    host = sources.add_parser("host", help="what a server adds to its kernels, from ML.ENERGY's runs; prints it only")
    host.add_argument("--data", type=Path, required=True, metavar="DIR", help="directory of measured data")
    for source in (steps, metrics, kernels):
        source.add_argument("--gpu", required=True, help="GPU type, e.g. H100-SXM5")
        source.add_argument("--model", required=True, help="a known model, or a new name with --config")
        source.add_argument("--config", type=Path, metavar="config.json", help="the model's published configuration")
        source.add_argument("--dtype", default="bf16", help="bf16 or fp8 (default: bf16)")
        source.add_argument("--tp", type=int, default=1, help="GPUs of the engine (default: 1)")
        source.add_argument("--out", type=Path, required=True, metavar="FILE", help="for predict --models")


def run(args: argparse.Namespace) -> int:
    """Fit and write: 0 done, 2 the input is wrong."""
    if args.source == "host":
        return _host(args.data)
    if args.source == "kernels":
        return _table(args.out, args.processes)
    try:
        gpu, card, dtype = gpu_named(args.gpu), _card(args.model, args.config), precision(args.dtype)
        if args.tp < 1 or card.heads % args.tp:
            raise CalibrationError(f"--tp: {card.heads} heads cannot be shared by {args.tp} GPUs: give a divisor")
        _check_out(args.out)
        row, remark = _row(args, gpu, card, dtype)
    except (CalibrationError, UnknownGpuTypeError, UnknownEngineError, ValueError) as error:
        print(f"flyball-sim calibrate: {error}", file=sys.stderr)
        return 2
    key = RowKey(gpu.name, card.name, dtype, args.tp)
    _write(args.out, write_models(card, {key: row}, (remark,)))
    print(
        f"{card.name} {dtype} on {args.tp} x {gpu.name}: mean error {row.fit_percent:.1f} %, "
        f"worst {row.fit_worst_percent:.1f} %, {row.provenance}; written to {args.out}"
    )
    return 0


def _host(data: Path) -> int:
    from flyball_sim.latency.hostfit import FILE, fit_host  # noqa: PLC0415  # it loads numpy and scipy

    try:
        fit = fit_host((data / FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"flyball-sim calibrate: --data {data}: {FILE}: {reason}", file=sys.stderr)
        return 2
    print(
        f"{fit.runs} runs: {fit.step_milliseconds:.3f} ms a step and {fit.entry_nanoseconds:.2f} ns for each sequence "
        f"and entry of the vocabulary; mean error {fit.mean_error_percent:.1f} %, worst {fit.worst_error_percent:.1f} %"
    )
    for check in fit.mixtures:
        print(
            f"mixtures in {check.dtype} on {_count(check.gpus, 'GPU')}, not fitted: {_count(check.runs, 'run')}, "
            f"mean error {check.mean_error_percent:.1f} %, {check.bias_percent:+.1f} % on average"
        )
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _check_out(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise CalibrationError(f"--out {out}: there is no such directory, make it first")
    if out.is_dir():
        raise CalibrationError(f"--out {out}: is a directory, give a file in it")


def _table(out: Path, processes: int) -> int:
    # These load numpy and scipy, and rich's bar, which only this needs.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    from flyball_sim.latency.composed import REMARKS, NotComposedError  # noqa: PLC0415
    from flyball_sim.latency.table import compose_table, table_keys  # noqa: PLC0415

    rows: dict[RowKey, StepRow] = {}
    try:
        _check_out(out)
        if processes < 1:
            raise CalibrationError(f"--processes is {processes}: give 1 or more")
        errors = Console(stderr=True)
        for key, made in track(compose_table(processes), "composing", total=len(table_keys()), console=errors):
            if isinstance(made, str):
                print(f"left out: {made}", file=sys.stderr)
            else:
                rows[key] = made
    except (CalibrationError, NotComposedError) as error:
        print(f"flyball-sim calibrate: {error}", file=sys.stderr)
        return 2
    _write(out, write_rows(rows, REMARKS))
    mean = sum(row.fit_percent for row in rows.values()) / len(rows)
    worst = max(row.fit_worst_percent for row in rows.values())
    print(f"{len(rows)} rows, mean error {mean:.1f} %, worst {worst:.1f} %; written to {out}")
    return 0


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, "utf-8")
    beside.replace(path)


def _read(path: Path, what: str, mend: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise CalibrationError(f"{what}: cannot be read, {error.strerror}: {mend}") from None
    except UnicodeDecodeError:
        raise CalibrationError(f"{what}: is not UTF-8 text: save it as UTF-8") from None


def _card(name: str, config: Path | None) -> ModelCard:
    if config is None:
        try:
            return shipped_catalogue().card(name)
        except UnknownModelError as error:
            raise CalibrationError(f"--model: {error}. Or describe it with --config config.json") from None
    text = _read(config, f"--config {config}", "give the model's config.json")
    try:
        held = json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"--config {config}: line {error.lineno} is not JSON, give the model's file") from None
    held = held.get("text_config", held) if isinstance(held, dict) else {}
    held.setdefault("num_key_value_heads", held.get("num_attention_heads"))
    held.setdefault("max_position_embeddings", 4096)
    shape: dict[str, Any] = {}
    for theirs, ours in _CONFIGURATION.items():
        if not isinstance(held.get(theirs), int) or held[theirs] < 1:
            raise CalibrationError(f"--config {config}: {theirs} is {held.get(theirs)!r}: give a whole number above 0")
        shape[ours] = held[theirs]
    card = ModelCard(name=name, head_dim=held.get("head_dim") or shape["hidden"] // shape["heads"], **shape)
    experts = held.get("num_local_experts") or held.get("num_experts") or 0
    names = {field.name for field in fields(ModelCard)}
    changes = {
        "architecture": (held.get("architectures") or [card.architecture])[0],
        "tied": bool(held.get("tie_word_embeddings")),
        "experts": experts,
        "experts_per_token": held.get("num_experts_per_tok") or 0 if experts else 0,
        "intermediate": (held.get("moe_intermediate_size") or card.intermediate) if experts else card.intermediate,
    }
    return replace(card, **{name: value for name, value in changes.items() if name in names})


def _row(args: argparse.Namespace, gpu: GpuType, card: ModelCard, dtype: str) -> tuple[StepRow, str]:
    if args.source == "aiconfigurator":
        # These load numpy and scipy, which only a fit needs.
        from flyball_sim.latency.composed import NotComposedError, compose  # noqa: PLC0415

        try:
            return compose(gpu.name, card, args.tp, dtype), "composed from kernel tables of NVIDIA AIConfigurator"
        except NotComposedError as error:
            raise CalibrationError(str(error)) from None
    from flyball_sim.latency.measured import MeasuredError, fit_row  # noqa: PLC0415

    place = args.file if args.source == "steps" else (args.pages or args.prometheus)
    try:
        steps = _measured(args)
        averaged = args.source == "metrics"
        row = fit_row(steps, gpu, card, args.tp, dtype, averaged=averaged)
    except MeasuredError as error:
        raise CalibrationError(f"{place}: {error}") from None
    return row, f"fitted to {len(steps)} {'means of steps' if averaged else 'steps'} of {place}"


def _measured(args: argparse.Namespace) -> list[MeasuredStep]:
    from flyball_sim.latency import measured, scraped  # noqa: PLC0415

    if args.source == "metrics" and args.pages is None:
        from flyball_sim.latency.prometheus import pages_of  # noqa: PLC0415

        pages = pages_of(args.prometheus, args.labels, minutes=args.minutes, every_seconds=args.every)
        return scraped.steps_of(pages, args.kv_tokens)
    path = args.file if args.source == "steps" else args.pages
    text = _read(path, str(path), "give a CSV file of steps" if args.source == "steps" else "give a file of pages")
    if args.source == "steps":
        return measured.read_steps(text)
    return scraped.steps_of(scraped.read_pages(text), args.kv_tokens)
