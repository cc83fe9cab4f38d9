"""What a replay comes to, in sentences and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from flyball_sim.replay import verdict, wording
from flyball_sim.replay.answer import Answer, run_measures
from flyball_sim.replay.bands import Band, Pair
from flyball_sim.replay.question import Question
from flyball_sim.replay.record import Breach, Record, Statement


def pair(question: Question, observe: Record, enforce: Record) -> Pair:
    return Pair(None, run_measures(observe, question), run_measures(enforce, question))


@pytest.mark.parametrize(
    ("band", "sentence"),
    [
        (Band(0.23, 0.19, 0.26, 20), "This policy saves 23 % of GPU energy (19 to 26 % over 20 parameter draws)"),
        (Band(0.052, 0.049, 0.07, 1), "This policy saves 5.2 % of GPU energy (4.9 to 7 % over 1 parameter draw)"),
        (Band(0.23, None, None, 0), "This policy saves 23 % of GPU energy"),
        (
            Band(-0.12, -0.15, -0.1, 20),
            "This policy costs 12 % more GPU energy (10 to 15 % over 20 parameter draws)",
        ),
        (
            Band(0.02, -0.01, 0.04, 20),
            "This policy may save GPU energy or cost more: \N{MINUS SIGN}1 to 4 % over 20 parameter draws",
        ),
        (Band(0.001, -0.002, 0.003, 20), "This policy changes GPU energy by less than half a percent"),
    ],
)
def test_the_headline_says_how_much_and_how_sure(band: Band, sentence: str, answer: Answer) -> None:
    assert verdict.headline(band, answer.nominal) == f"{sentence} and keeps the SLO: 100 % of requests hold it."


def test_a_saving_that_breaks_the_slo_says_so(question: Question, make_record: Callable[..., Record]) -> None:
    slow = pair(question, make_record("Observe"), make_record("Enforce", watts=400.0, slowness=2.9))
    headline = verdict.headline(Band(0.2, None, None, 0), slow)
    assert headline.startswith("This policy saves 20 % of GPU energy but breaks the SLO: ")
    assert headline.endswith(" % of requests hold it, 100 % today.")


def test_a_cluster_that_misses_the_slo_without_the_policy_too_is_called_too_small(
    question: Question, make_record: Callable[..., Record]
) -> None:
    observe, enforce = make_record("Observe", slowness=3.0), make_record("Enforce", slowness=3.1)
    both = pair(question, observe, enforce)
    assert "the SLO is missed with and without it" in verdict.headline(Band(0.2, None, None, 0), both)
    assert "the cluster is too small for this trace" in verdict.notes(question, observe, enforce, both)[0]


def test_a_breach_of_a_budget_is_the_first_note(question: Question, answer: Answer) -> None:
    broken = replace(answer.enforce, breaches=(Breach("chat", 12.0, 1.5, 30.0),))
    assert verdict.notes(question, answer.observe, broken, answer.nominal)[0] == (
        "Budget breach at 12 s: the caps of 'chat' added up to 30 W more than its budget for 1.5 s. "
        "This must not happen."
    )


def test_what_was_wrong_to_the_end_is_told_in_the_operators_words(question: Question, answer: Answer) -> None:
    said = (
        Statement(10.0, "chat", "Degraded", "True", "NodeUnreachable", "no sign of life"),
        Statement(20.0, "chat", "Degraded", "False", "AsExpected", "nothing is wrong"),
        Statement(30.0, "chat", "Ready", "False", "InFlight", "1 of 2 GPUs not yet read back"),
    )
    notes = verdict.notes(question, answer.observe, replace(answer.enforce, statements=said), answer.nominal)
    assert notes[0] == "chat: Ready is False from 30 s to the end: 1 of 2 GPUs not yet read back"
    assert not any("no sign of life" in note for note in notes)


def test_time_in_which_the_status_would_say_that_the_slo_is_missed_is_told(question: Question, answer: Answer) -> None:
    said = tuple(
        Statement(second, "chat", "SLOMet", status, "", "")
        for second, status in ((0.0, "Unknown"), (20.0, "False"), (50.0, "True"), (250.0, "False"))
    )
    enforce = replace(answer.enforce, statements=said)
    assert verdict.slo_missed_seconds(enforce) == pytest.approx(40.0)
    assert any(
        "SLOMet=False for 40 s (0 s today)" in n
        for n in verdict.notes(question, answer.observe, enforce, answer.nominal)
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (wording.percent(1.0), "100 %"),
        (wording.percent(0.99999), "99.99 %"),
        (wording.percent(0.9899), "98.9 %"),
        (wording.percent(0.985), "98.5 %"),
        (wording.percent(0.0), "0 %"),
        (wording.joules(3_410_000.0), "3.41 MJ"),
        (wording.joules(999.0), "999 J"),
        (wording.latency(0.00838), "8.38 ms"),
        (wording.latency(12.34), "12.3 s"),
        (wording.latency(math.nan), "\N{EN DASH}"),
        (wording.seconds(45), "45 s"),
        (wording.seconds(750), "12 min 30 s"),
        (wording.seconds(11_100), "3 h 5 min"),
        (wording.change(4.0, 3.0), "\N{MINUS SIGN}25.0 %"),
        (wording.change(0.0, 3.0), "\N{EN DASH}"),
        (wording.signed(0.0, "s", 0), "±0 s"),
        (wording.digits(19_366.0), "19,400"),
        (wording.digits(0.012345), "0.0123"),
        (wording.count(1, "GPU"), "1 GPU"),
        (wording.count(1200, "GPU"), "1,200 GPUs"),
    ],
)
def test_numbers_are_shown_with_the_digits_and_the_unit_a_reader_wants(text: str, shown: str) -> None:
    assert text == shown
