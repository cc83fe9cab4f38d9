"""A pod's volumes as real directories: emptyDir, hostPath, configMap, secret, downwardAPI, projected.

Directories are `<root>/v/<start of the pod's uid>/<volume>`: short, because a Unix socket's path has 107 bytes at
most. Ownership and modes follow the kubelet (fsGroup, or the one user all containers share).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from flyball_sim.node.payload import PayloadFile, write_payload
from flyball_sim.node.podspec import PodSpecError, field_value, identity_of

DEFAULT_MODE = 0o644
DEFAULT_TOKEN_SECONDS = 3600
REFRESH_PERIOD = timedelta(seconds=60)
TOKEN_SPENT_FRACTION = 0.8

_PAYLOAD_KINDS = ("configMap", "secret", "downwardAPI", "projected")
_MUST_EXIST = {"Directory": Path.is_dir, "File": Path.is_file, "Socket": Path.is_socket}


@dataclass(frozen=True)
class Token:
    """A service account token and when it ends."""

    value: str
    expires_at: datetime


class ObjectSource(Protocol):
    """Where volumes' contents come from; None for an object that does not exist."""

    async def config_map(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The ConfigMap."""

    async def secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The Secret."""

    async def token(self, pod: Mapping[str, Any], audience: str, seconds: int) -> Token:
        """A new token of the pod's service account, bound to the pod; audience "" is the API server's."""


class PodVolumes:
    """The volumes of one pod.

    Args:
        pod: The pod; `update` replaces it when its labels or annotations change.
        directory: Where its volumes go; made here.
        rootfs: Root of the node's file system, for hostPath.
        source: Objects and tokens.
        now: Wall clock.
        change_owner: Whether files may be given to other users (the node runs as root).
    """

    def __init__(
        self,
        pod: Mapping[str, Any],
        directory: Path,
        rootfs: Path,
        source: ObjectSource,
        now: Callable[[], datetime],
        *,
        change_owner: bool,
    ) -> None:
        self._pod = pod
        self._directory = directory
        self._rootfs = rootfs
        self._source = source
        self._now = now
        self._change_owner = change_owner
        self._tokens: dict[tuple[str, str], tuple[Token, datetime]] = {}
        self._refresh_at: datetime | None = None

    def update(self, pod: Mapping[str, Any]) -> None:
        """Take a newer version of the pod (for its downward API)."""
        self._pod = pod

    async def prepare(self, pod_ip: str, host_ip: str) -> dict[str, str]:
        """Make or refresh all volumes.

        Returns:
            Real path by volume name.

        Raises:
            PodSpecError: `FailedMount`, naming the volume and what is missing; worth another try later.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._refresh_at = None
        paths = {}
        for volume in self._pod["spec"].get("volumes") or ():
            paths[volume["name"]] = str(await self._prepare(volume, pod_ip, host_ip))
        await asyncio.to_thread(self._make_sub_paths, paths)
        return paths

    def refresh_at(self) -> datetime | None:
        """When `prepare` has to be called again to keep contents and tokens fresh; None: never."""
        return self._refresh_at

    async def _prepare(self, volume: Mapping[str, Any], pod_ip: str, host_ip: str) -> Path:
        if "hostPath" in volume:
            return self._host_path(volume)
        path = self._directory / str(volume["name"])
        path.mkdir(exist_ok=True)
        if "emptyDir" in volume:
            self._open_to_pod(path)
            return path
        kind = next((kind for kind in _PAYLOAD_KINDS if kind in volume), None)
        if kind is None:
            known = ", ".join(("emptyDir", "hostPath", *_PAYLOAD_KINDS))
            given = ", ".join(key for key in volume if key != "name")
            raise _failed(volume, f"{given} is not supported by the simulated node: use one of {known}")
        body = volume[kind]
        default_mode = body.get("defaultMode", DEFAULT_MODE)
        sources = body.get("sources") or () if kind == "projected" else [{kind: body}]
        payload: dict[str, PayloadFile] = {}
        for source in sources:
            payload.update(await self._payload(volume, source, default_mode, pod_ip, host_ip))
        await asyncio.to_thread(write_payload, path, payload)
        self._due(self._now() + REFRESH_PERIOD)
        return path

    async def _payload(
        self, volume: Mapping[str, Any], source: Mapping[str, Any], mode: int, pod_ip: str, host_ip: str
    ) -> dict[str, PayloadFile]:
        ((kind, body),) = source.items()
        if kind == "serviceAccountToken":
            return {body["path"]: await self._token_file(body, mode)}
        if kind == "downwardAPI":
            data = {
                item["path"]: field_value(self._pod, item["fieldRef"]["fieldPath"], pod_ip, host_ip).encode()
                for item in body.get("items") or ()
            }
            modes = {item["path"]: item.get("mode", mode) for item in body.get("items") or ()}
            return {path: self._file(content, modes[path]) for path, content in data.items()}
        name = body.get("name") or body.get("secretName")
        namespace = self._pod["metadata"]["namespace"]
        if kind == "configMap":
            found = await self._source.config_map(namespace, name)
        elif kind == "secret":
            found = await self._source.secret(namespace, name)
        else:
            raise _failed(volume, f"projected source {kind} is not supported by the simulated node")
        if found is None:
            if body.get("optional"):
                return {}
            raise _failed(volume, f'{kind} "{namespace}/{name}" does not exist: create it, or mark it optional')
        contents = object_bytes(kind, found)
        items = body.get("items")
        if items is None:
            return {key: self._file(content, mode) for key, content in contents.items()}
        missing = [item["key"] for item in items if item["key"] not in contents]
        if missing and not body.get("optional"):
            raise _failed(volume, f'{kind} "{namespace}/{name}" has no key {", ".join(missing)}')
        return {
            item["path"]: self._file(contents[item["key"]], item.get("mode", mode))
            for item in items
            if item["key"] in contents
        }

    async def _token_file(self, body: Mapping[str, Any], mode: int) -> PayloadFile:
        audience = body.get("audience", "")
        now = self._now()
        held, renew_at = self._tokens.get((audience, body["path"]), (None, now))
        if held is None or renew_at <= now:
            seconds = int(body.get("expirationSeconds", DEFAULT_TOKEN_SECONDS))
            held = await self._source.token(self._pod, audience, seconds)
            renew_at = now + TOKEN_SPENT_FRACTION * (held.expires_at - now)
            self._tokens[audience, body["path"]] = (held, renew_at)
        self._due(renew_at)
        data = held.value.encode()
        fs_group = self._fs_group()
        if not self._change_owner:
            return PayloadFile(data, 0o600)
        if fs_group is not None:
            return PayloadFile(data, 0o640, group=fs_group)
        owner = shared_user(self._pod)
        return PayloadFile(data, mode) if owner is None else PayloadFile(data, 0o600, owner=owner)

    def _file(self, data: bytes, mode: int) -> PayloadFile:
        fs_group = self._fs_group()
        if fs_group is None or not self._change_owner:
            return PayloadFile(data, mode)
        return PayloadFile(data, mode | 0o440, group=fs_group)

    def _open_to_pod(self, path: Path) -> None:
        fs_group = self._fs_group()
        if fs_group is not None and self._change_owner:
            os.chown(path, -1, fs_group)
            path.chmod(0o2777)
        else:
            path.chmod(0o777)

    def _host_path(self, volume: Mapping[str, Any]) -> Path:
        wanted = volume["hostPath"]
        path = self._rootfs / str(wanted["path"]).lstrip("/")
        kind = wanted.get("type") or ""
        if kind in _MUST_EXIST:
            if not _MUST_EXIST[kind](path):
                raise _failed(volume, f"hostPath {wanted['path']} is not a {kind} in the node's file system")
        elif kind in {"", "DirectoryOrCreate"}:
            if not path.exists():
                path.mkdir(parents=True)
        elif kind == "FileOrCreate":
            path.touch(exist_ok=True)
        else:
            raise _failed(volume, f"hostPath type {kind} is not supported by the simulated node")
        return path

    def _make_sub_paths(self, paths: Mapping[str, str]) -> None:
        spec = self._pod["spec"]
        for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
            for mount in container.get("volumeMounts") or ():
                if mount.get("subPath") and mount["name"] in paths:
                    path = Path(paths[mount["name"]]) / mount["subPath"]
                    if not path.exists():
                        path.mkdir(parents=True)

    def _fs_group(self) -> int | None:
        group: int | None = (self._pod["spec"].get("securityContext") or {}).get("fsGroup")
        return group

    def _due(self, moment: datetime) -> None:
        self._refresh_at = moment if self._refresh_at is None else min(self._refresh_at, moment)


def shared_user(pod: Mapping[str, Any]) -> int | None:
    """The user id all containers of a pod run as; None if they differ or do not say."""
    spec = pod["spec"]
    users = {
        identity.uid if (identity := identity_of(pod, container)) else None
        for container in (*(spec.get("initContainers") or ()), *spec["containers"])
    }
    return users.pop() if len(users) == 1 else None


def object_bytes(kind: str, found: Mapping[str, Any]) -> dict[str, bytes]:
    """The contents of a ConfigMap or Secret by key."""
    if kind == "configMap":
        texts = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        return texts | _decoded(found.get("binaryData") or {})
    return _decoded(found.get("data") or {})


def object_texts(kind: str, found: Mapping[str, Any]) -> dict[str, str]:
    """The contents as env values; keys that are no text are left out."""
    texts = {}
    for key, value in object_bytes(kind, found).items():
        try:
            texts[key] = value.decode()
        except UnicodeDecodeError:
            continue
    return texts


def referenced_objects(pod: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(kind, name) of each ConfigMap and Secret that env entries of a pod refer to; kind as volumes spell it."""
    spec = pod["spec"]
    found = set()
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        references = [(entry.get("valueFrom") or {}) for entry in container.get("env") or ()]
        references += container.get("envFrom") or ()
        for reference in references:
            for key, kind in (
                ("configMapKeyRef", "configMap"),
                ("configMapRef", "configMap"),
                ("secretKeyRef", "secret"),
                ("secretRef", "secret"),
            ):
                if key in reference:
                    found.add((kind, reference[key]["name"]))
    return sorted(found)


def _decoded(data: Mapping[str, str]) -> dict[str, bytes]:
    try:
        return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
    except binascii.Error as error:
        raise PodSpecError("FailedMount", f"data is not base64: {error}") from error


def _failed(volume: Mapping[str, Any], why: str) -> PodSpecError:
    return PodSpecError("FailedMount", f'volume "{volume["name"]}": {why}')
