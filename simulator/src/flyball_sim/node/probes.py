"""Startup, liveness and readiness probes: the counting (pure) and the three ways to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class ProbeSchedule:
    """When a probe asks and what makes it change its mind; defaults are Kubernetes'."""

    initial_delay_seconds: float = 0.0
    period_seconds: float = 10.0
    timeout_seconds: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3

    @classmethod
    def of(cls, probe: Mapping[str, Any]) -> ProbeSchedule:
        """From a probe of a pod spec."""
        return cls(
            initial_delay_seconds=probe.get("initialDelaySeconds", 0),
            period_seconds=probe.get("periodSeconds", 10),
            timeout_seconds=probe.get("timeoutSeconds", 1),
            success_threshold=probe.get("successThreshold", 1),
            failure_threshold=probe.get("failureThreshold", 3),
        )


@dataclass(frozen=True)
class ProbeCount:
    """Successes or failures in a row (`run`, of kind `ok`). Pure."""

    ok: bool = False
    run: int = 0

    def after(self, ok: bool) -> ProbeCount:
        """The count with one more answer."""
        return ProbeCount(ok, self.run + 1 if ok == self.ok else 1)

    def verdict(self, schedule: ProbeSchedule) -> bool | None:
        """True or False once a threshold is reached, else None (leave things as they are)."""
        needed = schedule.success_threshold if self.ok else schedule.failure_threshold
        return self.ok if self.run >= needed else None


def port_number(container: Mapping[str, Any], port: int | str) -> int:
    """A probe's port, which may be the name of one of the container's.

    Raises:
        ValueError: No port of that name.
    """
    if isinstance(port, int) or port.isdigit():
        return int(port)
    for entry in container.get("ports") or ():
        if entry.get("name") == port:
            return int(entry["containerPort"])
    raise ValueError(f'container "{container["name"]}" has no port named "{port}"')


async def ask_http(
    session: aiohttp.ClientSession,
    container: Mapping[str, Any],
    action: Mapping[str, Any],
    pod_ip: str,
    timeout_seconds: float,
) -> str | None:
    """httpGet: None if the status is 200..399, else what went wrong."""
    scheme = action.get("scheme", "HTTP").lower()
    headers = {entry["name"]: entry["value"] for entry in action.get("httpHeaders") or ()}
    try:
        address = f"{action.get('host') or pod_ip}:{port_number(container, action['port'])}"
        async with session.get(
            f"{scheme}://{address}/{action.get('path', '/').lstrip('/')}",
            headers={"User-Agent": "kube-probe/1.36", **headers},
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            allow_redirects=False,
            ssl=False,
        ) as response:
            if 200 <= response.status < 400:
                return None
            return f"HTTP probe failed with statuscode: {response.status}"
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"


async def ask_tcp(
    container: Mapping[str, Any], action: Mapping[str, Any], pod_ip: str, timeout_seconds: float
) -> str | None:
    """tcpSocket: None if something accepts, else what went wrong."""
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(
                action.get("host") or pod_ip, port_number(container, action["port"])
            )
            writer.close()
            await writer.wait_closed()
    except (TimeoutError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None
