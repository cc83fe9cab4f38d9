"""What follows from a cluster's description: which cards, pods and step times every engine has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flyball_operator.state import Node, Pod
from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.models import BLOCK_TOKENS, StepModel, UnknownEngineError, step_model
from flyball_sim.gpu.parameters import Draw, apply
from flyball_sim.gpu.types import GpuType, UnknownGpuTypeError, gpu_type
from flyball_sim.latency.catalogue import Catalogue
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cluster import ClusterError, ClusterSpec, EngineSpec, LimitsSpec, NodeSpec, PoolSpec


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node.

    Attributes:
        name: of the Node.
        gpu_type: of its cards.
        gpus: how many.
    """

    name: str
    gpu_type: GpuType
    gpus: int

    def uuid(self, index: int) -> str:
        """Of one of its cards."""
        return f"GPU-{self.name}-{index}"


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """One replica of an engine.

    Attributes:
        name: of its pod.
        index: among all engines.
        spec: what was asked.
        node: where it is.
        cards: NVML indices of its GPUs there.
        model: step times.
        limits: of its batches.
        pod: as the operator sees it.
        pool: its pool; None: it serves alone.
    """

    name: str
    index: int
    spec: EngineSpec
    node: str
    cards: tuple[int, ...]
    model: StepModel
    limits: EngineLimits
    pod: Pod
    pool: PoolSpec | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A cluster with everything settled.

    Attributes:
        nodes: in the order of the file.
        engines: replicas, in the order of the file.
    """

    nodes: tuple[NodePlace, ...]
    engines: tuple[EnginePlace, ...]

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(node.gpus for node in self.nodes)

    @property
    def provenance(self) -> Mapping[str, str]:
        """`measured` or `modelled` of every GPU type and model in use."""
        kinds = {node.gpu_type.name: str(node.gpu_type.provenance) for node in self.nodes}
        return kinds | {engine.spec.model: str(engine.model.provenance) for engine in self.engines}


def lay_out(cluster: ClusterSpec, draw: Draw | None = None, catalogue: Catalogue | None = None) -> Layout:
    """Settle a cluster.

    Args:
        cluster: what was asked.
        draw: values of the parameters that no measurement fixes; None: nominal ones.
        catalogue: of models and their step times; None: the one that is shipped.

    Raises:
        ClusterError: an unknown GPU or model, or no room for an engine.
    """
    nodes = tuple(
        NodePlace(name, kind, node.gpus)
        for index, node in enumerate(cluster.nodes)
        for kind in [_kind(index, node, draw)]
        for name in node.names()
    )
    return Layout(nodes, tuple(_Placing(cluster, nodes, catalogue).engines()))


def _kind(index: int, node: NodeSpec, draw: Draw | None) -> GpuType:
    try:
        kind = gpu_type(node.gpu)
    except UnknownGpuTypeError as error:
        raise ClusterError(f"nodes[{index}].gpu: {error}") from None
    return kind if draw is None else apply(kind, draw)


class _Placing:
    """Puts replicas on nodes, one after the other, each on the first node with room."""

    def __init__(self, cluster: ClusterSpec, nodes: Sequence[NodePlace], catalogue: Catalogue | None) -> None:
        self._cluster = cluster
        self._catalogue = catalogue
        self._nodes = nodes
        self._used = [0] * len(nodes)
        self._first_with_room = 0
        self._by_name = {node.name: index for index, node in enumerate(nodes)}
        self._models: dict[tuple[str, str, int, str], StepModel] = {}
        self._pools = {member: pool for pool in cluster.pools for member in (*pool.prefill, *pool.decode)}

    def engines(self) -> Iterable[EnginePlace]:
        number = 0
        for position, spec in enumerate(self._cluster.engines):
            where = f"engines[{position}] ({spec.name})"
            self._check_size(where, spec)
            for replica in range(spec.replicas):
                node, cards = self._take(where, spec, replica)
                model = self._model(where, spec, node.gpu_type)
                name = f"{spec.name}-{replica}"
                pod = Pod(
                    uid=f"uid-{name}",
                    namespace=spec.namespace,
                    name=name,
                    node=node.name,
                    ip=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
                    labels=dict(spec.labels),
                    running=True,
                    gpus=spec.gpus,
                )
                yield EnginePlace(
                    name=name,
                    index=number,
                    spec=spec,
                    node=node.name,
                    cards=cards,
                    model=model,
                    limits=_limits(where, spec.limits, model),
                    pod=pod,
                    pool=self._pools.get(spec.name),
                )
                number += 1

    def _check_size(self, where: str, spec: EngineSpec) -> None:
        candidates = [self._nodes[index] for index in self._candidates(where, spec)]
        largest = max((node.gpus for node in candidates), default=0)
        if spec.gpus > largest:
            mend = "give the node more GPUs, or the engine fewer"
            raise ClusterError(
                f"{where}: gpus is {spec.gpus}, and node {candidates[0].name} has {candidates[0].gpus}: {mend}"
                if spec.node is not None
                else f"{where}: gpus is {spec.gpus}, and no node has more than {largest}: {mend}"
            )

    def _candidates(self, where: str, spec: EngineSpec) -> Sequence[int]:
        if spec.node is not None:
            index = self._by_name.get(spec.node)
            if index is None:
                names = ", ".join(list(self._by_name)[:8])
                raise ClusterError(f"{where}: node is {spec.node!r}, which is not there: give one of {names}")
            if spec.gpu is not None and self._nodes[index].gpu_type.name != spec.gpu:
                raise ClusterError(
                    f"{where}: gpu is {spec.gpu!r}, and node {spec.node} has {self._nodes[index].gpu_type.name}: "
                    "leave one of the two out"
                )
            return (index,)
        kinds = {node.gpu_type.name for node in self._nodes}
        if spec.gpu is not None and spec.gpu not in kinds:
            raise ClusterError(
                f"{where}: gpu is {spec.gpu!r}, and the nodes have {', '.join(sorted(kinds))}: add such a node"
            )
        if spec.gpu is None:
            while self._first_with_room < len(self._nodes) - 1 and self._full(self._first_with_room):
                self._first_with_room += 1
            return range(self._first_with_room, len(self._nodes))
        return [index for index, node in enumerate(self._nodes) if node.gpu_type.name == spec.gpu]

    def _full(self, index: int) -> bool:
        return self._used[index] >= self._nodes[index].gpus

    def _take(self, where: str, spec: EngineSpec, replica: int) -> tuple[NodePlace, tuple[int, ...]]:
        for index in self._candidates(where, spec):
            node, first = self._nodes[index], self._used[index]
            if first + spec.gpus <= node.gpus:
                self._used[index] += spec.gpus
                return node, tuple(range(first, first + spec.gpus))
        place = f"node {spec.node}" if spec.node is not None else "the nodes"
        raise ClusterError(
            f"{where}: replica {replica + 1} of {spec.replicas} needs {spec.gpus} GPUs, and {place} have no room left: "
            "add GPUs, or ask for fewer replicas"
        )

    def _model(self, where: str, spec: EngineSpec, kind: GpuType) -> StepModel:
        key = (kind.name, spec.model, spec.gpus, spec.dtype)
        if key not in self._models:
            try:
                model = step_model(kind, spec.model, spec.gpus, dtype=spec.dtype, catalogue=self._catalogue)
            except UnknownEngineError as error:
                raise ClusterError(f"{where}: {error}") from None
            if model.kv_blocks < 1:
                raise ClusterError(
                    f"{where}: the weights of {spec.model} ({spec.dtype}) leave no room for keys and values on "
                    f"{spec.gpus} x {kind.name}: give the engine more GPUs, or another dtype"
                )
            self._models[key] = model
        return self._models[key]


def _limits(where: str, spec: LimitsSpec, model: StepModel) -> EngineLimits:
    room, context = model.kv_blocks * BLOCK_TOKENS, model.model.context_tokens
    length = min(context, room) if spec.max_model_len is None else spec.max_model_len
    if length > context:
        raise ClusterError(
            f"{where}: limits.max_model_len is {length}, and {model.model.name} takes at most {context}: give less"
        )
    if length > room:
        raise ClusterError(
            f"{where}: limits.max_model_len is {length}, and the KV cache has room for {room} tokens: give "
            "less, or the engine more GPUs"
        )
    limits = EngineLimits(
        max_model_len=length,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_num_queued_reqs=spec.max_num_queued_reqs,
    )
    return limits if spec.enable_chunked_prefill else replace(limits, chunked_prefill=False)


def check_request(layout: Layout, number: int, request: TraceRequest) -> None:
    """Refuse a request for whose keys and values no engine has room, alone.

    Args:
        layout: of the cluster.
        number: of the request in the trace, the first is 0.
        request: from the trace.

    Raises:
        ClusterError: an engine's KV cache is too small for it.
    """
    need = -(-(request.prompt_tokens + request.output_tokens - 1) // BLOCK_TOKENS)
    # Replicas of one engine are alike; a thousand of them are not asked each.
    for engine in {place.spec.name: place for place in layout.engines}.values():
        if need > engine.model.kv_blocks:
            raise ClusterError(
                f"engines: {engine.spec.name} has room for {engine.model.kv_blocks * BLOCK_TOKENS} tokens of keys and "
                f"values, and request {number + 1} of the trace (at {request.arrival_seconds:.3f} s, "
                f"{request.prompt_tokens} prompt and {request.output_tokens} output tokens) needs "
                f"{need * BLOCK_TOKENS}: give the engine more GPUs, or drop the request"
            )


def check_requests(layout: Layout, requests: Iterable[TraceRequest]) -> None:
    """`check_request` of every request, before a run; a run itself refuses one when it arrives."""
    room = smallest_kv_tokens(layout)
    for number, request in enumerate(requests):
        if request.prompt_tokens + request.output_tokens > room:
            check_request(layout, number, request)


def smallest_kv_tokens(layout: Layout) -> int:
    """Tokens for which every engine has room; a request up to that size needs no `check_request`."""
    return min(engine.model.kv_blocks for engine in layout.engines) * BLOCK_TOKENS


def operator_nodes(layout: Layout) -> dict[str, Node]:
    """The Nodes as the operator's reflector shows them."""
    return {
        node.name: Node(node.name, node.gpus, node.gpu_type.product_name.replace(" ", "-")) for node in layout.nodes
    }


def operator_pods(layout: Layout) -> dict[str, Pod]:
    """The pods as the operator's reflector shows them."""
    return {engine.pod.key: engine.pod for engine in layout.engines}
