"""The agent's own Prometheus metrics, made from its state when they are asked for; base units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flyball_agent.cards import Gpu
from flyball_agent.engines import EngineScraper
from flyball_agent.node import NodeControl


@dataclass(slots=True)
class AgentCounts:
    """What the agent counts about itself."""

    status_writes: int = 0
    status_write_failures: int = 0
    commands: int = 0
    commands_refused: int = 0
    actuator_connections: int = 0
    allocation_failures: int = 0
    engine_commands: int = 0
    engine_commands_failed: int = 0
    state_writes_failing: bool = False


class AgentCollector(Collector):
    """Turns the agent's state into families.

    Args:
        control: the agent's state.
        scraper: of the local engines.
        counts: of the agent's own doings.
        clock: monotonic seconds.
    """

    def __init__(
        self, control: NodeControl, scraper: EngineScraper, counts: AgentCounts, clock: Callable[[], float]
    ) -> None:
        self._control = control
        self._scraper = scraper
        self._counts = counts
        self._clock = clock

    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        yield from self._gpus()
        yield from self._engines()
        yield from self._own()

    def _gpus(self) -> Iterator[Metric]:
        labels = ["gpu", "index"]
        power = GaugeMetricFamily("flyball_gpu_power_watts", "Power, one-second average.", labels=labels)
        clock = GaugeMetricFamily("flyball_gpu_sm_clock_hertz", "SM clock.", labels=labels)
        cap = GaugeMetricFamily("flyball_gpu_cap_watts", "Power cap in force.", labels=labels)
        granted = GaugeMetricFamily("flyball_gpu_granted_cap_watts", "Power cap granted by the plan.", labels=labels)
        lock = GaugeMetricFamily(
            "flyball_gpu_locked_sm_clock_hertz", "Bounds of the clock lock.", labels=[*labels, "bound"]
        )
        energy = CounterMetricFamily("flyball_gpu_energy_joules", "Energy since the driver was loaded.", labels=labels)
        faults = GaugeMetricFamily("flyball_gpu_fault", "Faults that hold now.", labels=[*labels, "code"])
        writes = CounterMetricFamily(
            "flyball_gpu_writes", "Writes to the card in this life of the actuator.", labels=[*labels, "kind"]
        )
        for gpu in self._control.gpus.values():
            name = [gpu.uuid, str(gpu.card["index"]) if gpu.card is not None else ""]
            for code in self._control.faults(gpu):
                faults.add_metric([*name, code], 1)
            if gpu.entry is not None and gpu.entry.cap_watts is not None:
                granted.add_metric(name, gpu.entry.cap_watts)
            if gpu.report is None:
                continue
            cap.add_metric(name, gpu.report["enforced_cap_watts"])
            for kind, count in gpu.report["writes"].items():
                writes.add_metric([*name, kind], count)
            for bound, mhz in zip(("min", "max"), gpu.report["lock_mhz"] or (), strict=False):
                lock.add_metric([*name, bound], mhz * 1e6)
            _measured(gpu, name, power, clock, energy)
        yield from (power, clock, cap, granted, lock, energy, faults, writes)

    def _engines(self) -> Iterator[Metric]:
        now = self._clock()
        age = GaugeMetricFamily("flyball_agent_scrape_age_seconds", "Age of an engine's newest page.", labels=["url"])
        pages = CounterMetricFamily("flyball_agent_scrapes", "Pages read from an engine.", labels=["url"])
        failures = CounterMetricFamily("flyball_agent_scrape_failures", "Pages not read.", labels=["url"])
        for engine, state in self._scraper.states.items():
            age.add_metric([engine.url], state.age_seconds(now))
            pages.add_metric([engine.url], state.pages)
            failures.add_metric([engine.url], state.failures)
        yield from (age, pages, failures)

    def _own(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "flyball_agent_actuator_connected",
            "Whether the actuator answers.",
            value=int(self._control.actuator.connected),
        )
        yield GaugeMetricFamily(
            "flyball_agent_writes_enabled", "Whether the switch lets us write.", value=int(self._control.writes)
        )
        yield GaugeMetricFamily(
            "flyball_agent_leader_epoch", "Epoch of the plan that is followed.", value=self._control.epoch
        )
        counts = self._counts
        for name, text, value in (
            ("status_writes", "Writes of the plan's status.", counts.status_writes),
            ("status_write_failures", "Writes of the plan's status that failed.", counts.status_write_failures),
            ("commands", "Commands to the actuator.", counts.commands),
            ("commands_refused", "Commands that the actuator refused.", counts.commands_refused),
            ("actuator_connections", "Connections made to the actuator.", counts.actuator_connections),
            ("engine_commands", "Limits posted to engines.", counts.engine_commands),
            ("engine_commands_failed", "Limits that engines did not take.", counts.engine_commands_failed),
            ("allocation_failures", "Failed reads of the kubelet's PodResources.", counts.allocation_failures),
        ):
            yield CounterMetricFamily(f"flyball_agent_{name}", text, value=value)


def _measured(
    gpu: Gpu, name: list[str], power: GaugeMetricFamily, clock: GaugeMetricFamily, energy: CounterMetricFamily
) -> None:
    sample = None if gpu.report is None else gpu.report["sample"]
    if sample is None:
        return
    watts = sample["power_average_watts"] or sample["power_instant_watts"]
    if watts is not None:
        power.add_metric(name, watts)
    if sample["energy_joules"] is not None:
        energy.add_metric(name, sample["energy_joules"])
    clock.add_metric(name, sample["sm_mhz"] * 1e6)
