"""What no measurement fixes: names, ranges and draws."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flyball_sim.gpu import describe
from flyball_sim.gpu.anchors import best_decode_lock_saving, cap_throughput_ratio
from flyball_sim.gpu.delays import cap_tau_seconds, lock_delay_seconds
from flyball_sim.gpu.dies import DEFAULT_SPREAD
from flyball_sim.gpu.kind import GpuType, PowerModel
from flyball_sim.gpu.model import GpuLoad, power_at
from flyball_sim.gpu.parameters import EVERY_GPU, PARAMETERS, apply, die_spread, draw, nominal
from flyball_sim.gpu.types import GPU_TYPES

H100 = GPU_TYPES["H100-SXM5"]
H200 = GPU_TYPES["H200-SXM"]

unhurried = hypothesis_settings(deadline=None)  # a busy machine is not a slow model
kinds = st.sampled_from(list(GPU_TYPES.values()))
indices = st.integers(0, 10_000)


def test_every_parameter_is_named_once_explained_and_holds_its_nominal_in_its_range():
    assert len({parameter.key for parameter in PARAMETERS}) == len(PARAMETERS)
    known = {field.name for field in (*fields(GpuType), *fields(PowerModel))}
    for parameter in PARAMETERS:
        assert parameter.low <= parameter.nominal <= parameter.high, parameter.key
        assert parameter.why, parameter.key
        assert parameter.source, parameter.key
        assert parameter.gpu == EVERY_GPU or (parameter.gpu in GPU_TYPES and parameter.name in known), parameter.key


def test_nominal_parameters_change_no_type():
    for kind in GPU_TYPES.values():
        assert apply(kind, nominal()) is kind
        values = nominal()
        for parameter in PARAMETERS:
            if parameter.gpu == kind.name:
                own = getattr(kind, parameter.name, None)
                assert values[parameter.key] == (getattr(kind.power, parameter.name) if own is None else own)
    assert die_spread(nominal()) == DEFAULT_SPREAD


def test_a_draw_is_the_same_in_another_process_and_in_any_order():
    program = (
        "from flyball_sim.gpu.parameters import draw as d; d(3, 9); print(sorted(d(3, 4).items()), d(3, 4).draw_index)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == f"{sorted(draw(3, 4).items())} 4"
    assert draw(3, 4) != draw(3, 5)
    assert draw(3, 4) != draw(4, 4)


@unhurried
@given(st.integers(), indices)
def test_draws_stay_in_their_ranges(seed, index):
    values = draw(seed, index)
    assert len(values) == len(PARAMETERS)
    for parameter in PARAMETERS:
        assert parameter.low <= values[parameter.key] <= parameter.high


@unhurried
@given(kinds, indices)
def test_a_drawn_type_fits_together(kind, index):
    drawn = apply(kind, draw(1, index))
    power = drawn.power
    assert power.static_watts >= drawn.idle_watts + drawn.context_watts
    assert min(power.hbm_watts, power.sm_watts, power.tensor_watts) > 0.0
    assert power.static_watts < drawn.cap_max_watts
    assert drawn.sm_min_mhz < power.voltage_floor_mhz < drawn.sm_max_mhz
    assert drawn.clock_scale(drawn.sm_max_mhz) == pytest.approx(1.0)
    below, above = power.voltage_floor_mhz - 1e-6, power.voltage_floor_mhz
    assert drawn.clock_scale(below) == pytest.approx(drawn.clock_scale(above), rel=1e-6)
    assert drawn.name == kind.name
    assert drawn.provenance == kind.provenance


@unhurried
@given(indices)
def test_a_draw_keeps_what_mlperf_measured_under_caps(index):
    drawn = apply(H200, draw(1, index))
    assert cap_throughput_ratio(drawn, 500.0) == pytest.approx(0.806, abs=0.04)
    assert cap_throughput_ratio(drawn, 350.0) == pytest.approx(0.630, abs=0.075)


# Decode uses about half of the bandwidth and more.
@unhurried
@given(st.sampled_from([H100, H200]), indices, st.floats(0.45, 0.7), st.floats(0.05, 0.45))
def test_a_draw_keeps_the_power_measured_at_the_highest_clock(kind, index, memory_use, compute_use):
    drawn = apply(kind, draw(1, index))
    load = GpuLoad(memory_use, compute_use, 1.0)
    assert power_at(drawn, load, 1980.0) == pytest.approx(power_at(kind, load, 1980.0), rel=0.12)


@unhurried
@given(indices)
def test_a_draw_keeps_what_a_clock_lock_may_save_of_decode_energy(index):
    assert 0.25 <= best_decode_lock_saving(apply(H200, draw(1, index))) <= 0.40
    assert best_decode_lock_saving(apply(H100, draw(1, index))) <= 0.40


def test_exponent_and_static_power_go_up_together():
    drawn = sorted((apply(H100, draw(1, index)) for index in range(300)), key=lambda kind: kind.power.clock_exponent)
    assert drawn[0].power.clock_exponent < 1.9
    assert drawn[-1].power.clock_exponent > 2.48
    statics = [kind.power.static_watts for kind in drawn]
    assert statics == sorted(statics)
    assert statics[-1] == pytest.approx(199.0, abs=2.0)


def test_lock_delays_have_the_type_s_median_and_tail_and_caps_fall_faster_than_they_rise():
    class Numbers:
        """A generator in a test's hand."""

        def __init__(self, *numbers: float) -> None:
            self._numbers = iter(numbers)

        def random(self) -> float:
            return next(self._numbers)

    assert lock_delay_seconds(H100, Numbers(0.5, 0.5)) == pytest.approx(0.020)
    assert lock_delay_seconds(H100, Numbers(0.5, 0.99)) == pytest.approx(0.100)
    assert lock_delay_seconds(H100, Numbers(0.004, 0.5)) == pytest.approx(0.35)
    assert cap_tau_seconds(H100, rising=False) < cap_tau_seconds(H100, rising=True)


def test_the_types_and_their_open_numbers_can_be_printed(capsys):
    assert describe.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[kind.name, kind.provenance] for kind in GPU_TYPES.values()]
    assert describe.main(["H200-SXM"]) == 0
    told = capsys.readouterr().out
    assert "lock_ceiling_mhz" in told
    assert "3 to 7 pJ a bit at full bandwidth" in told
    assert describe.main(["H200"]) == 2
    assert "did you mean 'H200-SXM'" in capsys.readouterr().err
