"""The paper's performance model M(tp, B, KV, f) -> iterations per second, as a table that is read and not computed.

`fit` trains gradient-boosted trees, which takes libraries that no agent has. What the profile keeps is the trees. They
are constant between their thresholds, so the sum of all of them is a table over (clock, batch bin, KV bin): it is
exactly the model, built once in some tens of milliseconds, and a look at it is two bisections.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from flyball_agent.controllers.throttllem.projection import Segment

VERSION: Final = 1
FEATURES: Final = ("gpus", "running", "kv_tokens", "sm_mhz")
_LONGEST: Final = 60.0
"""Seconds; no iteration is believed to take longer."""
_MOST_CELLS: Final = 4_000_000


class Piece(NamedTuple):
    """Iterations that all take the same time, whatever the clock.

    Attributes:
        cell: of the table of each clock.
        steps: how many.
        due_seconds: deadline of those that end with the last of them; infinite: none is looked at.
    """

    cell: int
    steps: int
    due_seconds: float


class Pace(NamedTuple):
    """What a walk through the pieces found.

    Attributes:
        seconds: all of them together.
        late_seconds: the worst lateness at a deadline; negative: the least slack; minus infinity: there is none.
        slowest_seconds: the longest iteration.
        mean_seconds: the highest running mean of the iterations' times.
    """

    seconds: float
    late_seconds: float
    slowest_seconds: float
    mean_seconds: float


class Performance:
    """M of one engine size, at the clocks it was profiled at.

    Args:
        fit: what `fit.fit` made.
        gpus: engine size to read it for.

    Raises:
        ValueError: the fit is none of this version, or is damaged; the message says what of it.
    """

    def __init__(self, fit: Mapping[str, Any], gpus: int) -> None:
        try:
            if fit["version"] != VERSION:
                raise ValueError(f"its version is {fit['version']}, this agent reads {VERSION}: profile again")
            self.clocks_mhz = tuple(int(mhz) for mhz in fit["clocks"])
            trees = [[_node(node, number, len(tree)) for number, node in enumerate(tree)] for tree in fit["trees"]]
            prefill = tuple(float(seconds) for seconds in fit["prefill_seconds_per_token"])
            base = float(fit["base"])
        except (KeyError, TypeError, IndexError, OverflowError) as error:
            raise ValueError(f"the fit of ThrottLLeM is damaged ({error!r}): profile again") from error
        if not self.clocks_mhz or self.clocks_mhz[0] < 1 or list(self.clocks_mhz) != sorted(set(self.clocks_mhz)):
            raise ValueError(f"the fit of ThrottLLeM has the clocks {self.clocks_mhz}: give them ascending")
        if len(prefill) != len(self.clocks_mhz):
            raise ValueError(
                f"the fit of ThrottLLeM has {len(prefill)} prefill times for {len(self.clocks_mhz)} clocks"
            )
        self.prefill_seconds_per_token = prefill
        self._batch_edges = _edges(trees, 1)
        self._kv_edges = _edges(trees, 2)
        numbers = [base, *prefill, *[number for tree in trees for node in tree for number in node]]
        if not trees or not all(trees) or not all(map(math.isfinite, numbers)) or min(prefill) < 0.0:
            raise ValueError("the fit of ThrottLLeM has an empty tree, a number that is none or a negative time")
        try:
            self._tables = self._tabulate(trees, base, gpus)
        except OverflowError as error:
            raise ValueError(f"the fit of ThrottLLeM is damaged ({error}): profile again") from error
        if not all(min(table) > 0.0 for table in self._tables):
            raise ValueError("the fit of ThrottLLeM is damaged (a step takes no time): profile again")

    def seconds(self, clock: int, batch: int, kv_tokens: float) -> float:
        """One iteration at `clocks_mhz[clock]`."""
        wide = len(self._kv_edges) + 1
        return self._tables[clock][
            bisect_left(self._batch_edges, batch) * wide + bisect_left(self._kv_edges, kv_tokens)
        ]

    def iterations_per_second(self, clock: int, batch: int, kv_tokens: float) -> float:
        """M at `clocks_mhz[clock]`."""
        return 1.0 / self.seconds(clock, batch, kv_tokens)

    def pieces(self, segments: Sequence[Segment]) -> list[Piece]:
        """Cut the segments where the table's next cell begins: what is the same for all clocks."""
        edges, batch_edges = self._kv_edges, self._batch_edges
        last = len(edges)
        pieces: list[Piece] = []
        for batch, held, all_steps, due in segments:
            tokens, left = held, all_steps
            base = bisect_left(batch_edges, batch) * (last + 1)
            index = bisect_left(edges, tokens)
            # Iterations until the tokens pass the cell's upper edge.
            while index < last and (steps := int((edges[index] - tokens) // batch) + 1) < left:
                if steps > 0:
                    pieces.append(Piece(base + index, steps, math.inf))
                    tokens += steps * batch
                    left -= steps
                index += 1
            pieces.append(Piece(base + index, left, due))
        return pieces

    def walk(self, clock: int, pieces: Sequence[Piece], *, first_seconds: float = 0.0, slower: float = 1.0) -> Pace:
        """Add up the iterations at the table's times.

        Args:
            clock: index of the clock.
            pieces: what is to be done.
            first_seconds: before the first iteration; only deadlines feel it.
            slower: factor of every time.
        """
        table = self._tables[clock]
        time, done, slowest, mean, late = 0.0, 0, 0.0, 0.0, -math.inf
        for cell, steps, due in pieces:
            each = table[cell] * slower
            time += steps * each
            done += steps
            slowest = max(slowest, each)
            if time > mean * done:
                mean = time / done
            late = max(late, time - due)
        return Pace(first_seconds * slower + time, first_seconds * slower + late, slowest, mean)

    def ends(self, clock: int, segments: Sequence[Segment], *, slower: float = 1.0) -> list[float]:
        """When each segment ends, seconds from the first iteration."""
        table, found, time = self._tables[clock], [], 0.0
        for segment in segments:
            time += slower * sum([steps * table[cell] for cell, steps, _ in self.pieces([segment])])
            found.append(time)
        return found

    def _tabulate(self, trees: list[list[_Node]], base: float, gpus: int) -> list[array[float]]:
        """Add every leaf's box to a difference array and sum it up along the three axes."""
        clocks, wide, deep = len(self.clocks_mhz), len(self._batch_edges) + 1, len(self._kv_edges) + 1
        if clocks * wide * deep > _MOST_CELLS:
            raise ValueError(f"the fit of ThrottLLeM has {clocks * wide * deep} cells: at most {_MOST_CELLS} are read")
        row = deep + 1
        layer = row * (wide + 1)
        cells = array("d", bytes(8 * layer * (clocks + 1)))
        for tree in trees:
            for value, (b0, b1), (k0, k1), (f0, f1) in self._boxes(tree, gpus):
                for clock, sign in ((f0, 1.0), (f1, -1.0)):
                    at = clock * layer
                    cells[at + b0 * row + k0] += sign * value
                    cells[at + b0 * row + k1] -= sign * value
                    cells[at + b1 * row + k0] -= sign * value
                    cells[at + b1 * row + k1] += sign * value
        tables: list[array[float]] = []
        before = array("d", bytes(8 * layer))
        for clock in range(clocks):
            summed = array("d", cells[clock * layer : (clock + 1) * layer])
            for b in range(wide):
                total = 0.0
                at = b * row
                for k in range(deep):
                    total += summed[at + k]
                    above = summed[at - row + k] if b else 0.0
                    summed[at + k] = total + above
            for cell in range(layer):
                before[cell] += summed[cell]
            tables.append(
                array(
                    "d",
                    [
                        min(math.exp(-base - log), _LONGEST)
                        for b in range(wide)
                        for log in before[b * row : b * row + deep]
                    ],
                )
            )
        return tables

    def _boxes(
        self, tree: list[_Node], gpus: int
    ) -> list[tuple[float, tuple[int, int], tuple[int, int], tuple[int, int]]]:
        """Each leaf's value and its ranges of batch bins, KV bins and clocks; leaves of other engine sizes left out."""
        found = []
        whole = ((0, len(self._batch_edges) + 1), (0, len(self._kv_edges) + 1), (0, len(self.clocks_mhz)))
        todo: list[tuple[int, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]] = [(0, whole)]
        while todo:
            index, box = todo.pop()
            feature, threshold, left, right, value = tree[index]
            if any(low >= high for low, high in box):
                continue  # nothing is in there, however many nodes are below
            if feature < 0:
                found.append((value, *box))
                continue
            if feature == 0:
                todo.append((left if gpus <= threshold else right, box))
                continue
            if feature == 3:
                cut = sum(mhz <= threshold for mhz in self.clocks_mhz)
            else:
                cut = bisect_left(self._batch_edges if feature == 1 else self._kv_edges, threshold) + 1
            low, high = box[feature - 1]
            cut = min(max(cut, low), high)
            below, above = list(box), list(box)
            below[feature - 1], above[feature - 1] = (low, cut), (cut, high)
            todo.append((left, (below[0], below[1], below[2])))
            todo.append((right, (above[0], above[1], above[2])))
        return found


class _Node(NamedTuple):
    """Of a tree: what is at most the threshold goes left. A leaf's feature is -1."""

    feature: int
    threshold: float
    left: int
    right: int
    value: float


def _node(raw: Sequence[Any], number: int, size: int) -> _Node:
    if len(raw) == 1:
        return _Node(-1, 0.0, 0, 0, float(raw[0]))
    if len(raw) != 4 or raw[0] not in range(len(FEATURES)):
        raise TypeError(f"node {raw!r} is none")
    feature, threshold, left, right = raw
    # Whole numbers, each beyond its parent: else a walk down the tree would not end.
    if any(type(child) is not int or not number < child < size for child in (left, right)):
        raise TypeError(f"node {raw!r} has children that are none")
    return _Node(int(feature), float(threshold), int(left), int(right), 0.0)


def _edges(trees: list[list[_Node]], feature: int) -> list[float]:
    return sorted({node.threshold for tree in trees for node in tree if node.feature == feature})
