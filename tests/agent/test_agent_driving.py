"""Controllers in the agent: what they are told, when they are asked, what becomes of what they answer or raise."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from flyball_agent.asking import happened
from flyball_agent.controllers.base import UNLOCKED, Board, Decision, GroupSetpoint, Setup, Targets
from flyball_agent.controllers.observing import Observing
from flyball_agent.driving import LAST_RETRY_SECONDS, GroupDriver
from flyball_agent.facts import Engine, EngineState, Wish
from flyball_agent.groups import Setups, groups_of, limits_of
from flyball_agent.knobs import LEASE_SECONDS
from flyball_agent.memory import read, write
from flyball_agent.node import NodeControl
from flyball_agent.profiles import DecodePoint, Profile
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.nodeenergyplan import NodeEnergyPlan, PlanGpu, PlanPolicy

ENGINE = Engine("10.0.0.1", 8000, "/metrics")
PRODUCT = "NVIDIA H100 80GB HBM3"
PROFILE = Profile("chat", PRODUCT, "llama", 1, "0.11", "2026-11-01", decode=(DecodePoint(1980, 1, 10.0, 0.01, 300.0),))


class Scripted:
    """A controller that does what a test's function says, and remembers what it was told and asked."""

    requires = frozenset()

    def __init__(self, answer, *, events=(), board=False, period=0.5):
        self.answer, self.events, self.wants_board, self.period_seconds = answer, frozenset(events), board, period
        self.seen, self.learnt, self.setup = [], {}, None

    def decide(self, observation, limits, now):
        self.seen.append((now, observation, limits))
        return self.answer(self)

    def state(self):
        return self.learnt

    def restore(self, state):
        if state.get("version") != 1:
            raise ValueError("another version")
        self.learnt = dict(state)


class Makers:
    """Makes scripted controllers, one after the other, and keeps them."""

    def __init__(self, answer=lambda _: Decision(GroupSetpoint((900, 900)), next_wake_seconds=0.5), **options):
        self.answer, self.options, self.made = answer, options, []

    def __call__(self, _spec, *, observe, setup):
        made = Scripted(self.answer, **self.options)
        made.setup, made.observe = setup, observe
        self.made.append(made)
        return made

    @property
    def only(self):
        (made,) = self.made
        return made


def policy(name="chat", uid="u1", clock=1200, slo=None, kind="Fixed", **controller):
    spec = {"type": kind, "fixed": {"clocks": [{"role": "unified", "minMegahertz": clock, "maxMegahertz": clock}]}}
    if kind != "Fixed":
        spec = {"type": kind, **controller}
    made = {"name": name, "uid": uid, "controller": spec, "failSafe": {"metricsStaleSeconds": 5}}
    return made if slo is None else made | {"slo": slo}


def entry(uuid="GPU-1", grant=1, action="Enforce", **more):
    made = {"uuid": uuid, "grant": grant, "action": action, "policy": "chat", "podIp": "10.0.0.1", **more}
    return made if action == "Release" else made | {"capWatts": 400, "ceilingWatts": 700}


def plan(*gpus, policies=None, epoch=1):
    spec = {"leaderEpoch": epoch, "policies": policies or [policy()], "gpus": list(gpus)}
    return NodeEnergyPlan.model_validate({"metadata": {"name": "n"}, "spec": spec})


def card(uuid="GPU-1", clocks=tuple(range(345, 1981, 15)), **changes):
    made = {"uuid": uuid, "index": 0, "product": PRODUCT, "cap_min_watts": 200.0, "cap_max_watts": 700.0}
    made |= {"cap_default_watts": 700.0, "sm_min_mhz": clocks[0], "sm_max_mhz": clocks[-1], "sm_mhz": list(clocks)}
    return made | {"mig_enabled": False} | changes


def report(uuid, lock=None, cap=None):
    sample = {"power_average_watts": 300.0, "power_instant_watts": 300.0, "energy_joules": 1.0, "sm_mhz": 1100}
    made = {"uuid": uuid, "lock_mhz": lock, "lock_verified": "Unknown", "cap_watts": cap, "cap_in_force": True}
    made |= {"enforced_cap_watts": cap or 700.0, "cap_limited": False, "reloads": 0, "armed": True, "faults": []}
    return made | {"writes": {}, "sample": sample | {"utilisation_percent": 90}}


def sample(tokens=5.0, running=1.0, waiting=0.0, finished=0.0, model=""):
    values = {"requests_running": running, "requests_waiting": waiting, "generation_tokens": tokens}
    return EngineSample(values, {"end_to_end": Histogram((math.inf,), (finished,), 0.0)}, (), model)


BOARD = Board(1, (), 16, 1000, 256, 256)


class Node:
    """A node whose actuator does what it is told, with one engine."""

    def __init__(self, clock, make):
        self.clock = clock
        self.state = EngineState(clock.now)
        self.page()
        self.control = NodeControl("session", make, clock)
        self.control.take_switch(None)
        self.control.take_actuator("life", "boot")
        cards = [card("GPU-1"), card("GPU-2")]
        self.control.take_cards({"driver_version": "580", "error": "", "gpus": cards})
        self.control.take_reports([report("GPU-1"), report("GPU-2")])

    def page(self, board=BOARD, **said):
        self.state.take(sample(**said), self.clock.now, board)

    def go(self):
        """One pass of the control loop; what was written to the cards."""
        written = []
        for command in self.control.commands({ENGINE: self.state}):
            lock = None if command.sm_mhz is None else list(command.sm_mhz)
            self.control.answered(command, report(command.uuid, lock, command.cap_watts))
            written.append((command.uuid, command.sm_mhz, command.cap_watts))
        return written

    def told(self):
        """What the engine was told in this pass."""
        told = []
        for command in self.control.engine_commands({ENGINE: self.state}):
            self.control.engine_answered(command)
            told.append((command.batch_limit, command.admit))
        return told

    def faults(self, uuid="GPU-1"):
        return self.control.faults(self.control.gpus[uuid])


@pytest.fixture
def make_node(clock):
    def make(make=None):
        return Node(clock, make or Makers())

    return make


# -- what a controller is told ---------------------------------------------------------------------------------


def test_a_controller_is_told_the_cards_facts_once(make_node):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    node.go()
    setup = make.only.setup
    assert (setup.product, setup.gpus, setup.cap_min_watts, setup.cap_max_watts) == (PRODUCT, 1, 200.0, 700.0)
    assert setup.clocks_mhz == tuple(range(345, 1981, 15))


def test_a_group_is_what_all_its_cards_can_do(make_node):
    make = Makers()
    node = make_node(make)
    other = card("GPU-2", tuple(range(510, 1951, 30)), product="other", cap_max_watts=500.0, cap_min_watts=250.0)
    node.control.take_cards({"driver_version": "580", "error": "", "gpus": [card(), other]})
    node.control.take_plan(plan(entry(group="pod"), entry("GPU-2", group="pod")))
    node.go()
    setup = make.only.setup
    assert (setup.product, setup.gpus, setup.cap_min_watts, setup.cap_max_watts) == ("", 2, 250.0, 500.0)
    assert setup.clocks_mhz[0] == 510
    assert set(setup.clocks_mhz) <= set(range(345, 1981, 15))


def test_an_actuator_that_lists_no_clocks_leaves_them_unknown():
    (group,) = groups_of({"chat": PlanPolicy.model_validate(policy())}, [PlanGpu.model_validate(entry())])
    bare = {key: value for key, value in card().items() if key != "sm_mhz"}
    assert Setups().of(group, (bare,), {}, None).clocks_mhz == ()


def test_the_seed_is_of_the_policy_and_the_cards_and_of_nothing_else():
    def seed(uid, *entries):
        made = PlanPolicy.model_validate(policy(uid=uid))
        return groups_of({"chat": made}, [PlanGpu.model_validate(each) for each in entries])[0].seed

    first = seed("u1", entry("GPU-1", group="p"), entry("GPU-2", group="p"))
    assert first == seed("u1", entry("GPU-2", group="p", grant=9), entry("GPU-1", group="p"))
    assert len({first, seed("u2", entry("GPU-1", group="p")), seed("u1", entry("GPU-1"))}) == 3
    assert seed("u1", entry("GPU-1")) == 86589425449957  # the same in every process and version


def test_targets_are_the_policys_and_a_changed_one_keeps_what_was_learnt(make_node):
    make = Makers()
    node = make_node(make)
    slo = {"timeToFirstToken": {"thresholdMilliseconds": 500}, "interTokenLatency": {"thresholdMilliseconds": 50}}
    node.control.take_plan(plan(entry(), policies=[policy(slo=slo)]))
    node.go()
    slo = {"interTokenLatency": {"thresholdMilliseconds": 80, "percentile": 95}}
    node.control.take_plan(plan(entry(grant=2), policies=[policy(slo=slo)]))
    node.go()
    assert [limits.targets for _, _, limits in make.only.seen] == [
        Targets(0.5, 0.05, None, 0.99),
        Targets(None, 0.08, None, 0.95),
    ]


def test_without_an_slo_nothing_is_promised(make_node):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    assert make.only.seen[0][2].targets == Targets()


def profiled(name="chat"):
    return [policy(kind="PALS", pals={"profile": name})]


def test_the_profile_that_a_policy_names_is_handed_over_when_it_fits(make_node):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry(), policies=profiled()))
    assert node.control.profile_names() == {"chat"}
    node.control.take_profiles({"chat": PROFILE})
    node.go()
    assert (make.only.setup.profile, make.only.setup.profile_trouble) == (PROFILE, "")


@pytest.mark.parametrize(
    ("shelf", "sentence"),
    [
        ({}, "has not been read"),
        ({"chat": "profile 'chat' cannot be read"}, "cannot be read"),
        ({"chat": replace(PROFILE, product="A100")}, "was made on 'A100'"),
        ({"chat": replace(PROFILE, gpus=4)}, "a group of 4 GPUs"),
    ],
)
def test_a_profile_that_does_not_fit_is_not_handed_over_and_it_is_said_why(make_node, shelf, sentence):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry(), policies=profiled()))
    node.control.take_profiles(shelf)
    node.go()
    assert make.only.setup.profile is None
    assert sentence in make.only.setup.profile_trouble


def test_a_profile_of_another_model_is_taken_away_as_soon_as_the_page_names_the_model(make_node):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry(), policies=profiled()))
    node.control.take_profiles({"chat": PROFILE})
    node.go()
    node.page(model="qwen")
    node.go()
    node.page()
    node.go()
    assert [made.setup.profile for made in make.made] == [PROFILE, None]
    assert "serves 'qwen'" in make.made[-1].setup.profile_trouble


def test_a_new_profile_makes_a_fresh_controller_and_the_same_again_does_not(make_node):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry(), policies=profiled()))
    for profile in (PROFILE, replace(PROFILE), replace(PROFILE, created="2026-11-02")):
        node.control.take_profiles({"chat": profile})
        node.go()
    assert [made.setup.profile.created for made in make.made] == ["2026-11-01", "2026-11-02"]


# -- when it is asked ------------------------------------------------------------------------------------------


def test_a_controller_is_asked_with_the_page_that_comes_a_little_before_or_after_its_time(make_node, clock):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    ages = []
    for wait in (0.49, 0.51, 0.5, 0.6):
        for part in (0.0, 0.51 if wait > 0.5 else 0.0):
            clock.now = round(node.state.at + (part if part < wait else wait), 3)
            node.go()
        clock.now = round(node.state.at + wait, 3)
        node.page()
        assert node.control.take_page(ENGINE, node.state)
        node.go()
        ages.append(make.only.seen[-1][1].engine_age_seconds)
    assert ages == [0.0] * 4
    assert len(make.only.seen) == 5


def test_a_page_that_does_not_come_is_waited_for_an_eighth_of_a_second_only(make_node, clock):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    began = clock.now
    clock.now = began + 0.5
    node.go()
    assert node.control.next_wake() == began + 0.625
    clock.now = began + 0.625
    node.go()
    assert [now - began for now, _, _ in make.only.seen] == [0.0, 0.625]


def test_a_controller_in_a_hurry_waits_for_no_page(make_node, clock):
    make = Makers(lambda _: Decision(UNLOCKED, next_wake_seconds=0.05))
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    for _ in range(4):
        node.go()
        clock.step(0.0625)
    assert len(make.only.seen) == 4


def test_a_page_wakes_nobody_who_does_not_wait_for_it(make_node, clock):
    make = Makers(lambda _: Decision(UNLOCKED, next_wake_seconds=3.0))
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    clock.step(0.5)
    node.page(tokens=99.0)
    assert not node.control.take_page(ENGINE, node.state)
    node.go()
    assert len(make.only.seen) == 1


@pytest.mark.parametrize(
    ("said", "events"),
    [
        ({}, set()),
        ({"tokens": 6.0}, {"iteration"}),
        ({"waiting": 1.0}, {"arrival"}),
        ({"running": 0.0, "finished": 1.0}, {"completion"}),
        ({"finished": 1.0}, {"arrival", "completion"}),
        ({"tokens": 1.0}, {"arrival", "completion", "iteration"}),
    ],
)
def test_two_pages_tell_what_happened_between_them(said, events):
    assert happened(sample(), sample(**said)) == events


def test_a_page_that_lacks_counters_is_no_restart_and_tells_of_nothing(clock):
    state = EngineState(clock.now)
    for page in (sample(tokens=9.0, finished=4.0), EngineSample(), sample(tokens=9.0, finished=4.0)):
        state.take(page, clock.now)
    assert state.restarts == 0
    assert happened(sample(), EngineSample()) == happened(EngineSample(), sample()) == set()
    state.take(sample(tokens=1.0), clock.now)
    assert state.restarts == 1


def test_a_controller_is_woken_by_the_events_it_declared_and_by_no_others(make_node, clock):
    make = Makers(lambda _: Decision(UNLOCKED), events=["completion", "arrival"])
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    for said in ({"tokens": 9.0}, {"tokens": 9.0, "waiting": 2.0}, {"tokens": 9.0, "waiting": 1.0, "finished": 1.0}):
        clock.step(0.1)
        node.page(**said)
        node.go()
    assert [observation.event for _, observation, _ in make.only.seen] == [None, "arrival", "completion"]


@pytest.mark.parametrize(("asked", "got"), [(0.01, 0.1), (0.25, 0.25), (100.0, 10.0), (math.nan, 0.5), (-1.0, 0.5)])
def test_an_engine_is_scraped_as_often_as_its_controller_wants_within_bounds(make_node, asked, got):
    node = make_node(Makers(period=asked, board=True))
    node.control.take_plan(plan(entry()))
    assert node.control.wishes() == {ENGINE: Wish()}
    node.go()
    assert node.control.wishes() == {ENGINE: Wish(got, board=True)}


def test_two_groups_on_one_engine_have_it_scraped_as_the_hastier_wants(make_node):
    make = Makers()
    node = make_node(make)
    periods = iter((0.1, 0.5))
    node.control._driver._make = lambda *_, **__: Scripted(make.answer, period=next(periods))
    node.control.take_plan(plan(entry(), entry("GPU-2")))
    node.go()
    assert node.control.wishes() == {ENGINE: Wish(0.1)}


def test_the_board_is_shown_to_the_controller(make_node):
    make = Makers(board=True)
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    assert make.only.seen[0][1].board == BOARD


# -- what becomes of its answers -------------------------------------------------------------------------------


def test_clocks_beyond_the_limits_are_brought_within(make_node):
    node = make_node(Makers(lambda _: Decision(GroupSetpoint((100, 5000)))))
    node.control.take_plan(plan(entry()))
    assert node.go() == [("GPU-1", (345, 1980), 400)]


@pytest.mark.parametrize(
    "bad",
    [
        Decision(GroupSetpoint((1200, 1000))),
        Decision(GroupSetpoint((math.nan, 1000))),
        Decision(GroupSetpoint(cap_watts=-1)),
        Decision(GroupSetpoint(batch_limit=0)),
        Decision(GroupSetpoint(admit=1.5)),
        Decision(UNLOCKED, next_wake_seconds=math.nan),
        Decision(UNLOCKED, next_wake_seconds=-1.0),
        None,
    ],
)
def test_an_answer_that_cannot_be_is_a_failure_of_the_controller(make_node, bad):
    node = make_node(Makers(lambda _: bad))
    node.control.take_plan(plan(entry()))
    assert node.go() == [("GPU-1", None, 400)]
    assert set(node.faults()) == {"ControllerFailed"}


def test_a_controller_that_raises_unlocks_its_cards_and_leaves_the_others_alone(make_node, clock):
    def answer(made):
        if made.setup.seed == broken and len(made.seen) > 1:
            raise ZeroDivisionError("division by zero")
        return Decision(GroupSetpoint((900, 900)), next_wake_seconds=0.5)

    make = Makers(answer)
    node = make_node(make)
    node.control.take_plan(plan(entry(), entry("GPU-2")))
    broken = node.control._plan.groups[0].seed
    assert node.go() == [("GPU-1", (900, 900), 400), ("GPU-2", (900, 900), 400)]
    clock.step(1.0)
    node.page()
    assert node.go() == [("GPU-1", None, 400)]
    assert "ZeroDivisionError: division by zero" in node.faults()["ControllerFailed"]
    assert node.faults("GPU-2") == {}
    (note,) = node.control.take_notes()
    assert "test_agent_driving.py" in note
    clock.step(1.0)
    node.page()
    assert node.go() == [("GPU-1", (900, 900), 400)]
    assert node.faults() == {}


def test_a_controller_that_goes_on_raising_is_tried_ever_more_slowly(make_node, clock):
    make = Makers(lambda _: 1 / 0)
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    tries, count = [], 0
    for second in range(150):
        clock.now = 1000.0 + second
        node.page()
        node.go()
        if len(make.made) > count:
            count = len(make.made)
            tries.append(second)
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps == [1, 2, 4, 8, 16, 32, LAST_RETRY_SECONDS]
    assert node.control.next_wake() > clock.now


def test_a_controller_that_cannot_be_made_is_a_fault_and_no_more(make_node):
    def make(*_, **__):
        raise ImportError("no such library")

    node = make_node(make)
    node.control.take_plan(plan(entry()))
    assert node.go() == [("GPU-1", None, 400)]
    assert "no such library" in node.faults()["ControllerFailed"]


def test_a_complaint_stands_for_ten_seconds_so_that_it_is_not_written_twice_a_second(make_node, clock):
    make = Makers(
        lambda made: Decision(UNLOCKED, next_wake_seconds=0.5, degraded=("no metric",) if len(made.seen) == 1 else ())
    )
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    seen = []
    for _ in range(24):
        node.go()
        seen.append("Degraded" in node.faults())
        clock.step(0.5)
        node.page()
    assert seen == [True] * 20 + [False] * 4


# -- changing controllers --------------------------------------------------------------------------------------


def test_another_controller_begins_afresh_and_replaces_the_lock_at_once(make_node):
    clocks = iter((900, 1200))
    make = Makers(lambda _: Decision(GroupSetpoint((mhz := next(clocks), mhz))))
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    assert node.go() == [("GPU-1", (900, 900), 400)]
    node.control.take_plan(plan(entry(grant=2), policies=[policy(clock=1500)]))
    assert node.go() == [("GPU-1", (1200, 1200), 400)]
    assert len(make.made) == 2


def limiting(batch_limit=32, admit=0):
    return Makers(lambda _: Decision(GroupSetpoint((900, 900), None, batch_limit, admit), next_wake_seconds=0.5))


def test_the_engine_is_limited_and_gets_its_limits_back_from_the_next_controller(make_node):
    make = limiting()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    assert node.told() == [(32, 0)]
    make.answer = lambda _: Decision(UNLOCKED)
    node.control.take_plan(plan(entry(grant=2), policies=[policy(clock=1500)]))
    assert node.go() == [("GPU-1", None, 400)]
    assert node.told() == [(None, None)]
    assert node.told() == []


@pytest.mark.parametrize(
    "then",
    [
        lambda node: node.control.take_plan(plan(entry(grant=2, action="Release"))),
        lambda node: node.control.take_plan(plan(epoch=2)),
        lambda node: node.control.take_plan(None),
        lambda node: node.control.lose_actuator("gone"),
        lambda node: node.clock.step(LEASE_SECONDS - 1.0),
    ],
    ids=["released", "out of the plan", "plan deleted", "actuator lost", "metrics stale"],
)
def test_the_engine_gets_its_limits_back_however_control_ends(make_node, then):
    node = make_node(limiting())
    node.control.take_plan(plan(entry()))
    node.go()
    node.told()
    then(node)
    if node.control.actuator.connected:
        node.go()
    assert node.told() == [(None, None)]


def test_a_controller_that_fails_leaves_no_limit_behind(make_node, clock):
    make = limiting()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    node.told()
    make.made[0].answer = lambda _: 1 / 0
    clock.step(1.0)
    node.page()
    node.go()
    assert node.told() == [(None, None)]


def test_what_is_observed_only_limits_no_engine(make_node):
    node = make_node(limiting())
    node.control.take_plan(plan(entry(action="Observe")))
    node.go()
    assert node.told() == []


def test_the_stopped_switch_keeps_the_batch_limit_and_opens_the_engine(make_node, clock):
    make = limiting()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    node.told()
    node.control.take_switch("stopped")
    make.only.answer = lambda _: Decision(GroupSetpoint(batch_limit=64))
    clock.step(6.0)
    node.page()
    node.go()
    assert node.told() == [(32, None)]
    node.control.take_switch("enabled")
    node.go()
    assert node.told() == [(64, None)]


def test_an_engine_that_refuses_its_limits_is_a_fault_with_its_address(make_node):
    node = make_node(limiting())
    node.control.take_plan(plan(entry()))
    node.go()
    (command,) = node.control.engine_commands({ENGINE: node.state})
    node.control.engine_failed(command, "HTTP 500")
    assert "http://10.0.0.1:8000/flyball/limits" in node.faults()["EngineLimits"]


# -- over a restart --------------------------------------------------------------------------------------------


def restarted(node, make, clock, *, then="b", gpus=(), **changed):
    """Another agent with what this one kept."""
    content, notes = write(node.control.remembered(), "b")
    assert notes == []
    kept, trouble = read(content, then)
    other = Node(clock, make)
    other.control.recall(kept)
    other.control.take_plan(plan(*(gpus or [entry()]), **changed))
    other.go()
    return other, trouble


def test_a_controller_goes_on_with_what_it_learnt_after_a_restart(make_node, clock):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    make.only.learnt = {"version": 1, "weights": [1.5, 2.5]}
    slo = {"endToEnd": {"thresholdMilliseconds": 9000}}
    other, _ = restarted(node, make, clock, policies=[policy(slo=slo)])
    assert make.made[1].learnt == {"version": 1, "weights": [1.5, 2.5]}
    assert other.control.take_notes() == ["Fixed for policy chat goes on from its kept state"]


@pytest.mark.parametrize(
    ("learnt", "changed", "words"),
    [
        ({"version": 2}, {}, "discarded, it starts afresh: ValueError: another version"),
        ({"version": 1}, {"policies": [policy(clock=1500)]}, ""),
        ({"version": 1}, {"policies": [policy(uid="u2")]}, ""),
        ({"version": 1}, {"gpus": [entry("GPU-2")]}, ""),
        ({"version": 1}, {"then": "another boot"}, ""),
    ],
)
def test_what_is_not_this_controllers_is_not_taken_up(make_node, clock, learnt, changed, words):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    make.only.learnt = learnt
    other, trouble = restarted(node, make, clock, **changed)
    assert make.made[-1].learnt == {}
    assert words in " ".join(other.control.take_notes())
    assert bool(trouble) == ("then" in changed)
    assert other.faults("GPU-2" if "gpus" in changed else "GPU-1") == {}


def test_what_was_kept_is_kept_on_until_its_cards_are_known(clock):
    make = Makers()
    node = Node(clock, make)
    node.control.take_plan(plan(entry()))
    node.go()
    make.only.learnt = {"version": 1}
    kept, _ = read(write(node.control.remembered(), "b")[0], "b")
    other = NodeControl("s", make, clock)
    other.recall(kept)
    assert other.remembered() is None
    other.take_plan(plan(entry()))
    assert [each.state for each in other.remembered()] == [{"version": 1}]


def test_a_controller_that_cannot_say_what_it_learnt_is_left_out_and_named(make_node):
    make = Makers()
    node = make_node(make)
    node.control.take_plan(plan(entry()))
    node.go()
    make.only.state = lambda: 1 / 0
    assert node.control.remembered() == []
    assert "cannot say what it learnt" in node.control.take_notes()[0]


class Watched(Scripted):
    """Knows what of its state would hold had its setpoints been written."""

    def watched_state(self):
        return {"version": 1, "kept": self.learnt.get("kept", 0)}


@pytest.mark.parametrize(
    ("kind", "actions", "goes_on"),
    [
        (Scripted, ("Observe", "Enforce"), {}),
        (Watched, ("Observe", "Enforce"), {"version": 1, "kept": 7}),
        (Scripted, ("Enforce", "Observe"), {"version": 1, "kept": 7, "chosen": 3}),
        (Watched, ("Enforce", "Release"), None),
    ],
)
def test_between_observe_and_enforce_goes_on_what_holds_in_both(clock, kind, actions, goes_on):
    made = []

    def make(_spec, *, observe, setup):
        del setup
        made.append(kind(lambda _: Decision(GroupSetpoint((900, 900)))))
        return Observing(made[-1]) if observe else made[-1]

    node = Node(clock, make)
    node.control.take_plan(plan(entry(action=actions[0])))
    node.go()
    made[0].learnt = {"version": 1, "kept": 7, "chosen": 3}
    node.control.take_plan(plan(entry(grant=2, action=actions[1])))
    node.go()
    assert (made[1].learnt if len(made) > 1 else None) == goes_on


# -- explaining ------------------------------------------------------------------------------------------------


def test_every_decision_is_explained_with_its_reason_setpoint_and_faults(make_node):
    why = "decode holds 900 MHz: TPOT 31 of 50 ms, 412 W"
    node = make_node(Makers(lambda _: Decision(GroupSetpoint((900, 900), 350, 16), degraded=("d",), because=why)))
    node.control.take_plan(plan(entry()))
    node.go()
    (said,) = node.control.explain()
    assert said["because"] == why
    assert said["setpoint"] == {"smMegahertz": [900, 900], "capWatts": 350, "batchLimit": 16, "admit": None}
    assert (said["policy"], said["controller"], said["degraded"], said["faults"]) == (
        "chat",
        "Fixed",
        ["d"],
        {"Degraded": "d"},
    )


def test_what_was_not_decided_yet_is_explained_as_that(clock):
    control = NodeControl("s", Makers(), clock)
    control.take_plan(plan(entry()))
    (said,) = control.explain()
    assert (said["setpoint"], said["because"], set(said["faults"])) == (None, "", {"ActuatorLost"})


def test_a_driver_asked_without_a_setup_gives_an_empty_one(clock):
    make = Makers()
    (group,) = groups_of({"chat": PlanPolicy.model_validate(policy())}, [PlanGpu.model_validate(entry())])
    GroupDriver(make).outcome(group, limits_of(group, {"GPU-1": card()}), {}, None, clock.now)
    assert make.only.setup == Setup()
