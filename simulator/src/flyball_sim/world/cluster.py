"""What a simulated cluster is made of: nodes with GPUs, engines on them, pools for disaggregated prefill.

`docs/virtual-time.md` documents the file format. Everything here is what a person wrote; `layout` says what follows.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flyball_api.common import Role

Word = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class ClusterError(ValueError):
    """A cluster that cannot be simulated; each line names file, field, value and mend."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NodeSpec(_Part):
    """One node, or `count` of them, which are called `<name>-0`, `<name>-1` and so on.

    Attributes:
        name: of the Node.
        gpu: GPU type, as `flyball-sim` knows it.
        gpus: how many it has.
        count: how many such nodes.
    """

    name: Word
    gpu: str
    gpus: int = Field(ge=1, le=32)
    count: int | None = Field(default=None, ge=1, le=10_000)

    def names(self) -> tuple[str, ...]:
        """Of the nodes."""
        return (self.name,) if self.count is None else tuple(f"{self.name}-{index}" for index in range(self.count))


class LimitsSpec(_Part):
    """An engine's knobs, by vLLM's names.

    Attributes:
        max_model_len: context length; None: the model's, as far as the KV cache goes.
        max_num_seqs: sequences in a batch.
        max_num_batched_tokens: tokens of a step; with chunked prefill the chunk.
        max_num_queued_reqs: requests that may wait.
        enable_chunked_prefill: whether a long prompt is computed in chunks beside decodes.
    """

    max_model_len: int | None = Field(default=None, ge=16)
    max_num_seqs: int = Field(default=256, ge=1)
    max_num_batched_tokens: int = Field(default=2048, ge=16)
    max_num_queued_reqs: int = Field(default=1024, ge=0)
    enable_chunked_prefill: bool = True


class EngineSpec(_Part):
    """An inference engine, or `replicas` of it; each replica is a pod called `<name>-<number>`.

    Attributes:
        name: of the pods, in front of the number.
        model: as `flyball-sim` knows it.
        dtype: of the weights.
        gpus: of one replica: its tensor parallelism.
        replicas: how many.
        node: where all of them are; None: the first nodes with room, in the order of the file.
        gpu: GPU type to look for; None: any.
        role: what it does.
        namespace: of its pods.
        labels: of its pods, what policies select.
        limits: of the engine.
        prefix_cache_share: part of every prompt that is found in the prefix cache.
        weight: of the weighted router.
        ready_seconds: when it begins to answer, from the trace's start; a start takes 30 s or more.
    """

    name: Word
    model: str
    dtype: str = "bf16"
    gpus: int = Field(default=1, ge=1, le=32)
    replicas: int = Field(default=1, ge=1, le=100_000)
    node: str | None = None
    gpu: str | None = None
    role: Role = "unified"
    namespace: Word = "default"
    labels: Mapping[str, str] = Field(default_factory=lambda: {"app": "llm"})
    limits: LimitsSpec = LimitsSpec()
    prefix_cache_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight: float = Field(default=1.0, gt=0.0)
    ready_seconds: float = Field(default=0.0, ge=0.0)


class PoolSpec(_Part):
    """Prefill engines that hand over to decode engines.

    Attributes:
        name: of the pool.
        prefill: names of engines of role prefill.
        decode: names of engines of role decode.
        transfer_gigabytes_per_second: between two engines, for one request at a time (50: a 400 Gb/s link).
        transfer_latency_seconds: of every hand-over, besides.
    """

    name: Word
    prefill: tuple[Word, ...] = Field(min_length=1)
    decode: tuple[Word, ...] = Field(min_length=1)
    transfer_gigabytes_per_second: float = Field(default=50.0, gt=0.0)
    transfer_latency_seconds: float = Field(default=0.005, ge=0.0)


class ClusterSpec(_Part):
    """A cluster.

    Attributes:
        nodes: at least one.
        engines: at least one.
        pools: needed where an engine's role is prefill or decode.
    """

    nodes: tuple[NodeSpec, ...]
    engines: tuple[EngineSpec, ...]
    pools: tuple[PoolSpec, ...] = ()

    @field_validator("nodes")
    @classmethod
    def _some_gpus(cls, nodes: tuple[NodeSpec, ...]) -> tuple[NodeSpec, ...]:
        if not nodes:
            raise ValueError("the cluster has no GPUs: add a node with a GPU type and a number of GPUs")
        return nodes

    @field_validator("engines")
    @classmethod
    def _some_engines(cls, engines: tuple[EngineSpec, ...]) -> tuple[EngineSpec, ...]:
        if not engines:
            raise ValueError("the cluster has no engines: add one with a model")
        return engines

    @model_validator(mode="after")
    def _names_agree(self) -> ClusterSpec:
        names = [name for node in self.nodes for name in node.names()]
        _refuse_repeats("node", names)
        _refuse_repeats("engine", [engine.name for engine in self.engines])
        _refuse_repeats("pool", [pool.name for pool in self.pools])
        roles: dict[str, Role] = {engine.name: engine.role for engine in self.engines}
        pooled: dict[str, str] = {}
        for pool in self.pools:
            self._check_models(pool)
            for role, members in (("prefill", pool.prefill), ("decode", pool.decode)):
                for member in members:
                    self._check_member(pool.name, role, member, roles)
                    if member in pooled:
                        raise ValueError(
                            f"engine {member!r} is in pools {pooled[member]!r} and {pool.name!r}: leave it in one"
                        )
                    pooled[member] = pool.name
        for name, role in roles.items():
            if role != "unified" and name not in pooled:
                raise ValueError(
                    f"engine {name!r} has the role {role} and is in no pool: name it in one, or make it unified"
                )
        return self

    def _check_models(self, pool: PoolSpec) -> None:
        """Keys and values of one model mean nothing to another."""
        members = [engine for engine in self.engines if engine.name in (*pool.prefill, *pool.decode)]
        for engine in members[1:]:
            if (engine.model, engine.dtype) != (members[0].model, members[0].dtype):
                raise ValueError(
                    f"pool {pool.name!r}: {members[0].name!r} runs {members[0].model} ({members[0].dtype}) and "
                    f"{engine.name!r} {engine.model} ({engine.dtype}): give all its engines one model and dtype"
                )

    @staticmethod
    def _check_member(pool: str, role: str, member: str, roles: Mapping[str, Role]) -> None:
        if member not in roles:
            raise ValueError(f"pool {pool!r}: {role} names {member!r}, which is no engine{nearest(member, roles)}")
        if roles[member] != role:
            raise ValueError(
                f"pool {pool!r}: {role} names {member!r}, whose role is {roles[member]}: give the engine role: {role}"
            )

    def to_yaml(self) -> str:
        """The cluster as a file that `read_cluster` reads; what is at its default is left out."""
        document = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(document, sort_keys=False)


def nearest(word: str, known: Any) -> str:
    """`: did you mean 'x'?`, with all names there are."""
    names = list(known)
    found = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.0)
    return f": did you mean {found[0]!r}? There are {', '.join(names)}" if found else ""


def _refuse_repeats(what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is there twice: give every {what} a name of its own")
        seen.add(name)


_FIELDS: Final[Mapping[str, type[BaseModel]]] = {
    "": ClusterSpec,
    "nodes": NodeSpec,
    "engines": EngineSpec,
    "pools": PoolSpec,
    "limits": LimitsSpec,
}


def read_cluster(path: Path) -> ClusterSpec:
    """A cluster.yaml.

    Raises:
        ClusterError: it cannot be read, or is no cluster.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}: give a file with nodes and engines") from error
    except UnicodeDecodeError as error:
        raise ClusterError(f"{path} is not text in UTF-8 ({error}): save it as such") from error
    return parse_cluster(text, str(path))


def parse_cluster(text: str, source: str = "cluster.yaml") -> ClusterSpec:
    """A cluster from the text of a cluster.yaml.

    Raises:
        ClusterError: it is none.
    """
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ClusterError(f"{source} is not YAML: {' '.join(str(error).split())}: mend that line") from error
    if not isinstance(document, dict):
        raise ClusterError(f"{source} holds no mapping: write nodes: and engines:, as docs/virtual-time.md shows")
    try:
        return ClusterSpec.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        raise ClusterError("\n".join(_sentence(source, dict(fault)) for fault in faults)) from None


def _sentence(source: str, fault: Mapping[str, Any]) -> str:
    parts = [part for part in fault["loc"] if not isinstance(part, str) or not part.startswith("function-")]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    where = f"{source}: {place}" if place else source
    message, given = fault["msg"].removeprefix("Value error, "), fault.get("input")
    if fault["type"] == "value_error":
        return f"{where}: {message}"
    if fault["type"] == "missing":
        return f"{where} is missing: add it"
    if fault["type"] == "extra_forbidden":
        inside = next((part for part in reversed(parts[:-1]) if isinstance(part, str)), "")
        known = _FIELDS[inside if inside in _FIELDS else ""].model_fields
        return f"{where} is no field{nearest(str(parts[-1]), known)}"
    shown = "" if isinstance(given, dict | list) else f" is {given!r}"
    return f"{where}{shown}: {message[:1].lower()}{message[1:]}"


def uniform_cluster(
    model: str = "llama-3.1-8b",
    gpu: str = "H100-SXM5",
    *,
    engines: int = 1,
    gpus: int = 1,
    gpus_per_node: int = 8,
    dtype: str = "bf16",
    name: str = "llm",
    namespace: str = "default",
    labels: Mapping[str, str] | None = None,
    limits: LimitsSpec | None = None,
) -> ClusterSpec:
    """So many engines of one model on as few nodes as they need.

    Args:
        model: of every engine.
        gpu: type of every GPU.
        engines: how many.
        gpus: of one engine.
        gpus_per_node: of one node; a single node has no more than its engines need.
        dtype: of the weights.
        name: of the engines.
        namespace: of their pods.
        labels: of their pods; None: `app: llm`.
        limits: of every engine.
    """
    per_node = max(1, gpus_per_node // gpus)
    nodes = -(-engines // per_node)
    size = engines * gpus if nodes == 1 else per_node * gpus
    spec: dict[str, Any] = {
        "nodes": [{"name": "node", "gpu": gpu, "gpus": size, "count": nodes}],
        "engines": [
            {
                "name": name,
                "model": model,
                "dtype": dtype,
                "gpus": gpus,
                "replicas": engines,
                "namespace": namespace,
                "labels": dict(labels) if labels is not None else {"app": "llm"},
                "limits": limits or LimitsSpec(),
            }
        ],
    }
    return ClusterSpec.model_validate(spec)


def default_cluster() -> ClusterSpec:
    """What is simulated where nobody says otherwise: four Llama-3.1-8B engines on one node of four H100."""
    return uniform_cluster(engines=4)
