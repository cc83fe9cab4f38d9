"""Step times live in `flyball_sim.latency`; these are the names an engine uses of them."""

from flyball_sim.latency.steps import (
    BLOCK_TOKENS,
    GPU_MEMORY_UTILIZATION,
    DecodeLine,
    StepCost,
    StepModel,
    UnknownEngineError,
    step_model,
)

__all__ = [
    "BLOCK_TOKENS",
    "GPU_MEMORY_UTILIZATION",
    "DecodeLine",
    "StepCost",
    "StepModel",
    "UnknownEngineError",
    "step_model",
]
