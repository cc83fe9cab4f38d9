from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.controllers.flyball.gains import LogGains

SPREADS = (0.5, 0.8, 0.3)


def gains() -> LogGains:
    return LogGains((1.0, 2.0, 3.0), SPREADS, together=[(0.4, (0, 1))], low=(0.1,) * 3, high=(10.0,) * 3, drift=1e-4)


slopes = st.tuples(*[st.floats(-7.0, 3.0).map(lambda power: 10.0**power)] * 3)
samples = st.lists(st.tuples(slopes, st.floats(0.1, 10.0), st.floats(-9.0, 0.0)), min_size=1, max_size=60)


@given(samples)
def test_whatever_it_is_shown_it_keeps_a_covariance_and_never_fails(shown):
    learnt = gains()
    for along, share, noise in shown:
        predicted = sum(along)
        surprise = learnt.learn(predicted * share, predicted, along, predicted * 10.0**noise)
        assert math.isfinite(surprise)
        assert 0.0 <= learnt.unsure < math.inf
    covariance = np.array(learnt.covariance)
    assert (covariance == covariance.T).all()
    assert (np.diag(covariance) > 0.0).all()
    assert all(0.1 * value <= found * (1 + 1e-9) for value, found in zip((1.0, 2.0, 3.0), learnt.values, strict=True))


@pytest.mark.parametrize(
    "damaged",
    [
        [[0.1, 0.3, 0.0], [0.3, 0.1, 0.0], [0.0, 0.0, 0.1]],  # no covariance: more in common than there is
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    ],
)
def test_a_matrix_that_rounding_has_eaten_is_made_one_again(damaged):
    learnt = gains()
    learnt.restore({"logs": list(learnt.logs), "covariance": damaged})
    assert math.isfinite(learnt.learn(2.0, 1.0, (1.0, -1.0, 0.0), 1e-6))
    assert all(learnt.covariance[index][index] > 0.0 for index in range(3))
