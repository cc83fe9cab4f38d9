"""Which engines to send requests to: given by URL, or the ready pods of a selector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from flyball_api.kube_types import PODS, KubeReader


class EndpointsProvider(Protocol):
    """Knows the engines that are ready."""

    async def ready(self) -> Sequence[str]:
        """Base URLs, without a trailing slash, of the engines ready now."""


class FixedEndpoints:
    """Engines at known addresses."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = tuple(url.rstrip("/") for url in urls)

    async def ready(self) -> Sequence[str]:
        """All of them, ready or not."""
        return self._urls


class PodEndpoints:
    """The ready pods that match a label selector, read from the API server each time.

    Args:
        api: reads from the API server.
        namespace: where the pods are.
        selector: Kubernetes label selector, e.g. `app=chat,tier!=canary`.
        port: port the engines listen on.
    """

    def __init__(self, api: KubeReader, namespace: str, selector: str, port: int) -> None:
        self._api = api
        self._namespace = namespace
        self._selector = selector
        self._port = port

    async def ready(self) -> Sequence[str]:
        """One URL per pod that is Ready, has an address and is not being deleted."""
        pages = self._api.list_pages(PODS, self._namespace, label_selector=self._selector)
        return [
            f"http://{_host(pod['status']['podIP'])}:{self._port}"
            async for pods, _ in pages
            for pod in pods
            if is_ready(pod)
        ]


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod should get requests."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp") or not status.get("podIP"):
        return False
    conditions = status.get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class Balancer:
    """Chooses an endpoint per request: fewest requests outstanding, or each in turn; ties go to the longest unused.

    Args:
        round_robin: each in turn, whatever is outstanding.
    """

    def __init__(self, *, round_robin: bool = False) -> None:
        self._round_robin = round_robin
        self._endpoints: list[str] = []  # the longest unused first
        self._outstanding: dict[str, int] = {}

    def update(self, endpoints: Sequence[str]) -> None:
        """Replace the set of endpoints; requests outstanding stay counted."""
        known = set(endpoints)
        kept = [endpoint for endpoint in self._endpoints if endpoint in known]
        self._endpoints = [endpoint for endpoint in endpoints if endpoint not in kept] + kept

    def take(self) -> str | None:
        """The endpoint for the next request, which is outstanding from now on; None if there is none."""
        if not self._endpoints:
            return None
        chosen = self._endpoints[0]
        if not self._round_robin:
            chosen = min(self._endpoints, key=lambda endpoint: self._outstanding.get(endpoint, 0))
        self._endpoints.remove(chosen)
        self._endpoints.append(chosen)
        self._outstanding[chosen] = self._outstanding.get(chosen, 0) + 1
        return chosen

    def give_back(self, endpoint: str) -> None:
        """A request to this endpoint is over."""
        self._outstanding[endpoint] -= 1
