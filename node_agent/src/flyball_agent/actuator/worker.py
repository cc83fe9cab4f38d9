"""NVML calls away from the loop that keeps the leases: one thread, replaced when a call does not return.

One thread for all GPUs, not one each: a batch of reads then costs one hand-over, and NVML serialises most calls
anyway. When a call hangs, its thread is given up, its GPU is set aside, and a new thread serves the others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

PATIENCE_SECONDS: Final = 2.0
_STACK_BYTES: Final = 256 * 1024


class HungError(Exception):
    """The job's GPU did not answer in time; the job is given up.

    Attributes:
        job: what was called.
        seconds: for how long.
    """

    def __init__(self, job: str, seconds: float) -> None:
        super().__init__(f"{job} has not returned for {seconds:.1f} s")
        self.job = job
        self.seconds = seconds


@dataclass(eq=False, slots=True)
class Job:
    """One piece of work on one GPU; also the ticket that says whether it is still wanted."""

    key: str
    name: str
    work: Callable[[Job], Any]
    done: Callable[[Any, Exception | None], None]
    started: float | None = None
    cancelled: bool = False
    result: Any = None
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class _Lane:
    """A thread and what it is doing."""

    current: Job | None = None
    retired: bool = False
    thread: threading.Thread | None = field(default=None, repr=False)


class Worker:
    """Runs jobs one after the other, in the order given; `done` is called from `poll`, in the caller's thread.

    Args:
        wake: makes the caller's loop call `poll` soon; called from the worker's thread.
        clock: monotonic seconds.
        patience_seconds: how long a job may take.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        clock: Callable[[], float],
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._ready = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._finished: deque[Job] = deque()
        self._hung: dict[str, Job] = {}
        self._lane = self._start()

    def submit(
        self, key: str, name: str, work: Callable[[Job], Any], done: Callable[[Any, Exception | None], None]
    ) -> None:
        """Queue a job; one for a GPU that hangs fails at once with `HungError`."""
        hung = self._hung.get(key)
        if hung is not None:
            done(None, HungError(hung.name, self._clock() - (hung.started or 0.0)))
            return
        with self._ready:
            self._waiting.append(Job(key, name, work, done))
            self._ready.notify()

    def idle(self) -> bool:
        """Whether nothing is queued, running (hung jobs aside) or waiting to be delivered."""
        with self._ready:
            return not self._waiting and not self._finished and self._lane.current is None

    def busy_until(self) -> float | None:
        """When the watchdog must look; None while nothing runs."""
        with self._ready:
            job = self._lane.current
        return None if job is None or job.started is None else job.started + self._patience_seconds

    def poll(self, recovered: Callable[[str], None]) -> None:
        """Deliver what is finished, and set a GPU aside whose call does not return.

        Args:
            recovered: called with the key of a GPU whose hung call has returned after all.
        """
        while True:
            with self._ready:
                job = self._finished.popleft() if self._finished else None
            if job is None:
                break
            if job.cancelled:
                del self._hung[job.key]
                recovered(job.key)
            else:
                job.done(job.result, job.error)
        now = self._clock()
        with self._ready:
            job = self._lane.current
            if job is None or job.started is None or now - job.started < self._patience_seconds:
                return
            job.cancelled = True
            self._lane.retired = True
            dropped = [job, *(waiting for waiting in self._waiting if waiting.key == job.key)]
            self._waiting = deque(waiting for waiting in self._waiting if waiting.key != job.key)
            self._hung[job.key] = job
        self._lane = self._start()
        for each in dropped:
            each.done(None, HungError(job.name, now - job.started))

    def _start(self) -> _Lane:
        lane = _Lane()
        threading.stack_size(_STACK_BYTES)
        lane.thread = threading.Thread(target=self._run, args=(lane,), name="nvml", daemon=True)
        lane.thread.start()
        return lane

    def _run(self, lane: _Lane) -> None:
        while True:
            with self._ready:
                while not self._waiting and not lane.retired:
                    self._ready.wait()
                if lane.retired:
                    return
                job = self._waiting.popleft()
                job.started = self._clock()
                lane.current = job
            try:
                job.result = job.work(job)
            except Exception as error:  # noqa: BLE001 - handed to the loop, which knows what it means
                job.error = error
            with self._ready:
                lane.current = None
                self._finished.append(job)
                last = not self._waiting
            if last or job.cancelled:
                self._wake()
