"""The small pure parts of the simulated node: addresses, GPUs, payloads, messages, probes, the Node object."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.node.addresses import AddressError, AddressPool, hold_network
from flyball_sim.node.gpus import GpuAllocator, GpuShortageError
from flyball_sim.node.nodeobject import NodeIdentity, lease_body, node_labels, node_status
from flyball_sim.node.payload import PayloadFile, write_payload
from flyball_sim.node.podresources import MessageError, PodDevices, decode, encode, pod_message
from flyball_sim.node.probes import ProbeCount, ProbeSchedule, port_number

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


class TestAddresses:
    def test_pods_get_addresses_of_their_node_and_none_twice(self):
        pool = AddressPool(2)
        taken = [pool.take() for _ in range(600)]
        assert len(set(taken)) == 600
        assert taken[0] == "127.3.1.1"
        assert all(address.startswith("127.3.") for address in taken)
        assert pool.host_ip not in taken

    def test_an_address_given_back_is_not_the_next_one_given(self):
        pool = AddressPool(0)
        first = pool.take()
        pool.give_back(first)
        assert pool.take() != first

    def test_a_pods_earlier_address_can_be_kept(self):
        pool = AddressPool(0)
        assert pool.claim("127.1.1.7")
        assert not pool.claim("127.1.1.7")
        assert "127.1.1.7" not in {pool.take() for _ in range(20)}

    @pytest.mark.parametrize("address", ["", "127.2.1.1", "127.1.0.1", "127.1.251.1", "10.0.0.1", "::1"])
    def test_an_address_of_another_network_is_not_kept(self, address):
        assert not AddressPool(0).claim(address)

    def test_all_addresses_can_be_used_and_then_no_more(self):
        pool = AddressPool(0)
        for _ in range(250 * 250):
            pool.take()
        with pytest.raises(AddressError, match="delete pods"):
            pool.take()

    @pytest.mark.parametrize("index", [-1, 254])
    def test_an_index_out_of_bounds_is_refused(self, index):
        with pytest.raises(AddressError, match=r"outside 0\.\.253"):
            AddressPool(index)

    def test_two_nodes_of_one_machine_do_not_share_a_network(self):
        first, lock = hold_network(None)
        second, other = hold_network(None)
        with lock, other:
            assert first != second
            with pytest.raises(AddressError, match=f"index {first} is in use"):
                hold_network(first)


class TestGpus:
    def test_the_lowest_free_gpus_are_given_first(self):
        gpus = GpuAllocator(["g0", "g1", "g2", "g3"])
        assert gpus.allocate("p1", {"a": 1}) == {"a": ("g0",)}
        assert gpus.allocate("p2", {"a": 1, "b": 1}) == {"a": ("g1",), "b": ("g2",)}
        gpus.release("p1")
        assert gpus.allocate("p3", {"a": 2}) == {"a": ("g0", "g3")}

    def test_a_pod_that_asks_for_too_many_gets_none(self):
        gpus = GpuAllocator(["g0"])
        with pytest.raises(GpuShortageError, match="asks for 2 GPUs and 1 of 1 are free"):
            gpus.allocate("p", {"a": 1, "b": 1})
        assert gpus.free() == ("g0",)

    def test_asking_again_gives_the_same(self):
        gpus = GpuAllocator(["g0", "g1"])
        assert gpus.allocate("p", {"a": 1}) == gpus.allocate("p", {"a": 1})

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=30))
    def test_no_gpu_is_ever_held_twice(self, steps):
        gpus = GpuAllocator([f"g{index}" for index in range(8)])
        for pod, count in steps:
            if gpus.held_by(str(pod)):
                gpus.release(str(pod))
            else:
                try:
                    gpus.allocate(str(pod), {"a": count})
                except GpuShortageError:
                    assert count > len(gpus.free())
            held = list(itertools.chain(*(gpus.held_by(str(name)).get("a", ()) for name in range(6))))
            assert sorted([*held, *gpus.free()]) == sorted(gpus.uuids)


class TestPayloads:
    def test_files_appear_with_contents_and_modes(self, tmp_path: Path):
        assert write_payload(tmp_path, {"token": PayloadFile(b"t", 0o640), "d/x": PayloadFile(b"x", 0o644)})
        assert (tmp_path / "token").read_bytes() == b"t"
        assert (tmp_path / "d" / "x").read_bytes() == b"x"
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o640

    def test_all_files_change_by_one_rename(self, tmp_path: Path):
        write_payload(tmp_path, {"a": PayloadFile(b"1", 0o644), "b": PayloadFile(b"1", 0o644)})
        before = (tmp_path / "..data").readlink()
        write_payload(tmp_path, {"a": PayloadFile(b"2", 0o644), "c": PayloadFile(b"2", 0o644)})
        assert (tmp_path / "..data").readlink() != before
        assert (tmp_path / "a").readlink() == Path("..data/a")
        assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("..")) == ["a", "c"]
        assert (tmp_path / "c").read_bytes() == b"2"

    def test_an_open_file_keeps_its_old_contents(self, tmp_path: Path):
        write_payload(tmp_path, {"a": PayloadFile(b"old", 0o644)})
        with (tmp_path / "a").open("rb") as file:
            write_payload(tmp_path, {"a": PayloadFile(b"new", 0o644)})
            assert file.read() == b"old"

    def test_nothing_is_written_when_nothing_changed(self, tmp_path: Path):
        payload = {"a": PayloadFile(b"1", 0o644)}
        assert write_payload(tmp_path, payload)
        before = (tmp_path / "..data").readlink()
        assert not write_payload(tmp_path, payload)
        assert (tmp_path / "..data").readlink() == before


class TestMessages:
    def test_a_pod_is_encoded_as_protobuf_has_it(self):
        pod = PodDevices("ns", "p", {"c": {"nvidia.com/gpu": ["GPU-1", "GPU-2"]}})
        # Spelt out after the kubelet's api.proto: tag (field << 3 | 2), length, bytes.
        devices = b"\x0a\x0envidia.com/gpu" + b"\x12\x05GPU-1" + b"\x12\x05GPU-2"
        container = b"\x0a\x01c" + b"\x12" + bytes([len(devices)]) + devices
        assert pod_message(pod) == b"\x0a\x01p" + b"\x12\x02ns" + b"\x1a" + bytes([len(container)]) + container

    @given(st.lists(st.tuples(st.integers(1, 2**20), st.binary(max_size=400))))
    def test_what_is_encoded_is_decoded(self, fields):
        assert decode(encode(fields)) == fields

    @pytest.mark.parametrize("message", [b"\x0a\x05ab", b"\x08\x01", b"\x80", b"\x0a"])
    def test_bytes_that_are_no_such_message_are_refused(self, message):
        with pytest.raises(MessageError):
            decode(message)


class TestProbes:
    def test_a_threshold_is_answers_of_one_kind_in_a_row(self):
        schedule = ProbeSchedule(success_threshold=2, failure_threshold=3)
        count, verdicts = ProbeCount(), []
        for ok in (True, True, False, False, True, False, False, False):
            count = count.after(ok)
            verdicts.append(count.verdict(schedule))
        assert verdicts == [None, True, None, None, None, None, None, False]

    def test_defaults_are_kubernetes_defaults(self):
        assert ProbeSchedule.of({}) == ProbeSchedule(0, 10, 1, 1, 3)

    def test_a_port_may_be_named(self):
        container = {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}
        assert port_number(container, "http") == 8080
        assert port_number(container, 9) == 9
        with pytest.raises(ValueError, match='no port named "grpc"'):
            port_number(container, "grpc")


class TestNodeObject:
    identity = NodeIdentity("gpu-0", "127.1.0.1", 8, "NVIDIA H100 80GB HBM3", "boot")

    def test_gpus_are_in_labels_and_capacity(self):
        assert node_labels(self.identity)["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
        assert node_status(self.identity, True, NOW, None)["allocatable"]["nvidia.com/gpu"] == "8"

    def test_a_node_without_gpus_has_no_gpu_labels(self):
        bare = NodeIdentity("cpu-0", "127.1.0.1", 0, "", "boot")
        assert not any(label.startswith("nvidia.com") for label in node_labels(bare))

    def test_a_heartbeat_keeps_the_transition_time(self):
        first = node_status(self.identity, True, NOW, None)
        second = node_status(self.identity, True, NOW + timedelta(minutes=5), first)
        ready = second["conditions"][-1]
        assert ready["lastTransitionTime"] == "2026-11-21T10:00:00Z"
        assert ready["lastHeartbeatTime"] == "2026-11-21T10:05:00Z"
        stopped = node_status(self.identity, False, NOW + timedelta(minutes=6), second)["conditions"][-1]
        assert (stopped["status"], stopped["lastTransitionTime"]) == ("False", "2026-11-21T10:06:00Z")

    def test_the_lease_goes_with_the_node(self):
        lease = lease_body("gpu-0", "uid", NOW)
        assert lease["metadata"]["ownerReferences"][0]["uid"] == "uid"
        assert lease["spec"]["renewTime"] == "2026-11-21T10:00:00.000000Z"
