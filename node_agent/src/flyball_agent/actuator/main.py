"""Entry point of `flyball-actuator`: reads its arguments and puts the process together."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import selectors
import signal
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from flyball_agent.actuator.core import Actuator
from flyball_agent.actuator.isolation import leave_network
from flyball_agent.actuator.log import Log
from flyball_agent.actuator.nvml import load_library, open_cards
from flyball_agent.actuator.peers import listen
from flyball_agent.actuator.record import Record, RecordError
from flyball_agent.actuator.relay import Relay
from flyball_agent.actuator.server import Server
from flyball_agent.actuator.worker import Worker

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
AGENT_UID = 65532


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the actuator until TERM.

    Returns:
        0 after an orderly end, 1 when it cannot start.
    """
    options = _parser().parse_args(arguments)
    log = Log(sys.stderr, options.log_format)
    try:
        _isolate(options.require_network_isolation, log)
        # One per node, and proved before a socket is taken from the one that runs.
        record = Record(options.record, _BOOT_ID.read_text().strip())
        if options.nvml_library is not None:
            load_library(options.nvml_library)
        _serve(options, record, log)
    except (RecordError, OSError) as error:
        log.error("actuator cannot run", error=str(error))
        return 1
    return 0


def _serve(options: argparse.Namespace, record: Record, log: Log) -> None:
    import pynvml  # noqa: PLC0415 - a refused start need not pay for it

    selector = selectors.DefaultSelector()
    listener = listen(options.socket, backlog=8)
    server = Server(selector, listener, options.agent_uid, time.monotonic, log)
    if options.podresources_socket is not None:
        relay_listener = listen(options.podresources_socket, backlog=8)
        Relay(selector, relay_listener, options.kubelet_podresources, options.agent_uid, log)

    heard, poke = socket.socketpair()
    for end in (heard, poke):
        end.setblocking(False)

    def wake() -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
            poke.send(b"\0")

    def hear() -> None:
        with contextlib.suppress(BlockingIOError):
            while heard.recv(4096):
                pass

    selector.register(heard, selectors.EVENT_READ, hear)
    signal.set_wakeup_fd(poke.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())

    worker = Worker(wake, time.monotonic)
    actuator = Actuator(
        life=uuid.uuid4().hex,
        boot_id=_BOOT_ID.read_text().strip(),
        jobs=worker,
        open_cards=lambda: open_cards(pynvml),
        record=record,
        clock=time.monotonic,
        log=log,
        send=server.send,
        close=server.close,
    )
    _trim()
    log.info("actuator runs", socket=options.socket, record=options.record, uid=os.geteuid())
    server.run(actuator, worker)
    for path in (options.socket, options.podresources_socket):
        if path is not None:
            path.unlink(missing_ok=True)
    log.info("actuator ends: clock locks are reset, caps stay")
    _leave(sys.stderr)


def _isolate(required: bool, log: Log) -> None:
    try:
        leave_network()
    except OSError as error:
        if required:
            raise OSError(
                f"the network cannot be left ({error.strerror}): give CAP_SYS_ADMIN, or drop"
                " --require-network-isolation"
            ) from error
        log.warning("still in the pod's network", reason=error.strerror, mend="give CAP_SYS_ADMIN")


def _trim() -> None:
    """Give back what compiling nvidia-ml-py took: 29 MB -> 18 MB where no bytecode was cached."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _leave(stream: TextIO) -> None:
    """End without waiting for a thread that hangs in the driver."""
    stream.flush()
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flyball-actuator", description="The only process that writes to GPUs.")
    add = parser.add_argument
    add("--socket", type=Path, required=True, help="Unix socket on which the agent commands")
    add("--podresources-socket", type=Path, help="Unix socket that is relayed to the kubelet's PodResources")
    add(
        "--kubelet-podresources",
        type=Path,
        default=Path("/var/lib/kubelet/pod-resources/kubelet.sock"),
        help="the kubelet's PodResources socket (default: %(default)s)",
    )
    add("--record", type=Path, required=True, help="file on the host that remembers what was changed")
    add("--agent-uid", type=int, default=AGENT_UID, help="the only uid that is served (default: %(default)s)")
    add("--nvml-library", type=Path, help="libnvidia-ml.so.1 to load; default: as the dynamic linker finds it")
    add("--require-network-isolation", action="store_true", help="end when the network cannot be left")
    add("--log-format", choices=("json", "console"), default="json", help="form of log lines (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
