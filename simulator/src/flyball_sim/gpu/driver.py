"""The simulated driver: brings every GPU of a state file up to now, as often as it is asked to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from flyball_sim.gpu import dies, model
from flyball_sim.gpu.sensors import Sensor
from flyball_sim.gpu.statefile import GpuSlot, GpuStateFile

_LOAD_LIFETIME_NS = 1_000_000_000
_CONTEXT_MEMORY_SHARE = 0.9  # modelled: an engine takes vLLM's default share of memory when it starts
_NS = 1e-9


def process_is_alive(pid: int) -> bool:
    """Whether a process of this id exists, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class GpuDriver:
    """Advances GPUs in real time.

    On start it resumes what the file says (settings, energy counter), because a setting is driver state and
    outlives the process that plays the driver.

    Args:
        statefile: mapped for writing.
        clock: CLOCK_MONOTONIC in nanoseconds, the same clock the C library and the engines stamp with.
        is_alive: whether the process of a load still exists.
    """

    def __init__(
        self,
        statefile: GpuStateFile,
        clock: Callable[[], int] = time.monotonic_ns,
        is_alive: Callable[[int], bool] = process_is_alive,
    ) -> None:
        self._statefile = statefile
        self._clock = clock
        now_ns = clock()
        self._cards = [_Card(gpu, now_ns, is_alive) for gpu in statefile.gpus]

    def tick(self) -> None:
        """Advance every GPU to now; call it some 20 times a second."""
        now_ns = self._clock()
        for card in self._cards:
            card.advance(now_ns)
        self._statefile.mark_tick(now_ns)


class _Card:
    """One GPU between two ticks: its state, and the settings already taken from the file."""

    def __init__(self, gpu: GpuSlot, now_ns: int, is_alive: Callable[[int], bool]) -> None:
        self._gpu = gpu
        self._die = gpu.die
        self._type = dies.apply(gpu.gpu_type, self._die)
        self._is_alive = is_alive
        self._now_ns = now_ns
        self._reboots = gpu.read("reboot_sequence")
        self._settings = self._requested()
        self._state = model.booted(
            self._type,
            gpu.read("random_state"),
            energy_joules=gpu.energy_joules,
            cap_watts=self._settings.cap_watts,
            lock_sm_mhz=self._settings.lock_sm_mhz,
        )
        self._sensor = self._sensed()
        self._capped_before_ns = gpu.read("power_cap_violation_ns")

    def _sensed(self) -> Sensor:
        state = self._state
        return Sensor(
            self._type, self._die, state.time_seconds, watts=state.power_watts, energy_joules=state.energy_joules
        )

    def _requested(self) -> model.GpuSettings:
        return model.GpuSettings(self._gpu.enforced_cap_watts, self._gpu.lock_in_force_sm_mhz)

    def _load(self, now_ns: int) -> tuple[model.GpuLoad, int]:
        """The load in force and the process it comes from (0: none)."""
        gpu = self._gpu
        pid = gpu.read("load_pid")
        if not pid or now_ns - gpu.read("load_stamp_ns") > _LOAD_LIFETIME_NS or not self._is_alive(pid):
            return model.NO_LOAD, 0
        return model.GpuLoad(
            gpu.read_real("load_memory_use"), gpu.read_real("load_compute_use"), gpu.read_real("load_busy")
        ), pid

    def advance(self, now_ns: int) -> None:
        gpu = self._gpu
        if gpu.read("reboot_sequence") != self._reboots:
            self._reboots = gpu.read("reboot_sequence")
            self._settings = self._requested()
            self._state = model.booted(self._type, self._state.random_state)
            self._sensor = self._sensed()
            self._capped_before_ns = 0
            self._now_ns = now_ns
        load, pid = self._load(now_ns)
        requested = self._requested()
        # A setting changed between two ticks counts from when it was made, not from when it was noticed.
        for moment_ns, settings in self._changes(requested):
            self._run(load, min(max(moment_ns, self._now_ns), now_ns))
            self._settings = settings
        self._run(load, now_ns)
        self._publish(load, pid)

    def _changes(self, requested: model.GpuSettings) -> list[tuple[int, model.GpuSettings]]:
        """What changed since the last tick, each with its moment, the earlier first."""
        old = self._settings
        if requested == old:
            return []
        cap_ns, lock_ns = self._gpu.read("cap_stamp_ns"), self._gpu.read("lock_stamp_ns")
        if requested.lock_sm_mhz == old.lock_sm_mhz:
            return [(cap_ns, requested)]
        if requested.cap_watts == old.cap_watts:
            return [(lock_ns, requested)]
        if cap_ns <= lock_ns:
            between = model.GpuSettings(requested.cap_watts, old.lock_sm_mhz)
        else:
            between = model.GpuSettings(old.cap_watts, requested.lock_sm_mhz)
        return [(min(cap_ns, lock_ns), between), (max(cap_ns, lock_ns), requested)]

    def _run(self, load: model.GpuLoad, until_ns: int) -> None:
        seconds = (until_ns - self._now_ns) * _NS
        self._state = model.step(self._type, self._state, load, self._settings, seconds)
        for end_seconds, watts in self._state.pieces:
            self._sensor.run(end_seconds, watts)
        self._now_ns = until_ns

    def _publish(self, load: model.GpuLoad, pid: int) -> None:
        gpu, state, sensor = self._gpu, self._state, self._sensor
        temperature = model.temperature_celsius(sensor.average_watts)
        gpu.write("sm_mhz", state.sm_mhz)
        gpu.write("event_reasons", state.event_reasons)
        gpu.write_real("power_watts", state.power_watts)
        gpu.write_real("energy_joules", state.energy_joules)
        gpu.write_real("cap_lagged_watts", state.cap_lagged_watts)
        gpu.write("power_average_mw", round(sensor.average_watts * 1e3))
        gpu.write("power_instant_mw", round(sensor.instant_watts * 1e3))
        gpu.write("energy_mj", max(0, round(sensor.energy_joules(state.time_seconds) * 1e3)))
        gpu.write("power_cap_violation_ns", self._capped_before_ns + round(state.power_capped_seconds / _NS))
        gpu.write("temperature_celsius", temperature)
        gpu.write("memory_temperature_celsius", temperature + 8)
        gpu.write("utilization_gpu_percent", round(load.busy * 100.0))
        gpu.write("utilization_memory_percent", round(load.memory_use * 100.0))
        gpu.write("memory_used_bytes", round(gpu.gpu_type.memory_bytes * _CONTEXT_MEMORY_SHARE) if pid else 0)
        gpu.write("process_pid", pid)
        gpu.write("random_state", state.random_state)
