"""What the agent wants of each GPU, what it has got, and what it owes the operator. Pure: time and news are passed in.

A grant is carried out by the actuator and acknowledged once its answer, which is a read-back, shows it in force. What
is wanted is compared with what was last answered at every pass, so that whatever is lost on the way (an actuator, a
lock, a driver's settings) is simply wanted again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flyball_agent.cards import FIRST_RETRY_SECONDS, Actuator, Command, Gpu
from flyball_agent.controllers.base import UNLOCKED
from flyball_agent.counters import PolicyAccount, thresholds
from flyball_agent.driving import GroupDriver, MakeController, Outcome
from flyball_agent.explaining import explained
from flyball_agent.facts import Allocation, Engine, EngineState, Report, Wish
from flyball_agent.groups import Group, Setups, engine_of, groups_of, limits_of
from flyball_agent.knobs import EngineCommand, EngineKnobs, Knobs
from flyball_agent.memory import Remembered
from flyball_agent.setups import Shelf
from flyball_api.nodeenergyplan import Acknowledgement, NodeEnergyPlan, PlanGpu, PlanPolicy, PolicyCounters

LAST_RETRY_SECONDS: Final = 10.0

ENABLED: Final = "enabled"
STOPPED: Final = "stopped"
_SWITCH: Final = {ENABLED: True, STOPPED: False, "release": True}


@dataclass(slots=True)
class _Plan:
    epoch: int = 0
    policies: dict[str, PlanPolicy] = field(default_factory=dict)
    entries: tuple[PlanGpu, ...] = ()
    groups: list[Group] = field(default_factory=list)
    seen: bool = False


class NodeControl:
    """The state of the agent.

    Args:
        session: random id of this life of the agent.
        make: makes a controller (`controllers.registry.make_controller`).
        clock: monotonic seconds.
    """

    def __init__(self, session: str, make: MakeController, clock: Callable[[], float]) -> None:
        self.session = session
        self.actuator = Actuator()
        self.gpus: dict[str, Gpu] = {}
        self.allocation: Allocation | None = None
        self.switch = ""
        self._clock = clock
        self._plan = _Plan()
        self._driver = GroupDriver(make)
        self._knobs = EngineKnobs()
        self._wanted_knobs: dict[Engine, Knobs] = {}
        self._shelf: Shelf = {}
        self._setups = Setups()
        self._accounts: dict[str, PolicyAccount] = {}
        self._engines: dict[str, set[Engine]] = {}
        self._lives = 0

    # -- news ----------------------------------------------------------------------------------------------

    @property
    def plan_seen(self) -> bool:
        """Whether there is a plan of this node."""
        return self._plan.seen

    @property
    def epoch(self) -> int:
        """The highest leader epoch seen."""
        return self._plan.epoch

    @property
    def writes(self) -> bool:
        """Whether the cluster-wide switch lets us write. Not before it was read; an unknown value stops."""
        return _SWITCH.get(self.switch, False)

    def take_plan(self, plan: NodeEnergyPlan | None) -> bool:
        """The plan of this node as it is now; a deleted one is empty.

        Returns:
            Whether it is followed: one of an older leader is not.
        """
        if plan is None:
            self._plan = _Plan(epoch=self._plan.epoch)
        elif plan.spec.leader_epoch < self._plan.epoch:
            return False
        else:
            policies = {policy.name: policy for policy in plan.spec.policies}
            groups = groups_of(policies, plan.spec.gpus)
            self._plan = _Plan(plan.spec.leader_epoch, policies, plan.spec.gpus, groups, seen=True)
        entries = {entry.uuid: entry for entry in self._plan.entries}
        for uuid in entries.keys() - self.gpus.keys():
            self.gpus[uuid] = Gpu(uuid)
        for uuid, gpu in list(self.gpus.items()):
            entry = entries.get(uuid)
            if entry is None and gpu.card is None:
                del self.gpus[uuid]
                continue
            if entry != gpu.entry:
                gpu.entry = entry
                gpu.retry_at, gpu.retry_seconds = 0.0, FIRST_RETRY_SECONDS
        self._driver.keep(self._plan.groups)
        self._setups.keep({group.key for group in self._plan.groups})
        self._open_accounts()
        return True

    def take_switch(self, value: str | None) -> None:
        """The switch as it is now; None: there is no ConfigMap, or it says nothing."""
        self.switch = ENABLED if value is None else value

    def take_actuator(self, life: str, boot_id: str) -> None:
        """The actuator answered our hello: whatever an earlier one was told must be told again."""
        self.actuator = Actuator(connected=True, life=life, boot_id=boot_id, trouble="it has not named its GPUs yet")
        for gpu in self.gpus.values():
            gpu.applied = gpu.in_flight = gpu.failure = None
            gpu.retry_at, gpu.retry_seconds = 0.0, FIRST_RETRY_SECONDS

    def lose_actuator(self, why: str) -> None:
        """It does not answer any more."""
        self.actuator.connected = False
        self.actuator.trouble = why
        for gpu in self.gpus.values():
            gpu.applied = gpu.in_flight = None

    def take_cards(self, answer: Report) -> None:
        """The actuator's answer to `capabilities`."""
        self.actuator.driver_version = answer["driver_version"]
        self.actuator.trouble = answer["error"]
        for card in answer["gpus"]:
            self.gpus.setdefault(card["uuid"], Gpu(card["uuid"])).card = card

    def take_allocation(self, allocation: Allocation) -> None:
        """Who holds which GPU."""
        self.allocation = allocation

    def take_reports(self, reports: Sequence[Report]) -> None:
        """The actuator's answer to `read`."""
        now = self._clock()
        for report in reports:
            gpu = self.gpus.get(report["uuid"])
            if gpu is not None:
                self._take_report(gpu, report, now)
        for account in self._accounts.values():
            account.energy(
                {
                    uuid: gpu.report["sample"]["energy_joules"]
                    for uuid, gpu in self.gpus.items()
                    if _works_for(gpu, account.name)
                    and gpu.report is not None
                    and gpu.report["sample"] is not None
                    and gpu.report["sample"]["energy_joules"] is not None
                }
            )

    def _take_report(self, gpu: Gpu, report: Report, now: float) -> None:
        earlier, gpu.report = gpu.report, report
        if earlier is not None and report["reloads"] > earlier["reloads"]:
            gpu.applied = gpu.acknowledged = None
        if gpu.applied is None or gpu.in_flight is not None:
            return
        out_of_force = gpu.applied.cap_watts is not None and not report["cap_in_force"]
        if report["lock_mhz"] != gpu.applied_lock or out_of_force:
            gpu.applied = None
            if out_of_force:
                self._wait(gpu, now)

    def take_page(self, engine: Engine, state: EngineState) -> bool:
        """A newer page of an engine.

        Returns:
            Whether a controller waits for it.
        """
        if state.sample is None:
            return False
        for account in self._accounts.values():
            if engine in self._engines_of(account.name):
                account.page(engine.url, state.sample)
        now = self._clock()
        return any(
            group.engine == engine and self._driver.awaits_page(group, state, now) for group in self._plan.groups
        )

    def take_profiles(self, shelf: Shelf) -> None:
        """The profiles that policies name, as they are now; the same object: nothing changed."""
        self._shelf = shelf

    def recall(self, kept: Mapping[str, Remembered]) -> None:
        """What controllers learnt in an earlier life of this agent."""
        self._driver.recall(kept)

    def remembered(self) -> list[Remembered] | None:
        """What the controllers have learnt; None: there is no plan yet, so nobody knows what to keep."""
        return self._driver.remembered(self._plan.groups) if self._plan.seen else None

    def take_notes(self) -> list[str]:
        """Sentences for the log since this was last called."""
        return self._driver.take_notes()

    # -- what is wanted ------------------------------------------------------------------------------------

    def engines(self) -> set[Engine]:
        """The engines to scrape."""
        return {group.engine for group in self._plan.groups if group.engine is not None}

    def wishes(self) -> dict[Engine, Wish]:
        """How to scrape each of them; after `commands` it may be another."""
        return self._driver.wishes(self._plan.groups)

    def profile_names(self) -> frozenset[str]:
        """The profiles that the plan's policies name."""
        return frozenset(group.profile for group in self._plan.groups if group.profile)

    def next_wake(self) -> float | None:
        """When a controller wants to be asked, in monotonic seconds; None: whenever there is news anyway."""
        return self._driver.next_wake() if self.writes else None

    def commands(self, engines: Mapping[Engine, EngineState]) -> list[Command]:
        """Let the controllers decide, and say what to ask of the actuator now; each is in flight from here on."""
        now = self._clock()
        cards = {uuid: gpu.card for uuid, gpu in self.gpus.items() if gpu.card is not None}
        reports = {uuid: gpu.report for uuid, gpu in self.gpus.items() if gpu.report is not None}
        for gpu in self.gpus.values():
            gpu.outcome = None
        knobs: dict[Engine, Knobs] = {}
        for group in self._plan.groups:
            if not self.writes and not group.observed:
                # What is not written must not be learnt from, as of clocks that are not reached.
                for entry in group.entries:
                    self.gpus[entry.uuid].outcome = self._driver.last(group)
                continue
            limits = limits_of(group, cards)
            if limits is None:
                continue
            state = None if group.engine is None else engines.get(group.engine)
            own = tuple([cards[entry.uuid] for entry in group.entries])
            setup = self._setups.of(group, own, self._shelf, None if state is None else state.sample)
            outcome = self._driver.outcome(group, limits, reports, state, now, setup=setup)
            for entry in group.entries:
                self.gpus[entry.uuid].outcome = outcome
            self._turn_knobs(knobs, group, outcome)
        self._wanted_knobs = knobs
        wanted = []
        for gpu in self.gpus.values():
            command = self._wanted(gpu)
            if command is None or gpu.card is None or gpu.in_flight is not None or command == gpu.applied:
                continue
            if self.actuator.connected and self.writes and now >= gpu.retry_at:
                gpu.in_flight = command
                wanted.append(command)
        return wanted

    def _turn_knobs(self, knobs: dict[Engine, Knobs], group: Group, outcome: Outcome) -> None:
        setpoint, engine = outcome.setpoint, group.engine
        if engine is None or (setpoint.batch_limit is None and setpoint.admit is None):
            return
        if group.observed or any(self.refusal(self.gpus[entry.uuid]) for entry in group.entries):
            return
        wanted = Knobs(setpoint.batch_limit, setpoint.admit, outcome.turn)
        other = knobs.get(engine)
        knobs[engine] = wanted if other is None else wanted.merged(other)

    def engine_commands(self, engines: Mapping[Engine, EngineState]) -> list[EngineCommand]:
        """What to tell engines now, as `commands` last left it; each is in flight from here on.

        Without an actuator nothing controls, so engines get their own limits back.
        """
        now = self._clock()
        if not self.writes:
            return self._knobs.renewals(engines, now)
        return self._knobs.commands(self._wanted_knobs if self.actuator.connected else {}, engines, now)

    def engine_answered(self, command: EngineCommand) -> None:
        """An engine took its limits."""
        self._knobs.answered(command, self._clock())

    def engine_failed(self, command: EngineCommand, why: str) -> None:
        """An engine did not take its limits, or nobody knows."""
        self._knobs.failed(command, why, self._clock())

    def hand_back(self) -> list[EngineCommand]:
        """What to tell engines at the agent's end."""
        return self._knobs.hand_back()

    def explain(self) -> list[dict[str, Any]]:
        """What was decided last of every GPU of the plan, and why."""
        return [
            explained(group, entry, self._driver.last(group), self._driver.degraded(group))
            | {"faults": self.faults(self.gpus[entry.uuid]) if entry.uuid in self.gpus else {}}
            for group in self._plan.groups
            for entry in group.entries
        ]

    def explain_groups(self) -> list[dict[str, Any]]:
        """The same of the first GPU of each group that was decided of, without faults: for the log."""
        return [
            explained(group, group.entries[0], outcome, self._driver.degraded(group))
            for group in self._plan.groups
            if (outcome := self._driver.last(group)) is not None
        ]

    def _wanted(self, gpu: Gpu) -> Command | None:
        entry, outcome = gpu.entry, gpu.outcome
        if entry is None:
            return Command(gpu.uuid, "set") if gpu.locked else None
        grant = Acknowledgement(leader_epoch=self._plan.epoch, grant=entry.grant)
        if entry.action == "Release":
            return Command(gpu.uuid, "release", acknowledges=grant)
        if entry.action == "Observe" or self.refusal(gpu) is not None:
            if gpu.locked:
                return Command(gpu.uuid, "set")
            if entry.action == "Observe" and gpu.report is not None:
                gpu.acknowledged = grant
            return None
        # Without an outcome (a card of its group is not there) no clock can be chosen; the cap is held all the same.
        setpoint = UNLOCKED if outcome is None else outcome.setpoint
        cap = entry.cap_watts
        if cap is not None and setpoint.cap_watts is not None:
            # A cap that no card takes would never be read back, and so the grant never acknowledged.
            lowest = 0 if gpu.card is None else math.ceil(gpu.card["cap_min_watts"])
            cap = min(cap, max(setpoint.cap_watts, lowest))
        policy = self._plan.policies[entry.policy]
        # The actuator gave up the clocks of this card: the cap is still held, and acknowledged, without them.
        armed = gpu.report is None or gpu.report["armed"]
        return Command(
            gpu.uuid,
            "set",
            sm_mhz=setpoint.sm_mhz if armed else None,
            cap_watts=cap,
            ceiling_watts=entry.cap_watts,
            lease_seconds=policy.fail_safe.actuator_lease_seconds,
            acknowledges=grant,
        )

    def refusal(self, gpu: Gpu) -> tuple[str, str] | None:
        """(code, sentence) when a GPU must not be driven whatever is granted."""
        if gpu.card is not None and gpu.card["mig_enabled"]:
            return "MigEnabled", f"GPU {gpu.uuid} has MIG enabled, which is not driven: disable MIG or leave it out"
        if self.allocation is not None and gpu.uuid in self.allocation.shared:
            return "Shared", f"GPU {gpu.uuid} is shared between containers, so no policy of one of them may drive it"
        return None

    def answered(self, command: Command, report: Report) -> None:
        """The actuator carried out a command; its report is the read-back."""
        gpu = self.gpus.get(command.uuid)
        if gpu is None or gpu.in_flight is not command:
            return
        now = self._clock()
        gpu.in_flight = None
        earlier, gpu.report = gpu.report, report
        if report["sample"] is None and earlier is not None:
            report["sample"] = earlier["sample"]
        gpu.failure = None
        gpu.applied, gpu.applied_lock = command, report["lock_mhz"]
        if command.cap_watts is not None and not report["cap_in_force"]:
            gpu.applied = None
            self._wait(gpu, now)
            return
        gpu.retry_seconds = FIRST_RETRY_SECONDS
        if command.acknowledges is not None:
            gpu.acknowledged = command.acknowledges

    def failed(self, command: Command, code: str, message: str) -> None:
        """The actuator did not carry out a command."""
        gpu = self.gpus.get(command.uuid)
        if gpu is None or gpu.in_flight is not command:
            return
        gpu.in_flight = None
        gpu.failure = (code, message)
        self._wait(gpu, self._clock())

    def abandoned(self, command: Command) -> None:
        """Nobody knows whether a command was carried out: the actuator is gone."""
        gpu = self.gpus.get(command.uuid)
        if gpu is not None and gpu.in_flight is command:
            gpu.in_flight = None

    @staticmethod
    def _wait(gpu: Gpu, now: float) -> None:
        gpu.retry_at = now + gpu.retry_seconds
        gpu.retry_seconds = min(gpu.retry_seconds * 2, LAST_RETRY_SECONDS)

    # -- what is owed --------------------------------------------------------------------------------------

    def faults(self, gpu: Gpu) -> dict[str, str]:
        """Everything that is wrong with a GPU now: code -> sentence."""
        faults: dict[str, str] = {}
        if gpu.report is not None:
            faults |= {fault["code"]: fault["message"] for fault in gpu.report["faults"]}
        if gpu.outcome is not None:
            faults |= gpu.outcome.faults
        if gpu.failure is not None:
            faults.setdefault(*gpu.failure)
        engine = self._engine_of(gpu)
        if engine is not None and (limited := self._knobs.fault(engine)):
            faults["EngineLimits"] = limited
        refusal = self.refusal(gpu)
        if refusal is not None:
            faults.setdefault(*refusal)
        if not self.actuator.connected:
            faults["ActuatorLost"] = f"the actuator does not answer ({self.actuator.trouble}): nothing can be changed"
        elif gpu.card is None:
            faults["UnknownGpu"] = f"this node has no GPU {gpu.uuid}: the plan is older than the hardware"
        return faults

    def counters(self, engines: Mapping[Engine, EngineState]) -> list[PolicyCounters]:
        """The counters of every policy in the plan."""
        now = self._clock()
        found = []
        for name, account in self._accounts.items():
            patience = self._plan.policies[name].fail_safe.metrics_stale_seconds
            wanted = self._engines_of(name)
            # An engine that has only just been asked for is not stale yet.
            stale = [engine for engine in wanted if engine in engines and engines[engine].age_seconds(now) > patience]
            found.append(account.counters(now, len(wanted), len(stale)))
        return found

    def _engines_of(self, policy: str) -> set[Engine]:
        # Asked with every page of every engine: found once for every plan.
        if policy not in self._engines:
            groups = (group for group in self._plan.groups if group.policy.name == policy)
            self._engines[policy] = {
                engine for group in groups for entry in group.entries if (engine := engine_of(group.policy, entry))
            }
        return self._engines[policy]

    def _engine_of(self, gpu: Gpu) -> Engine | None:
        policy = None if gpu.entry is None else self._plan.policies.get(gpu.entry.policy)
        return None if gpu.entry is None or policy is None else engine_of(policy, gpu.entry)

    def _open_accounts(self) -> None:
        accounts = {}
        self._engines = {}
        for name, policy in self._plan.policies.items():
            account = self._accounts.get(name)
            bounds = thresholds(policy.slo)
            if account is None or account.uid != policy.uid or account.thresholds != bounds:
                self._lives += 1
                since = f"{self.session}/{self._lives}"
                account = PolicyAccount(name, policy.uid, since, self._clock(), bounds)
            account.keep(engine.url for engine in self._engines_of(name))
            accounts[name] = account
        self._accounts = accounts


def _works_for(gpu: Gpu, policy: str) -> bool:
    return gpu.entry is not None and gpu.entry.policy == policy and gpu.entry.action != "Release"
