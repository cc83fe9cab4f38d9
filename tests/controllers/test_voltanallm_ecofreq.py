"""EcoFreq: which clock follows from what the engine tells."""

import json

import pytest

from flyball_agent.controllers.base import (
    UNLOCKED,
    Board,
    ControlLimits,
    GpuReading,
    Observation,
    RequestView,
    Setup,
    Targets,
)
from flyball_agent.controllers.voltanallm.controller import VoltanaLlm
from flyball_agent.profiles import Profile
from flyball_agent.scanner import EngineSample, Histogram
from flyball_api.controllers.voltanallm import VoltanaLlmController

CLOCKS = tuple(range(210, 1411, 15))
# Decode: 10 ms + 0.1 ms a sequence; prompts: 0.1 ms a token; both in proportion to 1410/f.
FIT = {
    "version": 1,
    "prefill": {
        "columns": ["freq", "coef_tokens", "coef_intercept", "r_2"],
        "rows": [[mhz, 0.1 * 1410 / mhz, 0.0, 1.0] for mhz in (1005, 1410)],
    },
    "decode": {
        "columns": ["freq", "bs_start", "bs_end", "coef_bs", "coef_tokens", "coef_intercept", "r_2"],
        "rows": [[mhz, 1, 1024, 0.1 * 1410 / mhz, 0.0, 10.0 * 1410 / mhz, 1.0] for mhz in (1005, 1410)],
    },
}
PROFILE = Profile(
    "p", "NVIDIA A100", "m", 1, "v", "2026-01-01", kv_blocks=1000, block_tokens=16, fits={"VoltanaLLM": FIT}
)
LIMITS = ControlLimits(210, 1410, targets=Targets(0.4, 0.04))
FAMILIES = {"requests_running": 0.0, "requests_waiting": 0.0, "kv_cache_usage": 0.0}


def made(profile=PROFILE, trouble="", **parameters):
    setup = Setup(clocks_mhz=CLOCKS, profile=profile, profile_trouble=trouble)
    return VoltanaLlm(VoltanaLlmController(**parameters), setup)


def decoding(count, tokens=100):
    return [RequestView(f"r{i}", 9.0, tokens, 5, True, None, 8.0, tokens) for i in range(count)]


def prefilling(*prompts, age=0.0, scheduled=0.0):
    return [RequestView(f"p{i}", age, prompt, 0, True, None, scheduled) for i, prompt in enumerate(prompts)]


def waiting(age, prompt=100):
    return [RequestView("w", age, prompt, 0, False)]


def seen(role, requests=(), *, iteration=0, page=None, mhz=1410):
    board = Board(iteration, tuple(requests), 16, 1000, 1024, 1024)
    return Observation(role, (GpuReading(sm_mhz=mhz),), page, 0.0 if page else None, (), board, "iteration")


def paged(role="decode", *, age=0.0, histograms=None, **values):
    page = EngineSample({**FAMILIES, **values}, histograms or {})
    return Observation(role, (GpuReading(sm_mhz=1410),), page, age)


def clock(decision):
    assert decision.setpoint.sm_mhz is not None, decision.degraded
    low, high = decision.setpoint.sm_mhz
    assert low == high
    return low


def test_the_papers_two_clocks_are_found_on_an_a100_and_their_shares_elsewhere():
    assert clock(made().decide(seen("decode"), LIMITS, 0.0)) == 1005
    setup = Setup(clocks_mhz=tuple(range(345, 1981, 15)), profile=PROFILE)
    other = VoltanaLlm(VoltanaLlmController(), setup)
    assert clock(other.decide(seen("decode"), ControlLimits(345, 1980, targets=LIMITS.targets), 0.0)) == 1410


@pytest.mark.parametrize(("running", "mhz"), [(100, 1005), (284, 1005), (285, 1410), (600, 1410)])
def test_decode_takes_the_least_clock_that_holds_the_objective_and_35_percent(running, mhz):
    # 1005 MHz holds 54 ms up to 10 + 0.1 n = 38.49 ms.
    decision = made().decide(seen("decode", decoding(running)), LIMITS, 0.0)
    assert clock(decision) == mhz
    assert f"{mhz} MHz: decode: {running} sequences" in decision.because


def test_a_margin_of_0_takes_the_objective_at_its_word():
    assert clock(made(margin_percent=0).decide(seen("decode", decoding(186)), LIMITS, 0.0)) == 1410
    assert clock(made(margin_percent=0).decide(seen("decode", decoding(180)), LIMITS, 0.0)) == 1005


def test_prefill_counts_what_its_prompts_have_waited_already():
    # 540 ms for 0.1 ms a token: at 1005 MHz 3,848 tokens.
    assert clock(made().decide(seen("prefill", prefilling(1800, 2000)), LIMITS, 0.0)) == 1005
    assert clock(made().decide(seen("prefill", prefilling(2000, 2000)), LIMITS, 0.0)) == 1410
    late = prefilling(1800, 2000, age=0.1, scheduled=0.01)
    assert clock(made().decide(seen("prefill", late), LIMITS, 0.0)) == 1410


def test_cached_tokens_are_no_work():
    cached = [RequestView("p", 0.0, 8000, 0, True, None, 0.0, 7000)]
    assert clock(made().decide(seen("prefill", cached), LIMITS, 0.0)) == 1005


@pytest.mark.parametrize("role", ["prefill", "decode", "unified"])
def test_a_request_that_a_step_left_in_the_queue_asks_for_the_highest_clock(role):
    controller = made()
    controller.decide(seen(role, [*decoding(3), *waiting(0.005)], iteration=1), LIMITS, 10.0)
    decision = controller.decide(seen(role, [*decoding(3), *waiting(0.015)], iteration=2), LIMITS, 10.01)
    assert clock(decision) == 1410
    assert "1 left in the queue" in decision.because


def test_a_request_that_came_while_a_step_ran_is_not_left_out_of_anything():
    controller = made()
    controller.decide(seen("decode", decoding(3), iteration=1), LIMITS, 10.0)
    same_step = controller.decide(seen("decode", [*decoding(3), *waiting(0.008)], iteration=1), LIMITS, 10.01)
    assert clock(same_step) == 1005
    admitted = controller.decide(seen("decode", decoding(4), iteration=2), LIMITS, 10.02)
    assert clock(admitted) == 1005


def test_between_messages_the_clock_stays_and_after_5_s_of_none_it_is_the_lowest():
    controller = made()
    controller.decide(seen("decode", decoding(600), iteration=1), LIMITS, 0.0)
    assert clock(controller.decide(seen("decode", (), iteration=2), LIMITS, 4.9)) == 1410
    assert clock(controller.decide(seen("decode", (), iteration=2), LIMITS, 5.1)) == 1005


def test_it_wants_to_be_asked_when_idleness_begins_to_count():
    controller = made()
    controller.decide(seen("decode", decoding(600), iteration=1), LIMITS, 0.0)
    decision = controller.decide(seen("decode", (), iteration=2), LIMITS, 2.0)
    assert decision.next_wake_seconds == pytest.approx(3.0)


def test_a_window_decides_on_medians_at_its_end():
    controller = made(window_milliseconds=5000)
    controller.decide(seen("decode", decoding(10), iteration=1), LIMITS, 0.0)
    for step, count in enumerate((400, 500, 600), start=2):
        assert clock(controller.decide(seen("decode", decoding(count), iteration=step), LIMITS, float(step))) == 1005
    decision = controller.decide(seen("decode", (), iteration=9), LIMITS, 5.0)
    assert clock(decision) == 1410
    assert "500 sequences" in decision.because


def test_a_burst_of_prompts_asks_for_the_highest_clock_in_prefill_only():
    for role, mhz in (("prefill", 1410), ("decode", 1005)):
        controller = made(prompt_tokens_per_second=1000, burst_milliseconds=1000)
        controller.decide(seen(role), LIMITS, 0.0)
        decision = controller.decide(seen(role, prefilling(600, 600)), LIMITS, 0.01)
        assert clock(decision) == mhz


def test_a_policys_limits_narrow_the_clocks():
    narrow = ControlLimits(1095, 1200, targets=LIMITS.targets)
    assert clock(made().decide(seen("decode", decoding(100)), narrow, 0.0)) == 1095
    assert clock(made().decide(seen("decode", decoding(900)), narrow, 0.0)) == 1200


def test_one_objective_gives_the_other_as_the_authors_router_does():
    only_ttft = ControlLimits(210, 1410, targets=Targets(ttft_seconds=0.4))
    assert clock(made().decide(seen("decode", decoding(284)), only_ttft, 0.0)) == 1005
    only_tpot = ControlLimits(210, 1410, targets=Targets(tpot_seconds=0.04))
    assert clock(made().decide(seen("prefill", prefilling(4000)), only_tpot, 0.0)) == 1410


def test_a_unified_engine_spreads_its_prompts_over_all_steps_and_says_that_this_is_ours():
    alone = made().decide(seen("unified", decoding(200)), LIMITS, 0.0)
    assert clock(alone) == 1005
    assert alone.because.endswith("(our adaptation)")
    controller = made(burst_milliseconds=1000)
    controller.decide(seen("unified", decoding(200)), LIMITS, 9.99)
    controller.decide(seen("unified", [*decoding(200), *waiting(0.0, prompt=4000)], iteration=1), LIMITS, 10.0)
    # 4,000 tokens a second take 0.56 of the time at 1005 MHz: 42 ms become 96 ms.
    decision = controller.decide(seen("unified", decoding(200), iteration=2), LIMITS, 10.01)
    assert clock(decision) == 1410


@pytest.mark.parametrize(
    ("profile", "trouble", "sentence"),
    [
        (None, "", "there is no profile of this engine"),
        (None, "profile 'p' was made on another card", "profile 'p' was made on another card"),
        (Profile("p", "x", "m", 1, "v", "d"), "", "profile 'p' has no fit for VoltanaLLM"),
        (Profile("p", "x", "m", 1, "v", "d", fits={"VoltanaLLM": {}}), "", "version of the fit is None"),
    ],
)
def test_without_tables_the_clocks_are_unlocked_and_the_reason_is_given(profile, trouble, sentence):
    decision = made(profile, trouble).decide(seen("decode", decoding(5)), LIMITS, 0.0)
    assert decision.setpoint == UNLOCKED
    assert sentence in decision.degraded[0]


@pytest.mark.parametrize(
    ("observation", "sentence"),
    [
        (Observation("decode", ()), "no page yet"),
        (Observation("decode", (), EngineSample({"requests_running": 1.0}), 0.0), "kv_cache_usage, requests_waiting"),
        (paged(age=9.0), "9.0 s old"),
    ],
)
def test_an_engine_that_is_not_seen_is_left_unlocked(observation, sentence):
    decision = made().decide(observation, LIMITS, 0.0)
    assert decision.setpoint == UNLOCKED
    assert sentence in decision.degraded[0]


def test_without_an_objective_it_does_not_control():
    decision = made().decide(seen("decode"), ControlLimits(210, 1410), 0.0)
    assert decision.setpoint == UNLOCKED
    assert "neither a time to first token nor" in decision.degraded[0]


@pytest.mark.parametrize(
    ("values", "mhz"),
    [
        ({"requests_running": 100.0, "kv_cache_usage": 0.5}, 1005),
        ({"requests_running": 600.0, "kv_cache_usage": 0.5}, 1410),
        ({"requests_running": 3.0, "requests_waiting": 1.0, "kv_cache_usage": 0.1}, 1410),
    ],
)
def test_without_a_board_the_page_stands_for_it(values, mhz):
    decision = made().decide(paged(**values), LIMITS, 0.0)
    assert clock(decision) == mhz
    assert decision.next_wake_seconds == pytest.approx(0.1)


def test_in_prefill_the_cache_in_use_stands_for_the_prompts():
    assert clock(made().decide(paged("prefill", requests_running=1.0, kv_cache_usage=0.2), LIMITS, 0.0)) == 1005
    assert clock(made().decide(paged("prefill", requests_running=1.0, kv_cache_usage=0.5), LIMITS, 0.0)) == 1410


def itl(count, total):
    return EngineSample(FAMILIES, {"inter_token_latency": Histogram((float("inf"),), (float(count),), total)})


def corrected(controller, ratio, *, restart=False, seconds=40):
    """Serve 200 sequences whose steps take `ratio` times what is predicted."""
    count, decision = 0.0, None
    for second in range(seconds):
        count = 0.0 if restart and second % 3 == 0 else count + 1000.0
        page = itl(count, 0.030 * ratio * count)
        decision = controller.decide(seen("decode", decoding(200), iteration=second, page=page), LIMITS, float(second))
    return decision


def test_times_between_tokens_are_corrected_by_what_is_measured():
    assert clock(corrected(made(), 1.0)) == 1005
    assert clock(corrected(made(), 1.5)) == 1410
    assert clock(corrected(made(correction_percent=0), 1.5)) == 1005


def test_a_restarted_engines_counters_teach_nothing_wrong():
    controller = made()
    corrected(controller, 1.0, restart=True)
    assert controller.state()["correction"] == pytest.approx(1.0)


def test_what_was_learnt_survives_a_restart_of_the_agent_as_json():
    controller, again = made(), made()
    corrected(controller, 1.5)
    again.restore(json.loads(json.dumps(controller.state())))
    assert again.state() == controller.state() != made().state()


@pytest.mark.parametrize(
    "state",
    [{}, {"version": 2, "correction": 1.0}, {"version": 1, "correction": 9.0}, {"version": 1, "correction": "1"}],
)
def test_a_state_it_cannot_read_is_refused_and_leaves_it_fresh(state):
    controller = made()
    corrected(controller, 1.5)
    with pytest.raises(ValueError, match="it starts afresh"):
        controller.restore(state)
    assert controller.state() == made().state()


def test_the_same_looks_give_the_same_decisions():
    def run():
        controller = made()
        return [
            controller.decide(seen("unified", decoding(n * 7 % 300), iteration=n), LIMITS, n * 0.01) for n in range(50)
        ]

    assert run() == run()
