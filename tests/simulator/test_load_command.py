"""`flyball-sim load` as its user runs it, against a real engine process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def load(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flyball_sim.cli", "load", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160"},
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    command = ["engine", "--model", "llama-3.1-8b", "--gpu-type", "H100-SXM5", "--port", "0", "--max-model-len", "4000"]
    with subprocess.Popen(
        [sys.executable, "-m", "flyball_sim.cli", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://{json.loads(process.stdout.readline())['address']}"
        finally:
            process.terminate()


def test_a_run_writes_every_request_and_prints_the_table(engine, tmp_path):
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2023-11-16 18:15:{second:02}.5,200,5\n" for second in range(0, 40, 2))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    words = ["--speed", "10", "--duration", "3", "--ttft-ms", "5000", "--itl-ms", "1000", "--out", "result.json"]
    done = load("--endpoint", engine, "--trace", str(trace), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "15 of 15 requests answered" in done.stdout
    assert "requests that hold the SLO" in done.stdout
    assert "100.0%" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["summary"]["slo_attainment"] == 1
    assert result["summary"]["output_tokens"] == 75
    assert len(result["requests"]) == 15
    assert {request["endpoint"] for request in result["requests"]} == {engine}


def test_requests_that_fail_are_named_and_make_the_status_1(engine, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5,200,2\n2023-11-16 18:15:46.6,3999,50\n"
    )
    done = load("--endpoint", engine, "--trace", str(trace), "--duration", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of 2 requests answered" in done.stdout
    assert "1 x HTTP 400" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either --selector or --endpoint"),
        (("--endpoint", "http://a", "--selector", "app=chat"), "give either --selector or --endpoint"),
        (("--endpoint", "http://a", "--trace", "none.csv"), "none.csv: No such file"),
        (("--endpoint", "http://a", "--speed", "0"), "the speed is 0"),
        (("--endpoint", "http://a", "--out", "none/out.json"), "there is no such directory"),
    ],
)
def test_a_wrong_command_line_ends_with_a_sentence_and_status_2(words, message, tmp_path):
    done = load(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("flyball-sim load: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
