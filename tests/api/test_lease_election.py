"""The leader election as a pure machine: who believes what, whatever the clocks and the network do."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball_api.lease import Candidate, LeaseRecord, LeaseTiming, Step

TIMING = LeaseTiming(duration_seconds=15.0, renew_deadline_seconds=10.0, retry_seconds=2.0)
WALL = "2026-11-21T10:00:00.000000Z"


def record(holder="other", renewed=WALL, transitions=3, version="7"):
    return LeaseRecord(holder, transitions, 15, WALL, renewed, version)


def candidate(name="me"):
    return Candidate(name, TIMING)


def leading(sent_at=0.0):
    claim = candidate().claim(WALL, 0)
    return candidate().wrote(replace(claim, resource_version="1"), sent_at, sent_at + 0.1)


def test_a_lease_that_does_not_exist_is_created_with_epoch_one():
    free = candidate().observed(None, 0.0)
    assert free.next_step(0.0) is Step.CREATE
    assert free.claim(WALL, 0).transitions == 1


def test_a_lease_of_another_is_left_alone_until_it_was_seen_unchanged_for_its_whole_duration():
    waiting = candidate().observed(record(), 100.0)
    assert waiting.next_step(100.0) is Step.WAIT
    assert waiting.observed(record(), 114.9).next_step(114.9) is Step.WAIT
    assert waiting.observed(record(), 115.0).next_step(115.0) is Step.TAKE_OVER


def test_a_renewal_starts_the_wait_anew_whatever_its_timestamp_says():
    waiting = candidate().observed(record(), 100.0).observed(record(renewed="1970-01-01T00:00:00Z"), 110.0)
    assert waiting.next_step(124.0) is Step.WAIT
    assert waiting.next_step(125.0) is Step.TAKE_OVER


def test_a_label_put_on_the_lease_is_not_a_renewal():
    waiting = candidate().observed(record(version="7"), 100.0).observed(record(version="8"), 110.0)
    assert waiting.next_step(115.0) is Step.TAKE_OVER
    assert waiting.claim(WALL, 0).resource_version == "8"


def test_a_released_lease_is_taken_at_once_with_the_next_epoch():
    waiting = candidate().observed(record(holder=""), 100.0)
    assert waiting.next_step(100.0) is Step.TAKE_OVER
    assert waiting.claim(WALL, 0).transitions == 4


def test_an_own_claim_whose_answer_was_lost_is_taken_up_with_the_same_epoch():
    waiting = candidate().observed(record(holder="me"), 100.0)
    assert waiting.next_step(100.0) is Step.TAKE_OVER
    assert waiting.claim(WALL, 0).transitions == 3


def test_a_new_epoch_is_above_every_epoch_seen_elsewhere():
    assert candidate().observed(record(holder=""), 0.0).claim(WALL, 9).transitions == 10
    assert candidate().observed(None, 0.0).claim(WALL, 9).transitions == 10


def test_a_renewal_keeps_the_epoch_unless_a_higher_one_was_seen():
    leader = leading()
    assert leader.claim(WALL, 1).transitions == 1
    assert leader.claim(WALL, 5).transitions == 6


def test_belief_ends_at_the_deadline_counted_from_the_sending_of_the_renewal():
    leader = leading(sent_at=100.0)
    assert leader.leads(109.9)
    assert leader.next_step(109.9) is Step.RENEW
    assert not leader.leads(110.0)
    assert leader.next_step(110.0) is Step.LOST


def test_a_renewal_answered_after_the_deadline_comes_too_late():
    leader = leading(sent_at=100.0)
    assert not leader.wrote(leader.claim(WALL, 0), 101.0, 120.0).leads(120.0)


@pytest.mark.parametrize("seen", [record(holder="other"), record(holder=""), None])
def test_a_leader_that_reads_another_name_or_no_lease_is_lost_at_once(seen):
    leader = leading(sent_at=100.0).observed(seen, 101.0)
    assert not leader.leads(101.0)
    assert leader.next_step(101.0) is Step.LOST


def test_a_leader_that_released_leads_no_more_and_leaves_no_name():
    ended, left = leading(sent_at=100.0).released(WALL)
    assert not ended.leads(100.5)
    assert (left.holder, left.transitions) == ("", 1)


def test_a_candidate_that_does_not_hold_the_lease_has_nothing_to_release():
    assert candidate().observed(record(), 0.0).released(WALL)[1] is None


def test_timing_that_would_allow_two_leaders_is_refused():
    with pytest.raises(ValueError, match=r"renew deadline 15.0 < duration 15.0"):
        LeaseTiming(duration_seconds=15.0, renew_deadline_seconds=15.0)


@dataclass
class Actor:
    """A candidate with a clock of its own and one request at a time, which may hang or lose its answer anywhere."""

    state: Candidate
    offset: float
    rate: float
    stage: str = "idle"
    carried: LeaseRecord | None = None
    sent_at: float = 0.0

    def now(self, true_seconds: float) -> float:
        return self.offset + self.rate * true_seconds


class Store:
    """The API server's part: one record, optimistic locking."""

    def __init__(self):
        self.version = 0
        self.record: LeaseRecord | None = None

    def write(self, claim: LeaseRecord) -> LeaseRecord | None:
        if claim.resource_version != ("" if self.record is None else self.record.resource_version):
            return None
        self.version += 1
        self.record = replace(claim, resource_version=str(self.version))
        return self.record


def advance(actor: Actor, store: Store, true_seconds: float, event: str) -> None:
    """One stage of read -> decide and send -> commit -> hear the answer; `lose` drops what is in flight."""
    now = actor.now(true_seconds)
    if event == "lose":
        actor.stage = "idle"
    elif event == "release" and actor.stage == "idle" and actor.state.leads(now):
        actor.state, left = actor.state.released(f"r{true_seconds}")
        store.write(left)
    elif actor.stage == "idle":
        actor.carried, actor.stage = store.record, "read"
    elif actor.stage == "read":
        actor.state = actor.state.observed(actor.carried, now)
        if actor.state.next_step(now) in {Step.CREATE, Step.TAKE_OVER, Step.RENEW}:
            actor.carried, actor.sent_at, actor.stage = actor.state.claim(f"w{true_seconds}", 0), now, "sent"
        else:
            actor.stage = "idle"
    elif actor.stage == "sent":
        actor.carried = store.write(actor.carried)
        actor.stage = "idle" if actor.carried is None else "written"
    else:
        actor.state, actor.stage = actor.state.wrote(actor.carried, actor.sent_at, now), "idle"


CLOCKS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.85, 1.15)), min_size=2, max_size=4)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), clocks=CLOCKS, hurry=st.sampled_from([0.1, 0.5, 2.0]))
def test_never_two_leaders_whatever_pauses_losses_and_clocks(seed, clocks, hurry):
    rng = random.Random(seed)
    store = Store()
    actors = [Actor(candidate(f"c{index}"), offset, rate) for index, (offset, rate) in enumerate(clocks)]
    paused_until = [0.0] * len(actors)
    true_seconds, epochs = 0.0, {}
    for _ in range(400):
        true_seconds += rng.expovariate(1.0 / hurry)
        index = rng.randrange(len(actors))
        if rng.random() < 0.05:
            paused_until[index] = true_seconds + rng.uniform(0.0, 40.0)
        if true_seconds < paused_until[index]:
            continue
        event = rng.choices(["step", "lose", "release"], [40, 2, 1])[0]
        advance(actors[index], store, true_seconds, event)
        leaders = [actor for actor in actors if actor.state.leads(actor.now(true_seconds))]
        assert len(leaders) <= 1
        for leader in leaders:
            epoch = leader.state.record.transitions
            assert epochs.setdefault(epoch, leader.state.identity) == leader.state.identity
            assert epoch == max(epochs)


def test_of_candidates_that_keep_trying_one_comes_to_lead_and_another_follows_when_it_dies():
    store = Store()
    actors = [Actor(candidate(f"c{index}"), 1000.0 * index, 1.0) for index in range(3)]
    true_seconds = 0.0

    def round_of(living):
        nonlocal true_seconds
        for actor in living:
            for _ in range(4):
                advance(actor, store, true_seconds, "step")
        true_seconds += TIMING.retry_seconds
        return [actor.state.identity for actor in living if actor.state.leads(actor.now(true_seconds))]

    assert [round_of(actors) for _ in range(20)] == [["c0"]] * 20
    died_at = true_seconds
    while not (leaders := round_of(actors[1:])):
        pass
    assert leaders == ["c1"]
    assert true_seconds - died_at <= TIMING.duration_seconds + 2 * TIMING.retry_seconds
