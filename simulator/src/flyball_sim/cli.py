"""`flyball-sim`: one subcommand per room, imported only when it is used (engines start dozens at a time)."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "predict": ("flyball_sim.latency.cli_predict", "time, power and energy per token of one serving setup"),
    "calibrate": ("flyball_sim.latency.cli_calibrate", "fit a model's step times from measurements"),
    "replay": ("flyball_sim.replay.cli", "what a policy would save on a request trace, in virtual time"),
    "scoreboard": ("flyball_sim.scoreboard.cli", "compare controllers over worlds, traces, loads and SLOs"),
    "robustness": ("flyball_sim.robustness.cli", "controllers when metrics, cards or the load misbehave"),
    "validate": ("flyball_sim.validation.cli", "compare the simulator with published measurements"),
    "cluster": ("flyball_sim.controlplane.cli", "run a real Kubernetes control plane on this machine"),
    "node": ("flyball_sim.node.cli", "be the kubelet of one simulated GPU node"),
    "engine": ("flyball_sim.engine.cli", "serve a vLLM-compatible engine on simulated GPUs"),
    "load": ("flyball_sim.load.cli", "replay a request trace against engines over HTTP"),
    "demo": ("flyball_sim.demo.cli", "the whole of Flyball on this machine, end to end"),
    "samples": ("flyball_sim.demo.samples", "the docs' sample policies at once, and what becomes of each"),
    "bench": ("flyball_sim.bench.cli", "measure latency, CPU, memory and writes of every process"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `flyball-sim COMMAND ...`; returns the process's exit status.

    The status is the command's own, or: 2 the command line is wrong, 1 the output cannot be written (a full disk),
    130 interrupted, 141 the reader of the output has gone (`| head`).
    """
    try:
        status = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        where = f"{error.filename}: " if error.filename else "the output: "
        print(f"flyball-sim: {where}{error.strerror}: free some space, or write elsewhere", file=sys.stderr)
        return 1
    return status


def _drop_output() -> None:
    """Let the interpreter's own flush at exit succeed: what is still buffered has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="flyball-sim", description="Flyball's world without hardware; COMMAND --help says more."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    module = None
    for name, (path, help_text) in COMMANDS.items():
        subparser = commands.add_parser(name, help=help_text, description=help_text)
        if name == chosen:
            module = importlib.import_module(path)
            module.configure(subparser)
    parsed = parser.parse_args(arguments)
    if module is None:
        parser.error(f"no command in {arguments!r}: give one of {', '.join(COMMANDS)}")
    status: int = module.run(parsed)
    return status


if __name__ == "__main__":
    sys.exit(main())
