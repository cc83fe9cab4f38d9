"""A local, always readable image of one kind of object: chunked list, watch with bookmarks, sweep on every re-list.

Why not kopf's index: it is quadratic to start (5,000 objects 201 s) and never notices a deletion that happened while
its watch was down. Here every list ends with a sweep, and each object is projected to a small frozen dataclass the
moment it is read, so 10,000 Nodes cost what their projections cost.

What a reader may rely on:

* `store` is incomplete until `synced`; afterwards no object that exists is missing for longer than the API server
  takes to say so, and none that is gone survives the next list;
* with the API server gone the last known state stays, `stale` says so, and `last_event_age_seconds` says how old;
* a stream that broke is resumed; one that cannot be opened again, or that said nothing before it broke, leads to a
  list. Else an etcd restored from a backup would be followed from a version of its former future: the API server
  (1.36.2) accepts such a watch and is silent until that version comes round again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Final, Generic, TypeVar

import structlog

from flyball_api.kube_errors import GoneError, KubeError
from flyball_api.kube_types import JsonObject, KubeReader, Resource

T = TypeVar("T")

Key = str
"""`namespace/name`, or `name` for a cluster-scoped object."""

WATCH_SECONDS: Final = 300
SHORT_WATCH_SECONDS: Final = 1.0
STALE_AFTER_SECONDS: Final = 150.0
"""Two bookmarks (one a minute) and some slack without a sign of life."""


def object_key(name: str, namespace: str | None = None) -> Key:
    """The key under which a `Reflector` stores this object."""
    return f"{namespace}/{name}" if namespace else name


class Backoff:
    """Waits before the next try: full jitter over an exponentially growing range.

    Args:
        first_seconds: upper end of the first wait.
        limit_seconds: upper end that is never passed.
        uniform: draws a number between its two arguments.
    """

    def __init__(self, first_seconds: float, limit_seconds: float, uniform: Callable[[float, float], float]) -> None:
        self._first = first_seconds
        self._limit = limit_seconds
        self._uniform = uniform
        self._range = first_seconds

    def next_seconds(self) -> float:
        """How long to wait now; the next range is twice as wide."""
        wait = self._uniform(0.0, self._range)
        self._range = min(self._range * 2, self._limit)
        return wait

    def reset(self) -> None:
        """Something worked: start small again."""
        self._range = self._first


class Reflector(Generic[T]):
    """Holds the projections of all objects of one resource (and selector), as fresh as the API server lets it.

    Args:
        kube: where to list and watch.
        resource: what to list and watch.
        project: makes the stored value of an object; None means the object is of no interest. An object on which
            it raises keeps its last good projection, is named in `unreadable`, and is counted.
        on_change: called with (key, old, new) when the stored value of a key changed; None stands for absent.
            It must not block, and should only mark something dirty.
        namespace: only this namespace, or None for all.
        label_selector: as in kubectl, or None.
        field_selector: as in kubectl, or None.
        chunk: objects per page of a list.
        backoff_limit_seconds: longest wait between two tries of a list.
        clock: monotonic seconds.
        sleep: waits that many seconds.
        uniform: draws the jitter of waits and of watch lifetimes.
    """

    def __init__(
        self,
        kube: KubeReader,
        resource: Resource,
        project: Callable[[JsonObject], T | None],
        *,
        on_change: Callable[[Key, T | None, T | None], None] | None = None,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        chunk: int = 500,
        backoff_limit_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._kube = kube
        self._resource = resource
        self._project = project
        self._on_change = on_change
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._chunk = chunk
        self._backoff = Backoff(0.2, backoff_limit_seconds, uniform)
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        self._log = structlog.get_logger("flyball.reflector").bind(resource=resource.plural)
        self._store: dict[Key, T] = {}
        self._unreadable: dict[Key, str] = {}
        self._version = ""
        self._synced = asyncio.Event()
        self._connected = False
        self._last_sign = clock()
        self._lists = 0
        self._projection_errors = 0

    @property
    def store(self) -> Mapping[Key, T]:
        """Read-only view, always current; copy it to keep a snapshot."""
        return MappingProxyType(self._store)

    @property
    def unreadable(self) -> Mapping[Key, str]:
        """Objects whose latest version could not be projected, and why."""
        return MappingProxyType(self._unreadable)

    @property
    def synced(self) -> bool:
        """Whether one whole list has been read. It stays true afterwards."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Returns once `synced`."""
        await self._synced.wait()

    @property
    def stale(self) -> bool:
        """Whether the store may be behind: not synced, not connected, or no sign of life for 150 s."""
        silent = self.last_event_age_seconds() > STALE_AFTER_SECONDS
        return silent or not self._connected or not self.synced

    def last_event_age_seconds(self) -> float:
        """Seconds since the API server last said anything (page, event or bookmark); since construction at first."""
        return self._clock() - self._last_sign

    @property
    def relists_total(self) -> int:
        """Whole lists after the first one."""
        return max(0, self._lists - 1)

    @property
    def projection_errors_total(self) -> int:
        """Objects read but not projected, counted each time."""
        return self._projection_errors

    async def run(self) -> None:
        """List and watch until cancelled. Only a fault of `on_change` ends it."""
        while True:
            try:
                await self._list()
                await self._follow()
            except GoneError as error:
                # Routine after a long silence; the store is as good as before until the list is read.
                self._log.info("version expired, listing again", error=str(error))
                await self._sleep(self._backoff.next_seconds())
            except KubeError as error:
                self._connected = False
                self._log.warning("API server not followed, listing again", error=str(error))
                await self._sleep(self._backoff.next_seconds())

    async def _list(self) -> None:
        seen: set[Key] = set()
        version = ""
        pages = self._kube.list_pages(
            self._resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            chunk=self._chunk,
        )
        async with aclosing(pages):
            async for items, version in pages:  # noqa: B007 - the last version is the answer
                self._sign_of_life()
                seen.update([self._take(item) for item in items])
        # Only a list that was read to its end may say what is gone.
        for key in [key for key in (*self._store, *self._unreadable) if key not in seen]:
            self._drop(key)
        self._version = version
        self._lists += 1
        self._connected = True
        self._synced.set()

    async def _follow(self) -> None:
        """Watch, and watch on from the last version for as long as streams can be opened."""
        while True:
            opened = self._clock()
            heard = False
            events = self._kube.watch(
                self._resource,
                self._version,
                self._namespace,
                label_selector=self._label_selector,
                field_selector=self._field_selector,
                # Spread, so that watches opened together do not end together.
                timeout_seconds=int(WATCH_SECONDS * self._uniform(0.8, 1.2)),
            )
            try:
                async with aclosing(events):
                    async for event in events:
                        heard = True
                        self._backoff.reset()
                        self._take_event(event)
            except GoneError:
                raise
            except KubeError as error:
                if not heard:
                    raise
                self._log.info("watch broke, resuming", error=str(error), resource_version=self._version)
            if not heard and self._clock() - opened < SHORT_WATCH_SECONDS:
                await self._sleep(self._backoff.next_seconds())

    def _take_event(self, event: JsonObject) -> None:
        self._sign_of_life()
        item: JsonObject = event["object"]
        if event["type"] == "DELETED":
            metadata = item["metadata"]
            self._drop(object_key(metadata["name"], metadata.get("namespace")))
        elif event["type"] != "BOOKMARK":
            self._take(item)
        self._version = str(item["metadata"]["resourceVersion"])

    def _take(self, item: JsonObject) -> Key:
        metadata = item["metadata"]
        key = object_key(metadata["name"], metadata.get("namespace"))
        try:
            value = self._project(item)
        except Exception as error:  # noqa: BLE001
            # Whatever a projection meets in a stranger's object, the other objects must still be followed.
            self._projection_errors += 1
            self._unreadable[key] = f"{type(error).__name__}: {error}"
            self._log.exception("object skipped", object=key)
            return key
        self._unreadable.pop(key, None)
        if value is None:
            self._drop(key)
        elif (old := self._store.get(key)) != value:
            self._store[key] = value
            self._changed(key, old, value)
        return key

    def _drop(self, key: Key) -> None:
        self._unreadable.pop(key, None)
        old = self._store.pop(key, None)
        if old is not None:
            self._changed(key, old, None)

    def _changed(self, key: Key, old: T | None, new: T | None) -> None:
        if self._on_change is not None:
            self._on_change(key, old, new)

    def _sign_of_life(self) -> None:
        self._last_sign = self._clock()
