"""Leases of clock locks, as a state machine under any order of events."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flyball_agent.actuator.leases import Leases

GPUS = st.sampled_from(["GPU-1", "GPU-2", "GPU-3"])


class LeaseMachine(RuleBasedStateMachine):
    """Compares with the plainest statement of the rule: a lease ends `seconds` after its last sign of life."""

    def __init__(self):
        super().__init__()
        self.leases = Leases()
        self.now = 0.0
        self.ends = {}
        self.lengths = {}

    @rule(gpu=GPUS, seconds=st.floats(1, 60))
    def hold(self, gpu, seconds):
        self.leases.hold(gpu, seconds, self.now)
        self.ends[gpu], self.lengths[gpu] = self.now + seconds, seconds

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def renew(self):
        over = {gpu for gpu, end in self.ends.items() if end <= self.now}
        assert set(self.leases.renew(self.now)) == over, "what has run out is told and never renewed"
        self.ends = {gpu: self.now + self.lengths[gpu] for gpu in self.ends if gpu not in over}

    @rule()
    def look(self):
        over = {gpu for gpu, end in self.ends.items() if end <= self.now}
        assert set(self.leases.expire(self.now)) == over
        self.ends = {gpu: end for gpu, end in self.ends.items() if gpu not in over}

    @rule(gpu=GPUS)
    def drop(self, gpu):
        self.leases.drop(gpu)
        self.ends.pop(gpu, None)

    @rule()
    def clear(self):
        assert set(self.leases.clear()) == self.ends.keys()
        self.ends = {}

    @invariant()
    def the_next_expiry_is_the_earliest(self):
        assert self.leases.next_expiry() == min(self.ends.values(), default=None)
        assert all(self.leases.holds(gpu) == (gpu in self.ends) for gpu in ("GPU-1", "GPU-2", "GPU-3"))


TestLeases = LeaseMachine.TestCase
