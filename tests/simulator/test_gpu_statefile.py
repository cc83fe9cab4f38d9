"""The state file: what is written by one process is read by another, whole and in its own terms."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flyball_sim.gpu import layout, show
from flyball_sim.gpu.dies import NOMINAL_DIE, Die
from flyball_sim.gpu.driver import GpuDriver, process_is_alive
from flyball_sim.gpu.statefile import GpuStateFile, StateFileError
from flyball_sim.gpu.types import GPU_TYPES

H100 = GPU_TYPES["H100-SXM5"]

unhurried = hypothesis_settings(deadline=None)  # a busy machine is not a slow model


class Clock:
    """CLOCK_MONOTONIC in a test's hand."""

    def __init__(self) -> None:
        self.now_ns = 5_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def pass_seconds(self, seconds: float, *each_tick: Callable[[], None]) -> None:
        """Let time pass at 20 ticks a second."""
        for _ in range(round(seconds * 20)):
            self.now_ns += 50_000_000
            for act in each_tick:
                act()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[GpuStateFile]:
    with GpuStateFile.create(
        tmp_path / "gpus.state", [H100] * 2, seed=3, node_name="node-0", dies=[NOMINAL_DIE] * 2
    ) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


# -- the file ------------------------------------------------------------------------------------------------


def test_gpus_are_the_same_for_the_same_seed_and_node_and_no_other(tmp_path):
    def uuids(seed: int, node: str) -> list[str]:
        with GpuStateFile.create(tmp_path / "x.state", [H100] * 8, seed=seed, node_name=node) as made:
            return [gpu.uuid for gpu in made.gpus]

    first = uuids(1, "node-0")
    assert first == uuids(1, "node-0")
    assert len({*first, *uuids(1, "node-1"), *uuids(2, "node-0")}) == 24
    assert all(uuid.startswith("GPU-") and len(uuid) == 40 for uuid in first)


def test_a_new_file_holds_booted_cards_of_their_types(tmp_path):
    kinds = list(GPU_TYPES.values())
    with GpuStateFile.create(
        tmp_path / "x.state", kinds, seed=1, node_name="a-node", dies=[NOMINAL_DIE] * len(kinds)
    ) as made:
        assert made.node_name == "a-node"
        for index, (gpu, kind) in enumerate(zip(made.gpus, kinds, strict=True)):
            assert (gpu.index, gpu.gpu_type) == (index, kind)
            assert gpu.cap_watts == gpu.enforced_cap_watts == kind.cap_default_watts
            assert (gpu.sm_mhz, gpu.power_watts, gpu.energy_joules) == (kind.sm_min_mhz, kind.idle_watts, 0.0)
            assert (gpu.locked_sm_mhz, gpu.event_reasons) == (None, 1)
            assert made.by_uuid(gpu.uuid) is gpu


def test_cards_differ_as_dies_do_and_stay_what_they_are(tmp_path):
    with GpuStateFile.create(tmp_path / "x.state", [H100] * 8, seed=1, node_name="n") as made:
        dies = [gpu.die for gpu in made.gpus]
        assert len(set(dies)) == 8
        for gpu, die in zip(made.gpus, dies, strict=True):
            assert 0.95 <= die.power_factor <= 1.05
            assert 0.95 <= die.sensor_gain <= 1.05
            assert gpu.power_watts == pytest.approx(72.0 * die.idle_factor)
            assert gpu.read("power_average_mw") == round(72e3 * die.idle_factor * die.sensor_gain)
    with GpuStateFile.create(tmp_path / "x.state", [H100] * 8, seed=1, node_name="n") as made:
        assert [gpu.die for gpu in made.gpus] == dies


def test_sensors_are_off_by_their_gain_and_the_truth_is_not(tmp_path, clock):
    die = Die(power_factor=1.04, idle_factor=1.0, sensor_gain=0.96)
    with GpuStateFile.create(tmp_path / "x.state", [H100], seed=1, node_name="n", dies=[die]) as made:
        gpu = made.gpus[0]
        driver = GpuDriver(made, clock, is_alive={100}.__contains__)
        clock.pass_seconds(2.0, lambda: gpu.write_load(0.5, 0.3, 1.0, clock.now_ns, 100), driver.tick)
        waiting, above = 72.0 + 52.0, 26.0 + (165.0 + 238.7) * 0.5 + 812.8 * 0.3
        assert gpu.power_watts == pytest.approx(waiting + 1.04 * above)
        assert gpu.read("power_average_mw") == pytest.approx(960.0 * gpu.power_watts, rel=1e-3)
        assert gpu.read("energy_mj") == pytest.approx(960.0 * gpu.energy_joules, rel=1e-2)


def test_anyone_may_read_the_file_and_only_its_owner_write_it(state):
    assert state.path.stat().st_mode & 0o777 == 0o644
    assert list(state.path.parent.iterdir()) == [state.path]


def test_what_one_mapping_writes_another_reads(state):
    state.gpus[1].write_load(0.25, 0.5, 1.0, monotonic_ns=77, pid=4242)
    with GpuStateFile.open(state.path, writable=False) as reader:
        gpu = reader.by_uuid(state.gpus[1].uuid)
        assert (gpu.read_real("load_memory_use"), gpu.read("load_pid"), gpu.read("load_stamp_ns")) == (0.25, 4242, 77)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ((1.5, 0.0, 0.0), "memory_use of GPU GPU-.* is 1.5: give a share between 0 and 1"),
        ((0.0, -0.1, 0.0), "compute_use of GPU .* is -0.1"),
        ((0.0, 0.0, float("nan")), "busy of GPU .* is nan"),
    ],
)
def test_a_load_that_is_no_share_is_refused(state, load, message):
    with pytest.raises(ValueError, match=message):
        state.gpus[0].write_load(*load, monotonic_ns=1, pid=1)


def test_files_that_are_not_there_not_ours_or_of_another_version_say_what_to_do(tmp_path, state):
    with pytest.raises(StateFileError, match=r"no GPU state file at .*absent: start the simulated node"):
        GpuStateFile.open(tmp_path / "absent")
    for content in (b"", b"x" * 10_000):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(StateFileError, match="is not a GPU state file"):
            GpuStateFile.open(tmp_path / "other")
    state._cells.unsigned[layout.HEADER_OFFSETS["version"]] = 9
    with pytest.raises(StateFileError, match="layout version 9, this program reads 2: restart the simulated node"):
        GpuStateFile.open(state.path)


def test_a_node_has_at_least_one_gpu_and_no_more_than_the_file_holds(tmp_path):
    for count in (0, layout.MAX_GPUS + 1):
        with pytest.raises(StateFileError, match=f"asks for {count} GPUs: a state file holds 1 to 16"):
            GpuStateFile.create(tmp_path / "x", [H100] * count, seed=1, node_name="n")
    assert list(tmp_path.iterdir()) == []


def test_unknown_gpus_and_calls_are_named(state):
    with pytest.raises(StateFileError, match=f"node node-0 has no GPU 'GPU-x': it has {state.gpus[0].uuid}"):
        state.by_uuid("GPU-x")
    with pytest.raises(StateFileError, match="'nvmlMakeCoffee' cannot be made to fail"):
        state.gpus[0].set_fault("nvmlMakeCoffee", 999, 1)


@unhurried
@given(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1))
def test_a_lock_survives_packing(lowest, highest):
    assert layout.unpack_lock(layout.pack_lock((lowest, highest))) == (lowest, highest)
    assert layout.unpack_lock(layout.pack_lock(None)) is None


READER = """
import sys, pathlib
from flyball_sim.gpu.statefile import GpuStateFile
gpu = GpuStateFile.open(pathlib.Path(sys.argv[1]), writable=False).gpus[0]
print(len({gpu.read("random_state") for _ in range(400000)} - {0, 2**64 - 1}))
"""


def test_eight_byte_cells_are_never_seen_half_written(state):
    gpu = state.gpus[0]
    patterns = {0x0, 0xFFFFFFFFFFFFFFFF}
    gpu.write("random_state", 0)
    stop = threading.Event()
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            READER,
            str(state.path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )

    def write() -> None:
        while not stop.is_set():
            for pattern in patterns:
                gpu.write("random_state", pattern)

    writer = threading.Thread(target=write)
    writer.start()
    torn, _ = reader.communicate(timeout=60)
    stop.set()
    writer.join()
    assert torn.strip() == "0"


# -- the driver ----------------------------------------------------------------------------------------------


def test_a_load_draws_power_while_it_is_renewed_and_its_process_lives(state, clock):
    gpu, alive = state.gpus[0], {100}
    driver = GpuDriver(state, clock, is_alive=alive.__contains__)

    def renew() -> None:
        gpu.write_load(0.5, 0.3, 1.0, clock.now_ns, 100)

    clock.pass_seconds(2.0, renew, driver.tick)
    busy_watts = 150 + (165 + 238.7) * 0.5 + 812.8 * 0.3
    assert gpu.power_watts == pytest.approx(busy_watts)
    assert (gpu.sm_mhz, gpu.event_reasons, gpu.read("process_pid")) == (1980, 0, 100)
    assert gpu.energy_joules == pytest.approx(2.0 * busy_watts, rel=0.05)
    assert gpu.read("power_average_mw") == pytest.approx(busy_watts * 1000, rel=1e-6)
    assert (gpu.read("utilization_gpu_percent"), gpu.read("utilization_memory_percent")) == (100, 50)
    assert gpu.read("memory_used_bytes") > 0.8 * H100.memory_bytes
    assert state.gpus[1].power_watts == 72.0
    clock.pass_seconds(0.9, driver.tick)
    assert gpu.power_watts == pytest.approx(busy_watts)
    clock.pass_seconds(0.2, driver.tick)
    assert (gpu.power_watts, gpu.read("process_pid"), gpu.read("memory_used_bytes")) == (72.0, 0, 0)
    renew()
    driver.tick()
    assert gpu.power_watts == pytest.approx(busy_watts)
    alive.clear()
    driver.tick()
    assert (gpu.power_watts, gpu.event_reasons) == (72.0, 1)


def test_the_energy_counter_moves_every_tenth_of_a_second(state, clock):
    driver, seen = GpuDriver(state, clock), []
    clock.pass_seconds(1.0, driver.tick, lambda: seen.append(state.gpus[0].read("energy_mj")))
    assert len(set(seen)) == 11
    assert seen[-1] == 72_000


def test_a_setting_made_between_two_ticks_counts_from_when_it_was_made(state, clock):
    gpu = state.gpus[0]
    driver = GpuDriver(state, clock, is_alive={100}.__contains__)

    def renew() -> None:
        gpu.write_load(0.6, 0.4, 1.0, clock.now_ns, 100)

    clock.pass_seconds(1.0, renew, driver.tick)
    free_watts = gpu.power_watts
    gpu.change_cap_externally(300.0, clock.now_ns + 10_000_000)
    clock.pass_seconds(0.05, renew, driver.tick)
    late = gpu.read_real("cap_lagged_watts")
    assert late == pytest.approx(300.0 + 400.0 * 2.718281828 ** (-0.04 / 0.05), rel=1e-3)
    clock.pass_seconds(1.0, renew, driver.tick)
    assert gpu.power_watts <= 300.0 < free_watts
    assert gpu.event_reasons == 4
    assert gpu.read("power_cap_violation_ns") > 900_000_000


def test_a_reboot_puts_defaults_back_and_starts_the_counter_anew(state, clock):
    gpu = state.gpus[0]
    driver = GpuDriver(state, clock)
    gpu.change_cap_externally(300.0, clock.now_ns)
    gpu.write("lock_requested", layout.pack_lock((900, 900)))
    gpu.write("lock_in_force", layout.pack_lock((900, 900)))
    clock.pass_seconds(3.0, driver.tick)
    before = gpu.read("energy_mj")
    gpu.write_load(1.0, 1.0, 1.0, clock.now_ns + 10**12, os.getpid())
    gpu.lost = True
    gpu.reboot()
    clock.pass_seconds(0.5, driver.tick)
    assert (gpu.cap_watts, gpu.enforced_cap_watts, gpu.locked_sm_mhz, gpu.lost) == (700.0, 700.0, None, False)
    assert 0 < gpu.read("energy_mj") < before
    assert gpu.energy_joules == pytest.approx(72.0 * 0.45)  # counting from the tick that noticed


def test_a_driver_that_starts_again_keeps_settings_and_counter(state, clock):
    gpu = state.gpus[0]
    gpu.change_cap_externally(300.0, clock.now_ns)
    gpu.write("lock_in_force", layout.pack_lock((900, 900)))
    first = GpuDriver(state, clock)
    clock.pass_seconds(2.0, first.tick)
    joules = gpu.energy_joules
    second = GpuDriver(state, clock, is_alive={100}.__contains__)
    gpu.write_load(0.1, 0.0, 1.0, clock.now_ns, 100)
    clock.pass_seconds(0.5, second.tick)
    assert gpu.energy_joules > joules
    assert (gpu.enforced_cap_watts, gpu.sm_mhz) == (300.0, 900)


def test_a_process_is_alive_until_it_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait(timeout=20)
    assert process_is_alive(os.getpid())
    assert process_is_alive(1)
    assert not process_is_alive(child.pid)


def test_a_tick_of_eight_busy_gpus_is_cheap(tmp_path, clock):
    with GpuStateFile.create(tmp_path / "x", [H100] * 8, seed=1, node_name="n") as state:
        driver = GpuDriver(state, clock)
        spent = []
        for _ in range(200):
            clock.now_ns += 50_000_000
            for gpu in state.gpus:
                gpu.write_load(0.6, 0.4, 1.0, clock.now_ns, os.getpid())
            began = time.perf_counter()
            driver.tick()
            spent.append(time.perf_counter() - began)
    assert sorted(spent)[100] < 0.001


# -- for people ----------------------------------------------------------------------------------------------


def test_show_prints_what_each_gpu_is_set_to(state, capsys):
    state.gpus[0].write("lock_requested", layout.pack_lock((900, 1200)))
    state.gpus[0].change_cap_externally(300.0, 1)
    state.gpus[1].write("event_reasons", 4)
    assert show.main([str(state.path)]) == 0
    node, heading, first, second = capsys.readouterr().out.splitlines()
    assert node == "node node-0"
    assert heading.split("  ")[0] == "GPU"
    assert first.split() == ["0", state.gpus[0].uuid, "345", "900-1200*", "300*", "300", "72", "0", "idle"]
    assert second.split() == ["1", state.gpus[1].uuid, "345", "-", "700", "700", "72", "0", "sw-power-cap"]


def test_show_says_which_file_it_cannot_read_and_fails(tmp_path, capsys):
    assert show.main([str(tmp_path / "absent")]) == 1
    assert "no GPU state file at" in capsys.readouterr().err
