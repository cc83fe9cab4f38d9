"""Where step times are looked up: models by name and their rows, those of the package and those of a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from flyball_sim.gpu.types import GPU_TYPES, GpuType
from flyball_sim.latency.cards import SHIPPED_NAMES, ModelCard, UnknownEngineError, find_card
from flyball_sim.latency.rows import KNOTS, RowKey, StepRow, shipped_rows

_STAND_INS: Mapping[str, str] = {
    "A100-SXM4-40GB": "A100-SXM4-80GB",
    "RTX-A6000": "A100-SXM4-80GB",
    "V100-SXM2": "A100-SXM4-80GB",
}
"""GPU types without rows, and the type whose rows are stretched to their memory bandwidth and peak."""
_WITHOUT_LINKS = ("RTX-A6000",)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Models by name, and step times by GPU type, model, precision and group size."""

    names: Mapping[str, ModelCard]
    rows: Mapping[RowKey, StepRow]
    _found: dict[str, ModelCard] = field(default_factory=dict, init=False, repr=False)

    def card(self, name: str) -> ModelCard:
        """The model called `name`.

        Raises:
            UnknownModelError: there is none; the message names the nearest ones.
        """
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = find_card(name, self.names)
        return found

    def row(self, gpu: GpuType, model: ModelCard, gpus: int, dtype: str) -> StepRow:
        """The row of `model` on `gpus` GPUs of type `gpu`, stretched from a relative's where it has none.

        Raises:
            UnknownEngineError: there is none; the message says what there is.
        """
        found = self.rows.get(RowKey(gpu.name, model.name, dtype, gpus))
        if found is None and gpu.name in _STAND_INS and (gpus == 1 or gpu.name not in _WITHOUT_LINKS):
            stand_in = GPU_TYPES[_STAND_INS[gpu.name]]
            source = self.rows.get(RowKey(stand_in.name, model.name, dtype, gpus))
            found = None if source is None else stretched(source, stand_in, gpu)
        if found is None:
            raise UnknownEngineError(self._missing(gpu, model, gpus, dtype))
        return found

    def with_models(self, names: Mapping[str, ModelCard], rows: Mapping[RowKey, StepRow]) -> Catalogue:
        """This catalogue and more; what both have is taken from the new ones."""
        return Catalogue({**self.names, **names}, {**self.rows, **rows})

    def _missing(self, gpu: GpuType, model: ModelCard, gpus: int, dtype: str) -> str:
        source = _STAND_INS.get(gpu.name, gpu.name)
        mine = [key for key in self.rows if (key.gpu, key.model) == (source, model.name)]
        if gpu.name in _WITHOUT_LINKS:
            mine = [key for key in mine if key.tp == 1]
        sizes = sorted(key.tp for key in mine if key.dtype == dtype)
        widths = sorted(key.dtype for key in mine if key.tp == gpus)
        if sizes:
            mend = f"give the engine {_either(sizes)} GPUs"
        elif widths:
            mend = f"give dtype {_either(widths)}"
        elif mine:
            mend = "there is " + ", ".join(f"{key.dtype} on {key.tp}" for key in sorted(mine))
        else:
            known = sorted({key.gpu for key in self.rows if key.model == model.name})
            mend = f"GPU types that have it: {', '.join(known)}" if known else "no GPU type has it"
        return f"no step times for model {model.name!r} in {dtype} on {gpus} x {gpu.name}: {mend}"


def _either(choices: Sequence[object]) -> str:
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}" if most else last


def stretched(row: StepRow, source: GpuType, target: GpuType) -> StepRow:
    """`row` of a GPU of type `source` as modelled for `target`: bytes and operations at its own peaks.

    What compute binds goes by the dense peaks, what memory binds by the bandwidths; launch times stay.
    """
    memory = source.memory_bandwidth_bytes_per_second / target.memory_bandwidth_bytes_per_second
    compute = source.dense_bf16_flops / target.dense_bf16_flops
    per_token = (row.dense[-1] - row.communication[-1]) / KNOTS[-1]
    dense: list[float] = []
    for tokens, total, between in zip(KNOTS, row.dense, row.communication, strict=True):
        on_gpu = total - between
        bound = min(1.0, (per_token * tokens / on_gpu) ** 4) if on_gpu > 0.0 else 0.0
        dense.append(max(dense[-1] if dense else 0.0, between + on_gpu * (memory + (compute - memory) * bound)))
    return replace(
        row,
        dense=tuple(dense),
        head=row.head * memory,
        head_row=row.head_row * compute,
        decode_attention_token=tuple(time * memory for time in row.decode_attention_token),
        prefill_attention_token=row.prefill_attention_token * compute,
        prefill_attention_pair=row.prefill_attention_pair * compute,
        provenance="modelled",
    )


@cache
def shipped_catalogue() -> Catalogue:
    """Models and rows of the package."""
    return Catalogue(SHIPPED_NAMES, shipped_rows())
