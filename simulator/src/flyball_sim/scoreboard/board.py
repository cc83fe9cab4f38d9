"""All cells, in as many processes as asked: capacities first, then each cell as soon as its capacity is known."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import flyball_sim
from flyball_sim.controlplane.keeper import die_with_parent
from flyball_sim.scoreboard.cells import Case, Cell
from flyball_sim.scoreboard.contest import BLOCKS, ROWS, Contest, Options, Row, capacity
from flyball_sim.scoreboard.intervals import ratio_interval, share_interval
from flyball_sim.scoreboard.slo import ATTAINMENT
from flyball_sim.scoreboard.store import Store, code_digest

Record = dict[str, Any]
"""One row of one cell, as `--json` prints it."""


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


def digest_of(options: Options) -> str:
    """A digest of the code, of what it leans on, and of the options that change results."""
    package = Path(flyball_sim.__file__).parent
    parts = {key: str(value) for key, value in asdict(options).items() if key != "data"}
    parts |= {name: version(name) for name in ("numpy", "scipy")}
    if options.data is not None:
        found = options.data / "traces" / "azure2023_conv.csv"
        parts["data"] = hashlib.sha256(found.read_bytes()).hexdigest() if found.is_file() else ""
    text = json.dumps({**parts, "code": code_digest(package)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_capacity(case: Case, options: Options) -> float | None:
    """The capacity of a case, as a multiplier; None where it has none."""
    return capacity(case, options).multiplier


def play(cell: Cell, multiplier: float, options: Options, names: Sequence[str]) -> list[Record]:
    """All rows of one cell."""
    contest = Contest(cell, multiplier, options)
    rows = {name: ROWS[name](contest) for name in names}
    reference = rows.get("unlocked") or ROWS["unlocked"](contest)
    bound = rows["bound"].energy_joules if "bound" in rows else None
    return [_record(contest, name, row, reference, bound) for name, row in rows.items()]


def _record(contest: Contest, name: str, row: Row, reference: Row, bound: float | None) -> Record:
    seed = contest.options.seed
    low, high = (min(row.drawn_joules), max(row.drawn_joules)) if row.drawn_joules else (row.energy_joules,) * 2
    ranked = row.attainment >= ATTAINMENT
    record: Record = {
        "world": contest.cell.case.world,
        "trace": contest.cell.case.trace,
        "load": contest.cell.load,
        "slo": contest.cell.case.slo,
        "controller": name,
        "energy_joules": round(row.energy_joules, 3),
        "energy_joules_low": round(min(low, row.energy_joules), 3),
        "energy_joules_high": round(max(high, row.energy_joules), 3),
        "attainment": round(row.attainment, 6),
        "requests_offered": len(contest.trace),
        "requests_completed": row.completed,
        "output_tokens": row.output_tokens,
        "seconds": round(contest.end_seconds, 6),
        "ranked": ranked,
        "of_unlocked": round(row.energy_joules / reference.energy_joules, 6),
        "of_unlocked_low": None,
        "of_unlocked_high": None,
        "attainment_low": None,
        "attainment_high": None,
        "of_bound": None if bound is None else round(row.energy_joules / bound, 6),
        "multiplier": round(contest.multiplier, 6),
        "draws": len(row.drawn_joules),
        "provenance": _provenance(contest),
        **row.details,
    }
    if len(row.blocks_joules) and name != "unlocked":
        # The run of a parked schedule is resampled as it ran, then parked as a whole.
        scale = row.energy_joules / float(row.blocks_joules.sum())
        interval = ratio_interval(row.blocks_joules * scale, reference.blocks_joules, seed=seed)
        record["of_unlocked_low"], record["of_unlocked_high"] = (round(value, 6) for value in interval)
    if len(row.met):
        interval = share_interval(row.met, blocks=BLOCKS, seed=seed)
        record["attainment_low"], record["attainment_high"] = (round(value, 6) for value in interval)
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in record.items()}


def _provenance(contest: Contest) -> str:
    model = contest.engine.model
    modelled = "modelled" in (model.provenance, model.gpu.provenance)
    return "modelled" if modelled else "measured"


class _Inline(Executor):
    """Runs each call where it is submitted: one process, for tests and debuggers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
        return future


def run_board(
    cells: Sequence[Cell],
    options: Options,
    store: Store,
    *,
    jobs: int,
    rows: Sequence[str] = tuple(ROWS),
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
    """Capacities and cells under way."""

    def __init__(self, options: Options, store: Store, *, jobs: int, rows: Sequence[str]) -> None:
        self._options, self._store, self._rows = options, store, rows
        self._executor: Executor = _Inline()
        if jobs > 1:
            self._executor = ProcessPoolExecutor(jobs, get_context("spawn"), _end_with, (os.getpid(),))
        self._waiting: dict[Future[Any], Case | Cell] = {}
        self._by_case: dict[Case, list[Cell]] = {}

    def through(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Record]]]:
        """Each cell with its rows, as it is done; no rows where a case has no capacity."""
        for cell in cells:
            self._by_case.setdefault(cell.case, []).append(cell)
        for case in self._by_case:
            known = self._store.get(_capacity_key(case))
            if known is None:
                self._waiting[self._executor.submit(find_capacity, case, self._options)] = case
            else:
                yield from self._start(case, known["multiplier"])
        while self._waiting:
            done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda each: str(self._waiting[each])):
                what, result = self._waiting.pop(future), future.result()
                if isinstance(what, Case):
                    self._store.put(_capacity_key(what), {"multiplier": result})
                    yield from self._start(what, result)
                else:
                    self._store.put(_cell_key(what, self._rows), result)
                    yield what, result

    def stop(self) -> None:
        """Leave what has not begun, wait for what has."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _start(self, case: Case, multiplier: float | None) -> Iterator[tuple[Cell, list[Record]]]:
        for cell in self._by_case[case]:
            known = self._store.get(_cell_key(cell, self._rows))
            if multiplier is None:
                yield cell, []
            elif known is None:
                self._waiting[self._executor.submit(play, cell, multiplier, self._options, self._rows)] = cell
            else:
                yield cell, known


def _capacity_key(case: Case) -> dict[str, Any]:
    return {"what": "capacity", "world": case.world, "trace": case.trace, "slo": case.slo}


def _cell_key(cell: Cell, rows: Sequence[str]) -> dict[str, Any]:
    return {"what": "cell", **cell.key, "rows": list(rows)}
