"""Who holds which GPU, read from the kubelet's answer."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.facts import Holder
from flyball_agent.podresources import PodResourcesError, allocation_of


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def answer(*pods):
    raw = b""
    for namespace, pod, container, resource, ids in pods:
        devices = field(1, resource.encode()) + b"".join(field(2, device.encode()) for device in ids)
        body = field(1, container.encode()) + field(2, devices)
        raw += field(1, field(1, pod.encode()) + field(2, namespace.encode()) + field(3, body))
    return raw


TEXT = st.text(max_size=300)


@given(pods=st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT), max_size=5))
def test_every_pod_with_a_gpu_is_found(pods):
    rows = [(*pod, [f"GPU-{number}"]) for number, pod in enumerate(pods)]
    allocation = allocation_of(answer(*rows))
    assert allocation.holders == {
        f"GPU-{number}": Holder(namespace, pod, container) for number, (namespace, pod, container, _) in enumerate(pods)
    }


def test_time_sliced_gpus_lose_their_suffix_and_are_shared():
    allocation = allocation_of(answer(("n", "p", "c", "nvidia.com/gpu.shared", ["GPU-1::0"])))
    assert allocation.shared == {"GPU-1"}
    assert "GPU-1" in allocation.holders


def test_a_gpu_of_two_pods_is_shared():
    rows = [("n", pod, "c", "nvidia.com/gpu", ["GPU-1"]) for pod in ("p", "q")]
    assert allocation_of(answer(*rows)).shared == {"GPU-1"}


def test_mig_devices_are_named_and_other_devices_left_out():
    row = ("n", "p", "c", "nvidia.com/mig-1g.10gb", ["MIG-1", "nic-0"])
    allocation = allocation_of(answer(row))
    assert (allocation.mig, allocation.holders) == (("MIG-1",), {})


def test_fields_we_do_not_know_are_skipped():
    unknown = varint(9 << 3 | 0) + varint(300) + varint(10 << 3 | 1) + b"12345678" + varint(11 << 3 | 5) + b"1234"
    raw = answer(("n", "p", "c", "nvidia.com/gpu", ["GPU-1"]))
    assert allocation_of(unknown + raw).holders.keys() == {"GPU-1"}


@given(cut=st.integers(1, 60))
def test_an_answer_cut_short_is_an_error_or_a_shorter_list_and_never_a_crash(cut):
    raw = answer(("namespace", "pod", "container", "nvidia.com/gpu", ["GPU-1"]))
    try:
        allocation_of(raw[:-cut])
    except PodResourcesError:
        return
    assert len(raw) <= cut


@given(raw=st.binary(max_size=200))
def test_junk_is_an_error_and_not_a_crash(raw):
    with contextlib.suppress(PodResourcesError):
        allocation_of(raw)
