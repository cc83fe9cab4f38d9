"""How many engines a trace needs, where nobody said which cluster it runs on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flyball_api.energypolicy import EnergyPolicySpec
from flyball_sim.gpu.types import GpuType, gpu_type
from flyball_sim.latency.catalogue import Catalogue
from flyball_sim.latency.steps import StepModel, UnknownEngineError, step_model
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.cluster import ClusterSpec, EngineSpec, NodeSpec

BUSIEST_SECONDS = 60.0
BUSIEST_SHARE = 0.6
"""The busiest minute keeps the assumed engines at work for this share of it: loaded, and not overloaded."""
BATCH = 32
"""The batch at which the work of one output token is counted."""
TENSOR_PARALLEL = (1, 2, 4, 8)
DEFAULT_NAMESPACE = "serving"
DEFAULT_GPU = "H100-SXM5"
DEFAULT_MODEL = "llama-3.1-8b"
DEFAULT_DTYPE = "bf16"
NODE_GPUS = 8
NAME_LENGTH = 50
"""An engine's name is a label, a policy's may be a longer one with dots."""


def choose(
    gpu: str | None, model: str | None, dtype: str | None, *, gpus: int | None, catalogue: Catalogue | None
) -> StepModel:
    """The step times of one assumed engine.

    Raises:
        LookupError: the GPU type or the model is unknown, or this number of GPUs is.
    """
    kind = gpu_type(gpu or DEFAULT_GPU)
    name, weights = model or DEFAULT_MODEL, dtype or DEFAULT_DTYPE
    if gpus is not None:
        return step_model(kind, name, gpus, dtype=weights, catalogue=catalogue)
    return fewest_gpus(kind, name, weights, catalogue)


def fewest_gpus(gpu: GpuType, model: str, dtype: str, catalogue: Catalogue | None) -> StepModel:
    """The model on the fewest GPUs of a type that hold it.

    Raises:
        UnknownEngineError: no number of GPUs does; the message of the smallest group.
    """
    first: UnknownEngineError | None = None
    for gpus in TENSOR_PARALLEL:
        try:
            found = step_model(gpu, model, gpus, dtype=dtype, catalogue=catalogue)
        except UnknownEngineError as error:
            first = first or error
            continue
        if found.kv_blocks:
            return found
    raise first or UnknownEngineError(f"no number of GPUs of type {gpu.name} holds {model}")


def work_seconds(request: TraceRequest, model: StepModel) -> float:
    """Engine time of one request: its prompt alone, and its share of decode steps of `BATCH` like it."""
    prompt = model.cost(0, 0, [(0, request.prompt_tokens)])
    held = BATCH * (request.prompt_tokens + request.output_tokens // 2)
    step = model.cost(BATCH, held, [])
    return (
        prompt.fixed_seconds
        + prompt.clocked_seconds
        + request.output_tokens * (step.host_seconds + step.fixed_seconds + step.clocked_seconds) / BATCH
    )


def engines_needed(requests: Sequence[TraceRequest], model: StepModel) -> int:
    """Engines that the busiest minute of a trace keeps at work for `BUSIEST_SHARE` of it, at least one."""
    minutes = np.array([int(request.arrival_seconds // BUSIEST_SECONDS) for request in requests])
    work = np.bincount(minutes, weights=[work_seconds(request, model) for request in requests])
    return max(1, math.ceil(float(work.max()) / BUSIEST_SECONDS / BUSIEST_SHARE))


def pod_of(spec: EnergyPolicySpec) -> tuple[str, Mapping[str, str]]:
    """Namespace and labels of a pod that the policy selects."""
    selector = spec.selector
    labels = dict(selector.match_labels)
    for requirement in selector.match_expressions:
        if requirement.operator == "In":
            labels.setdefault(requirement.key, requirement.values[0])
        elif requirement.operator == "Exists":
            labels.setdefault(requirement.key, "true")
    return (selector.namespaces[0] if selector.namespaces else DEFAULT_NAMESPACE), labels


def cluster(
    model: StepModel, policies: Sequence[tuple[str, EnergyPolicySpec]], engines: int, dtype: str | None
) -> ClusterSpec:
    """So many engines, shared out over the policies, on nodes of `NODE_GPUS` or, if that is all, on one smaller one."""
    replicas = [engines // len(policies) + (index < engines % len(policies)) for index in range(len(policies))]
    replicas = [max(1, number) for number in replicas]
    per_node = max(1, NODE_GPUS // model.gpus)
    nodes = -(-sum(replicas) // per_node)
    size = sum(replicas) if nodes == 1 else per_node
    specs = []
    for (name, spec), number in zip(policies, replicas, strict=True):
        namespace, labels = pod_of(spec)
        specs.append(
            EngineSpec(
                name=name.replace(".", "-")[:NAME_LENGTH].rstrip("-"),
                model=model.model.name,
                dtype=dtype or DEFAULT_DTYPE,
                gpus=model.gpus,
                replicas=number,
                namespace=namespace,
                labels=labels,
            )
        )
    node = NodeSpec(name="node", gpu=model.gpu.name, gpus=size * model.gpus, count=nodes)
    return ClusterSpec(nodes=(node,), engines=tuple(specs))
