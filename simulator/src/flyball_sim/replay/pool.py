"""Run the simulated runs of a replay, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Generic, Literal, Protocol, TypeVar

Mode = Literal["Observe", "Enforce"]
MODES: tuple[Mode, Mode] = ("Observe", "Enforce")
POLL_SECONDS = 0.2

QuestionT = TypeVar("QuestionT")
QuestionT_contra = TypeVar("QuestionT_contra", contravariant=True)
AnswerT = TypeVar("AnswerT")
AnswerT_co = TypeVar("AnswerT_co", covariant=True)
Tell = Callable[[float], None]
"""Called with the share of a run that is done, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: which mode, and which draw of the parameters (None: nominal)."""

    mode: Mode
    draw: int | None


class Simulate(Protocol[QuestionT_contra, AnswerT_co]):
    """A function of a module (so that another process can find it) that does one run."""

    def __call__(self, question: QuestionT_contra, job: Job, tell: Tell) -> AnswerT_co:
        """Do the run and tell how far it is."""
        ...


class _StoppedError(Exception):
    """The replay was given up while this run was under way."""


def jobs_of(draws: int) -> tuple[Job, ...]:
    """Both modes at nominal parameters, then both at each draw."""
    return tuple(Job(mode, draw) for draw in (None, *range(draws)) for mode in MODES)


def run_all(
    simulate: Simulate[QuestionT, AnswerT],
    question: QuestionT,
    jobs: Sequence[Job],
    *,
    processes: int,
    on_progress: Callable[[Sequence[float]], None],
) -> list[AnswerT]:
    """The answers, in the order of the jobs, whatever the number of processes.

    `on_progress` gets the share done of each job. An error of any run ends the replay with that error.
    """
    if processes <= 1 or len(jobs) == 1:
        return _here(simulate, question, jobs, on_progress)
    return _Pool(simulate, question, jobs, on_progress).run(min(processes, len(jobs)))


def _here(
    simulate: Simulate[QuestionT, AnswerT],
    question: QuestionT,
    jobs: Sequence[Job],
    on_progress: Callable[[Sequence[float]], None],
) -> list[AnswerT]:
    shares = [0.0] * len(jobs)

    def tell_of(index: int) -> Tell:
        def tell(share: float) -> None:
            shares[index] = share
            on_progress(shares)

        return tell

    answers = []
    for index, job in enumerate(jobs):
        answers.append(simulate(question, job, tell_of(index)))
        tell_of(index)(1.0)
    return answers


class _Pool(Generic[QuestionT, AnswerT]):
    """The same in several processes: one byte of shared memory per job, and one that says stop."""

    def __init__(
        self,
        simulate: Simulate[QuestionT, AnswerT],
        question: QuestionT,
        jobs: Sequence[Job],
        on_progress: Callable[[Sequence[float]], None],
    ) -> None:
        self._simulate = simulate
        self._question = question
        self._jobs = jobs
        self._on_progress = on_progress

    def run(self, processes: int) -> list[AnswerT]:
        board = SharedMemory(create=True, size=len(self._jobs) + 1)
        cells = _cells(board)
        try:
            # spawn: a fork of a process with threads (numpy's, rich's) can hang.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare) as executor:
                try:
                    return self._collect(executor, board.name, cells)
                except BaseException:
                    cells[0] = 1
                    executor.shutdown(wait=True, cancel_futures=True)
                    raise
        finally:
            cells.release()
            board.close()
            board.unlink()

    def _collect(self, executor: ProcessPoolExecutor, board_name: str, cells: memoryview) -> list[AnswerT]:
        futures: list[Future[AnswerT]] = [
            executor.submit(_there, self._simulate, self._question, job, board_name, index)
            for index, job in enumerate(self._jobs, 1)
        ]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            self._on_progress([1.0 if future.done() else cells[index] / 255 for index, future in enumerate(futures, 1)])
        return [future.result() for future in futures]


def _prepare() -> None:
    """In a fresh process: leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _there(
    simulate: Simulate[QuestionT, AnswerT], question: QuestionT, job: Job, board_name: str, index: int
) -> AnswerT:
    board = SharedMemory(board_name)
    cells = _cells(board)
    try:

        def tell(share: float) -> None:
            if cells[0]:
                raise _StoppedError
            cells[index] = round(255 * min(1.0, max(0.0, share)))

        return simulate(question, job, tell)
    finally:
        cells.release()
        board.close()


def _cells(board: SharedMemory) -> memoryview:
    """The bytes of the board, as a view of our own that is released before the board is closed."""
    if board.buf is None:
        raise ValueError("the board is closed")
    return board.buf[:]
