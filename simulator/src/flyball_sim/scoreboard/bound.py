"""The energy no schedule can go below: a linear program over slots of a few seconds.

docs/scoreboard.md states the theorem and proves it; the names here are the proof's. Per slot there is one variable
for each activity at each corner of its frontier, for idle time, for time the floors leave out (on the cards and on the
host), for answer tokens of requests that may be late, and for the cumulative work of four kinds at the slot's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, csr_matrix

from flyball_sim.engine.core import EngineLimits
from flyball_sim.engine.models import StepModel
from flyball_sim.gpu.dies import Die
from flyball_sim.load.traces import TraceRequest
from flyball_sim.scoreboard.demand import Demand, SoloTimes, demand, prefill_class
from flyball_sim.scoreboard.floors import Floors, floors
from flyball_sim.scoreboard.frontier import Clocks, Frontier, simplified
from flyball_sim.scoreboard.slo import Floats, Slo

SLOT_SECONDS = 5.0
FRONTIER_TOLERANCE = 0.01
MOST_SLOTS = 360

PROMPT_CLASSES = (1, 64, 128, 256, 512, 768, 1024, 1536)
_REMAINDER_STEP = 64
_METHODS = ("highs-ds", "highs-ipm")
"""The second where the first fails; either's dual gives a bound."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A proved lower bound.

    Attributes:
        energy_joules: no schedule of the class has less energy.
        edges: edges of the slots it was found with, seconds.
    """

    energy_joules: float
    edges: Floats


@dataclass(frozen=True, slots=True)
class Unit:
    """An activity in portions of its seconds at the fastest clock: how much of it is a portion, and its frontier."""

    amount: float
    frontier: Frontier


def step_costs(found: Floors) -> dict[str, Floats]:
    """The unit cost of every activity but prompt tokens."""
    steps = {f"step {index}": band.step for index, band in enumerate(found.bands)}
    decodes = {f"decode {index}": band.decode for index, band in enumerate(found.bands)}
    held = {f"held {index}": band.held for index, band in enumerate(found.bands)}
    return {**steps, **decodes, **held, "pair": found.pair, "prompt step": found.prompt_step}


def work_of(activity: str) -> str | None:
    """The kind of work (`Demand.work`) an activity does; None for the steps themselves."""
    if activity.startswith(("step", "prompt step")):
        return None
    return activity if activity.startswith(("prefill", "pair")) else activity.partition(" ")[0]


class BoundProgram:
    """The bound for one engine; the floors and frontiers are worked out once.

    Args:
        model: step times, GPU type and group size.
        limits: the engine's.
        dies: one per card; nominal ones if not given.
    """

    def __init__(self, model: StepModel, limits: EngineLimits, dies: Sequence[Die] = ()) -> None:
        self._limits = limits
        self._clocks = Clocks(model, dies)
        budget, full = limits.max_num_batched_tokens, limits.max_num_batched_tokens - limits.max_num_seqs
        remainders = (1, *range(_REMAINDER_STEP, budget, _REMAINDER_STEP))
        self._classes = tuple(edge for edge in PROMPT_CLASSES if edge < full)
        self._floors: Floors = floors(model, limits, tuple(sorted({*remainders, *self._classes, full})))
        steps = {name: self._clocks.frontier(cost[None, :]) for name, cost in step_costs(self._floors).items()}
        prompts = self._prompts(remainders, full)
        steps |= {prefill_class(shortest): prompts[shortest] for shortest in self._classes}
        self._seconds = {name: float(frontier.seconds[0]) for name, frontier in steps.items()}
        self._units = {}
        for name, frontier in steps.items():
            amount = 1.0 / self._seconds[name] if self._seconds[name] > 0.0 else 1.0
            self._units[name] = Unit(amount, simplified(frontier.scaled(amount), FRONTIER_TOLERANCE))

    def bound(
        self,
        trace: Sequence[TraceRequest],
        slo: Slo,
        *,
        misses: int,
        end_seconds: float,
        slot_seconds: float = SLOT_SECONDS,
    ) -> Bound:
        """The least energy from 0 to the common end of any schedule that completes these requests by then.

        Args:
            trace: requests the schedule completes, by arrival.
            slo: what all of them but `misses` meet.
            misses: how many may miss.
            end_seconds: the common end.
            slot_seconds: length of a slot; longer where there would be more than `MOST_SLOTS`.
        """
        slots = max(1, min(MOST_SLOTS, round(end_seconds / slot_seconds)))
        edges = np.linspace(0.0, end_seconds, slots + 1)
        needs = demand(trace, slo, misses=misses, edges=edges, solo=self._solo(trace), classes=self._classes)
        return _Program(self._portions(needs), self._floors, self._clocks, self._limits, needs).solve()

    def _portions(self, needs: Demand) -> dict[str, Unit]:
        """Activities in portions of the mean slot's work, steps in those of a second: numbers a solver likes."""
        portions = {}
        for name, unit in self._units.items():
            kind = work_of(name)
            if kind is None:
                portions[name] = unit
            elif kind in needs.work:
                amount = max(1.0, float(needs.work[kind].most[-1])) / (len(needs.edges) - 1)
                portions[name] = Unit(amount, unit.frontier.scaled(amount / unit.amount))
        return portions

    def _prompts(self, remainders: Sequence[int], full: int) -> dict[int, Frontier]:
        """Per class, what a token of its prompts costs: whole, or cut in full steps and a step with the remainder."""
        found = self._floors
        atleast: dict[int, Frontier] = {}
        following: Frontier | None = None
        upper = np.inf
        for edge in sorted({*remainders, *self._classes, full}, reverse=True):
            mine = (found.prompt_tokens >= edge) & (found.prompt_tokens < upper)
            frontier = self._clocks.frontier(found.prompt[mine])
            following = frontier if following is None else frontier.joined(following)
            atleast[edge], upper = following, edge
        result = {}
        for shortest in self._classes:
            rests = [rest for rest in remainders if rest < shortest]
            cut = [
                atleast[full].scaled(1.0 - last / shortest).then(atleast[first].scaled(last / shortest))
                for first, last in pairwise([*rests, shortest])
            ]
            result[shortest] = atleast[shortest].joined(atleast[full], *cut)
        return result

    def _solo(self, trace: Sequence[TraceRequest]) -> SoloTimes:
        """Least times of each request, by the floors at the fastest clock."""
        top = self._seconds
        prompt = np.array([request.prompt_tokens for request in trace], dtype=float)
        later = np.array([request.output_tokens - 1 for request in trace], dtype=float)
        tokens = np.array([top[prefill_class(shortest)] for shortest in self._classes])
        member = np.searchsorted(np.asarray(self._classes), prompt, side="right") - 1
        prefill = (prompt - 1.0) * tokens[member] + (prompt - 1.0) ** 2 / 2.0 * top["pair"]
        shortest = min(
            top[f"step {index}"] + band.fewest * top[f"decode {index}"] for index, band in enumerate(self._floors.bands)
        )
        held = min(top[f"held {index}"] for index in range(len(self._floors.bands)))
        step = shortest + held * prompt
        residence = prefill + later * step + held * later * (later - 1.0) / 2.0
        return SoloTimes(prefill, step, residence, float(tokens.min()))


class _Program:
    """Assembles and solves one linear program; columns and rows are blocks of one per slot."""

    def __init__(
        self, units: dict[str, Unit], found: Floors, clocks: Clocks, limits: EngineLimits, needs: Demand
    ) -> None:
        self._units, self._needs = units, needs
        self._slots = len(needs.edges) - 1
        self._length = np.diff(needs.edges)
        self._costs: list[Floats] = []
        self._lower: list[Floats] = []
        self._upper: list[Floats] = []
        self._columns = 0
        self._entries: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]] = []
        self._row_lower: list[Floats] = []
        self._row_upper: list[Floats] = []
        self._rows = 0
        self._variables(clocks)
        self._constraints(found, limits)

    def solve(self) -> Bound:
        """Solve, and take the bound from the dual, so that it holds whatever the solver's tolerances."""
        cost, lower, upper = (np.concatenate(parts) for parts in (self._costs, self._lower, self._upper))
        matrix = self._matrix()
        row_lower, row_upper = np.concatenate(self._row_lower), np.concatenate(self._row_upper)
        equal = row_lower == row_upper
        bounds = np.column_stack((lower, upper))
        for method in _METHODS:
            solution = linprog(
                cost,
                A_ub=matrix[~equal],
                b_ub=row_upper[~equal],
                A_eq=matrix[equal],
                b_eq=row_upper[equal],
                bounds=bounds,
                method=method,
            )
            if solution.status == 0:
                break
        else:
            raise RuntimeError(f"the bound's linear program has no solution: {solution.message}")
        dual = np.zeros(len(row_upper))
        dual[equal] = solution.eqlin.marginals
        dual[~equal] = np.minimum(0.0, solution.ineqlin.marginals)
        reduced = cost - matrix.T @ dual
        safe = float(dual @ row_upper + np.minimum(reduced * lower, reduced * upper).sum())
        return Bound(safe, self._needs.edges)

    def _block(self, count: int, cost: float | Floats, lower: float | Floats, upper: float | Floats) -> slice:
        start = self._columns
        self._columns += count
        for parts, value in ((self._costs, cost), (self._lower, lower), (self._upper, upper)):
            parts.append(np.broadcast_to(np.asarray(value, dtype=float), (count,)))
        return slice(start, self._columns)

    def _variables(self, clocks: Clocks) -> None:
        slots, needs = self._slots, self._needs
        self._at: dict[str, slice] = {}
        for name, unit in self._units.items():
            corners = unit.frontier
            cost = np.repeat(corners.joules, slots)
            # An activity alone fills no more than its slot, and does no more than all of its work.
            all_work = np.inf if work_of(name) is None else float(slots)
            most = np.concatenate(
                [np.minimum(self._length / max(seconds, 1e-300), all_work) for seconds in corners.seconds.tolist()]
            )
            self._at[name] = self._block(len(cost), cost, 0.0, most)
        self._idle = self._block(slots, clocks.idle_watts, 0.0, np.minimum(needs.idle_seconds, self._length))
        self._cards = self._block(slots, clocks.busy_watts, 0.0, self._length)
        self._host = self._block(slots, clocks.idle_watts, 0.0, self._length)
        self._late = self._block(slots, 0.0, 0.0, needs.late_tokens)
        self._done = {}
        for kind, window in needs.work.items():
            portion = max(1.0, float(window.most[-1])) / slots
            self._done[kind] = self._block(slots, 0.0, window.least[1:] / portion, window.most[1:] / portion)

    def _constraints(self, found: Floors, limits: EngineLimits) -> None:
        slots, needs, units = self._slots, self._needs, self._units
        rows = self._new_rows(self._length, self._length)
        for name, unit in units.items():
            self._activity(rows, name, by_corner=unit.frontier.seconds)
        for block in (self._idle, self._cards, self._host):
            self._add(rows, block, 1.0)
        bands = [(band, f"step {index}", f"decode {index}", f"held {index}") for index, band in enumerate(found.bands)]
        for kind in needs.work:
            rows = self._new_rows(0.0, 0.0)
            for name in units:
                if work_of(name) == kind:
                    self._activity(rows, name, 1.0)
            block = self._done[kind]
            self._add(rows, block, -1.0)
            self._add(rows[1:], slice(block.start, block.stop - 1), 1.0)
        # Rows of sequences are in units of those that a band's steps can decode in a second.
        together = self._new_rows(-np.inf, 0.0)
        common = 1.0 / (units[bands[0][1]].amount * limits.max_num_seqs)
        for band, step, decode, _ in bands:
            scale = 1.0 / (units[step].amount * band.most)
            self._activity(together, decode, units[decode].amount * common)
            self._activity(together, step, by_slot=-needs.live * units[step].amount * common)
            rows = self._new_rows(-np.inf, 0.0)
            self._activity(rows, decode, units[decode].amount * scale)
            self._activity(rows, step, -band.most * units[step].amount * scale)
            rows = self._new_rows(-np.inf, 0.0)
            self._activity(rows, decode, -units[decode].amount * scale)
            self._activity(rows, step, band.fewest * units[step].amount * scale)
        self._add(together, self._late, -common)
        # A step that decodes nothing has a prompt token.
        rows = self._new_rows(-np.inf, 0.0)
        self._activity(rows, "prompt step", units["prompt step"].amount * common)
        for name, unit in units.items():
            if name.startswith("prefill"):
                self._activity(rows, name, -unit.amount * common)
        self._left_out(self._host, found.chunk_host_seconds, limits, {})
        slacks = {name: band.slack for band, step, decode, _ in bands for name in (step, decode)}
        slacks |= {held: band.held_slack for band, _, _, held in bands}
        self._left_out(self._cards, found.chunk_card_seconds, limits, slacks)
        row = self._new_rows(-np.inf, needs.late_tokens, count=1)
        self._add(np.repeat(row, slots), self._late, 1.0)

    def _left_out(self, block: slice, chunk_seconds: float, limits: EngineLimits, slacks: dict[str, float]) -> None:
        """Time the floors leave out: a share of what they hold, and so much for each chunk.

        Chunks in a slot are at most its prompt tokens; in all, one for each prompt and one for each cut.
        """
        rows = self._new_rows(-np.inf, 0.0)
        prompts = self._needs.requests * chunk_seconds
        total = np.repeat(self._new_rows(-np.inf, prompts, count=1), self._slots)
        self._add(rows, block, 1.0)
        self._add(total, block, 1.0)
        cuts = 1.0 / (limits.max_num_batched_tokens - limits.max_num_seqs)
        for name, unit in self._units.items():
            if name.startswith("prefill"):
                self._activity(total, name, -cuts * unit.amount * chunk_seconds)
                self._activity(rows, name, -unit.amount * chunk_seconds)
            elif name in slacks:
                for each in (total, rows):
                    self._activity(each, name, by_corner=-slacks[name] * unit.frontier.seconds)

    def _new_rows(self, lower: float | Floats, upper: float | Floats, count: int | None = None) -> NDArray[np.int64]:
        count = self._slots if count is None else count
        rows = np.arange(self._rows, self._rows + count)
        self._rows += count
        self._row_lower.append(np.broadcast_to(np.asarray(lower, dtype=float), (count,)))
        self._row_upper.append(np.broadcast_to(np.asarray(upper, dtype=float), (count,)))
        return rows

    def _activity(
        self,
        rows: NDArray[np.int64],
        name: str,
        factor: float = 1.0,
        *,
        by_slot: Floats | None = None,
        by_corner: Floats | None = None,
    ) -> None:
        """Add the activity's amount times `factor` to each row, or times one factor per slot or per corner."""
        corners = len(self._units[name].frontier.seconds)
        slots = np.full(self._slots, factor) if by_slot is None else by_slot
        values = np.tile(slots, corners) if by_corner is None else np.repeat(by_corner, self._slots)
        self._add(np.tile(rows, corners), self._at[name], values)

    def _add(self, rows: NDArray[np.int64], columns: slice, values: float | Floats) -> None:
        indices = np.arange(columns.start, columns.stop)
        self._entries.append((rows, indices, np.broadcast_to(np.asarray(values, dtype=float), indices.shape)))

    def _matrix(self) -> csr_matrix:
        rows, columns, values = (np.concatenate([entry[part] for entry in self._entries]) for part in range(3))
        return coo_matrix((values, (rows, columns)), shape=(self._rows, self._columns)).tocsr()
