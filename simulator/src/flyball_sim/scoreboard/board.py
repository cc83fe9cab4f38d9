"""All cells, in as many processes as asked: capacities first, then each cell as soon as its capacity is known."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context
from typing import Any, Protocol

from flyball_sim.controlplane.keeper import die_with_parent
from flyball_sim.scoreboard.catalog import HEADLINE, ROWS
from flyball_sim.scoreboard.cells import WORLDS, Case, Cell
from flyball_sim.scoreboard.contest import Contest, Options, capacity
from flyball_sim.scoreboard.pool import Pool, pool_capacity
from flyball_sim.scoreboard.records import Kept, Record, kept_of, record_of
from flyball_sim.scoreboard.store import Store


class Watcher(Protocol):
    """Is told how far the scoreboard is."""

    def planned(self, cells: int) -> None:
        """How many cells there are."""

    def finished(self, cell: Cell, rows: Sequence[Record]) -> None:
        """A cell is done."""


class Nobody:
    """Watches nothing."""

    def planned(self, cells: int) -> None:
        """See `Watcher.planned`."""

    def finished(self, cell: Cell, rows: Sequence[Record]) -> None:
        """See `Watcher.finished`."""


def find_capacity(case: Case, options: Options) -> float | None:
    """The capacity of a case, as a multiplier; None where it has none."""
    find = pool_capacity if WORLDS[case.world].split else capacity
    return find(case, options).multiplier


def play(cell: Cell, multiplier: float, options: Options, names: Sequence[str]) -> dict[str, Kept]:
    """Some rows of one cell."""
    ground = (Pool if WORLDS[cell.case.world].split else Contest)(cell, multiplier, options)
    return {name: kept_of(ground, ROWS[name].make(ground)) for name in names}


class _Inline(Executor):
    """Runs each call when it is waited for: one process, for tests and debuggers."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.append((future, partial(fn, *args, **kwargs)))
        return future

    def run_next(self) -> Future[Any]:
        """Run the call that has waited longest."""
        future, call = self._calls.popleft()
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
        return future


def run_board(
    cells: Sequence[Cell],
    options: Options,
    store: Store,
    *,
    jobs: int,
    rows: Sequence[str] = HEADLINE,
    watcher: Watcher | None = None,
) -> Iterator[Record]:
    """Every row of every cell, each cell as it is done; what the store has is not done again.

    Args:
        cells: which.
        options: of all of them.
        store: what is done, and where what gets done is kept.
        jobs: processes; 1 runs here.
        rows: names of `ROWS`.
        watcher: told how far it is.
    """
    watching = watcher or Nobody()
    watching.planned(len(cells))
    work = _Work(options, store, jobs=jobs, rows=rows)
    try:
        for cell, records in work.through(cells):
            watching.finished(cell, records)
            yield from records
    finally:
        work.stop()


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, however it went: its results have no reader."""
    arm = die_with_parent(parent)
    if arm is not None:
        arm()


class _Work:
    """Capacities and rows under way."""

    def __init__(self, options: Options, store: Store, *, jobs: int, rows: Sequence[str]) -> None:
        self._options, self._store, self._rows = options, store, tuple(rows)
        # Every row is shown over unlocked clocks.
        self._needed = tuple(dict.fromkeys(("unlocked", *rows)))
        self._executor: Executor = _Inline()
        if jobs > 1:
            self._executor = ProcessPoolExecutor(jobs, get_context("spawn"), _end_with, (os.getpid(),))
        self._waiting: dict[Future[Any], Case | tuple[Cell, tuple[str, ...]]] = {}
        self._by_case: dict[Case, list[Cell]] = {}
        self._done: dict[Cell, dict[str, Kept]] = {}

    def through(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Record]]]:
        """Each cell with its rows, as it is done; no rows where a case has no capacity."""
        for cell in cells:
            self._by_case.setdefault(cell.case, []).append(cell)
        for case in self._by_case:
            known = self._store.get(_capacity_key(case), self._digest("unlocked", case))
            if known is None:
                self._waiting[self._executor.submit(find_capacity, case, self._options)] = case
            else:
                yield from self._start(case, known["multiplier"])
        while self._waiting:
            for future in sorted(self._next_done(), key=lambda each: str(self._waiting[each])):
                what, result = self._waiting.pop(future), future.result()
                if isinstance(what, Case):
                    self._store.put(_capacity_key(what), self._digest("unlocked", what), {"multiplier": result})
                    yield from self._start(what, result)
                    continue
                cell, names = what
                for name in names:
                    self._store.put(_row_key(cell, name), self._digest(name, cell.case), result[name])
                self._done[cell].update(result)
                yield from self._finished(cell)

    def stop(self) -> None:
        """Leave what has not begun, wait for what has."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _next_done(self) -> Iterable[Future[Any]]:
        if isinstance(self._executor, _Inline):
            return [self._executor.run_next()]
        return wait(self._waiting, return_when=FIRST_COMPLETED).done

    def _digest(self, name: str, case: Case) -> str:
        return ROWS[name].digest(case, self._options)

    def _start(self, case: Case, multiplier: float | None) -> Iterator[tuple[Cell, list[Record]]]:
        for cell in self._by_case[case]:
            if multiplier is None:
                yield cell, []
                continue
            self._done[cell] = done = {}
            missing = []
            for name in self._names(cell, self._needed):
                known = self._store.get(_row_key(cell, name), self._digest(name, case))
                if known is None:
                    missing.append(name)
                else:
                    done[name] = known
            # Rows that share runs are made together, each of the others by itself.
            together = tuple(name for name in missing if not ROWS[name].alone)
            alone = [(name,) for name in missing if ROWS[name].alone]
            for names in (together, *alone) if together else alone:
                self._waiting[self._executor.submit(play, cell, multiplier, self._options, names)] = cell, names
            yield from self._finished(cell)

    def _names(self, cell: Cell, names: Iterable[str]) -> list[str]:
        return [name for name in names if ROWS[name].plays(cell.case.world)]

    def _finished(self, cell: Cell) -> Iterator[tuple[Cell, list[Record]]]:
        done = self._done[cell]
        if any(name not in done for name in self._names(cell, self._needed)):
            return
        seed = self._options.seed
        yield (
            cell,
            [
                record_of(cell, name, done[name], unlocked=done["unlocked"], bound=done.get("bound"), seed=seed)
                for name in self._names(cell, self._rows)
            ],
        )


def _capacity_key(case: Case) -> dict[str, Any]:
    return {"what": "capacity", "world": case.world, "trace": case.trace, "slo": case.slo}


def _row_key(cell: Cell, name: str) -> dict[str, Any]:
    return {"what": "row", **cell.key, "controller": name}
