"""Controllers as pure state machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.controllers.base import UNLOCKED, ControlLimits, Observation
from flyball_agent.controllers.registry import make_controller
from flyball_api.controllers.fixed import FixedController, RoleClock
from flyball_api.controllers.union import Controller

LIMITS = ControlLimits(345, 1980, 500)


def fixed(**clocks):
    ranges = tuple(RoleClock(role=role, min_megahertz=low, max_megahertz=high) for role, (low, high) in clocks.items())
    return Controller(type="Fixed", fixed=FixedController(clocks=ranges))


def decide(controller, role="decode", limits=LIMITS):
    return controller.decide(Observation(role, ()), limits, 0.0)


def test_fixed_holds_the_clocks_of_the_role():
    controller = make_controller(fixed(decode=(1000, 1200), prefill=(1980, 1980)), observe=False)
    assert decide(controller).setpoint.sm_mhz == (1000, 1200)
    assert decide(controller, "prefill").setpoint.sm_mhz == (1980, 1980)


def test_a_role_that_is_not_named_stays_unlocked():
    assert decide(make_controller(fixed(prefill=(1000, 1200)), observe=False)).setpoint == UNLOCKED


@given(
    low=st.integers(100, 5000),
    high=st.integers(100, 5000),
    bound=st.integers(100, 5000),
    other=st.integers(100, 5000),
)
def test_fixed_never_leaves_the_limits(low, high, bound, other):
    low, high = sorted((low, high))
    bound, other = sorted((bound, other))
    decision = decide(make_controller(fixed(decode=(low, high)), observe=False), limits=ControlLimits(bound, other))
    held = decision.setpoint.sm_mhz
    assert bound <= held[0] <= held[1] <= other
    assert bool(decision.degraded) == (held[0] > high or held[1] < low)


def test_observing_decides_the_same_and_writes_nothing():
    decision = decide(make_controller(fixed(decode=(1000, 1200)), observe=True))
    assert decision.setpoint == UNLOCKED
    assert decision.would.sm_mhz == (1000, 1200)


@pytest.mark.parametrize("observe", [False, True])
def test_a_controller_goes_on_from_its_state(observe):
    controller = make_controller(fixed(decode=(1000, 1200)), observe=observe)
    again = make_controller(fixed(decode=(1000, 1200)), observe=observe)
    again.restore(controller.state())
    assert decide(again) == decide(controller)
