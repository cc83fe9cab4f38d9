"""What Prometheus is told. Base units; everything starts with `flyball_`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flyball_api.energypolicy import Ledger
from flyball_operator.planning import Actions


class ReflectorFigures(Protocol):
    """What a reflector says of itself."""

    @property
    def relists_total(self) -> int:
        """Lists after the first."""
        ...

    @property
    def projection_errors_total(self) -> int:
        """Objects that could not be read."""
        ...

    def last_event_age_seconds(self) -> float:
        """Since the last sign of life."""
        ...


class ReflectorCollector(Collector):
    """Reads the reflectors when Prometheus asks."""

    def __init__(self, reflectors: Mapping[str, ReflectorFigures]) -> None:
        self._reflectors = reflectors

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        relists = CounterMetricFamily(
            "flyball_reflector_relists", "Whole lists after the first one.", labels=["resource"]
        )
        errors = CounterMetricFamily(
            "flyball_reflector_projection_errors", "Objects that could not be read.", labels=["resource"]
        )
        ages = GaugeMetricFamily(
            "flyball_reflector_last_event_age_seconds",
            "Seconds since the API server last said anything.",
            labels=["resource"],
        )
        for resource, reflector in self._reflectors.items():
            relists.add_metric([resource], reflector.relists_total)
            errors.add_metric([resource], reflector.projection_errors_total)
            ages.add_metric([resource], reflector.last_event_age_seconds())
        yield from (relists, errors, ages)


class OperatorMetrics:
    """The operator's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._draw = Gauge(
            "flyball_policy_draw_watts", "What the policy's GPUs draw.", ["policy"], registry=self.registry
        )
        self._ledger = Gauge(
            "flyball_policy_ledger_watts",
            "Where the policy's watts are; budget and deficit beside enforced, in_flight, unknown, reserved, free.",
            ["policy", "state"],
            registry=self.registry,
        )
        self._reconcile = Histogram(
            "flyball_reconcile_duration_seconds",
            "Time to plan once, without the writes.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self._actions = Counter(
            "flyball_actions", "Writes to the API server.", ["kind", "outcome"], registry=self.registry
        )
        self._leader = Gauge("flyball_leader", "1 while this process leads.", registry=self.registry)
        self._synced = Gauge(
            "flyball_cluster_synced", "1 while the picture of the cluster is whole and fresh.", registry=self.registry
        )

    def follow(self, reflectors: Mapping[str, ReflectorFigures]) -> None:
        """Export what these reflectors say of themselves."""
        self.registry.register(ReflectorCollector(reflectors))

    def count(self, kind: str, outcome: str) -> None:
        """One write."""
        self._actions.labels(kind, outcome).inc()

    def turn(self, actions: Actions, seconds: float, *, leads: bool, synced: bool) -> None:
        """One turn of the loop."""
        self._leader.set(leads)
        self._synced.set(synced)
        if not leads or not synced:
            # A follower's last word would stand beside the leader's.
            self._draw.clear()
            self._ledger.clear()
            return
        self._reconcile.observe(seconds)
        self._draw.clear()
        for policy, watts in actions.draws.items():
            self._draw.labels(policy).set(watts)
        self._ledger.clear()
        for policy, ledger in actions.ledgers.items():
            for state, watts in _states(ledger).items():
                self._ledger.labels(policy, state).set(watts)


def _states(ledger: Ledger) -> dict[str, int]:
    return {name.removesuffix("_watts"): watts for name, watts in ledger.model_dump().items()}
