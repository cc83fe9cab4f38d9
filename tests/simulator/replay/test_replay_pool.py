"""Runs of a replay in this process and in several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flyball_sim.replay.pool import Job, jobs_of, run_all

WORKER = textwrap.dedent(
    """
    import os
    import threading

    def report(question, job, tell):
        tell(0.5)
        return (question, job.mode, job.draw)

    def pid(question, job, tell):
        return os.getpid()

    def fails(question, job, tell):
        if job.draw == 0:
            raise ValueError(f"draw {job.draw} is no good")
        go_on(tell)

    def long(question, job, tell):
        os.write(2, b"running\\n")  # one write: lines of two processes do not mix
        go_on(tell)

    def go_on(tell):
        for _ in range(600):  # not for ever: whoever kills the test has nothing to clean up after a minute
            threading.Event().wait(0.1)
            tell(0.1)
        raise TimeoutError("nobody ended this run")
    """
)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """A module that other processes can import."""
    (tmp_path / "replay_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "replay_worker", raising=False)
    import replay_worker  # noqa: PLC0415

    return replay_worker


def test_both_modes_run_at_nominal_parameters_first_and_then_at_each_draw() -> None:
    assert jobs_of(1) == (Job("Observe", None), Job("Enforce", None), Job("Observe", 0), Job("Enforce", 0))


@pytest.mark.parametrize("processes", [1, 2])
def test_answers_come_in_the_order_of_the_jobs_with_progress_to_the_end(worker: object, processes: int) -> None:
    seen: list[list[float]] = []
    answers = run_all(
        worker.report, "q", jobs_of(1), processes=processes, on_progress=lambda shares: seen.append(list(shares))
    )
    assert answers == [("q", job.mode, job.draw) for job in jobs_of(1)]
    assert seen[-1] == [1.0] * 4


def test_several_processes_are_other_processes(worker: object) -> None:
    pids = run_all(worker.pid, None, jobs_of(1), processes=2, on_progress=lambda _: None)
    assert os.getpid() not in pids


def test_an_error_of_one_run_stops_the_others_and_is_the_replays(worker: object) -> None:
    jobs = [Job("Observe", None), Job("Observe", 0)]
    with pytest.raises(ValueError, match="draw 0 is no good"):
        run_all(worker.fails, None, jobs, processes=2, on_progress=lambda _: None)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("worker")
def test_runs_end_with_the_replay_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    script = textwrap.dedent(
        """
        import signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        from replay_worker import long
        from flyball_sim.replay.pool import jobs_of, run_all
        if __name__ == "__main__":
            run_all(long, None, jobs_of(0), processes=2, on_progress=lambda _: None)
        """
    )
    (tmp_path / "main.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, tmp_path / "main.py"], stderr=subprocess.PIPE, env=environment)
    with process:
        try:
            assert process.stderr is not None
            assert [process.stderr.readline() for _ in range(2)] == [b"running\n"] * 2
            process.send_signal(how)
            # Standard error ends when the last process that holds it is gone.
            process.communicate(timeout=60)
        finally:
            process.kill()
