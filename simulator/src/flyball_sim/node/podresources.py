"""The kubelet's PodResources API (`v1.PodResourcesLister`) over gRPC on a Unix socket.

The messages are the subset of the kubelet's `podresources/v1/api.proto` that a device's owner follows from, encoded
here by hand: four nested messages of strings need no generated module and no protobuf runtime in the node. Field
numbers: PodResources {name 1, namespace 2, containers 3}, ContainerResources {name 1, devices 2}, ContainerDevices
{resource_name 1, device_ids 2}; the responses hold their only list in field 1.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

SERVICE = "v1.PodResourcesLister"
SOCKET_PATH = "var/lib/kubelet/pod-resources/kubelet.sock"
_LENGTH_DELIMITED = 2


@dataclass(frozen=True)
class PodDevices:
    """A pod and the devices of its containers.

    `containers` maps each container's name to its device ids by resource name; containers without devices count.
    """

    namespace: str
    name: str
    containers: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


class MessageError(Exception):
    """Bytes that are no protobuf message of the expected kind."""


def encode(fields: Sequence[tuple[int, bytes | str]]) -> bytes:
    """A protobuf message of length-delimited fields (strings and messages), in the order given."""
    parts = []
    for number, value in fields:
        data = value.encode() if isinstance(value, str) else value
        parts += [_varint(number << 3 | _LENGTH_DELIMITED), _varint(len(data)), data]
    return b"".join(parts)


def decode(message: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a message as (number, data).

    Raises:
        MessageError: It is cut short or holds another wire type.
    """
    fields, position = [], 0
    while position < len(message):
        key, position = _read_varint(message, position)
        if key & 7 != _LENGTH_DELIMITED:
            raise MessageError(f"field {key >> 3} has wire type {key & 7}: only strings and messages are expected")
        size, position = _read_varint(message, position)
        if position + size > len(message):
            raise MessageError(f"field {key >> 3} needs {size} bytes, {len(message) - position} are left")
        fields.append((key >> 3, message[position : position + size]))
        position += size
    return fields


def pod_message(pod: PodDevices) -> bytes:
    """A PodResources message."""
    containers = [
        (3, encode([(1, name), *((2, _devices_message(kind, ids)) for kind, ids in sorted(devices.items()))]))
        for name, devices in pod.containers.items()
    ]
    return encode([(1, pod.name), (2, pod.namespace), *containers])


class PodResourcesServer:
    """Serves List, Get and GetAllocatableResources.

    Args:
        socket: Path of the Unix socket; its directory is made, open to root alone as the kubelet has it.
        pods: The pods bound to the node and not over.
        allocatable: All device ids by resource name.
    """

    def __init__(
        self,
        socket: Path,
        pods: Callable[[], Sequence[PodDevices]],
        allocatable: Mapping[str, Sequence[str]],
    ) -> None:
        self._socket = socket
        self._pods = pods
        self._allocatable = allocatable
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        self._socket.parent.chmod(0o700)
        self._socket.unlink(missing_ok=True)
        methods: Mapping[str, Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]] = {
            "List": self._list,
            "Get": self._get,
            "GetAllocatableResources": self._get_allocatable,
        }
        # No thread pool, and no probing of TCP options on a Unix socket.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._server.add_insecure_port(f"unix:{os.fspath(self._socket)}")
        await self._server.start()

    async def stop(self) -> None:
        """Close the socket and end the calls."""
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    async def _list(self, _request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        pods = sorted(self._pods(), key=lambda pod: (pod.namespace, pod.name))
        return encode([(1, pod_message(pod)) for pod in pods])

    async def _get(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        wanted = dict(decode(request))
        name, namespace = wanted.get(1, b"").decode(), wanted.get(2, b"").decode()
        for pod in self._pods():
            if (pod.name, pod.namespace) == (name, namespace):
                return encode([(1, pod_message(pod))])
        await context.abort(grpc.StatusCode.NOT_FOUND, f"pod {name} in namespace {namespace} not found")
        raise AssertionError("unreachable: abort raises")

    async def _get_allocatable(self, _request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return encode([(1, _devices_message(kind, ids)) for kind, ids in sorted(self._allocatable.items())])


def _devices_message(resource_name: str, device_ids: Sequence[str]) -> bytes:
    return encode([(1, resource_name), *((2, device_id) for device_id in device_ids)])


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while position < len(message):
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
    raise MessageError("a number is cut short")
