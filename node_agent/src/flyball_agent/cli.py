"""`flyball`: what a person runs."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flyball_agent.profiles import Profile
from flyball_agent.profiling.fits import FITS, Fitted, with_fits
from flyball_agent.profiling.live import Pace
from flyball_agent.profiling.plan import BATCHES, LOAD_BATCHES
from flyball_agent.profiling.points import PointsError
from flyball_agent.profiling.rig import RigError
from flyball_agent.profiling.session import Wish, measure, uuids_of, whole_numbers
from flyball_agent.profiling.storing import CONFIG_MAP, store, write_file
from flyball_api.kube import CredentialError, KubeError

_NAME = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]{0,239}")
INTERRUPTED = 130
_STANDARD_OUTPUT = Path("-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done; 1 it could not be done; 2 the command line is wrong; 130 it was interrupted.
    """
    options = _parser().parse_args(arguments)
    run = _profile if options.command == "profile" else _fit
    try:
        with _interruptible():
            return run(options)
    except KeyboardInterrupt:
        _tell("interrupted: clocks and caps are as they were, points are kept; the same command goes on")
        return INTERRUPTED
    except (RigError, PointsError, KubeError, CredentialError, ValueError, OSError) as error:
        _tell(f"flyball {options.command}: {error}")
        return 1


@contextmanager
def _interruptible() -> Iterator[None]:
    """TERM and HUP end as an interrupt does, with everything given back; a shell's background process ignores none."""
    handlers: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: _interrupt,
        signal.SIGHUP: _interrupt,
    }
    earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _profile(options: argparse.Namespace) -> int:
    wish = Wish(
        engine_url=options.engine,
        actuator_socket=options.actuator_socket,
        uuids=uuids_of(options.gpu),
        name=options.name,
        points=options.points or Path(f"{options.name}.points"),
        budget_seconds=60.0 * options.minutes,
        max_batch=options.max_batch,
        clocks_mhz=options.clocks,
        batches=options.batches or BATCHES,
        caps_watts=options.caps,
        load_batches=options.load_batches or LOAD_BATCHES,
        seed=options.seed,
        force=options.force,
        pace=Pace(options.settle_seconds, options.window_seconds),
    )
    measured = measure(wish, clock=time.monotonic, utc_now=lambda: datetime.now(UTC), tell=_tell)
    if measured.left:
        _tell(f"{measured.left} points were not measured in the time given: the same command goes on from here")
    return _finish(measured.profile, options)


def _fit(options: argparse.Namespace) -> int:
    return _finish(Profile.from_json(options.profile.read_bytes()), options)


def _finish(profile: Profile, options: argparse.Namespace) -> int:
    fitted = Fitted(profile, ()) if options.no_fit else with_fits(profile, FITS)
    for trouble in fitted.troubles:
        _tell(trouble)
    output = options.output or Path(f"{profile.name}.json")
    if output == _STANDARD_OUTPUT:
        print(fitted.profile.to_json(), end="")
    else:
        write_file(fitted.profile, output)
    _tell(f"profile {profile.name!r} is in {output}")
    if options.namespace:
        asyncio.run(store(fitted.profile, options.namespace, options.kubeconfig))
        _tell(f"and under {profile.name}.json in ConfigMap {options.namespace}/{CONFIG_MAP}")
    return 0


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be a key of a ConfigMap: use letters, digits, -, _ and ., a letter or digit first"
        )
    return text


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return whole_numbers(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers: give e.g. 900,1200") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flyball", description="Flyball's commands for people.")
    commands = parser.add_subparsers(dest="command", required=True)
    profile = commands.add_parser(
        "profile",
        help="measure a live engine for the controllers that need it",
        description="Measures a live engine at many clocks, caps and batches. Its cards are held meanwhile, and get"
        " their clocks and caps back at the end, whatever ends it. The same command goes on where it was broken off.",
    )
    add = profile.add_argument
    add("--engine", required=True, metavar="URL", help="the engine, e.g. http://10.1.2.3:8000")
    add("--gpu", required=True, action="append", metavar="UUID", help="its GPUs; several times, or with commas")
    add("--name", required=True, type=_name, help="of the profile; a policy names it so")
    add("--actuator-socket", type=Path, default=Path("/run/flyball/actuator.sock"), help="default: %(default)s")
    add("--minutes", type=float, default=60.0, help="bound of the measuring (default: %(default)s)")
    add("--max-batch", type=int, default=256, help="the engine's --max-num-seqs (default: %(default)s)")
    add("--clocks", type=_numbers, default=(), metavar="MHZ,...", help="SM clocks (default: 14, evenly spread)")
    add("--batches", type=_numbers, default=(), metavar="N,...", help="decode batches (default: 15 up to 512)")
    add("--caps", type=_numbers, default=(), metavar="W,...", help="power caps (default: 11, evenly spread)")
    add("--load-batches", type=_numbers, default=(), metavar="N,...", help="batches under a cap (default: 9 up to 256)")
    add("--points", type=Path, metavar="FILE", help="keeps measured points (default: NAME.points)")
    add("--settle-seconds", type=float, default=Pace().settle_seconds, help="wait after a clock (default: %(default)s)")
    add("--window-seconds", type=float, default=Pace().window_seconds, help="of measuring (default: %(default)s)")
    add("--seed", type=int, default=0, help="of prompts and lengths (default: %(default)s)")
    add("--force", action="store_true", help="also an engine that serves somebody, who will wait longer")
    add("--no-fit", action="store_true", help="only measure: the controllers' fits are left to flyball fit")
    _add_store(profile)
    fit = commands.add_parser(
        "fit",
        help="fit the controllers' models to a profile anew",
        description="Fits the controllers' models to the points of a profile; needs the libraries that some of them fit"
        " with (flyball-agent[profile]), which the agent's image does not have.",
    )
    fit.set_defaults(no_fit=False)
    fit.add_argument("profile", type=Path, help="file that flyball profile wrote")
    _add_store(fit)
    return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--output", type=Path, metavar="FILE", help="where the profile goes, - for standard output (default: NAME.json)"
    )
    add("--namespace", metavar="NAME", help=f"put it into ConfigMap {CONFIG_MAP} of this namespace as well")
    add("--kubeconfig", type=Path, help="of the cluster; default: the pod's service account")


if __name__ == "__main__":
    sys.exit(main())
