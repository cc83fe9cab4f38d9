"""`flyball-sim`: one subcommand per room, imported only when it is used (engines start dozens at a time)."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "cluster": ("flyball_sim.controlplane.cli", "run a real Kubernetes control plane on this machine"),
    "node": ("flyball_sim.node.cli", "be the kubelet of one simulated GPU node"),
    "engine": ("flyball_sim.engine.cli", "serve a vLLM-compatible engine on simulated GPUs"),
    "load": ("flyball_sim.load.cli", "replay a request trace against engines over HTTP"),
    "demo": ("flyball_sim.demo.cli", "the whole of Flyball on this machine, end to end"),
    "bench": ("flyball_sim.bench.cli", "measure latency, CPU, memory and writes of every process"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `flyball-sim COMMAND ...`; returns the process's exit status (2: the command line is wrong)."""
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
