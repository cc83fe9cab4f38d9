from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.load.endpoints import Balancer, FixedEndpoints, PodEndpoints, is_ready


def pod(ip: str | None = "127.1.0.5", ready: str = "True", deleted: bool = False) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {})},
        "status": {
            "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": ready}],
            **({"podIP": ip} if ip else {}),
        },
    }


class Pages:
    """An API server's pods, one page each."""

    def __init__(self, pods: list[dict[str, Any]]) -> None:
        self.pods = pods
        self.asked: list[tuple[object, ...]] = []

    async def list_pages(self, resource, namespace=None, *, label_selector=None, **_):
        self.asked.append((resource.plural, namespace, label_selector))
        for one in self.pods:
            yield [one], "1"


@pytest.mark.parametrize(
    ("candidate", "wanted"),
    [
        (pod(), True),
        (pod(ready="False"), False),
        (pod(deleted=True), False),
        (pod(ip=None), False),
        ({"metadata": {"name": "new"}}, False),
    ],
)
def test_only_a_ready_pod_with_an_address_that_stays_gets_requests(candidate, wanted):
    assert is_ready(candidate) is wanted


async def test_the_ready_pods_of_the_selector_become_urls():
    pages = Pages([pod(), pod(ready="False"), pod(ip="fd00::7")])
    provider = PodEndpoints(pages, "serving", "app=chat", 8000)
    assert await provider.ready() == ["http://127.1.0.5:8000", "http://[fd00::7]:8000"]
    assert pages.asked == [("pods", "serving", "app=chat")]


async def test_addresses_given_by_hand_lose_their_last_slash():
    assert list(await FixedEndpoints(["http://a:1/"]).ready()) == ["http://a:1"]


def test_without_endpoints_there_is_nothing_to_take():
    assert Balancer().take() is None


def test_the_least_outstanding_endpoint_is_next():
    balancer = Balancer()
    balancer.update(["a", "b", "c"])
    assert [balancer.take() for _ in range(3)] == ["a", "b", "c"]
    balancer.give_back("b")
    assert balancer.take() == "b"


def test_round_robin_goes_on_whatever_is_outstanding():
    balancer = Balancer(round_robin=True)
    balancer.update(["a", "b"])
    taken = [balancer.take() for _ in range(3)]
    balancer.give_back("b")
    assert [*taken, balancer.take()] == ["a", "b", "a", "b"]


def test_an_endpoint_that_comes_is_used_and_one_that_goes_is_not():
    balancer = Balancer()
    balancer.update(["a"])
    balancer.take()
    balancer.update(["a", "b"])
    assert balancer.take() == "b"
    balancer.update(["b"])
    assert {balancer.take() for _ in range(4)} == {"b"}
    balancer.give_back("a")


@given(st.integers(1, 6), st.integers(1, 60))
def test_requests_spread_evenly_when_none_comes_back(endpoints, requests):
    balancer = Balancer()
    balancer.update([str(number) for number in range(endpoints)])
    taken = Counter(balancer.take() for _ in range(requests))
    assert max(taken.values()) - min(taken.get(str(number), 0) for number in range(endpoints)) <= 1
