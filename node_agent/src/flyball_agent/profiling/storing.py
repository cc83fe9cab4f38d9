"""Where a profile goes: a file, or the ConfigMap that the chart mounts in every agent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flyball_agent.files import replace_file
from flyball_agent.profiles import Profile
from flyball_api.kube import CONFIGMAPS, KubeApi, KubeWriter, NotFoundError

CONFIG_MAP: Final = "flyball-profiles"
MOST_BYTES: Final = 900_000
"""A ConfigMap holds a MiB in all."""


def write_file(profile: Profile, path: Path) -> None:
    """Write the profile; a file that is there is replaced whole or not at all."""
    replace_file(path, profile.to_json().encode())


async def write_config_map(profile: Profile, kube: KubeWriter, namespace: str) -> None:
    """Put the profile into `flyball-profiles`, under its name.

    Raises:
        ValueError: it is too large.
        KubeError: the API server refuses.
    """
    text = profile.to_json()
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"profile {profile.name!r} has {len(text)} bytes, and a ConfigMap at most {MOST_BYTES} for it: measure at"
            " fewer clocks"
        )
    data = {"data": {f"{profile.name}.json": text}}
    try:
        await kube.merge_patch(CONFIGMAPS, CONFIG_MAP, data, namespace)
    except NotFoundError:
        metadata = {"name": CONFIG_MAP, "namespace": namespace}
        await kube.create(CONFIGMAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **data})


async def store(profile: Profile, namespace: str, kubeconfig: Path | None) -> None:
    """The same as whoever runs this is to the API server."""
    async with await KubeApi.from_environment(
        kubeconfig, Path("/var/run/secrets/kubernetes.io/serviceaccount"), os.environ, user_agent="flyball-profile"
    ) as kube:
        await write_config_map(profile, kube, namespace)
