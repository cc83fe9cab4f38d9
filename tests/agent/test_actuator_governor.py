"""One GPU held to what was asked, over a recording card and a clock that is stepped."""

import pytest

from flyball_agent.actuator.governor import Governor, RefusedError
from flyball_agent.actuator.record import EMPTY, Entry, RecordError


def codes(report):
    return {fault["code"] for fault in report["faults"]}


class Ticket:
    cancelled = False


def test_the_record_is_on_the_disk_before_the_card_is_written(governor, card, record):
    seen = []
    set_cap, lock = card.set_cap, card.lock
    card.set_cap = lambda watts: (seen.append(record.entry("GPU-1").cap_watts), set_cap(watts))
    card.lock = lambda *mhz: (seen.append(record.entry("GPU-1").lock), lock(*mhz))
    governor.apply((900, 1200), 400, 400)
    assert seen == [400, True]


def test_a_cap_is_clamped_to_the_grant_and_to_the_card(governor, card):
    governor.apply(None, 900, 500)
    assert card.requested == 500
    report = governor.apply(None, 100, 100)
    assert card.requested == 200
    assert not report["cap_in_force"]
    assert "takes no less than 200 W" in report["faults"][0]["message"]


def test_a_lock_moves_without_another_record_and_the_same_one_is_not_written_again(governor, card, record, monkeypatch):
    governor.apply((900, 1200), None, None)
    monkeypatch.setattr(record, "_replace", lambda _: pytest.fail("no need to touch the disk"))
    governor.apply((915, 1200), None, None)
    governor.apply((915, 1200), None, None)
    assert [call for call in card.writes if call[0] == "lock"] == [("lock", 900, 1200), ("lock", 915, 1200)]


def test_a_reassertion_writes_the_lock_again(governor, card):
    governor.apply((900, 1200), None, None)
    governor.reassert(writes=True)
    assert card.writes == [("lock", 900, 1200)] * 2


def test_with_writing_off_nothing_is_reasserted(governor, card):
    governor.apply((900, 1200), None, None)
    governor.reassert(writes=False)
    assert card.writes == [("lock", 900, 1200)]


def test_letting_go_resets_the_lock_and_never_the_cap(governor, card, record):
    governor.apply((900, 1200), 400, 400)
    governor.let_go()
    assert card.writes[-1] == ("unlock",)
    assert card.requested == 400
    assert record.entry("GPU-1") == Entry(lock=False, cap_watts=400, cap_before_watts=700)


def test_letting_go_of_what_was_never_touched_writes_nothing(governor, card):
    governor.let_go()
    assert card.calls == []


def test_a_reset_that_fails_is_owed_and_done_later(governor, card):
    governor.apply((900, 1200), None, None)
    card.fail["unlock"] = 999
    governor.let_go()
    assert governor.reset_owed
    card.fail.clear()
    governor.let_go()
    assert not governor.reset_owed
    assert card.locked is None


def test_locks_are_reset_although_the_disk_is_full(governor, card, record, monkeypatch):
    governor.apply((900, 1200), None, None)

    def full(_):
        raise RecordError("full")

    monkeypatch.setattr(record, "_replace", full)
    governor.let_go()
    assert card.locked is None
    with pytest.raises(RefusedError) as refused:
        governor.apply(None, 400, 400)
    assert refused.value.code == "RecordFailed"
    assert card.requested == 700


@pytest.fixture
def fill_the_disk(record, monkeypatch):
    def fill():
        def full(_):
            raise RecordError("full")

        monkeypatch.setattr(record, "_replace", full)

    yield fill
    monkeypatch.undo()


def test_a_release_counts_only_when_its_record_is_gone_so_that_no_later_start_puts_the_cap_back(
    governor, card, record, fill_the_disk, monkeypatch
):
    governor.apply((900, 1200), 400, 400)
    fill_the_disk()
    with pytest.raises(RefusedError) as refused:
        governor.release()
    assert refused.value.code == "RecordFailed"
    assert (card.requested, card.locked) == (700, None), "the card itself is restored all the same"
    monkeypatch.undo()
    assert codes(governor.release()) == set()
    assert record.entry("GPU-1") == EMPTY


def test_a_cap_raised_by_somebody_is_put_back_on_a_full_disk_too(governor, card, fill_the_disk):
    governor.apply(None, 400, 400)
    fill_the_disk()
    card.raised_by_somebody(650)
    (fault,) = governor.read(writes=True)["faults"]
    assert card.requested == 400
    assert fault["code"] == "CapAboveGrant"
    assert "it was put back" in fault["message"]


def test_a_cut_that_cannot_be_recorded_is_not_taken_for_a_cap_that_somebody_raised(governor, fill_the_disk):
    governor.apply(None, 400, 400)
    fill_the_disk()
    with pytest.raises(RefusedError, match="full"):
        governor.apply(None, 300, 300)
    assert codes(governor.read(writes=True)) == {"RecordFailed"}


def test_a_raised_cap_that_the_card_does_not_take_back_is_not_said_to_be_back(governor, card):
    governor.apply(None, 400, 400)
    card.raised_by_somebody(650)
    card.fail["set_cap"] = 999
    messages = {fault["code"]: fault["message"] for fault in governor.read(writes=True)["faults"]}
    assert "could not be put back" in messages["CapAboveGrant"]


def test_a_start_resets_the_lock_on_record_and_keeps_the_cap(make_card, record, clock, quiet_log):
    card = make_card()
    card.raised_by_somebody(400)
    record.put("GPU-1", Entry(lock=True, cap_watts=400, cap_before_watts=700))
    Governor(card, record, clock, quiet_log).reconcile(damaged=False)
    assert card.writes == [("unlock",)]


def test_a_start_puts_a_cap_back_that_is_above_the_one_on_record(make_card, record, clock, quiet_log):
    card = make_card()
    record.put("GPU-1", Entry(cap_watts=400, cap_before_watts=700))
    Governor(card, record, clock, quiet_log).reconcile(damaged=False)
    assert card.requested == 400


def test_a_raise_that_died_before_the_card_is_left_for_the_agent_to_ask_again(make_card, record, clock, quiet_log):
    card = make_card()
    card.raised_by_somebody(350)
    record.put("GPU-1", Entry(cap_watts=500, cap_previous_watts=350, cap_before_watts=700))
    governor = Governor(card, record, clock, quiet_log)
    governor.reconcile(damaged=False)
    assert card.writes == []
    assert codes(governor.read(writes=True)) == set()
    governor.apply(None, 500, 500)
    assert card.requested == 500


def test_with_its_record_damaged_a_lowered_card_is_not_called_released(make_card, record, clock, quiet_log):
    card = make_card()
    card.raised_by_somebody(500)
    governor = Governor(card, record, clock, quiet_log)
    governor.reconcile(damaged=True)
    with pytest.raises(RefusedError, match=r"500 W, below its default of 700 W.*nvidia-smi"):
        governor.release()
    assert "RecordLost" in codes(governor.read(writes=True))
    card.raised_by_somebody(700)
    assert codes(governor.release()) == set()


def test_a_cap_granted_over_a_damaged_record_is_not_taken_for_a_limit_from_before_us(
    make_card, record, clock, quiet_log
):
    card = make_card()
    card.raised_by_somebody(500)
    governor = Governor(card, record, clock, quiet_log)
    governor.reconcile(damaged=True)
    governor.apply(None, 400, 400)
    with pytest.raises(RefusedError, match="record of who"):
        governor.release()


def test_a_damaged_record_matters_only_to_cards_below_their_default(make_card, record, clock, quiet_log):
    governor = Governor(make_card(), record, clock, quiet_log)
    governor.reconcile(damaged=True)
    governor.release()


def test_a_limit_from_before_us_is_what_we_raise_and_release_to(governor, card):
    card.raised_by_somebody(450)
    governor.apply(None, 300, 300)
    assert card.requested == 300
    report = governor.apply(None, 600, 600)
    assert card.requested == 450
    assert codes(report) == {"ForeignCap"}
    governor.release()
    assert card.requested == 450


def test_a_lower_limit_of_somebody_else_is_not_raised_by_a_release(governor, card):
    card.raised_by_somebody(450)
    report = governor.apply(None, 600, 600)
    assert codes(report) == {"ForeignCap"}
    assert governor.release()["enforced_cap_watts"] == 450
    assert card.writes == []


def test_a_release_that_the_card_does_not_show_is_refused(governor, card, record):
    governor.apply(None, 400, 400)
    card.set_cap = lambda watts: card.calls.append(("set_cap", watts))
    with pytest.raises(RefusedError) as refused:
        governor.release()
    assert refused.value.code == "CapNotInForce"
    assert record.entry("GPU-1") != EMPTY


def test_a_cap_raised_by_somebody_is_put_back_and_reported_for_a_while(governor, card, clock):
    governor.apply(None, 400, 400)
    card.raised_by_somebody(650)
    assert codes(governor.read(writes=True)) == {"CapAboveGrant"}
    assert card.requested == 400
    clock.step(61)
    assert codes(governor.read(writes=True)) == set()


def test_a_lowered_cap_is_kept_reported_and_counted_as_in_force(governor, card):
    governor.apply(None, 400, 400)
    card.raised_by_somebody(300)
    report = governor.read(writes=True)
    assert codes(report) == {"ForeignCap"}
    assert (report["enforced_cap_watts"], report["cap_in_force"]) == (300, True)
    assert card.requested == 300


def test_a_cap_without_effect_is_tried_again_and_the_clocks_are_given_up_after_three(governor, card):
    governor.apply((900, 1200), None, None)
    card.without_effect = True
    for _ in range(2):
        assert not governor.apply((900, 1200), 400, 400)["cap_in_force"]
    with pytest.raises(RefusedError, match="given up after 3 failures"):
        governor.apply((900, 1200), 400, 400)
    assert card.locked is None
    assert [call for call in card.writes if call[0] == "set_cap"] == [("set_cap", 400)] * 3
    card.without_effect = False
    report = governor.apply(None, 400, 400)  # the cap, without which there is no safety, is still tried
    assert (card.in_force, report["cap_in_force"], report["armed"]) == (400, True, False)
    assert codes(report) == {"ClockNotAchieved"}, "the cap is mended, and the clocks are still given up"


def test_three_failed_looks_reset_and_disarm_and_a_release_arms_again(governor, card, clock):
    card.lock_works = False
    governor.apply((900, 1200), None, None)
    verdicts = []
    for _ in range(3):
        clock.step(1.1)
        verdicts.append(codes(governor.read(writes=True)))
    assert verdicts == [set(), set(), {"ClockNotAchieved"}]
    assert card.writes[-1] == ("unlock",)
    with pytest.raises(RefusedError):
        governor.apply((900, 1200), None, None)
    governor.release()
    card.lock_works = True
    assert governor.apply((900, 1200), None, None)["armed"]


def test_a_lock_is_not_judged_within_a_second_of_its_write(governor, card, clock):
    card.lock_works = False
    governor.apply((900, 1200), None, None)
    for _ in range(5):
        governor.read(writes=True)
    clock.step(0.9)
    assert codes(governor.read(writes=True)) == set()


def test_one_good_look_forgives_earlier_ones(governor, card, clock):
    governor.apply((900, 1200), None, None)
    for sm_mhz in (1900, 1900, 1200, 1900, 1900):
        card.sm_mhz = sm_mhz
        clock.step(1.1)
        assert codes(governor.read(writes=True)) == set()


@pytest.mark.parametrize(("code", "fault"), [(4, "NoPermission"), (3, "NotSupported"), (15, "GpuLost")])
def test_a_setter_refused_for_good_makes_the_gpu_observed_only_until_a_new_agent(governor, card, code, fault):
    card.fail["lock"] = code
    with pytest.raises(RefusedError) as refused:
        governor.apply((900, 1200), None, None)
    assert refused.value.code == fault
    card.fail.clear()
    calls = len(card.writes)
    with pytest.raises(RefusedError):
        governor.apply((900, 1200), 400, 400)
    assert len(card.writes) == calls
    governor.rearm()
    governor.read(writes=True)  # a lost GPU must have answered
    governor.apply((900, 1200), 400, 400)


@pytest.mark.parametrize("code", [2, 10, 999])
def test_other_failures_are_tried_again(governor, card, code):
    card.fail["set_cap"] = code
    with pytest.raises(RefusedError) as refused:
        governor.apply(None, 400, 400)
    assert refused.value.code == "NvmlError"
    assert str(code) in str(refused.value)
    card.fail.clear()
    assert codes(governor.apply(None, 400, 400)) == set()


def test_a_card_that_cannot_be_read_is_a_report_with_a_fault(governor, card):
    card.fail["sample"] = 999
    report = governor.read(writes=True)
    assert (report["sample"], codes(report)) == (None, {"NvmlError"})
    card.fail.clear()
    assert codes(governor.read(writes=True)) == set()


def test_a_driver_reload_forgets_the_lock_and_puts_the_cap_back(governor, card):
    governor.apply((900, 1200), 400, 400)
    governor.read(writes=True)
    card.driver_reloaded()
    report = governor.read(writes=True)
    assert {"DriverReloaded", "CapAboveGrant"} <= codes(report)
    assert (report["reloads"], report["lock_mhz"], card.requested) == (1, None, 400)


def test_mig_is_refused_before_anything_is_written(make_card, record, clock, quiet_log):
    card = make_card(mig=True)
    governor = Governor(card, record, clock, quiet_log)
    with pytest.raises(RefusedError) as refused:
        governor.apply((900, 1200), 400, 400)
    assert refused.value.code == "MigEnabled"
    assert card.calls == []


def test_a_card_that_lists_no_clocks_is_observed_only(make_card, record, clock, quiet_log):
    governor = Governor(make_card(clocks=()), record, clock, quiet_log)
    with pytest.raises(RefusedError) as refused:
        governor.apply((900, 1200), None, None)
    assert refused.value.code == "NotSupported"


def test_a_job_that_was_given_up_writes_no_more(governor, card):
    ticket = Ticket()
    caps = card.caps
    card.caps = lambda: (setattr(ticket, "cancelled", True), caps())[1]
    with pytest.raises(RefusedError):
        governor.apply((900, 1200), 400, 400, ticket)
    assert card.writes == []
