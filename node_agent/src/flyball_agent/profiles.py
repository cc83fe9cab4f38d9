"""What was measured of an engine beforehand: the tables that some controllers need.

`flyball profile` makes one; the agent reads it from a file, which the chart mounts from a ConfigMap. A profile is used
only for the GPU, the model and the group size it was made on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """A steady decode batch at one clock, no prompts in it.

    Attributes:
        sm_mhz: SM clock, locked.
        running: sequences in the batch.
        kv_tokens: KV tokens they held in all, mean.
        tpot_seconds: mean time per output token.
        power_watts: mean of one card.
    """

    sm_mhz: int
    running: int
    kv_tokens: float
    tpot_seconds: float
    power_watts: float


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """Prompts alone at one clock.

    Attributes:
        sm_mhz: SM clock, locked.
        prompt_tokens: new prompt tokens of the batch.
        seconds: of execution, no queueing.
        power_watts: mean of one card.
    """

    sm_mhz: int
    prompt_tokens: int
    seconds: float
    power_watts: float


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """A saturated engine under one cap and batch limit.

    Attributes:
        cap_watts: cap of each card.
        batch_limit: most sequences in the batch.
        gpus: cards of the group (tensor parallel).
        tokens_per_second: output.
        power_watts: mean of one card.
        tpot_p95_seconds: 95th percentile of the time per output token.
    """

    cap_watts: int
    batch_limit: int
    gpus: int
    tokens_per_second: float
    power_watts: float
    tpot_p95_seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything measured of one engine.

    Attributes:
        name: file name without suffix, or the ConfigMap's key.
        product: GPU as NVML names it.
        model: as the engine serves it.
        gpus: cards of the group.
        engine_version: of the engine.
        created: UTC date and time, ISO 8601.
        kv_blocks: of the engine; 0: not known.
        block_tokens: of a KV block.
        max_batch_limit: of the engine.
        decode: points.
        prefill: points.
        load: points.
        fits: by controller type, what its fitting made of the points; JSON.
    """

    name: str
    product: str
    model: str
    gpus: int
    engine_version: str
    created: str
    kv_blocks: int = 0
    block_tokens: int = 16
    max_batch_limit: int = 256
    decode: tuple[DecodePoint, ...] = ()
    prefill: tuple[PrefillPoint, ...] = ()
    load: tuple[LoadPoint, ...] = ()
    fits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
