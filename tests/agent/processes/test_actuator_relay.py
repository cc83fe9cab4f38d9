"""The relay to the kubelet's PodResources socket, as the actuator runs it."""

import asyncio
import socket

import pytest

from flyball_agent.podresources import LIST, PodResourcesError, allocation_of, call_unary


def test_the_allocation_passes_through_the_relay(node):
    node.kubelet.pods = [("prod", "llama-0", "engine", "nvidia.com/gpu", [node.gpus[0].uuid])]
    node.start_actuator()
    for _ in range(20):  # connections are given back
        allocation = allocation_of(asyncio.run(call_unary(node.relay, LIST)))
        assert allocation.holders[node.gpus[0].uuid].pod == "llama-0"


def test_an_answer_larger_than_every_buffer_passes_whole(node):
    pods = [("ns", f"pod-{n}", "c", "nvidia.com/gpu", [f"GPU-{n}-{'x' * 200}"]) for n in range(3000)]
    node.kubelet.pods = pods
    node.start_actuator()
    assert len(allocation_of(asyncio.run(call_unary(node.relay, LIST))).holders) == 3000


def test_a_kubelet_that_is_not_there_is_said_and_the_actuator_goes_on(node):
    node.start_actuator(f"--kubelet-podresources={node.directory / 'nothing'}")
    with pytest.raises(PodResourcesError):
        asyncio.run(call_unary(node.relay, LIST))
    assert "kubelet not reached" in node.log()
    assert node.line().ask("status")["ok"]


def test_few_connections_are_held(node):
    node.start_actuator()
    held = []
    try:
        for _ in range(5):
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(5)
            peer.connect(str(node.relay))
            held.append(peer)
        assert held[-1].recv(1) == b""
    finally:
        for peer in held:
            peer.close()


def test_a_method_that_the_kubelet_does_not_have_is_an_error_with_its_status(node):
    node.start_actuator()
    with pytest.raises(PodResourcesError, match="gRPC status 12"):
        asyncio.run(call_unary(node.relay, "/v1.PodResourcesLister/Get"))
