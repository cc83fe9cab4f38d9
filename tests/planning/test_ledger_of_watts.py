"""Charges, and that no watt is promised twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_world import CAP_MAX, World, policy_of

from flyball_operator.fleet import Liveness
from flyball_operator.ledger import Charge, ChargeState, balance

charges_strategy = st.lists(
    st.builds(
        lambda watts, state, beyond: Charge(watts, state, min(watts, beyond)),
        st.integers(0, 700),
        st.sampled_from(ChargeState),
        st.integers(0, 500),
    ),
    max_size=30,
)


def budget_of(watts, reserve=0, **changes):
    return policy_of(powerBudget={"watts": watts, "reserveWatts": reserve}, **changes)


@given(st.integers(1, 20_000), st.integers(0, 5_000), charges_strategy)
def test_the_ledger_always_sums_to_the_budget_and_the_deficit(budget, reserve, charges):
    ledger = balance(budget, reserve, charges)
    spent = ledger.enforced_watts + ledger.in_flight_watts + ledger.unknown_watts
    assert spent + ledger.reserved_watts + ledger.free_watts == budget + ledger.deficit_watts
    assert min(ledger.model_dump().values()) >= 0
    assert not (ledger.free_watts and ledger.deficit_watts)


def test_what_a_silent_node_adds_is_paid_out_of_the_reserve_first():
    ledger = balance(2000, 600, [Charge(700, ChargeState.UNKNOWN, 300), Charge(400, ChargeState.ENFORCED)])
    assert (ledger.reserved_watts, ledger.free_watts, ledger.deficit_watts) == (300, 600, 0)


@pytest.fixture
def world():
    return World(nodes=2, gpus=2)


def ledger_of(world):
    return world.last.ledgers["p"]


def test_a_gpu_is_charged_its_maximum_until_its_first_grant_is_read_back(world):
    world.add(budget_of(1600))
    world.tick()
    assert ledger_of(world).in_flight_watts == 4 * CAP_MAX
    assert ledger_of(world).deficit_watts == 4 * CAP_MAX - 1600
    world.deliver("n0")
    world.tick()
    assert ledger_of(world).enforced_watts == 800
    assert ledger_of(world).in_flight_watts == 2 * CAP_MAX


def test_a_cut_is_not_granted_again_before_it_is_read_back(world):
    world.add(budget_of(1600))
    world.settle()
    assert set(world.caps().values()) == {400}
    world.nodes["n0"].cards[0].draw, world.nodes["n0"].cards[0].cap_limited = 400, True
    for card in world.cards()[1:]:
        card.draw = 150
    for name in world.nodes:
        world.report(name)
    for _ in range(30):
        world.tick(2.0)
        if world.caps()["GPU-0-1"] < 400:
            break
    assert world.caps()["GPU-0-1"] < 400, "the idle one is cut"
    assert world.caps()["GPU-0-0"] == 400, "and the busy one waits"
    world.tick()
    assert world.caps()["GPU-0-0"] == 400
    world.settle()
    assert world.caps()["GPU-0-0"] > 400
    assert sum(world.caps().values()) <= 1600


def test_a_cut_budget_is_a_deficit_that_shrinks_with_every_read_back(world):
    world.add(budget_of(2000))
    world.settle()
    world.add(replace(budget_of(1200, generation=2), status=world.policies["p"].status))
    world.tick()
    world.tick()
    assert ledger_of(world).deficit_watts == 800
    assert world.condition("p", "BudgetRespected").reason == "Deficit"
    world.deliver("n0")
    world.tick()
    assert ledger_of(world).deficit_watts == 400
    world.deliver("n1")
    world.tick()
    assert ledger_of(world).deficit_watts == 0
    assert world.condition("p", "BudgetRespected").status == "True"


def test_a_silent_node_is_charged_in_full_and_nothing_is_raised_while_that_is_a_deficit(world):
    world.add(budget_of(1600))
    world.settle()
    world.seconds += 40
    world.beat("n0")
    world.add(replace(budget_of(1800, generation=2), status=world.policies["p"].status))
    world.tick(0.1, beat=False)
    assert ledger_of(world).unknown_watts == 2 * CAP_MAX
    assert ledger_of(world).deficit_watts == 2 * CAP_MAX + 800 - 1800
    assert set(world.caps().values()) == {400}
    assert world.condition("p", "Degraded").reason == "NodeUnreachable"


def test_a_rebooted_node_is_charged_what_its_cards_were_reset_to(world):
    world.add(budget_of(2400, reserve=600))
    world.settle()
    assert set(world.caps().values()) == {450}
    for card in world.nodes["n0"].cards:
        card.cap = CAP_MAX
    world.start_agent("n0")
    world.tick()
    assert ledger_of(world).unknown_watts == 2 * CAP_MAX, "a new session that has not spoken yet"
    world.report("n0")
    world.tick()
    assert ledger_of(world).in_flight_watts == 2 * CAP_MAX
    assert ledger_of(world).reserved_watts == 100
    assert ledger_of(world).deficit_watts == 0
    world.deliver("n0")
    world.tick()
    assert ledger_of(world).enforced_watts == 1800


def test_an_agent_that_restarts_costs_no_watts_because_ceilings_were_brought_down(world):
    world.add(budget_of(1600))
    world.settle(rounds=12)
    assert {entry.ceiling_watts for entry in world.entries().values()} == {400}
    world.start_agent("n0")
    world.report("n0")
    world.tick()
    assert ledger_of(world).in_flight_watts == 800
    assert ledger_of(world).deficit_watts == 0


def test_a_leaving_gpu_holds_its_watts_until_its_release_is_read_back(world):
    world.add(budget_of(1600))
    world.settle()
    world.nodes["n0"].cards[0].pod = None
    del world.pods["default/pod-0-0"]
    world.report("n0")
    world.tick()
    assert sum(watts or 0 for watts in world.caps().values()) == 1200
    world.tick()
    assert ledger_of(world).in_flight_watts == 400
    world.deliver("n0")
    world.tick()
    assert sum(watts or 0 for watts in world.caps().values()) == 1600


def test_a_budget_below_the_floors_says_which_number_would_do(world):
    world.add(budget_of(700))
    world.settle()
    assert set(world.caps().values()) == {200}
    said = world.condition("p", "BudgetRespected")
    assert said.reason == "BudgetBelowFloors"
    assert "give at least 800 W" in said.message


def test_a_reserve_that_cannot_be_kept_gives_way_to_the_floors(world):
    world.add(budget_of(1000, reserve=900))
    world.settle()
    assert set(world.caps().values()) == {200}
    assert ledger_of(world).reserved_watts == 200
    assert ledger_of(world).deficit_watts == 0


def test_a_pod_on_a_node_nobody_heard_of_is_charged_from_the_product_table(world):
    world.nodes["n0"].cards[0].pod = None
    world.plans["n0"] = replace(world.plans["n0"], status=world.plans["n1"].status.model_copy(update={"gpus": ()}))
    world.add(budget_of(1600))
    world.tick()
    assert ledger_of(world).unknown_watts == 2 * CAP_MAX


def test_after_a_start_a_lease_that_was_not_yet_seen_to_move_proves_nothing(world):
    world.add(budget_of(1600))
    world.settle()
    world.agents = {
        name: replace(agent, changed_seconds=None, first_seen_seconds=world.seconds)
        for name, agent in world.agents.items()
    }
    status = world.policies["p"].status
    world.tick(1.0, beat=False)
    assert ledger_of(world).unknown_watts == 4 * CAP_MAX
    assert world.policies["p"].status == status, "which is no news about the policy"
    assert set(world.caps().values()) == {400}
    assert Liveness.SETTLING != Liveness.UNKNOWN


def test_a_raise_that_was_not_read_back_counts_although_the_old_cap_is_still_what_was_read(world):
    world.add(budget_of(1600))
    world.settle()
    world.add(replace(budget_of(2400, generation=2), status=world.policies["p"].status))
    world.tick()
    world.nodes["n0"].seen = world.plans["n0"].spec
    world.nodes["n0"].carry_out()
    world.add(replace(budget_of(1600, generation=3), status=world.policies["p"].status))
    world.tick()
    world.tick()
    assert set(world.caps().values()) == {400}
    assert ledger_of(world).in_flight_watts == 2400
    assert ledger_of(world).deficit_watts == 800


def test_the_acknowledgement_of_an_earlier_grant_says_nothing_about_the_present_one(world):
    world.add(budget_of(2000))
    world.settle()
    world.add(replace(budget_of(1200, generation=2), status=world.policies["p"].status))
    world.tick()
    world.report("n0")
    world.report("n1")
    world.tick()
    assert ledger_of(world).enforced_watts == 0
    assert ledger_of(world).in_flight_watts == 2000


def test_watts_that_a_reset_put_on_a_card_are_no_room_for_a_raise(world):
    world.add(budget_of(1600))
    world.settle(rounds=12)
    for card in world.nodes["n0"].cards:
        card.cap, card.draw, card.cap_limited = CAP_MAX, CAP_MAX, True
    for card in world.nodes["n1"].cards:
        card.draw = 80
    world.start_agent("n0")
    for _ in range(6):
        world.report("n0")
        world.tick(16.0)
    assert world.caps()["GPU-0-0"] == 400


def test_in_a_deficit_no_cap_goes_up_even_within_what_its_gpu_is_charged(world):
    world.add(budget_of(1600))
    world.settle(rounds=3, seconds=0.3)
    assert world.entries()["GPU-0-0"].ceiling_watts == CAP_MAX, "not yet brought down"
    for card in world.nodes["n0"].cards:
        card.draw, card.cap_limited = 400, True
    world.start_agent("n0")
    world.report("n0")
    for _ in range(4):
        world.tick(16.0)
    assert ledger_of(world).deficit_watts > 0
    assert world.caps()["GPU-0-0"] == 400
