"""`flyball-operator release`: turn the switch to release and wait until every GPU is proved restored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from flyball_api.kube import KubeApi
from flyball_api.kube_errors import KubeError, NotFoundError
from flyball_api.kube_types import CONFIGMAPS, ENERGY_POLICIES, NODE_ENERGY_PLANS, JsonObject, JsonObjects, Resource
from flyball_api.names import FINALIZER, SWITCH_CONFIG_MAP, SWITCH_KEY
from flyball_operator.conditions import counted, listed, release_command
from flyball_operator.state import Switch

POLL_SECONDS: Final = 1.0


class Kube(Protocol):
    """The two calls this needs."""

    async def list(self, resource: Resource) -> tuple[JsonObjects, str]:
        """See `KubeApi.list`."""
        ...

    async def merge_patch(
        self, resource: Resource, name: str, patch: JsonObject, namespace: str | None = None
    ) -> JsonObject:
        """See `KubeWriter.merge_patch`."""
        ...


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is not yet released.

    Attributes:
        gpus: (node, UUID) of GPUs whose plan still holds them.
        policies: names of policies that still carry our finalizer.
    """

    gpus: tuple[tuple[str, str], ...]
    policies: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        """Nodes with such GPUs."""
        return sorted({node for node, _ in self.gpus})

    def sentence(self) -> str:
        """For a person."""
        parts = []
        if self.gpus:
            parts.append(f"{counted(len(self.gpus), 'GPU')} on {listed(self.nodes)} not yet proved restored")
        if self.policies:
            parts.append(f"finalizer still on {listed(self.policies)}")
        return "; ".join(parts) or "every GPU is restored and every finalizer is off"


def leftover(plans: list[dict[str, Any]], policies: list[dict[str, Any]]) -> Leftover:
    """What these objects still hold."""
    gpus = [
        (plan["metadata"]["name"], gpu["uuid"])
        for plan in plans
        for gpu in plan["spec"].get("gpus") or ()
        if gpu["action"] != "Observe"
    ]
    names = [entry["metadata"]["name"] for entry in policies if FINALIZER in entry["metadata"].get("finalizers", ())]
    return Leftover(tuple(sorted(gpus)), tuple(sorted(names)))


async def release(
    kubeconfig: Path | None,
    service_account_dir: Path | None,
    environ: Mapping[str, str],
    *,
    namespace: str,
    timeout_seconds: float,
) -> int:
    """Connect and release; see `release_all`."""
    async with await KubeApi.from_environment(
        kubeconfig, service_account_dir, environ, user_agent="flyball-release"
    ) as kube:
        return await release_all(
            kube,
            namespace=namespace,
            timeout_seconds=timeout_seconds,
            clock=time.monotonic,
            sleep=asyncio.sleep,
            say=lambda line: print(line, flush=True),
        )


async def release_all(
    kube: Kube,
    *,
    namespace: str,
    timeout_seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    say: Callable[[str], None],
) -> int:
    """Turn the switch and wait; the operator does the work.

    Args:
        kube: the API server.
        namespace: where the switch is.
        timeout_seconds: how long to wait; 0 for ever.
        clock: monotonic seconds.
        sleep: waits that many seconds.
        say: prints a line.

    Returns:
        0 when nothing is held any more; 1 when time was up, after saying what is left and what to do.
    """
    deadline = clock() + timeout_seconds if timeout_seconds > 0 else float("inf")
    turned = False
    said = ""
    while True:
        try:
            if not turned:
                await kube.merge_patch(
                    CONFIGMAPS, SWITCH_CONFIG_MAP, {"data": {SWITCH_KEY: Switch.RELEASE.value}}, namespace
                )
                turned = True
                say(f"ConfigMap {namespace}/{SWITCH_CONFIG_MAP}: {SWITCH_KEY} is {Switch.RELEASE.value}")
            plans, _ = await kube.list(NODE_ENERGY_PLANS)
            policies, _ = await kube.list(ENERGY_POLICIES)
            left = leftover(plans, policies)
            sentence = left.sentence()
        except NotFoundError as error:
            if turned:
                say(f"nothing to release from: {error}")
                return 0
            say(f"the switch cannot be turned: {error}. Make it, then try again:")
            say(
                f"  kubectl create configmap {SWITCH_CONFIG_MAP} -n {namespace}"
                f" --from-literal={SWITCH_KEY}={Switch.RELEASE.value}"
            )
            return 1
        except KubeError as error:
            left, sentence = None, f"the API server does not answer: {error}"
        if sentence != said:
            say(sentence)
            said = sentence
        if left is not None and not left.gpus and not left.policies:
            return 0
        if clock() >= deadline:
            say(f"not released within {timeout_seconds:.0f} s. Look at the operator and the agents of these nodes;")
            say("for a node that will never answer again, vouch for it by hand:")
            for node in left.nodes if left is not None else ():
                say(f"  {release_command(node)}")
            return 1
        await sleep(POLL_SECONDS)
