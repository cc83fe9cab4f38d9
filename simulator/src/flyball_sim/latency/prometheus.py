"""The history of a vLLM engine's metrics from a Prometheus server that scrapes it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util import Retry

from flyball_sim.latency.measured import MeasuredError
from flyball_sim.latency.scraped import WANTED, Page


def pages_of(
    url: str, labels: str, *, minutes: float, every_seconds: float, until: datetime | None = None
) -> list[Page]:
    """What scrapes of the engine said, from range queries of each metric.

    Args:
        url: of the server.
        labels: matchers of the engine's series, e.g. ``pod="chat-0"``; empty for all.
        minutes: how far back.
        every_seconds: time between two values of a series.
        until: the end of the range; the server's present if not given.

    Raises:
        MeasuredError: the server does not answer, or has no such series.
    """
    end = datetime.now(UTC) if until is None else until
    client = PrometheusConnect(url=url, retry=Retry(total=1, backoff_factor=0))
    at: dict[float, dict[str, float]] = {}
    for name in WANTED:
        try:
            series: list[Mapping[str, Any]] = client.custom_query_range(
                query=f"sum({name}{{{labels}}})",
                start_time=end - timedelta(minutes=minutes),
                end_time=end,
                step=f"{every_seconds:g}",
            )
        except requests.RequestException:
            raise MeasuredError("no Prometheus answers there: give the address of one that runs") from None
        except PrometheusApiClientException as error:
            raise MeasuredError(f"Prometheus refuses the query of {name}: {error}: check --labels") from None
        if not series:
            raise MeasuredError(f"Prometheus has no {name}{{{labels}}}: check --labels, and that it scrapes the engine")
        for seconds, value in series[0]["values"]:
            at.setdefault(float(seconds), {})[name] = float(value)
    return [Page(seconds, values) for seconds, values in sorted(at.items()) if len(values) == len(WANTED)]
