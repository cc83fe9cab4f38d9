"""`flyball-sim replay` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flyball_sim.cli import main
from flyball_sim.replay.cli import command, configure

POLICY = """\
apiVersion: flyball.dev/v1alpha1
kind: EnergyPolicy
metadata: {name: chat}
spec:
  selector: {namespaces: [serving], matchLabels: {app: chat}}
  slo:
    timeToFirstToken: {thresholdMilliseconds: 1000}
    interTokenLatency: {thresholdMilliseconds: 50}
  controller:
    type: Fixed
    fixed: {clocks: [{role: unified, minMegahertz: 1305, maxMegahertz: 1305}]}
  limits: {capWatts: {min: 300}}
  powerBudget: {watts: 650}
"""
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{second:02d}.0000000,{200 + 10 * second},{20 + second}\n" for second in range(0, 30, 2)
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with policy.yaml and trace.csv, in which the command is typed."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "trace.csv").write_text(TRACE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replay(*more: str) -> int:
    return main(["replay", "--policy", "policy.yaml", "--trace", "trace.csv", *more])


def refusal(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert replay(*more) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.removeprefix("flyball-sim replay: ").rstrip("\n")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--draws", "-1"], "--draws -1: give 0 or more"),
        (["--jobs", "0"], "--jobs 0: give 1 or more"),
        (["--seconds", "0"], "--seconds 0: give a number above 0"),
        (["--start", "-5"], "--start -5: give 0 or more"),
        (["--slo", "ttft"], "--slo ttft: 'ttft' is not understood: write ttft=1s,tpot=50ms"),
        (["--data", "nowhere"], "--data nowhere: there is no such directory: give the one that holds traces/"),
        (
            ["--router", "least-request"],
            (
                "router 'least-request' is unknown: did you mean 'least-requests'? "
                "There are round-robin, least-requests, weighted, ecoroute, ecoroute-tile"
            ),
        ),
        (
            ["--requests"],
            "--requests writes into the directory of --out: give --out DIR too",
        ),
        (
            ["--start", "100"],
            (
                "no request arrives from 100.0 s to inf s of the trace, the last before that at 28.0 s: "
                "start earlier or take more"
            ),
        ),
        (["--cluster", "cluster.yaml"], "cluster.yaml: No such file or directory: give a file with nodes and engines"),
        (
            ["--cluster", "cluster.yaml", "--gpu", "H200-SXM"],
            "--gpu is for the assumed cluster: say it in cluster.yaml, or leave --cluster out",
        ),
        (
            ["--fault", "agent-gone:node=node"],
            "fault 'agent-gone:node=node': at is missing: write agent-gone:node=node-0,at=60,for=30",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_the_mend(
    capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert refusal(capsys, *more) == sentence


def test_a_policy_that_the_api_server_would_refuse_is_refused_in_its_words(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "policy.yaml").write_text(POLICY.replace("watts: 650", "watts: 650, reserveWatts: 700"))
    assert refusal(capsys) == (
        'policy.yaml: the API server would refuse EnergyPolicy "chat":\n'
        "  spec.powerBudget: Invalid value: the reserve of 700 W is not below the budget of 650 W: "
        "give a smaller reserveWatts or more watts"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "2023-11-16 18:15:40.0,-1,5",
            "trace.csv, line 17: ContextTokens is '-1': a request has at least 1, drop the line",
        ),
        (
            "2023-11-16 18:15:40.0,five,5",
            "trace.csv, line 17: ContextTokens is 'five': write a whole number of tokens",
        ),
        (
            "2023-11-16 18:15:40.0,5",
            "trace.csv, line 17: 2 values, not 3: write TIMESTAMP,ContextTokens,GeneratedTokens",
        ),
        (
            "2023-11-16 18:15:01.0,5,5",
            "trace.csv, line 17: TIMESTAMP 2023-11-16 18:15:01.0 is before the line above: sort the file by time",
        ),
    ],
)
def test_a_trace_is_refused_with_its_line_and_the_mend(
    files: Path, capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    (files / "trace.csv").write_text(f"{TRACE}{line}\n")
    assert refusal(capsys) == sentence


def test_an_empty_trace_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "trace.csv").write_text(TRACE.splitlines()[0] + "\n")
    assert refusal(capsys) == "trace.csv has no requests: add lines below the header"


def test_a_cluster_without_gpus_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "cluster.yaml").write_text("nodes: []\nengines: [{name: chat, model: llama-3.1-8b}]\n")
    assert refusal(capsys, "--cluster", "cluster.yaml") == (
        "cluster.yaml: nodes: the cluster has no GPUs: add a node with a GPU type and a number of GPUs"
    )


def test_a_request_that_no_engine_has_room_for_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "trace.csv").write_text(f"{TRACE}2023-11-16 18:15:40.0,9000000,5\n")
    assert "request 16 of the trace (at 40.000 s, 9000000 prompt and 5 output tokens) needs" in refusal(capsys)


def test_a_directory_that_cannot_be_written_to_is_refused_before_anything_runs(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "out").write_text("a file")
    assert refusal(capsys, "--out", "out") == "--out out: File exists: give a directory that can be written to"


def test_the_answer_is_a_page_and_a_document_that_agree_with_the_printed_one(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay("--draws", "1", "--jobs", "1", "--out", "out", "--requests", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert json.loads((files / "out" / "result.json").read_text()) == document
    assert document["digest"] in (files / "out" / "report.html").read_text()
    assert sorted(path.name for path in (files / "out").iterdir()) == ["report.html", "requests.csv", "result.json"]
    observe, enforce = document["answer"]["observe"], document["answer"]["enforce"]
    assert observe["finished"] == enforce["finished"] == 15
    assert enforce["budget_breaches"] == 0
    assert enforce["energy_joules"] < observe["energy_joules"]
    assert enforce["mean_sm_mhz"] <= 1305 < observe["mean_sm_mhz"]
    assert len((files / "out" / "requests.csv").read_text().splitlines()) == 16
    assert document["made"]["command"] == (
        "flyball-sim replay --policy policy.yaml --trace trace.csv --router least-requests --seed 1 --draws 1 --out out"
    )


@pytest.mark.usefixtures("files")
def test_the_same_question_has_the_same_digest_in_however_many_processes(capsys: pytest.CaptureFixture[str]) -> None:
    def digest(*more: str) -> str:
        assert replay("--draws", "1", "--json", *more) == 0
        found: str = json.loads(capsys.readouterr().out)["digest"]
        return found

    first = digest("--jobs", "1")
    assert digest("--jobs", "2") == first
    assert digest("--jobs", "1", "--seed", "2") != first


@pytest.mark.usefixtures("files")
def test_the_table_names_the_cluster_that_was_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay("--draws", "0", "--jobs", "1") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "No --cluster was given, so one was sized for this trace: 1 engine of llama-3.1-8b (bf16) on 1 x" in text
    assert "--out DIR adds a page" in text


def test_a_full_disk_at_the_end_is_said_and_leaves_no_half_file(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def on_a_full_disk(path: Path, *args: str, **kwargs: str) -> object:
        return real(Path("/dev/full") if path.name.startswith(".report.html") else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", on_a_full_disk)
    assert replay("--draws", "0", "--jobs", "1", "--out", "out") == 1
    monkeypatch.undo()
    assert "out/report.html: No space left on device: it was not written" in capsys.readouterr().err
    assert list((files / "out").iterdir()) == []


def test_the_command_on_the_page_asks_the_same_again() -> None:
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser()
    configure(parser)
    line = [
        "--policy",
        "my policy.yaml",
        "--trace",
        "poisson:rate=3",
        "--quick",
        "--speed",
        "2.5",
        "--fault",
        "a",
        "--fault",
        "b",
    ]
    again = command(parser.parse_args(line))
    assert again == (
        "flyball-sim replay --policy 'my policy.yaml' --trace poisson:rate=3 --speed 2.5 --quick "
        "--router least-requests --fault a --fault b --seed 1"
    )
