"""From a pod's container to the host process that stands for it. Pure: no file, no API call, no clock.

A host process has no mount namespace of its own, so it cannot see a `mountPath`. Every occurrence of a mountPath as a
path prefix inside `command`, `args`, `workingDir` and env values is therefore replaced by the real directory of the
volume. A program that hard-codes a path of its image is out of reach of this; the chart names every path it uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GPU_RESOURCE = "nvidia.com/gpu"

SERVICE_ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

IMAGE_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "flyball-operator": ("flyball-operator",),
    "flyball-agent": ("flyball-agent",),
    "flyball-engine": ("flyball-sim", "engine"),
}
"""Entrypoint of the images this node knows, by the last path element of the image's name."""

_REFERENCE = re.compile(r"\$\$|\$\(([^()]*)\)")
_KEYED_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")


class PodSpecError(Exception):
    """A container that cannot be started as it is specified.

    `reason` is the kubelet's word for it (what `kubectl get pods` shows), the message names object, value and mend.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Identity:
    """User a process runs as: uid, gid and supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProcessSpec:
    """One process to start: argv (argv[0] not yet looked up in PATH), whole environment, directory, user.

    `identity` None means: as the user who runs the node.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    identity: Identity | None


@dataclass(frozen=True)
class PodContext:
    """All a pod's containers are told about the world around them.

    Attributes:
        pod_ip: Address of the pod, a loopback address of its own.
        host_ip: Address of the node.
        volumes: Real directory (or file, for a hostPath file) of each volume of the pod, by volume name.
        config_maps: `data` of each ConfigMap an env entry refers to, by name; one that does not exist is absent.
        secrets: Likewise for Secrets, already decoded.
        api_host: Address of the API server as containers shall use it.
        api_port: Its port.
        base_env: What every container inherits (PATH, HOME, LANG, TZ).
        honour_users: Whether the node may change users (it runs as root).
    """

    pod_ip: str
    host_ip: str
    volumes: Mapping[str, str]
    config_maps: Mapping[str, Mapping[str, str]]
    secrets: Mapping[str, Mapping[str, str]]
    api_host: str
    api_port: int
    base_env: Mapping[str, str]
    honour_users: bool = False
    extra_env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Env the node itself adds, by container name (the GPUs' ids): neither expanded nor rewritten."""


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Kubernetes' `$(VAR)` expansion: an unknown variable stays as it is written, `$$` is a literal `$`."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        return variables.get(name, match.group(0))

    return _REFERENCE.sub(replace, text)


class PathRewriter:
    """Replaces mount paths by real directories, each occurrence once, the longest mount path first."""

    def __init__(self, mounts: Sequence[tuple[str, str]]) -> None:
        self._real = {mount.rstrip("/"): real for mount, real in mounts if mount.rstrip("/")}
        alternatives = "|".join(re.escape(mount) for mount in sorted(self._real, key=len, reverse=True))
        # A prefix starts where no other path goes on (`/a/run` does not contain `/run`), except behind the `//`
        # of a URL scheme, and ends at a path element's end (`/runner` does not start with `/run`).
        self._pattern = re.compile(rf"(?:(?<=://)|(?<![\w./-]))(?:{alternatives})(?![\w.-])") if self._real else None

    def rewrite(self, text: str) -> str:
        """The text with each mount path in it replaced."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._real[match.group(0)], text)


def image_name(image: str) -> str:
    """The last path element of an image reference, without tag and digest."""
    return image.split("@", 1)[0].rsplit("/", 1)[-1].split(":", 1)[0]


def gpu_count(container: Mapping[str, Any]) -> int:
    """How many GPUs a container asks for."""
    return int((container.get("resources") or {}).get("limits", {}).get(GPU_RESOURCE, 0))


def is_sidecar(container: Mapping[str, Any]) -> bool:
    """Whether an init container is a native sidecar."""
    return container.get("restartPolicy") == "Always"


def mounts_of(container: Mapping[str, Any], volumes: Mapping[str, str]) -> list[tuple[str, str]]:
    """(mountPath, real path) of each mount of a container.

    Raises:
        PodSpecError: For `subPathExpr` and for a volume the pod does not have.
    """
    mounts = []
    for mount in container.get("volumeMounts") or ():
        if mount.get("subPathExpr"):
            raise PodSpecError(
                "CreateContainerConfigError",
                f'volumeMount "{mount["name"]}": subPathExpr is not supported by the simulated node: use subPath',
            )
        if mount["name"] not in volumes:
            raise PodSpecError("CreateContainerConfigError", f'volumeMount "{mount["name"]}": no such volume')
        real = volumes[mount["name"]]
        sub_path = (mount.get("subPath") or "").strip("/")
        mounts.append((mount["mountPath"], f"{real}/{sub_path}" if sub_path else real))
    return mounts


def field_value(pod: Mapping[str, Any], path: str, pod_ip: str, host_ip: str) -> str:
    """Value of a downward API `fieldRef`.

    Raises:
        PodSpecError: For a field the downward API does not know.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    simple = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": host_ip,
        "status.hostIPs": host_ip,
    }
    if path in simple:
        return str(simple[path])
    if keyed := _KEYED_FIELD.fullmatch(path):
        return str((metadata.get(keyed.group(1)) or {}).get(keyed.group(2), ""))
    if path in {"metadata.labels", "metadata.annotations"}:
        entries = metadata.get(path.rsplit(".", 1)[1]) or {}
        return "\n".join(f'{key}="{value}"' for key, value in sorted(entries.items()))
    raise PodSpecError("CreateContainerConfigError", f'fieldRef "{path}" is not a field of the downward API')


def identity_of(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Identity | None:
    """The user a container asks for; None when it leaves that to the image.

    Raises:
        PodSpecError: runAsNonRoot is asked and the user is root or unknown.
    """
    shared = pod["spec"].get("securityContext") or {}
    own = container.get("securityContext") or {}
    uid = own.get("runAsUser", shared.get("runAsUser"))
    gid = own.get("runAsGroup", shared.get("runAsGroup"))
    if own.get("runAsNonRoot", shared.get("runAsNonRoot")) and not uid:
        raise PodSpecError(
            "CreateContainerConfigError",
            f'container "{container["name"]}" has runAsNonRoot and runAsUser {uid}: '
            "set runAsUser to a positive user id (the simulated node reads no user from images)",
        )
    groups = set(shared.get("supplementalGroups") or ())
    if "fsGroup" in shared:
        groups.add(shared["fsGroup"])
    if uid is None and gid is None and not groups:
        return None
    return Identity(uid or 0, gid or 0, tuple(sorted(groups)))


def process_spec(
    pod: Mapping[str, Any], container: Mapping[str, Any], context: PodContext, default_cwd: str
) -> ProcessSpec:
    """The process that stands for a container.

    Raises:
        PodSpecError: The container cannot be started as specified (unknown image without command, missing ConfigMap
            key, unsupported field); the message says what to change.
    """
    rewriter = PathRewriter(mounts_of(container, context.volumes))
    variables = _environment(pod, container, context)
    command = [expand(word, variables) for word in container.get("command") or ()]
    arguments = [expand(word, variables) for word in container.get("args") or ()]
    entrypoint = [rewriter.rewrite(word) for word in command] or list(_image_command(container))
    cwd = container.get("workingDir")
    identity = identity_of(pod, container)
    return ProcessSpec(
        argv=(*entrypoint, *(rewriter.rewrite(word) for word in arguments)),
        env={
            **context.base_env,
            **{name: rewriter.rewrite(value) for name, value in variables.items()},
            **context.extra_env.get(container["name"], {}),
        },
        cwd=rewriter.rewrite(cwd) if cwd else default_cwd,
        identity=identity if context.honour_users else None,
    )


def exec_spec(base: ProcessSpec, words: Sequence[str], mounts: Sequence[tuple[str, str]]) -> ProcessSpec:
    """A command run inside a running container (exec probe, preStop): same environment, user and directory."""
    rewriter = PathRewriter(mounts)
    return ProcessSpec(tuple(rewriter.rewrite(word) for word in words), base.env, base.cwd, base.identity)


def _image_command(container: Mapping[str, Any]) -> tuple[str, ...]:
    image = container.get("image", "")
    command = IMAGE_COMMANDS.get(image_name(image))
    if command is None:
        raise PodSpecError(
            "ErrImagePull",
            f'image "{image}" of container "{container["name"]}" has no local command: '
            f"give the container a command, or use one of {', '.join(sorted(IMAGE_COMMANDS))}",
        )
    return command


def _environment(pod: Mapping[str, Any], container: Mapping[str, Any], context: PodContext) -> dict[str, str]:
    variables = {
        "KUBERNETES_SERVICE_HOST": context.api_host,
        "KUBERNETES_SERVICE_PORT": str(context.api_port),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(context.api_port),
    }
    for source in container.get("envFrom") or ():
        prefix = source.get("prefix", "")
        for kind, store in (("configMapRef", context.config_maps), ("secretRef", context.secrets)):
            if reference := source.get(kind):
                data = store.get(reference["name"])
                if data is None and not reference.get("optional"):
                    raise _missing(container, kind.removesuffix("Ref"), reference["name"])
                variables.update({prefix + key: value for key, value in (data or {}).items()})
    for entry in container.get("env") or ():
        value = _env_value(pod, container, entry, context, variables)
        if value is not None:
            variables[entry["name"]] = value
    return variables


def _env_value(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    entry: Mapping[str, Any],
    context: PodContext,
    variables: Mapping[str, str],
) -> str | None:
    source = entry.get("valueFrom")
    if not source:
        return expand(entry.get("value", ""), variables)
    if reference := source.get("fieldRef"):
        return field_value(pod, reference["fieldPath"], context.pod_ip, context.host_ip)
    for kind, store in (("configMapKeyRef", context.config_maps), ("secretKeyRef", context.secrets)):
        if reference := source.get(kind):
            value = store.get(reference["name"], {}).get(reference["key"])
            if value is None and not reference.get("optional"):
                raise _missing(container, kind.removesuffix("KeyRef"), reference["name"], reference["key"])
            return value
    raise PodSpecError(
        "CreateContainerConfigError",
        f'env "{entry["name"]}" of container "{container["name"]}": {", ".join(source)} is not supported by the '
        "simulated node: use fieldRef, configMapKeyRef or secretKeyRef",
    )


def _missing(container: Mapping[str, Any], kind: str, name: str, key: str = "") -> PodSpecError:
    what = f'key "{key}" of {kind} "{name}"' if key else f'{kind} "{name}"'
    return PodSpecError(
        "CreateContainerConfigError",
        f'{what} that container "{container["name"]}" refers to does not exist: create it, or mark it optional',
    )
