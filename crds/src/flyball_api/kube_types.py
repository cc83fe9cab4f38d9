"""What the adapter speaks of: JSON objects, resources, and the two protocols loops are written against.

Loops take `KubeReader` or `KubeWriter`, never the adapter itself, so that a recording fake can stand in for the API
server in their tests.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote

from flyball_api.names import GROUP, VERSION

JsonObject = dict[str, Any]
"""A Kubernetes object, or a part of one, as JSON gave it."""

JsonObjects = list[JsonObject]
"""Several of them (a name of its own because methods called `list` hide the built-in one)."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object as the URL names it; `group` is empty for core."""

    group: str
    version: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """As objects spell it: `v1` or `apps/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection (in one namespace or in all), of one object, or of its subresource.

        Raises:
            ValueError: a namespace for a cluster-scoped resource, or none for one namespaced object.
        """
        if namespace is not None and not self.namespaced:
            raise ValueError(f"{self.plural} are cluster-scoped: drop the namespace {namespace!r}")
        if name is not None and self.namespaced and namespace is None:
            raise ValueError(f"{self.plural} {name!r} is namespaced: pass its namespace")
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part is not None]
        return "/".join(parts)


NODES: Final = Resource("", "v1", "nodes", namespaced=False)
PODS: Final = Resource("", "v1", "pods", namespaced=True)
CONFIGMAPS: Final = Resource("", "v1", "configmaps", namespaced=True)
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", namespaced=True)
EVENTS: Final = Resource("events.k8s.io", "v1", "events", namespaced=True)
ENERGY_POLICIES: Final = Resource(GROUP, VERSION, "energypolicies", namespaced=False)
NODE_ENERGY_PLANS: Final = Resource(GROUP, VERSION, "nodeenergyplans", namespaced=False)


class KubeReader(Protocol):
    """What a loop that only looks needs. Every method raises `KubeError`."""

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        """One object. Raises `NotFoundError` when it is not there."""
        ...

    def list_pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        chunk: int = 500,
    ) -> AsyncGenerator[tuple[JsonObjects, str], None]:
        """Pages of (items, resource version); all pages show the state of one resource version."""
        ...

    def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        timeout_seconds: int = 300,
    ) -> AsyncGenerator[JsonObject, None]:
        """Events `{type, object}` after `resource_version`, BOOKMARK ones included, until the server ends it."""
        ...


class KubeWriter(Protocol):
    """What a loop that acts needs. Every method raises `KubeError` and returns the object as it is now."""

    async def create(self, resource: Resource, body: JsonObject) -> JsonObject:
        """Create; `AlreadyExistsError` when the name is taken."""
        ...

    async def replace(self, resource: Resource, body: JsonObject, *, subresource: str | None = None) -> JsonObject:
        """Replace; `ConflictError` when `metadata.resourceVersion` is not the present one."""
        ...

    async def apply(
        self,
        resource: Resource,
        body: JsonObject,
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> JsonObject:
        """Server-side apply: creates or takes exactly the fields in `body`."""
        ...

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: JsonObject,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
    ) -> JsonObject:
        """JSON merge patch (RFC 7386): null deletes, lists are replaced whole."""
        ...

    async def json_patch(
        self,
        resource: Resource,
        name: str,
        operations: Sequence[JsonObject],
        namespace: str | None = None,
        *,
        subresource: str | None = None,
    ) -> JsonObject:
        """JSON patch (RFC 6902); a failed `test` operation is an `InvalidError`."""
        ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_period_seconds: int | None = None,
    ) -> None:
        """Delete; with `uid` or `resource_version`, only that very object (else `ConflictError`)."""
        ...

    async def post_event(
        self,
        *,
        regarding: Mapping[str, str],
        kind: Literal["Normal", "Warning"],
        reason: str,
        note: str,
        action: str,
        controller: str,
        instance: str,
        now: datetime,
    ) -> None:
        """Post one Event about an object; rate limiting is the caller's.

        Args:
            regarding: `apiVersion`, `kind`, `name`, `uid`, and `namespace` when it has one.
            kind: Normal or Warning.
            reason: UpperCamelCase word, at most 128 characters.
            note: what happened, for a human; cut at 1 KiB.
            action: UpperCamelCase word: what the controller did or tried.
            controller: reporting controller, for example `flyball.dev/operator`.
            instance: reporting instance, the pod's name.
            now: wall clock, aware.
        """
        ...
