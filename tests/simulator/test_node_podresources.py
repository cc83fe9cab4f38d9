"""PodResources: the agent's own client reads what the simulated kubelet serves (two implementations of one proto)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from flyball_agent.podresources import LIST, Holder, allocation_of, call_unary
from flyball_sim.node.podresources import PodDevices, PodResourcesServer, decode, encode

PODS = [
    PodDevices("ns", "engine", {"c": {"nvidia.com/gpu": ["GPU-1", "GPU-2"]}, "side": {}}),
    PodDevices("ns", "bare", {"c": {}}),
]


@contextlib.asynccontextmanager
async def serving(pods) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fb-") as directory:
        socket = Path(directory) / "pod-resources" / "kubelet.sock"
        server = PodResourcesServer(socket, lambda: pods, {"nvidia.com/gpu": ["GPU-1", "GPU-2", "GPU-3"]})
        await server.start()
        try:
            yield socket
        finally:
            await server.stop()


async def test_the_agent_reads_who_holds_which_gpu():
    async with serving(PODS) as socket:
        allocation = allocation_of(await call_unary(socket, LIST))
    assert allocation.holders == {uuid: Holder("ns", "engine", "c") for uuid in ("GPU-1", "GPU-2")}


async def test_the_list_follows_the_pods():
    pods = list(PODS)
    async with serving(pods) as socket:
        pods.clear()
        assert allocation_of(await call_unary(socket, LIST)).holders == {}


async def test_all_gpus_are_allocatable():
    async with serving(PODS) as socket:
        answer = await call_unary(socket, "/v1.PodResourcesLister/GetAllocatableResources")
    ((_, devices),) = decode(answer)
    assert decode(devices) == [(1, b"nvidia.com/gpu"), (2, b"GPU-1"), (2, b"GPU-2"), (2, b"GPU-3")]


async def test_one_pod_can_be_asked_for():
    async with serving(PODS) as socket:
        get = "/v1.PodResourcesLister/Get"
        options = [("grpc.default_authority", "localhost")]
        async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
            answer = await channel.unary_unary(get)(encode([(1, "engine"), (2, "ns")]))
            assert decode(decode(answer)[0][1])[0] == (1, b"engine")
            with pytest.raises(grpc.aio.AioRpcError, match="pod no in namespace ns not found"):
                await channel.unary_unary(get)(encode([(1, "no"), (2, "ns")]))


async def test_only_the_nodes_user_reaches_the_socket():
    async with serving(PODS) as socket:
        assert mode_of(socket.parent) == 0o700


def mode_of(path):
    return path.stat().st_mode & 0o777
