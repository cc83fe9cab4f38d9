"""What tests of single parts share: a recording card, a clock that is stepped, a log that is kept."""

from __future__ import annotations

import pytest

from flyball_agent.actuator.device import DeviceError, Identity, Sample
from flyball_agent.actuator.governor import Governor
from flyball_agent.actuator.record import Record


class FakeCard:
    """A `Device` that does what it is told, remembers it, and fails where a test says so."""

    def __init__(self, uuid="GPU-1", *, mig=False, clocks=tuple(range(345, 1981, 15))):
        self.identity = Identity(uuid, 0, "NVIDIA H100 80GB HBM3", 200.0, 700.0, 700.0, clocks, mig)
        self.calls = []
        self.requested = 700.0
        self.out_of_band = None
        self.without_effect = False
        self.in_force = 700.0
        self.locked = None
        self.lock_works = True
        self.sm_mhz = 1980
        self.reasons = 0
        self.utilisation = 90
        self.energy = 1000.0
        self.fail = {}  # method -> NVML return code

    def _call(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name in self.fail:
            raise DeviceError(self.fail[name], name, "injected")

    @property
    def writes(self):
        return [call for call in self.calls if call[0] in ("set_cap", "lock", "unlock")]

    def caps(self):
        self._call("caps")
        enforced = self.in_force if self.out_of_band is None else min(self.in_force, self.out_of_band)
        return self.requested, enforced

    def set_cap(self, watts):
        self._call("set_cap", watts)
        self.requested = watts
        if not self.without_effect:
            self.in_force = watts

    def lock(self, low_mhz, high_mhz):
        self._call("lock", low_mhz, high_mhz)
        self.locked = (low_mhz, high_mhz)
        if self.lock_works:
            self.sm_mhz = min(self.sm_mhz, high_mhz)

    def unlock(self):
        self._call("unlock")
        self.locked = None
        self.sm_mhz = 1980

    def sample(self):
        self._call("sample")
        requested, enforced = self.requested, self.in_force
        if self.out_of_band is not None:
            enforced = min(enforced, self.out_of_band)
        return Sample(300.0, 310.0, self.energy, self.sm_mhz, self.reasons, requested, enforced, self.utilisation)

    def raised_by_somebody(self, watts):
        self.requested = self.in_force = watts

    def driver_reloaded(self):
        self.requested = self.in_force = 700.0
        self.locked, self.energy, self.sm_mhz = None, 0.5, 1980


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def step(self, seconds):
        self.now += seconds


class QuietLog:
    """Keeps what would be logged."""

    def __init__(self):
        self.events = []

    def _note(self, event, **fields):
        self.events.append((event, fields))

    info = warning = error = _note


@pytest.fixture
def make_card():
    return FakeCard


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def quiet_log():
    return QuietLog()


@pytest.fixture
def record(tmp_path):
    made = Record(tmp_path / "actuator.json", "boot-1")
    yield made
    made.close()


@pytest.fixture
def card(make_card):
    return make_card()


@pytest.fixture
def governor(card, record, clock, quiet_log):
    return Governor(card, record, clock, quiet_log)
