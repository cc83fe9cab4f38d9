"""Caps that a controller moves below its grant: whatever fails on the way, they are known as ours."""

import pytest

from flyball_agent.actuator.governor import RefusedError
from flyball_agent.actuator.record import EMPTY


def codes(report):
    return {fault["code"] for fault in report["faults"]}


def test_a_cap_that_could_not_be_raised_twice_is_not_taken_for_somebody_elses(governor, card):
    governor.apply(None, 250, 600)
    card.fail["set_cap"] = 999
    for watts in (400, 450):
        with pytest.raises(RefusedError):
            governor.apply(None, watts, 600)
    card.fail.clear()
    report = governor.apply(None, 500, 600)
    assert (card.requested, codes(report)) == (500, set())
    assert codes(governor.read(writes=True)) == set()


def test_a_cap_that_could_not_be_raised_twice_goes_back_to_the_default_at_the_release(governor, card):
    governor.apply(None, 250, 600)
    card.fail["set_cap"] = 999
    for watts in (400, 450):
        with pytest.raises(RefusedError):
            governor.apply(None, watts, 600)
    card.fail.clear()
    governor.release()
    assert card.requested == 700


def test_caps_below_the_grant_that_come_and_go_leave_neither_fault_nor_foreign_limit(governor, card):
    for watts in (300, 600, 200, 450, 449, 600):
        report = governor.apply(None, watts, 600)
        assert (card.requested, report["cap_in_force"], codes(report)) == (watts, True, set())
        assert codes(governor.read(writes=True)) == set()


def test_a_limit_that_somebody_set_between_two_of_ours_is_still_kept(governor, card):
    governor.apply(None, 400, 600)
    card.raised_by_somebody(220.0)
    report = governor.apply(None, 500, 600)
    assert (card.requested, codes(report)) == (220.0, {"ForeignCap"})


def test_what_is_noted_as_replaced_is_what_was_on_the_card():
    noted = EMPTY.with_cap(250, 700.0).with_cap(400, 250.2).with_cap(450, 250.2)
    assert noted.ours_watts == (450, 250)
    assert EMPTY.with_cap(250, 700.0).with_cap(400, 600.0).ours_watts == (400, 250)
