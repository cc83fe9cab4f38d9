"""All rows of the package, composed again from the kernels, on several processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from flyball_sim.gpu.types import GPU_TYPES
from flyball_sim.latency.cards import MODELS
from flyball_sim.latency.composed import SYSTEMS, NotComposedError, check_installed, compose
from flyball_sim.latency.rows import RowKey, StepRow
from flyball_sim.latency.steps import BLOCK_TOKENS, kv_blocks

_GROUPS = (1, 2, 4, 8)
_WITHOUT_FP8 = ("A100-SXM4-80GB",)
_LEAST_KV_TOKENS = 4096
_AT_ONCE = 8  # rows a process takes at a time: neighbours share the tables it has read


def table_keys() -> tuple[RowKey, ...]:
    """The engines to compose a row for: their weights leave room for keys and values, and the GPU has the precision."""
    return tuple(
        RowKey(gpu, card.name, dtype, group)
        for gpu in SYSTEMS
        for card in MODELS.values()
        for dtype in ("bf16", "fp8")
        for group in _GROUPS
        if (dtype == "bf16" or gpu not in _WITHOUT_FP8)
        and kv_blocks(GPU_TYPES[gpu], card, group, dtype) * BLOCK_TOKENS >= _LEAST_KV_TOKENS
    )


def _composed(key: RowKey) -> StepRow | str:
    try:
        return compose(key.gpu, MODELS[key.model], key.tp, key.dtype)
    except NotComposedError as error:
        return str(error)


def compose_table(processes: int) -> Iterator[tuple[RowKey, StepRow | str]]:
    """Every key of `table_keys` in their order, with its row or the sentence that says why there is none.

    Raises:
        NotComposedError: the package with the kernels is not installed.
    """
    check_installed()
    keys = table_keys()
    if processes == 1:
        yield from ((key, _composed(key)) for key in keys)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from zip(keys, pool.map(_composed, keys, chunksize=_AT_ONCE), strict=True)
