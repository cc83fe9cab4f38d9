"""How far the engines run behind their own clock, summed from their `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

LATENESS = "flyball_sim_request_lag_seconds_total"
SERVED = "flyball_sim_request_seconds_total"


@dataclass(frozen=True)
class EngineSeconds:
    """Seconds of finished requests on the engines' clock, and by how many seconds their last tokens were late."""

    served: float
    late: float

    def lag_percent_since(self, before: EngineSeconds) -> float:
        """Lateness as a percentage of the time served between two readings; 0 when nothing was served."""
        served = self.served - before.served
        return 100 * (self.late - before.late) / served if served > 0 else 0.0


def parse(pages: Sequence[str]) -> EngineSeconds:
    """Sum the two counters over some metrics pages."""
    totals = {SERVED: 0.0, LATENESS: 0.0}
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name in totals:
                    totals[sample.name] += sample.value
    return EngineSeconds(served=totals[SERVED], late=totals[LATENESS])


async def read(urls: Sequence[str]) -> EngineSeconds:
    """Scrape the engines at these base URLs.

    Raises:
        aiohttp.ClientError: an engine does not answer.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:

        async def page(url: str) -> str:
            async with session.get(f"{url}/metrics") as response:
                response.raise_for_status()
                return await response.text()

        return parse(await asyncio.gather(*(page(url) for url in urls)))
