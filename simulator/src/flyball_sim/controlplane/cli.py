"""`flyball-sim cluster`: a real Kubernetes control plane on this machine, for as long as you want it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flyball_sim.controlplane.cluster import ClusterError
from flyball_sim.controlplane.named import MemberStatus, NamedCluster, State
from flyball_sim.controlplane.toolchain import AssetsError

DEFAULT_NAME = "flyball"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the commands and their options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    up = commands.add_parser("up", help="start it (building its programs the first time) and say how to use it")
    up.add_argument("--foreground", action="store_true", help="stay, and end it with Ctrl-C")
    up.add_argument("--audit", action="store_true", help="write an audit event per request to audit.log")
    down = commands.add_parser("down", help="end it and remove its data")
    status = commands.add_parser("status", help="process and health of each component; exits with 1 when not well")
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    for command in (up, down, status, kubeconfig):
        command.add_argument(
            "--name", default=DEFAULT_NAME, help="which cluster, when you run several (default: %(default)s)"
        )


def run(args: argparse.Namespace) -> int:
    """Carry out one command; returns the exit status."""
    actions = {"up": _up, "down": _down, "status": _status, "kubeconfig": _kubeconfig}
    try:
        return actions[args.action](NamedCluster(args.name), args)
    except (AssetsError, ClusterError, OSError) as error:
        print(f"flyball-sim cluster {args.action}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _up(cluster: NamedCluster, args: argparse.Namespace) -> int:
    if args.foreground:
        cluster.serve(lambda state: print(usage(cluster.name, state), flush=True), audit=args.audit)
        return 0
    print(usage(cluster.name, cluster.up(audit=args.audit)))
    return 0


def _down(cluster: NamedCluster, _args: argparse.Namespace) -> int:
    was_up = cluster.down()
    print(
        f"cluster {cluster.name!r} has ended, its data is removed" if was_up else f"cluster {cluster.name!r} is not up"
    )
    return 0


def _status(cluster: NamedCluster, _args: argparse.Namespace) -> int:
    members = cluster.status()
    if not members:
        print(_not_up(cluster), file=sys.stderr)
        return 1
    print(table(members))
    return 0 if all(each.running and each.healthy for each in members) else 1


def _kubeconfig(cluster: NamedCluster, _args: argparse.Namespace) -> int:
    state = cluster.state()
    if state is None or not state.ready:
        print(_not_up(cluster), file=sys.stderr)
        return 1
    print(state.kubeconfig)
    return 0


def _not_up(cluster: NamedCluster) -> str:
    return f"cluster {cluster.name!r} is not up; start it with: flyball-sim cluster up{_name_option(cluster.name)}"


def _name_option(name: str) -> str:
    return "" if name == DEFAULT_NAME else f" --name {name}"


def usage(name: str, state: State) -> str:
    """Return what to type next."""
    option = _name_option(name)
    return "\n".join(
        [
            f"cluster {name!r}: a Kubernetes API server at {state.server}, without nodes",
            "",
            f"  export KUBECONFIG={state.kubeconfig}",
            f"  export PATH={state.programs}:$PATH    # kubectl and helm of the same build",
            "  kubectl get namespaces",
            "",
            f"  flyball-sim cluster status{option}",
            f"  flyball-sim cluster down{option}",
        ]
    )


def table(members: Sequence[MemberStatus]) -> str:
    """Return the components as kubectl would print them."""
    rows = [("COMPONENT", "PID", "PROCESS", "HEALTH", "LOG")]
    for each in members:
        process = "running" if each.running else "ended"
        health = "healthy" if each.healthy else "not healthy"
        rows.append((each.member.name, str(each.member.pid), process, health, each.member.log))
    widths = [max(len(row[column]) for row in rows) + 3 for column in range(4)]
    lines = ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[4] for row in rows]
    return "\n".join(lines)
