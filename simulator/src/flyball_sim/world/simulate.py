"""Runs a cluster in virtual time: wires the world together, lets it run, and gives what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal

from flyball_agent.actuator.device import Identity
from flyball_agent.controllers.base import Board
from flyball_agent.controllers.registry import make_controller
from flyball_agent.driving import MakeController
from flyball_agent.facts import Allocation, Holder
from flyball_agent.knobs import EngineCommand
from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample
from flyball_api.energypolicy import EnergyPolicy
from flyball_operator.accepting import accept
from flyball_operator.selection import assign
from flyball_sim.gpu.dies import Die, draw_dies
from flyball_sim.gpu.parameters import Draw, die_spread, nominal
from flyball_sim.latency.catalogue import Catalogue
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.actuator import VirtualActuator
from flyball_sim.world.agents import ScrapeError, Site, VirtualAgent
from flyball_sim.world.apiserver import ApiServer, Raw
from flyball_sim.world.cards import Card, CardGroup
from flyball_sim.world.cluster import ClusterSpec
from flyball_sim.world.cpu import CpuSeconds, Stopwatch, standing_still
from flyball_sim.world.delays import SCRAPE_TIMEOUT_SECONDS, Delays, Link
from flyball_sim.world.direct import scheduler_of
from flyball_sim.world.events import EventQueue
from flyball_sim.world.faults import Fault
from flyball_sim.world.injecting import Injector
from flyball_sim.world.layout import (
    Layout,
    NodePlace,
    check_request,
    lay_out,
    operator_nodes,
    operator_pods,
    smallest_kv_tokens,
)
from flyball_sim.world.leader import Leader
from flyball_sim.world.machines import MakeMachine, make_machine
from flyball_sim.world.outcomes import OutcomeBook
from flyball_sim.world.promise import BudgetWatch
from flyball_sim.world.result import RunResult, StatusSnapshot
from flyball_sim.world.routers import MakeRouter
from flyball_sim.world.sampling import Sampler
from flyball_sim.world.serving import Serving, Unit

WARM_UP_SECONDS: Final = 60.0
"""Before the trace begins: agents report, Leases are seen to move, grants are acknowledged. Energy counts from 0."""
FOREVER: Final = float("inf")

Mode = Literal["Observe", "Enforce"]


class Simulation:
    """One run, from its making to its result.

    Args:
        cluster: what there is.
        policies: EnergyPolicies as a person would apply them, the oldest first; none: no control plane either.
        requests: in order of arrival; taken one by one, so a generator will do.
        seed: of everything that is drawn.
        draw: values of the parameters that no measurement fixes; None: nominal ones.
        catalogue: of models and their step times; None: the one that is shipped.
        router: name (`routers.ROUTERS`), or what makes a router.
        faults: what goes wrong.
        mode: instead of every policy's own; None: as written.
        end_seconds: when it ends; None: when the last request is decided.
        sample_seconds: between samples of the series.
        warm_up_seconds: how long the cluster runs before the trace begins.
        delays: of messages.
        make: makes controllers.
        make_engine: makes engines.
        stopwatch: measures the CPU time of real code; None: it is not measured.
        profiles: that policies may name.
        progress: called with the time at every sample.

    Raises:
        ClusterError: the cluster cannot be.
        FaultError: a fault names what is not there.
        ValueError: an unknown router, or a number out of its bounds.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        policies: Sequence[EnergyPolicy | Mapping[str, Any]],
        requests: Iterable[TraceRequest],
        *,
        seed: int = 1,
        draw: Draw | None = None,
        catalogue: Catalogue | None = None,
        router: str | MakeRouter = "least-requests",
        faults: Sequence[Fault] = (),
        mode: Mode | None = None,
        end_seconds: float | None = None,
        sample_seconds: float = 5.0,
        warm_up_seconds: float = WARM_UP_SECONDS,
        delays: Delays | None = None,
        make: MakeController = make_controller,
        make_engine: MakeMachine = make_machine,
        stopwatch: Stopwatch | None = None,
        profiles: Mapping[str, Profile] = MappingProxyType({}),
        progress: Callable[[float], None] | None = None,
    ) -> None:
        for name, value in (("sample_seconds", sample_seconds), ("end_seconds", end_seconds)):
            if value is not None and not 0 < value < FOREVER:
                raise ValueError(f"{name} is {value}: give a number above 0")
        self._seed = seed
        self._end = end_seconds
        self._layout = lay_out(cluster, draw, catalogue)
        self._delays = delays or Delays()
        self._stopwatch = stopwatch or standing_still
        self._make = make
        self._profiles = profiles
        self._cpu = CpuSeconds()
        self._queue = EventQueue(-warm_up_seconds)
        self._api = ApiServer(self._queue, self._delays, seed)
        self._watch = BudgetWatch(self._queue)
        self._statuses = _StatusLog(self._queue)
        self._frozen: dict[str, EngineSample] = {}
        self._silent: dict[str, float] = {}
        self._frozen_until: dict[str, float] = {}
        self._limited: dict[str, int] = {}
        builder = _Builder(
            self._layout, seed, draw or nominal(), queue=self._queue, watch=self._watch, make_engine=make_engine
        )
        self._cards = builder.cards
        self._book = OutcomeBook()
        self._serving = Serving(
            builder.units,
            router,
            queue=self._queue,
            book=self._book,
            delays=self._delays,
            seed=seed,
            check=self._checker(),
        )
        self._by_address = {unit.place.pod.ip: unit for unit in builder.units}
        documents = [_document(index, policy, mode) for index, policy in enumerate(policies)]
        names = [document["metadata"]["name"] for document in documents]
        self._sampler = Sampler(
            sample_seconds,
            self._serving,
            builder.idle_groups,
            queue=self._queue,
            api=self._api,
            watch=self._watch,
            policies=names,
            progress=progress or (lambda _: None),
        )
        self._agents: dict[str, VirtualAgent] = {}
        self._actuators: dict[str, VirtualActuator] = {}
        self._leader: Leader | None = None
        if documents:
            self._start_control_plane(documents)
        for unit in builder.units:
            self._queue.at(unit.place.spec.ready_seconds or -warm_up_seconds, self._serving.open, unit)
        Injector(
            self._layout,
            queue=self._queue,
            api=self._api,
            agents=self._agents,
            actuators=self._actuators,
            cards=self._cards,
            leader=self._leader,
            serving=self._serving,
            silence=self._silence,
            freeze=self._freeze,
        ).schedule(faults)
        self._queue.at(0.0, self._begin, requests)

    # -- making --------------------------------------------------------------------------------------------

    def _checker(self) -> Callable[[int, TraceRequest], None]:
        room, layout = smallest_kv_tokens(self._layout), self._layout

        def check(number: int, request: TraceRequest) -> None:
            if request.prompt_tokens + request.output_tokens > room:
                check_request(layout, number, request)

        return check

    def _start_control_plane(self, documents: Sequence[Raw]) -> None:
        pods = operator_pods(self._layout)
        accepted = [accept(document, None) for document in documents]
        owners = assign(accepted, pods.values()).owners
        by_policy: dict[str, list[Card]] = {policy.name: [] for policy in accepted}
        for engine in self._layout.engines:
            owner = owners.get(engine.pod.key)
            if owner is not None:
                by_policy[owner] += [self._cards[engine.node][index] for index in engine.cards]
        self._watch.govern(by_policy)
        self._api.on_policy += [self._watch.policy_written, self._statuses.policy_written]
        for document in documents:
            self._api.put_policy(document)
        link = Link(self._seed, "starts")
        for node in self._layout.nodes:
            actuator = VirtualActuator(node.name, self._cards[node.name], self._queue)
            agent = VirtualAgent(
                Site(node.name, actuator, self._allocation(node), self._scrape, self._limit, self._profiles),
                self._queue,
                self._api,
                delays=self._delays,
                seed=self._seed,
                make=self._make,
                cpu=self._cpu,
                stopwatch=self._stopwatch,
            )
            self._actuators[node.name], self._agents[node.name] = actuator, agent
            self._queue.after(link.draw((0.0, 1.0)), agent.start)
        self._leader = Leader(
            operator_nodes(self._layout),
            pods,
            queue=self._queue,
            api=self._api,
            delays=self._delays,
            seed=self._seed,
            cpu=self._cpu,
            stopwatch=self._stopwatch,
        )
        self._leader.start()

    def _allocation(self, node: NodePlace) -> Allocation:
        return Allocation(
            holders={
                node.uuid(index): Holder(engine.pod.namespace, engine.name, "engine")
                for engine in self._layout.engines
                if engine.node == node.name
                for index in engine.cards
            }
        )

    # -- metrics pages -------------------------------------------------------------------------------------

    def _scrape(self, address: str, board: bool) -> tuple[EngineSample, Board | None]:
        unit = self._by_address.get(address)
        if unit is None or not unit.alive or not unit.ready:
            raise ScrapeError("connection refused")
        now = self._queue.now
        if now < self._silent.get(unit.name, -FOREVER):
            raise ScrapeError("TimeoutError", SCRAPE_TIMEOUT_SECONDS)
        if now < self._frozen_until.get(unit.name, -FOREVER):
            return self._frozen.setdefault(unit.name, unit.page()), None
        machine = unit.now()
        self._serving.collect(unit)
        scheduler = scheduler_of(machine) if board else None
        return machine.page(), None if scheduler is None else scheduler.board()

    def _limit(self, command: EngineCommand) -> None:
        unit = self._by_address.get(command.engine.host)
        if unit is None or not unit.alive or not unit.ready:
            raise ScrapeError("connection refused")
        now = self._queue.now
        if now < self._silent.get(unit.name, -FOREVER):
            raise ScrapeError("TimeoutError")
        scheduler = scheduler_of(unit.now())
        if scheduler is None:
            raise ScrapeError("HTTP 404")
        scheduler.set_batch_limit(now, command.batch_limit)
        scheduler.set_admission(now, command.admit)
        self._serving.watch(unit)
        turn = self._limited[unit.name] = self._limited.get(unit.name, 0) + 1
        if command.lease_seconds is not None:
            self._queue.after(command.lease_seconds, self._lift, unit, turn)

    def _lift(self, unit: Unit, turn: int) -> None:
        """The lease of an engine's limits is over, unless it was told again meanwhile."""
        if self._limited[unit.name] != turn or not unit.alive:
            return
        scheduler = scheduler_of(unit.now())
        if scheduler is not None:
            scheduler.set_batch_limit(self._queue.now, None)
            scheduler.set_admission(self._queue.now, None)
            self._serving.watch(unit)

    def _silence(self, engine: str, until_seconds: float) -> None:
        self._silent[engine] = max(until_seconds, self._silent.get(engine, until_seconds))

    def _freeze(self, engine: str, until_seconds: float) -> None:
        before = self._frozen_until.get(engine, -FOREVER)
        if before <= self._queue.now:
            self._frozen.pop(engine, None)
        self._frozen_until[engine] = max(until_seconds, before)

    # -- running -------------------------------------------------------------------------------------------

    def _begin(self, requests: Iterable[TraceRequest]) -> None:
        self._sampler.begin()
        self._serving.offer(iter(requests))

    def run(self) -> None:
        """Let it run to its end."""
        if self._end is None:
            self._queue.run(0.0, lambda: True)
            self._queue.run(FOREVER, lambda: not self._serving.idle)
            self._end = max(self._queue.now, 0.0)
        else:
            self.extend(self._end)

    def extend(self, end_seconds: float) -> None:
        """Let it run on: several runs are compared over one time, that of the last to finish."""
        self._queue.run(end_seconds, lambda: True)
        self._end = end_seconds

    @property
    def end_seconds(self) -> float:
        """Up to where it has run."""
        return self._queue.now

    def result(self) -> RunResult:
        """What came of it so far."""
        self._sampler.take()
        engines = tuple(unit.name for unit in self._serving.units)
        joules = self._sampler.engine_joules()
        idle = self._sampler.idle_joules()
        return RunResult(
            seed=self._seed,
            end_seconds=self._queue.now,
            gpus=self._layout.gpus,
            outcomes=self._book.outcomes(engines),
            totals=self._serving.totals,
            energy_joules=sum(joules) + idle,
            energy_by_engine_joules=dict(zip(engines, joules, strict=True)),
            idle_joules=idle,
            series=self._sampler.series(),
            statuses=self._statuses.finish(self._api.policies),
            breaches=self._watch.finish(),
            overshoot=self._sampler.overshoot(),
            turns=0 if self._leader is None else self._leader.turns,
            provenance=self._layout.provenance,
            cpu=self._cpu,
        )


class _Builder:
    """Makes the cards and engines of a layout."""

    def __init__(
        self,
        layout: Layout,
        seed: int,
        draw: Draw,
        *,
        queue: EventQueue,
        watch: BudgetWatch,
        make_engine: MakeMachine,
    ) -> None:
        self.cards: dict[str, list[Card]] = {}
        self.idle_groups: list[CardGroup] = []
        self._queue = queue
        dies = draw_dies(seed, layout.gpus, die_spread(draw))
        groups: dict[tuple[str, int], CardGroup] = {}
        places: dict[str, tuple[NodePlace, Sequence[Die]]] = {}
        taken = 0
        for node in layout.nodes:
            places[node.name] = (node, dies[taken : taken + node.gpus])
            taken += node.gpus
        self.units: list[Unit] = []
        for engine in layout.engines:
            node, own = places[engine.node]
            held = [own[index] for index in engine.cards]
            machine = make_engine(
                engine.model,
                engine.limits,
                dies=held,
                seed=seed * 1_000_003 + engine.index,
                start_seconds=queue.now,
                ready_seconds=engine.spec.ready_seconds or queue.now,
            )
            group = CardGroup(node.gpu_type, held, machine, queue.now)
            groups.update({(node.name, index): group for index in engine.cards})
            self.units.append(Unit(engine, machine, group, queue))
        for node, own in places.values():
            made = []
            for index in range(node.gpus):
                group_or_none = groups.get((node.name, index))
                if group_or_none is None:
                    group_or_none = CardGroup(node.gpu_type, [own[index]], None, queue.now)
                    self.idle_groups.append(group_or_none)
                made.append(Card(_identity(node, index), group_or_none, clock=self._now, on_cap=watch.cap_changed))
            self.cards[node.name] = made

    def _now(self) -> float:
        return self._queue.now


def _identity(node: NodePlace, index: int) -> Identity:
    kind = node.gpu_type
    return Identity(
        uuid=node.uuid(index),
        index=index,
        product=kind.product_name,
        cap_min_watts=kind.cap_min_watts,
        cap_max_watts=kind.cap_max_watts,
        cap_default_watts=kind.cap_default_watts,
        sm_mhz=tuple(kind.supported_sm_mhz()),
    )


def _document(index: int, policy: EnergyPolicy | Mapping[str, Any], mode: Mode | None) -> Raw:
    """The policy as the API server has it."""
    raw = policy.to_json() if isinstance(policy, EnergyPolicy) else dict(policy)
    name = raw["metadata"]["name"]
    spec = dict(raw["spec"])
    if mode is not None:
        spec["mode"] = mode
    hour, minute = divmod(index, 60)
    metadata = {
        "name": name,
        "uid": f"uid-{name}",
        "creationTimestamp": f"2025-12-31T{hour % 24:02d}:{minute:02d}:00Z",
        "finalizers": [],
    }
    return {"apiVersion": "flyball.dev/v1alpha1", "kind": EnergyPolicy.KIND, "metadata": metadata, "spec": spec}


class _StatusLog:
    """Keeps what policies' statuses said, whenever their conditions changed."""

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._last: dict[str, list[tuple[Any, ...]]] = {}
        self._snapshots: list[StatusSnapshot] = []

    def policy_written(self, raw: Raw) -> None:
        name, status = raw["metadata"]["name"], raw.get("status")
        if not status:
            return
        said = [
            (condition["type"], condition["status"], condition["reason"], condition.get("message", ""))
            for condition in status.get("conditions", ())
        ]
        if said != self._last.get(name):
            self._last[name] = said
            self._snapshots.append(StatusSnapshot(self._queue.now, name, status))

    def finish(self, policies: Mapping[str, Raw]) -> tuple[StatusSnapshot, ...]:
        ends = [
            StatusSnapshot(self._queue.now, name, policies[name]["status"])
            for name in sorted(self._last)
            if policies[name].get("status")
        ]
        return (*self._snapshots, *ends)


def run(
    cluster: ClusterSpec,
    policies: Sequence[EnergyPolicy | Mapping[str, Any]],
    requests: Iterable[TraceRequest],
    **options: Any,
) -> RunResult:
    """One run; see `Simulation` for the options."""
    simulation = Simulation(cluster, policies, requests, **options)
    simulation.run()
    return simulation.result()


def run_together(simulations: Sequence[Simulation]) -> list[RunResult]:
    """Runs that are compared: each to its end, then all to the end of the last, so that energy is of one time."""
    for simulation in simulations:
        simulation.run()
    end = max(simulation.end_seconds for simulation in simulations)
    for simulation in simulations:
        simulation.extend(end)
    return [simulation.result() for simulation in simulations]
