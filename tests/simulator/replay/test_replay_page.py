"""The page, the table and the document of a replay."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from flyball_sim.replay import page, running, table
from flyball_sim.replay.answer import Answer
from flyball_sim.replay.question import Question
from flyball_sim.replay.result import Result, to_json

VOID = {"meta", "link", "br", "img", "input", "hr"}
MEBIBYTE = 2**20


@pytest.fixture
def result(question: Question, answer: Answer) -> Result:
    return running.document(question, answer, command="flyball-sim replay", seconds=1.0, processes=2)


@pytest.fixture
def html(question: Question, answer: Answer, result: Result) -> str:
    return page.render(question, answer, result)


class Reader(HTMLParser):
    """Elements, their attributes and ids, and whether every one is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_asks_for_nothing_outside_itself(html: str) -> None:
    reader = read(html)
    assert "http://" not in html
    assert "https://" not in html
    assert not [entry for entry in reader.attributes if entry[1] == "src"]
    assert all(value.startswith("#") for _, name, value in reader.attributes if name in {"href", "xlink:href"})
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_ids_on_the_page_are_unique_and_every_reference_finds_one(html: str) -> None:
    ids = [value for _, name, value in read(html).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_the_page_is_light_enough_to_mail_and_shows_every_panel(html: str) -> None:
    assert len(html.encode()) < 2 * MEBIBYTE
    panels = [value for tag, name, value in read(html).attributes if (tag, name) == ("svg", "data-panel")]
    assert panels == ["power", "clocks", "ttft", "tpot", "attainment", "ledger", "load"]


def test_colours_are_the_pages_own_so_that_it_can_be_dark(html: str) -> None:
    svgs = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--enforce)" in svgs
    assert not re.findall(r"(?:fill|stroke): ?#(?!ffffff)[0-9a-f]{6}", svgs)


def test_the_page_says_what_is_modelled_and_how_to_remake_it(html: str, result: Result) -> None:
    text = " ".join(" ".join(read(html).text).split())
    assert "Clock scaling between points is modelled, not measured, on H100 and H200" in text
    assert "No claim is made of absolute savings on hardware that nobody measured" in text
    assert result.digest in text
    assert result.made.command in text
    assert result.answer.headline in text


def test_names_in_a_policy_cannot_become_elements_of_the_page(question: Question, answer: Answer) -> None:
    hostile = replace(question, trace=replace(question.trace, name="</script><img src=x>"))
    made = running.document(hostile, answer, command="<b>", seconds=1.0, processes=1)
    reader = read(page.render(hostile, answer, made))
    assert not [entry for entry in reader.attributes if entry[0] == "img"]


def test_without_draws_the_page_says_that_there_is_no_band(question: Question, answer: Answer) -> None:
    alone = replace(answer, draws=())
    made = running.document(question, alone, command="", seconds=1.0, processes=1)
    assert made.answer.saving.low is None
    text = " ".join(" ".join(read(page.render(question, alone, made)).text).split())
    assert "no band: run with --draws" in text
    assert "How sure is the saving?" not in text


def test_the_document_is_json_without_nan_and_reads_back_as_itself(result: Result) -> None:
    text = to_json(result)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert Result.model_validate(json.loads(text, parse_constant=refuse)).digest == result.digest
    assert json.loads(text)["schema"] == "flyball.dev/replay/v1"


def test_the_band_of_the_document_contains_its_middle(result: Result) -> None:
    saving = result.answer.saving
    assert saving.low is not None
    assert saving.high is not None
    assert saving.nominal == pytest.approx(0.2)
    assert saving.low <= saving.nominal <= saving.high
    assert (saving.draws, result.answer.saves_in_draws) == (3, 3)
    assert [draw.saving for draw in result.answer.draws] == pytest.approx([0.15, 0.22, 0.25])


def test_the_digest_depends_on_what_was_asked_and_answered_and_not_on_how_it_was_made(
    question: Question, answer: Answer, result: Result
) -> None:
    def digest(asked: Question, answered: Answer, **made: Any) -> str:
        return running.document(asked, answered, **({"command": "x", "seconds": 9.0, "processes": 7} | made)).digest

    assert digest(question, answer) == result.digest
    assert digest(question, replace(answer, enforce=replace(answer.enforce, controller_seconds=5.0))) == result.digest
    assert digest(replace(question, seed=2), answer) != result.digest
    assert digest(question, replace(answer, draws=answer.draws[:2])) != result.digest


def test_every_series_of_the_document_has_one_value_per_sample(result: Result) -> None:
    series = result.answer.enforce.series
    binned = {name for name in series if name.startswith(("ttft", "tpot", "latency", "arrivals"))}
    assert {len(series[name]) for name in series.keys() - binned} == {len(series["seconds"])}
    assert {len(series[name]) for name in binned} == {len(series["latency_seconds"])}


def test_the_table_says_saving_slo_and_assumptions_in_eighty_columns(
    question: Question, answer: Answer, result: Result
) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(table.render(question, answer, result.answer))
    text = console.export_text()
    assert " ".join(text.split()).startswith("This policy saves 20 % of GPU energy (16 to 25 % over 3 parameter draws)")
    assert "and keeps the SLO: 100 % of requests hold it." in " ".join(text.split())
    assert "It saves in 3 of 3 draws and keeps the SLO in 3." in text
    assert "No --cluster was given" in text
    assert "modelled, not measured" in text
    assert all(len(line) <= 80 for line in text.splitlines())
