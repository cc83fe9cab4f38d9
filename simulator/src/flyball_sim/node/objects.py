"""ConfigMaps, Secrets and tokens from the API server, as volumes and env entries need them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from flyball_api.kube import CONFIGMAPS, KubeApi, NotFoundError, Resource
from flyball_sim.node.clock import Clock
from flyball_sim.node.volumes import Token

CACHE_SECONDS = 5.0
SECRETS = Resource("", "v1", "secrets", namespaced=True)


class ApiObjects:
    """Objects by name; one answer serves all pods for 5 s (every pod mounts the same root certificate)."""

    def __init__(self, api: KubeApi, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._cache: dict[tuple[str, str, str], tuple[float, Mapping[str, Any] | None]] = {}

    async def config_map(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The ConfigMap; None if there is none."""
        return await self._get(CONFIGMAPS, namespace, name)

    async def secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The Secret; None if there is none."""
        return await self._get(SECRETS, namespace, name)

    async def token(self, pod: Mapping[str, Any], audience: str, seconds: int) -> Token:
        """A token bound to the pod: the API server adds the claims of pod and node, and ends it with the pod."""
        metadata = pod["metadata"]
        account = pod["spec"].get("serviceAccountName", "default")
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"namespace": metadata["namespace"]},
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            },
        }
        # TokenRequest is a subresource one creates; the account is part of the collection's path.
        path = Resource("", "v1", f"serviceaccounts/{account}/token", namespaced=True)
        status = (await self._api.create(path, request))["status"]
        return Token(status["token"], datetime.fromisoformat(status["expirationTimestamp"]))

    async def _get(self, resource: Resource, namespace: str, name: str) -> Mapping[str, Any] | None:
        key = (resource.plural, namespace, name)
        now = self._clock.monotonic_seconds()
        read_at, found = self._cache.get(key, (float("-inf"), None))
        # What does not exist is asked for again each time: somebody is waiting for it.
        if found is None or now - read_at >= CACHE_SECONDS:
            try:
                found = await self._api.get(resource, name, namespace)
            except NotFoundError:
                found = None
            self._cache[key] = (now, found)
        return found
