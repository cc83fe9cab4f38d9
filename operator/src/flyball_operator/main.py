"""`flyball-operator`: run it, release everything, or check an installation."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from flyball_api.kube import CredentialError
from flyball_api.lease import LeaseTiming
from flyball_operator import logs

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
EXIT_FAILED = 1
EXIT_DEPOSED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        0 when all went well; 1 when it did not; 3 when `run` lost its leadership.
    """
    options = _parser().parse_args(argv)
    logs.configure(options.log_format)
    try:
        code: int = options.run(options)
    except CredentialError as error:
        print(f"flyball-operator: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    return code


def _run(options: argparse.Namespace) -> int:
    # Imported here: kopf costs 25 MB and half a second, which `release` and `check` need not pay.
    from flyball_operator.wiring import LeadershipEndedError, Options, run  # noqa: PLC0415

    wanted = Options(
        namespace=options.namespace,
        bind_address=options.bind_address,
        port=options.port,
        kubeconfig=options.kubeconfig,
        service_account_dir=options.service_account_dir,
        identity=options.identity,
        lease=LeaseTiming(),
    )
    try:
        asyncio.run(run(wanted, os.environ))
    except LeadershipEndedError as error:
        structlog.get_logger("flyball.operator").error("leadership lost", error=str(error))
        return EXIT_DEPOSED
    return 0


def _release(options: argparse.Namespace) -> int:
    from flyball_operator.releasing import release  # noqa: PLC0415

    return asyncio.run(
        release(
            options.kubeconfig,
            options.service_account_dir,
            os.environ,
            namespace=options.namespace,
            timeout_seconds=options.timeout,
        )
    )


def _check(options: argparse.Namespace) -> int:
    from flyball_operator.checking import check  # noqa: PLC0415

    return asyncio.run(
        check(
            options.kubeconfig,
            options.service_account_dir,
            os.environ,
            namespace=options.namespace,
            timeout_seconds=options.timeout,
        )
    )


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--namespace", default="flyball-system", help="Flyball's namespace (default: %(default)s)")
    common.add_argument("--kubeconfig", type=Path, help="kubeconfig, outside a pod")
    common.add_argument("--service-account-dir", type=Path, default=SERVICE_ACCOUNT, help="default: %(default)s")
    common.add_argument("--log-format", choices=("json", "console"), default="json", help="default: %(default)s")

    parser = argparse.ArgumentParser(prog="flyball-operator", description="The cluster brain of Flyball.")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", parents=[common], help="reconcile until stopped")
    run.add_argument("--bind-address", default="0.0.0.0", help="of /metrics, /healthz, /readyz (default: %(default)s)")
    run.add_argument("--port", type=int, default=8080, help="their port (default: %(default)s)")
    run.add_argument("--identity", default=socket.gethostname(), help="in the Lease and in Events (default: the host)")
    run.set_defaults(run=_run)

    release = commands.add_parser("release", parents=[common], help="restore every GPU, wait until that is proved")
    release.add_argument("--timeout", type=float, default=0.0, help="seconds to wait; 0 for ever (default)")
    release.set_defaults(run=_release)

    check = commands.add_parser("check", parents=[common], help="say whether this installation works")
    check.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for it (default: %(default)s)")
    check.set_defaults(run=_check)
    return parser


if __name__ == "__main__":
    sys.exit(main())
