"""`flyball-sim node`: the command line of a simulated node."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from pathlib import Path

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `flyball-sim node`."""
    parser.add_argument("--name", required=True, type=_node_name, help="name of the Node object")
    parser.add_argument(
        "--index",
        type=int,
        help="number of the node, 0..253: its network is 127.<index+1>.0.0/16 (default: the lowest not in use)",
    )
    parser.add_argument("--kubeconfig", required=True, type=Path, help="an identity that may do what a kubelet does")
    parser.add_argument(
        "--gpus", type=int, choices=range(9), default=8, help="number of GPUs, 0..8 (default: %(default)s)"
    )
    parser.add_argument("--gpu-type", default="H100-SXM5", help="type of the GPUs (default: %(default)s)")
    parser.add_argument(
        "--root", required=True, type=Path, help="directory of the node's file system, pods and logs (a short path)"
    )
    parser.add_argument(
        "--shutdown-grace-seconds",
        type=float,
        default=5.0,
        help="between TERM and KILL of the containers when the node ends (default: %(default)s)",
    )
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end when stdin does: for programs that start nodes"
    )


def run(args: argparse.Namespace) -> int:
    """Run the node until TERM or INT; 1 and a sentence on stderr when it cannot run."""
    # Imported here so that `flyball-sim --help` does not wait for an API client and gRPC.
    from flyball_api.kube import CredentialError  # noqa: PLC0415
    from flyball_sim.gpu.library import LibraryBuildError  # noqa: PLC0415
    from flyball_sim.gpu.types import UnknownGpuTypeError  # noqa: PLC0415
    from flyball_sim.node.addresses import AddressError  # noqa: PLC0415
    from flyball_sim.node.kubelet import NodeError, NodeOptions, run_node  # noqa: PLC0415
    from flyball_sim.node.logs import configure_logs  # noqa: PLC0415

    configure_logs()
    options = NodeOptions(
        name=args.name,
        index=args.index,
        kubeconfig=args.kubeconfig,
        gpus=args.gpus,
        gpu_type=args.gpu_type,
        root=args.root,
        shutdown_grace_seconds=args.shutdown_grace_seconds,
        until_stdin_closes=args.until_stdin_closes,
    )
    try:
        asyncio.run(run_node(options))
    except (NodeError, AddressError, CredentialError, LibraryBuildError, UnknownGpuTypeError) as error:
        sys.stderr.write(f"flyball-sim node: {error}\n")
        return 1
    return 0


def _node_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name of a Node: use lower-case letters, digits, '-' and '.', up to 253 characters"
        )
    return text
