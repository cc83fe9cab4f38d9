"""The cards that are profiled, through the actuator: held for us alone, and given back as they were found."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.actuator_client import ActuatorClient, ActuatorLostError, ActuatorRefusedError
from flyball_agent.profiling.rig import RigError

HOLD_SECONDS: Final = 10
RENEW_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the cards of a group have in common; `cap_max_watts` is the lowest cap that was found on one."""

    product: str
    clocks_mhz: tuple[int, ...]
    cap_min_watts: float
    cap_max_watts: float


class HeldCards:
    """The cards of one group.

    Args:
        client: a connection without a session.
        uuids: of the cards.
    """

    def __init__(self, client: ActuatorClient, uuids: tuple[str, ...]) -> None:
        self._client = client
        self._uuids = uuids
        self._renewing: asyncio.Task[None] | None = None

    async def facts(self) -> CardFacts:
        """What the cards are.

        Raises:
            RigError: one is not there, or they are not alike.
        """
        answer = await self._ask("capabilities")
        known = {gpu["uuid"]: gpu for gpu in answer["gpus"]}
        for uuid in self._uuids:
            if uuid not in known:
                raise RigError(
                    f"GPU {uuid} is not on this node, which has {', '.join(known) or 'none'}: give one of it"
                )
        cards = [known[uuid] for uuid in self._uuids]
        read = {gpu["uuid"]: gpu for gpu in (await self._ask("read"))["gpus"]}
        products = {card["product"] for card in cards}
        if len(products) > 1:
            raise RigError(f"the GPUs are of products {', '.join(sorted(products))}: one engine runs on one")
        clocks = set.intersection(*({int(mhz) for mhz in card["sm_mhz"]} for card in cards))
        return CardFacts(
            products.pop(),
            tuple(sorted(clocks)),
            max(float(card["cap_min_watts"]) for card in cards),
            min(_cap_as_found(card, read.get(card["uuid"], {})) for card in cards),
        )

    async def hold(self) -> None:
        """Have the cards for us alone from now on.

        Raises:
            RigError: a policy governs one, or somebody else holds it.
        """
        for uuid in self._uuids:
            await self._ask("hold", gpu=uuid, lease_seconds=HOLD_SECONDS)
        self._renewing = asyncio.create_task(self._renew())

    async def set(self, sm_mhz: int | None = None, cap_watts: int | None = None) -> None:
        """Lock the clock, or unlock it; cap the power, or leave the cap alone.

        Raises:
            RigError: it was refused.
        """
        lock = None if sm_mhz is None else [sm_mhz, sm_mhz]
        for uuid in self._uuids:
            await self._ask("set", gpu=uuid, sm_mhz=lock, cap_watts=cap_watts, lease_seconds=HOLD_SECONDS)

    async def joules(self) -> float:
        """The energy counters' sum.

        Raises:
            RigError: a card has none.
        """
        answer = await self._ask("read")
        counters: list[Any] = [
            (gpu["sample"] or {}).get("energy_joules") for gpu in answer["gpus"] if gpu["uuid"] in self._uuids
        ]
        if len(counters) < len(self._uuids) or None in counters:
            raise RigError(
                f"a GPU of {', '.join(self._uuids)} does not tell its energy: profile cards of Volta or newer"
            )
        return float(sum(counters))

    async def give_back(self) -> None:
        """End the hold. The actuator restores clocks and caps, also should this not be reached."""
        if self._renewing is not None:
            self._renewing.cancel()
        for uuid in self._uuids:
            with contextlib.suppress(ActuatorLostError, ActuatorRefusedError):
                await self._client.ask("release", gpu=uuid)
        await self._client.close()

    async def _renew(self) -> None:
        with contextlib.suppress(ActuatorLostError, ActuatorRefusedError):
            while True:
                await asyncio.sleep(RENEW_SECONDS)
                await self._client.ask("renew", writes=True)

    async def _ask(self, operation: str, **fields: Any) -> dict[str, Any]:
        try:
            return dict(await self._client.ask(operation, **fields))
        except (ActuatorLostError, ActuatorRefusedError) as error:
            raise RigError(f"the actuator did not do {operation}: {error}") from error


def _cap_as_found(card: dict[str, Any], report: dict[str, Any]) -> float:
    """Watts that the card may draw without us: measuring must not let it draw more."""
    found = (report.get("sample") or {}).get("enforced_cap_watts")
    caps = [float(card["cap_max_watts"]), float(card["cap_default_watts"])]
    return min(caps if found is None else [*caps, float(found)])
