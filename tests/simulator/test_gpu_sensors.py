"""Power sensors and the energy counter, as NVML shows them over the true power."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.sensors import Sensor
from flyball_sim.gpu.types import GPU_TYPES

H100 = GPU_TYPES["H100-SXM5"]
A100 = GPU_TYPES["A100-SXM4-80GB"]
V100 = GPU_TYPES["V100-SXM2"]

unhurried = hypothesis_settings(deadline=None)  # a busy machine is not a slow model
histories = st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(30.0, 700.0)), min_size=1, max_size=30)


def fed(sensor: Sensor, *pieces: tuple[float, float]) -> float:
    """Feed (seconds, watts) from 0 on; the end."""
    now = 0.0
    for seconds, watts in pieces:
        now += seconds
        sensor.run(now, watts)
    return now


def test_usage_is_the_mean_of_a_second_on_an_h100_and_of_now_on_an_a100():
    averaging, instantaneous = Sensor(H100, watts=100.0), Sensor(A100, watts=100.0)
    for sensor in (averaging, instantaneous):
        now = fed(sensor, (2.0, 100.0), (0.5, 500.0))
    assert averaging.power_watts(now) == pytest.approx(300.0)
    assert averaging.instant_watts == instantaneous.power_watts(now) == pytest.approx(500.0)


def test_the_instantaneous_sensor_sees_the_last_quarter_of_each_refresh():
    sensor = Sensor(A100, watts=100.0)
    now = fed(sensor, (0.075, 700.0), (0.025, 200.0))
    assert sensor.power_watts(now) == pytest.approx(200.0)
    sensor = Sensor(A100, watts=100.0)
    now = fed(sensor, (0.0875, 200.0), (0.0125, 400.0))
    assert sensor.power_watts(now) == pytest.approx(300.0)


def test_between_two_refreshes_nothing_moves():
    sensor = Sensor(A100, watts=100.0)
    fed(sensor, (1.0, 100.0))
    seen = (sensor.power_watts(1.0), sensor.energy_joules(1.0))
    sensor.run(1.099, 400.0)
    assert (sensor.power_watts(1.099), sensor.energy_joules(1.099)) == seen
    sensor.run(1.1, 400.0)
    assert sensor.power_watts(1.1) == pytest.approx(400.0)
    assert sensor.energy_joules(1.1) == pytest.approx(140.0)


def test_a_v100_refreshes_every_20_milliseconds():
    sensor = Sensor(V100, watts=40.0)
    sensor.run(0.021, 200.0)
    assert sensor.power_watts(0.021) == pytest.approx(200.0)
    assert sensor.energy_joules(0.021) == pytest.approx(4.0)


def test_a_sensor_read_ahead_of_what_it_was_fed_says_so():
    sensor = Sensor(H100)
    sensor.run(1.0, 100.0)
    with pytest.raises(ValueError, match=r"fed up to 1\.0 s and is read at 2\.0 s: run it up to there first"):
        sensor.power_watts(2.0)


@unhurried
@given(st.sampled_from(list(GPU_TYPES.values())), histories, st.floats(0.95, 1.05))
def test_the_counter_holds_all_energy_up_to_gain_and_one_refresh(kind, pieces, gain):
    sensor = Sensor(kind, Die(1.0, 1.0, gain), watts=50.0)
    now = fed(sensor, *pieces)
    true = sum(seconds * watts for seconds, watts in pieces)
    assert sensor.true_joules == pytest.approx(true)
    seen = sensor.energy_joules(now) / gain
    assert seen <= true + 1e-6
    assert seen >= true - 700.0 * (kind.sensor_refresh_seconds + 1e-6)


@unhurried
@given(st.sampled_from(list(GPU_TYPES.values())), histories)
def test_readings_lie_between_the_least_and_the_most_watts_of_the_time_they_cover(kind, pieces):
    sensor = Sensor(kind, NOMINAL_DIE, watts=pieces[0][1])
    now = fed(sensor, *pieces)
    drawn = [watts for _, watts in pieces]
    for watts in (sensor.power_watts(now), sensor.instant_watts, sensor.average_watts):
        assert min(drawn) - 1e-6 <= watts <= max(drawn) + 1e-6


@unhurried
@given(st.sampled_from(list(GPU_TYPES.values())), histories, st.integers(2, 7))
def test_feeding_a_piece_in_parts_changes_nothing(kind, pieces, parts):
    whole, split = Sensor(kind, watts=50.0), Sensor(kind, watts=50.0)
    now = fed(whole, *pieces)
    start = 0.0
    for seconds, watts in pieces:
        for part in range(1, parts + 1):
            split.run(start + seconds * part / parts, watts)
        start += seconds
    refreshes = (now / kind.sensor_refresh_seconds + 1e-6) % 1.0
    if refreshes > 2e-6:  # on a refresh, rounding decides which of two readings is shown
        assert split.energy_joules(now) == pytest.approx(whole.energy_joules(now), abs=1e-6)
        assert split.average_watts == pytest.approx(whole.average_watts, abs=1e-3)
        assert split.instant_watts == pytest.approx(whole.instant_watts, abs=1e-3)
