"""The objects the demo applies, as a user would write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENGINE_NAMESPACE = "serving"
FLYBALL_NAMESPACE = "flyball-system"
PROFILES_CONFIG_MAP = "flyball-profiles"
APP = "chat"
POLICY = "chat"
ENGINE_PORT = 8000


@dataclass(frozen=True)
class Scenario:
    """What the demo serves and wants.

    Attributes:
        engines: Engine pods, one GPU each.
        model: The model each of them serves.
        ttft_milliseconds, itl_milliseconds: The policy's SLO, on bucket edges of vLLM's histograms.
        sm_mhz: The clock that the Fixed controller holds; None: the Flyball controller chooses.
        budget_watts, cut_watts: The policy's budget, and what it is cut to under load.
    """

    engines: int = 12
    model: str = "llama-3.1-8b"
    ttft_milliseconds: int = 500
    itl_milliseconds: int = 25
    sm_mhz: int | None = None
    budget_watts: int = 6000
    cut_watts: int = 4800


def engine_deployment(scenario: Scenario, name: str = APP, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A Deployment of engines, spread over the nodes.

    Args:
        scenario: How many engines, and of what.
        name: Of the Deployment, and the label `app` of its pods.
        labels: More labels of its pods.
    """
    selector = {"app": name} | dict(labels or {})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "-".join([name, *(labels or {}).values()]), "namespace": ENGINE_NAMESPACE},
        "spec": {
            "replicas": scenario.engines,
            "selector": {"matchLabels": selector},
            "template": {
                "metadata": {"labels": selector},
                "spec": {
                    "terminationGracePeriodSeconds": 2,
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "DoNotSchedule",
                            "labelSelector": {"matchLabels": selector},
                        }
                    ],
                    "containers": [
                        {
                            "name": "vllm",
                            "image": "ghcr.io/flyball/flyball-engine:0.1.0",
                            "args": [f"--model={scenario.model}", "--host=$(POD_IP)", f"--port={ENGINE_PORT}"],
                            "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                            "ports": [{"name": "http", "containerPort": ENGINE_PORT}],
                            "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2},
                            "resources": {"limits": {"nvidia.com/gpu": "1"}},
                        }
                    ],
                },
            },
        },
    }


def policy(scenario: Scenario) -> dict[str, Any]:
    """The EnergyPolicy, first in Observe."""
    return {
        "apiVersion": "flyball.dev/v1alpha1",
        "kind": "EnergyPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "mode": "Observe",
            "selector": {"namespaces": [ENGINE_NAMESPACE], "matchLabels": {"app": APP}},
            "slo": {
                "timeToFirstToken": {"thresholdMilliseconds": scenario.ttft_milliseconds, "percentile": 99},
                "interTokenLatency": {"thresholdMilliseconds": scenario.itl_milliseconds, "percentile": 99},
                "attainment": {"windowSeconds": 60},
            },
            "controller": _controller(scenario.sm_mhz),
            # Below about 300 W a modelled H100 that decodes falls to its lowest clock.
            "limits": {"capWatts": {"min": 300}},
            "powerBudget": {"watts": scenario.budget_watts},
        },
    }


def _controller(sm_mhz: int | None) -> dict[str, Any]:
    if sm_mhz is None:
        return {"type": "Flyball"}
    clocks = [{"role": "unified", "minMegahertz": sm_mhz, "maxMegahertz": sm_mhz}]
    return {"type": "Fixed", "fixed": {"clocks": clocks}}
