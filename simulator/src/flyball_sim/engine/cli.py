"""`flyball-sim engine`: one simulated inference engine on the GPUs the pod was given."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flyball_sim.engine.gpus import EngineGpus, FreeRunningGpus, StateFileGpus
from flyball_sim.engine.metrics import EngineMetrics
from flyball_sim.engine.models import BLOCK_TOKENS, StepModel, UnknownEngineError, step_model
from flyball_sim.engine.requests import EngineLimits
from flyball_sim.engine.runtime import EngineRuntime
from flyball_sim.engine.server import EngineServer, ServedModel, listening
from flyball_sim.gpu.statefile import GpuSlot, GpuStateFile, StateFileError
from flyball_sim.gpu.types import UnknownGpuTypeError, gpu_type
from flyball_sim.load.conversation import draw_output_tokens

STATE_VARIABLE = "FLYBALL_SIM_GPU_STATE"
DEVICES_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
log = logging.getLogger("flyball.engine")


class EngineSetupError(Exception):
    """The engine cannot start as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The GPUs an engine runs on: its step model, and how to reach them."""

    model: StepModel
    gpus: EngineGpus


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options, named as vLLM names them where it has them."""
    parser.add_argument("--model", required=True, help="model the step times are for, e.g. llama-3.1-8b")
    parser.add_argument(
        "--served-model-name", action="append", metavar="NAME", help="name clients ask for (default: the model's)"
    )
    parser.add_argument(
        "--gpu-type", default="auto", help="GPU type, e.g. H100-SXM5; auto: that of the GPUs in the state file"
    )
    parser.add_argument(
        "--tensor-parallel-size", type=int, metavar="N", help="GPUs of the engine (default: all it was given, or 1)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--max-model-len", type=int, metavar="TOKENS", help="context length (default: the model's)")
    parser.add_argument("--max-num-seqs", type=int, default=256, help="most sequences in a batch")
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048, help="most tokens in a step")
    parser.add_argument(
        "--enable-chunked-prefill",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute prompts in chunks beside decodes (default), or whole and before them",
    )
    parser.add_argument("--max-num-queued-reqs", type=int, default=1024, help="most requests in the queue")
    parser.add_argument("--seed", type=int, default=0, help="seed of the lengths of answers that end by themselves")
    parser.add_argument("--grace-seconds", type=float, default=25.0, help="time for requests to finish after TERM")


def run(args: argparse.Namespace) -> int:
    """Serve until TERM or INT; 2 when the engine cannot start as asked."""
    _log_json()
    try:
        with ExitStack() as resources:
            placement = place(args.model, args.gpu_type, args.tensor_parallel_size, os.environ, resources)
            limits = limits_for(args, placement.model)
            return asyncio.run(_serve(args, placement, limits))
    except (EngineSetupError, UnknownEngineError, UnknownGpuTypeError, StateFileError, OSError) as error:
        print(f"flyball-sim engine: {error}", file=sys.stderr)
        return 2


def place(
    model: str, gpu_type_name: str, gpus: int | None, environ: Mapping[str, str], resources: ExitStack
) -> Placement:
    """Find the engine's GPUs: those of the state file the environment names, or free-running ones of a type.

    Args:
        model: name of the model.
        gpu_type_name: a GPU type, or `auto`.
        gpus: GPUs of the engine; None for all it was given.
        environ: the process's environment.
        resources: closes the state file.

    Raises:
        EngineSetupError: the environment and the options do not add up.
        UnknownEngineError: no step times for this model on these GPUs.
        UnknownGpuTypeError: no such GPU type.
        StateFileError: the state file cannot be used.
    """
    path = environ.get(STATE_VARIABLE)
    if not path:
        if gpu_type_name == "auto":
            raise EngineSetupError(
                f"--gpu-type is auto and {STATE_VARIABLE} is not set: name a type, or run in a pod with nvidia.com/gpu"
            )
        kind = gpu_type(gpu_type_name)
        return Placement(step_model(kind, model, gpus or 1), FreeRunningGpus(kind.sm_max_mhz))
    uuids = [uuid for uuid in environ.get(DEVICES_VARIABLE, "").split(",") if uuid]
    if not uuids:
        raise EngineSetupError(f"{STATE_VARIABLE} is set and {DEVICES_VARIABLE} is empty: ask for nvidia.com/gpu")
    state = GpuStateFile.open(Path(path))
    resources.callback(state.close)
    slots: list[GpuSlot] = [state.by_uuid(uuid) for uuid in uuids]
    if gpus not in {None, len(slots)}:
        raise EngineSetupError(
            f"--tensor-parallel-size is {gpus}, the engine was given {len(slots)} GPUs: make them the same"
        )
    kinds = {slot.gpu_type.name: slot.gpu_type for slot in slots}
    if len(kinds) > 1:
        raise EngineSetupError(f"the GPUs given are of types {', '.join(sorted(kinds))}: one engine runs on one type")
    name, kind = next(iter(kinds.items()))
    if gpu_type_name not in {"auto", name}:
        raise EngineSetupError(f"--gpu-type is {gpu_type_name}, the GPUs given are {name}: leave it at auto")
    return Placement(step_model(kind, model, len(slots)), StateFileGpus(slots, time.monotonic_ns))


def limits_for(args: argparse.Namespace, model: StepModel) -> EngineLimits:
    """The engine's limits from the command line.

    Raises:
        EngineSetupError: a limit is out of bounds; the message names the bound.
    """
    capacity = model.kv_blocks * BLOCK_TOKENS
    longest = min(model.model.context_tokens, capacity)
    max_model_len = longest if args.max_model_len is None else args.max_model_len
    for name, value, highest in (
        ("max-model-len", max_model_len, longest),
        ("max-num-seqs", args.max_num_seqs, args.max_num_batched_tokens),
        ("max-num-batched-tokens", args.max_num_batched_tokens, capacity),
        ("max-num-queued-reqs", args.max_num_queued_reqs, sys.maxsize),
    ):
        if not 1 <= value <= highest:
            raise EngineSetupError(f"--{name} is {value}: give 1 to {highest}")
    return EngineLimits(
        max_model_len=max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_queued_reqs=args.max_num_queued_reqs,
        chunked_prefill=args.enable_chunked_prefill,
    )


async def _serve(args: argparse.Namespace, placement: Placement, limits: EngineLimits) -> int:
    """Wire one engine and serve it."""
    names = tuple(args.served_model_name or [args.model])
    lengths = random.Random(args.seed)  # noqa: S311 - lengths of simulated answers
    metrics = EngineMetrics(
        names[0],
        max_model_len=limits.max_model_len,
        kv_blocks=placement.model.kv_blocks,
        created_seconds=time.time(),
    )
    runtime = EngineRuntime(placement.model, limits, placement.gpus, metrics)
    served = ServedModel(names, limits.max_model_len)
    server = EngineServer(runtime, metrics, served, lambda: draw_output_tokens(lengths))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with listening(server, args.host, args.port) as port:
            log.info(
                "serving",
                extra={
                    "model": args.model,
                    "gpus": f"{placement.model.gpus} x {placement.model.gpu.name}",
                    "address": f"{args.host}:{port}",
                    "kv_tokens": placement.model.kv_blocks * BLOCK_TOKENS,
                },
            )
            await stop.wait()
            unfinished = await server.drain(args.grace_seconds)
            log.info("stopped", extra={"unfinished_requests": unfinished})
    finally:
        runtime.close()
    return 0


class _JsonLines(logging.Formatter):
    """One JSON object per line. The standard library's, because structlog would double the engine's start."""

    def format(self, record: logging.LogRecord) -> str:
        plain = logging.makeLogRecord({}).__dict__
        fields = {key: value for key, value in record.__dict__.items() if key not in plain and key != "message"}
        line = {"time": record.created, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_json() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
