"""Which pod holds which GPU, from the kubelet's PodResources v1 over the actuator's relay.

The three nested messages that matter are read by a protobuf decoder of our own (thirty lines, reading only): the
alternatives are generated code that must follow a protobuf runtime's version, or building descriptors by hand, and
both bring a runtime of several megabytes. The one unary call is spoken with the `h2` library: grpcio makes this
process 65-69 MB where its budget is 80 MB with eight engines; with h2 it is 55 MB (measured, docs/node-agent.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from flyball_agent.facts import Allocation, Holder

LIST: Final = "/v1.PodResourcesLister/List"
MAX_ANSWER_BYTES: Final = 16 << 20
"""As much as the kubelet itself sends at most (its server's limit)."""
_RECEIVE_BYTES: Final = 64 * 1024


class PodResourcesError(Exception):
    """The kubelet was not reached, or did not say what was asked."""


# -- protobuf --------------------------------------------------------------------------------------------------


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise PodResourcesError("the kubelet's answer is cut short: it is asked again")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _messages(raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content) of every length-delimited field; others are skipped."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(raw, at)
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise PodResourcesError(f"the kubelet's answer has wire type {wire}: no protobuf of PodResources v1")
        if at + size > len(raw):
            raise PodResourcesError("the kubelet's answer is cut short: it is asked again")
        if wire == 2:
            yield number, raw[at : at + size]
        at += size


def decode_list(raw: bytes) -> Iterator[tuple[Holder, str]]:
    """(holder, device id) of every device in a ListPodResourcesResponse.

    Raises:
        PodResourcesError: it is no such message.
    """
    for _, pod in _only(memoryview(raw), 1):
        name = namespace = ""
        containers = []
        for number, content in _messages(pod):
            if number == 1:
                name = _text(content)
            elif number == 2:
                namespace = _text(content)
            elif number == 3:
                containers.append(content)
        for container in containers:
            holder = Holder(namespace, name, "".join(_text(text) for _, text in _only(container, 1)))
            for _, devices in _only(container, 2):
                for _, device in _only(devices, 2):
                    yield holder, _text(device)


def _text(content: memoryview) -> str:
    return bytes(content).decode(errors="replace")


def _only(raw: memoryview, wanted: int) -> Iterator[tuple[int, memoryview]]:
    return ((number, content) for number, content in _messages(raw) if number == wanted)


def allocation_of(raw: bytes) -> Allocation:
    """The GPUs in a ListPodResourcesResponse; devices that are no NVIDIA GPUs are left out.

    Raises:
        PodResourcesError: it is no such message.
    """
    holders: dict[str, Holder] = {}
    shared: set[str] = set()
    mig = []
    for holder, device in decode_list(raw):
        if device.startswith("MIG-"):
            mig.append(device)
            continue
        uuid, replica, _ = device.partition("::")
        if not uuid.startswith("GPU-"):
            continue
        if replica or (uuid in holders and holders[uuid].pod != holder.pod):
            shared.add(uuid)
        holders.setdefault(uuid, holder)
    return Allocation(holders, frozenset(shared), tuple(mig))


# -- gRPC ------------------------------------------------------------------------------------------------------


async def call_unary(socket: Path, method: str, message: bytes = b"") -> bytes:
    """One unary gRPC call over a Unix socket, on a connection of its own.

    Raises:
        PodResourcesError: no connection, or a status other than OK.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError as error:
        raise PodResourcesError(f"{socket} is not reached ({error.strerror}): is the actuator running?") from error
    try:
        return await _speak(reader, writer, method, message)
    except (OSError, H2Error) as error:
        raise PodResourcesError(f"{method} over {socket}: {type(error).__name__}: {error}") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, message: bytes) -> bytes:
    connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        # A percent-encoded socket path, as grpc-python sends, is refused by some servers: grpc/grpc#34305.
        (":authority", "localhost"),
        (":path", method),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    connection.send_headers(stream, headers)
    connection.send_data(stream, struct.pack(">BI", 0, len(message)) + message, end_stream=True)
    body = bytearray()
    status: dict[str, str] = {}
    while True:
        writer.write(connection.data_to_send())
        piece = await reader.read(_RECEIVE_BYTES)
        if not piece:
            raise PodResourcesError(f"{method}: the kubelet closed the connection: it is asked again")
        for event in connection.receive_data(piece):
            if isinstance(event, ResponseReceived | TrailersReceived):
                status.update((str(name), str(value)) for name, value in event.headers or ())
            elif isinstance(event, DataReceived):
                body += event.data or b""
                connection.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                if len(body) > MAX_ANSWER_BYTES:
                    raise PodResourcesError(f"{method}: the answer is beyond {MAX_ANSWER_BYTES} bytes")
            elif isinstance(event, StreamReset | ConnectionTerminated):
                raise PodResourcesError(f"{method}: the kubelet ended the call with error {event.error_code}")
            elif isinstance(event, StreamEnded):
                return _content(method, status, bytes(body))


def _content(method: str, status: dict[str, str], body: bytes) -> bytes:
    code = status.get("grpc-status", "2")
    if status.get(":status") != "200" or code != "0":
        said = status.get("grpc-message", "")
        raise PodResourcesError(f"{method}: HTTP {status.get(':status')}, gRPC status {code} {said}")
    if len(body) < 5 or body[0] != 0 or struct.unpack(">I", body[1:5])[0] != len(body) - 5:
        raise PodResourcesError(f"{method}: the answer is not one uncompressed message")
    return body[5:]
