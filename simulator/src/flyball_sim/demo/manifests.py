"""The objects the demo applies, as a user would write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ENGINE_NAMESPACE = "serving"
FLYBALL_NAMESPACE = "flyball-system"
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
        sm_mhz: The clock that the Fixed controller holds.
        budget_watts, cut_watts: The policy's budget, and what it is cut to under load.
    """

    engines: int = 12
    model: str = "llama-3.1-8b"
    ttft_milliseconds: int = 500
    itl_milliseconds: int = 25
    sm_mhz: int = 1305
    budget_watts: int = 6000
    cut_watts: int = 4800


def engine_deployment(scenario: Scenario) -> dict[str, Any]:
    """A Deployment of engines, spread over the nodes."""
    labels = {"app": APP}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": APP, "namespace": ENGINE_NAMESPACE},
        "spec": {
            "replicas": scenario.engines,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 2,
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "DoNotSchedule",
                            "labelSelector": {"matchLabels": labels},
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
            "controller": {
                "type": "Fixed",
                "fixed": {
                    "clocks": [
                        {"role": "unified", "minMegahertz": scenario.sm_mhz, "maxMegahertz": scenario.sm_mhz},
                    ]
                },
            },
            # Below about 300 W a modelled H100 that decodes falls to its lowest clock.
            "limits": {"capWatts": {"min": 300}},
            "powerBudget": {"watts": scenario.budget_watts},
        },
    }
